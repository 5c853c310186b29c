"""The blocks of configs that several stages share: endpoints, responders, judges."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import AfterValidator, Field, model_validator

from psychocounsel.config.base import (
    Gate,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    OneOrMore,
    PathBeside,
    PositiveFloat,
    PositiveInt,
    RefOrPathBeside,
    Seed,
    Settings,
    Several,
    Share,
    SpeedSetting,
    TopP,
)
from psychocounsel.config.sources import DataClass, RatingTable

_PACKAGE = Path(__file__).resolve().parent.parent
_CLONE = _PACKAGE.parent.parent
PREFIX = "bundled:"
_SECRET_HEADER = re.compile("auth|key|token|secret|cookie", re.IGNORECASE)
_SECRET_FIELD = re.compile("auth|api_?key|access_?token|secret|password|credential", re.IGNORECASE)  # not max_tokens


def recipes_folder() -> Path:
    """Return the folder with one folder per bundled recipe."""
    installed = _PACKAGE / "_bundled" / "configs"
    return installed if installed.is_dir() else _CLONE / "configs"


def locate(path: str) -> Path:
    """Resolve `bundled:FILE` to the sample file of that name; return any other path unchanged."""
    installed = _PACKAGE / "_bundled" / "samples"
    samples = installed if installed.is_dir() else _CLONE / "data" / "samples"
    return samples / path.removeprefix(PREFIX) if path.startswith(PREFIX) else Path(path)


def bundled_prompt(prompt: str) -> str:
    """Return the text of the bundled system prompt `bundled:NAME`; return any other prompt unchanged."""
    if not prompt.startswith(PREFIX):
        return prompt
    bundled = {path.stem: path for path in (_PACKAGE / "config" / "prompts").glob("*.txt")}
    name = prompt.removeprefix(PREFIX)
    if name not in bundled:
        raise ValueError(f"there is no system prompt {name!r}; known: {', '.join(sorted(bundled))}")
    return bundled[name].read_text(encoding="utf-8").strip()


class PriceConfig(Settings):
    """US dollars per million tokens, where the bundled table lacks a model or is out of date.

    `cached_prompt` is for tokens from the provider's prefix cache; null means the price of the prompt.
    """

    prompt: NonNegativeFloat
    completion: NonNegativeFloat
    cached_prompt: NonNegativeFloat | None = None


_SENT_FIELDS = {
    *("model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "response_format"),
    *("logprobs", "top_logprobs", "stream", "n"),
}


class EndpointConfig(Settings):
    """An OpenAI-compatible chat endpoint. The key comes from the environment, never from a config.

    The limits per minute apply in addition to those in the server's own headers; null sets none. `max_cost` (US
    dollars) limits what the replies to the requests of one step may cost together, those of earlier runs included:
    the run stops before the next request could exceed it, and can be resumed. `response_format` is how the server is
    held to a JSON schema; `auto` finds out what it enforces.

    `identity` stands for the address in ids and in the journal: the same model at another port, say, gives the replies
    that were paid already. Give it the old address to go on with those. `headers` go with every request, and the fields
    of `extra_body` into each, which makes them part of the ids. In both, `${NAME}` is the value of an environment
    variable, which no file receives.
    """

    model: str
    base_url: str | None = None
    identity: Annotated[str | None, SpeedSetting(), Field(min_length=1)] = None
    api_key_env: Annotated[str, SpeedSetting()] = "OPENAI_API_KEY"
    headers: Annotated[dict[str, str], SpeedSetting(), Field(default_factory=dict[str, str])]
    extra_body: Annotated[dict[str, Any], Field(default_factory=dict[str, Any])]
    timeout_seconds: Annotated[PositiveFloat, SpeedSetting()] = 120.0
    max_attempts: Annotated[PositiveInt, Gate()] = 3
    concurrency: Annotated[PositiveInt, SpeedSetting()] = 8
    requests_per_minute: Annotated[PositiveInt | None, SpeedSetting()] = None
    tokens_per_minute: Annotated[PositiveInt | None, SpeedSetting()] = None
    price: Annotated[PriceConfig | None, Gate()] = None
    max_cost: Annotated[PositiveFloat | None, Gate()] = None
    response_format: Literal["auto", "json_schema", "json_object", "text"] = "auto"

    @model_validator(mode="after")
    def _keeps_secrets_and_own_fields_apart(self) -> Self:
        for name, value in (*_texts("headers", self.headers), *_texts("extra_body", self.extra_body)):
            pattern = _SECRET_HEADER if name.startswith("headers.") else _SECRET_FIELD
            if pattern.search(name) and "${" not in value:
                raise ValueError(f"{name} looks like a secret: export it, and write ${{NAME}} of the variable")
        if own := sorted(_SENT_FIELDS.intersection(self.extra_body)):
            raise ValueError(f"extra_body.{own[0]} is decided by another key of the config")
        return self


def _texts(name: str, value: object) -> Iterator[tuple[str, str]]:
    """Yield every text in nested settings, with the names that lead to it."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, dict):
        for key, each in cast("dict[str, object]", value).items():
            yield from _texts(f"{name}.{key}", each)
    elif isinstance(value, list):
        for each in cast("list[object]", value):
            yield from _texts(name, each)


class BatchConfig(Settings):
    """How requests go through a provider's batch endpoint, which takes up to a day and half the price.

    A file holds at most `max_lines` requests. Files are submitted as long as the prompts with the provider have fewer
    than `enqueued_tokens`; null leaves the limit to the provider. Batches are polled
    after `first_poll_seconds`, then less and less often, at last every `longest_poll_seconds`. If it is unknown
    whether the provider accepted a batch, the provider's list is read for `confirm_seconds` before the batch is
    submitted again. `resubmit_lost` sends requests again whose batch the provider no longer knows, or whose answers it
    does not give.
    """

    enabled: bool = False
    max_lines: Annotated[int, Field(gt=0, le=50_000)] = 50_000
    enqueued_tokens: PositiveInt | None = None
    first_poll_seconds: PositiveFloat = 5.0
    longest_poll_seconds: PositiveFloat = 60.0
    confirm_seconds: NonNegativeFloat = 60.0
    resubmit_lost: bool = False


class ChatFormat(Settings):
    """How a speech becomes a prompt, the same for a local model and for one behind an endpoint.

    `system_prompt` is a text, empty for none, or `bundled:counsellor`. `date_string` pins the date that Llama
    templates write.
    """

    system_prompt: Annotated[str, AfterValidator(bundled_prompt)] = ""
    date_string: str = "26 Jul 2024"


class SamplingConfig(Settings):
    """How a model samples a response. Temperature 0 is greedy.

    A temperature or top_p of null is not sent to an endpoint, because some models refuse it; a local model uses 1.
    """

    temperature: NonNegativeFloat | None = 1.0
    top_p: TopP | None = 1.0
    max_new_tokens: PositiveInt = 512
    batch_size: Annotated[PositiveInt, SpeedSetting()] = 16

    @property
    def local_temperature(self) -> float:
        """The temperature of a local model."""
        return 1.0 if self.temperature is None else self.temperature

    @property
    def local_top_p(self) -> float:
        """The top_p of a local model."""
        return 1.0 if self.top_p is None else self.top_p


_VLLM_SERVE = (
    *("vllm", "serve", "{model}", "--revision", "{revision}", "--served-model-name", "{name}", "--dtype", "bfloat16"),
    *("--host", "127.0.0.1", "--port", "{port}", "--generation-config", "vllm"),
    *("--default-chat-template-kwargs", '{"date_string": "{date}", "enable_thinking": false}'),
)


class SamplerConfig(Settings):
    """What samples the answers of a model's weights.

    `local` is transformers. `vllm` is vLLM (`pip install psychocounsel[vllm]`) in one process per GPU, which takes the
    share `gpu_memory_utilization` of its memory and ends with the last answer. `endpoint` starts the command `serve`,
    a server that speaks the OpenAI protocol on this machine, sends the speeches through the journal, and stops it. In
    the command, `{model}` and `{revision}` are the weights, `{name}` is what the server must call them, `{port}` a free
    port at which it must listen, `{date}` the date of the chat format.
    """

    backend: Literal["local", "vllm", "endpoint"] = "local"
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1), SpeedSetting()] = 0.9
    serve: OneOrMore[str] = _VLLM_SERVE
    start_seconds: Annotated[PositiveFloat, SpeedSetting()] = 1200.0

    @model_validator(mode="after")
    def _fits_its_backend(self) -> Self:
        own = {"vllm": {"gpu_memory_utilization"}, "endpoint": {"serve", "start_seconds"}}
        changed = {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}
        if unused := changed - {"backend"} - own.get(self.backend, set()):
            raise ValueError(f"backend: {self.backend} takes no {', '.join(sorted(unused))}")
        if missing := [each for each in ("{model}", "{name}", "{port}") if each not in "\n".join(self.serve)]:
            raise ValueError(f"serve does not say where {', '.join(missing)} stands in the command")
        return self

    def fingerprint(self) -> dict[str, Any]:
        """Return what shapes the answers: the command only where it serves them."""
        settings = super().fingerprint()
        return settings if self.backend == "endpoint" else {"backend": self.backend}


class ResponderConfig(Settings):
    """One author of responses: an endpoint, a local model (a reference), or a file of responses with its terms.

    A file's first response to a speech counts; with `several_answers` its responses are draws, in their order.
    `max_missing_share` is the largest share of its answers that may be missing.
    """

    author: Name
    endpoint: EndpointConfig | None = None
    model: str | None = None
    file: PathBeside | None = None
    several_answers: Annotated[bool, Gate()] = False  # ids have the number of draws
    licence: str | None = None
    data_class: DataClass | None = None
    sampling: SamplingConfig = SamplingConfig()
    sampler: SamplerConfig = SamplerConfig()
    chat: ChatFormat = ChatFormat()
    max_missing_share: Annotated[Share, Gate()] = 0.05

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if [self.endpoint, self.model, self.file].count(None) != 2:
            raise ValueError("give exactly one of endpoint, model and file")
        if self.model is None and "sampler" in self.model_fields_set:
            raise ValueError("a sampler needs a model; endpoints and files answer without one")
        if [self.licence is None, self.data_class is None] != [self.file is None] * 2:
            raise ValueError("a file needs its licence and data_class, and nothing else has them")
        if self.several_answers and self.file is None:
            raise ValueError("several_answers is of a file")
        return self

    def fingerprint(self) -> dict[str, Any]:
        """Return what shapes the answers; the sampler does only where there are weights."""
        settings = super().fingerprint()
        return settings if self.model else {key: value for key, value in settings.items() if key != "sampler"}

    @property
    def varies(self) -> bool:
        """Whether another draw gives another answer: a file may have one only, and temperature 0 repeats itself."""
        return self.several_answers or (self.file is None and self.sampling.temperature != 0)


class PoolConfig(Settings):
    """Responders, of which `per_speech` respond to each speech, chosen by a hash of its content."""

    responders: OneOrMore[ResponderConfig]
    per_speech: PositiveInt = 4
    seed: Seed = 0

    @model_validator(mode="after")
    def _enough_distinct_responders(self) -> Self:
        if self.per_speech > len(self.responders):
            raise ValueError("per_speech exceeds the number of responders")
        if len({responder.author for responder in self.responders}) < len(self.responders):
            raise ValueError("two responders share an author name")
        if any(responder.several_answers for responder in self.responders):
            raise ValueError("a responder answers each speech of a pool once; give several answers as candidates")
        return self


_DEFAULT_MODELS = {
    "endpoint": "gpt-4o-2024-08-06",  # a dated snapshot: an alias would drift
    "decisions": "gpt-6-luna",  # the only model at OpenAI's decisions endpoint, according to its client
}
_NOT_FOR_DECISIONS = {"temperature", "top_p", "max_tokens", "samples"}


class ModelJudgeConfig(Settings):
    """A judge that is a model, and how it is sampled.

    `backend: decisions` is an endpoint that scores questions directly. `model` is for `backend: local`: an artifact, a
    folder, or `hub:owner/name@revision`. A temperature or top_p of null is not sent. With several `samples` of each
    request, ratings are their means and comparisons their votes. `score: expected` computes ratings from the
    log-probabilities of the reply's tokens instead of reading the number in it. `batch` changes how requests travel
    but not the replies. The first `pilot` results come alone: they say how many replies can be read and what all will
    cost, and end the run if none can be read; 0 for none.
    """

    backend: Literal["endpoint", "decisions", "local"] = "endpoint"
    endpoint: EndpointConfig | None = None
    model: str | None = None
    batch_size: Annotated[PositiveInt, SpeedSetting()] = 8
    batch: Annotated[BatchConfig, SpeedSetting()] = BatchConfig()
    temperature: NonNegativeFloat | None = 0.0
    top_p: TopP | None = 1.0
    max_tokens: PositiveInt = 600
    samples: PositiveInt = 1
    score: Literal["written", "expected"] = "written"
    pilot: Annotated[NonNegativeInt, Gate()] = 20

    @model_validator(mode="before")
    @classmethod
    def _with_default_model(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        judge = cast("dict[str, Any]", given)
        backend = judge.get("backend", cls.model_fields["backend"].default)
        endpoint = judge.get("endpoint")
        if endpoint is None and backend in _DEFAULT_MODELS:
            endpoint = dict[str, Any]()
        if not isinstance(endpoint, dict):
            return judge
        model = _DEFAULT_MODELS.get(backend, _DEFAULT_MODELS["endpoint"])
        return {**judge, "endpoint": {"model": model, **cast("dict[str, Any]", endpoint)}}

    @model_validator(mode="after")
    def _fits_its_backend(self) -> Self:
        if self.backend not in _DEFAULT_MODELS and self.endpoint is not None:
            raise ValueError(f"backend: {self.backend} takes no endpoint block")
        if self.backend not in ("endpoint", "panel") and self.batch.enabled:
            raise ValueError(f"backend: {self.backend} has no batches; --batch needs backend: endpoint")
        if (self.backend == "local") != (self.model is not None):
            raise ValueError("backend: local needs a model, and no other backend takes one")
        unused = self.model_fields_set & _NOT_FOR_DECISIONS
        if self.backend == "decisions" and unused:
            raise ValueError(f"backend: decisions takes no {', '.join(sorted(unused))}; leave it out")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("samples at temperature 0 are all the same; set a temperature, such as 1.0")
        if self.score == "expected" and self.backend != "endpoint":
            raise ValueError(f"backend: {self.backend} gives no log-probabilities; leave score out")
        return self

    def fingerprint(self) -> dict[str, Any]:
        """Return what shapes the ratings."""
        unused = _NOT_FOR_DECISIONS if self.backend == "decisions" else set[str]()
        return {name: value for name, value in super().fingerprint().items() if name not in unused}


class JudgeConfig(ModelJudgeConfig):
    """Who rates and compares: the offline word-list judge, a model, a panel of models, or a table of ratings.

    `rubric` is the name of a bundled rubric or a YAML file, first looked for next to the config. A `panel` has at
    least two judges; all of them get every request, and the mean of their ratings counts. Its `batch` applies to
    all its judges with `backend: endpoint`. `backend: table` takes `path`, `columns` and the other keys of a source
    beside `backend`; they make the block `table`.
    """

    backend: Literal["offline", "endpoint", "decisions", "local", "panel", "table"] = "offline"  # pyrefly: ignore[bad-override]
    rubric: RefOrPathBeside = "seven-principles"
    max_missing_share: Annotated[Share, Gate()] = 0.05
    panel: Several[ModelJudgeConfig] = ()
    table: RatingTable | None = None

    @model_validator(mode="before")
    @classmethod
    def _panel_and_table_are_backends(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        judge = cast("dict[str, Any]", given)
        if judge.get("backend") == "table" and "table" not in judge:
            table = {key: value for key, value in judge.items() if key in RatingTable.model_fields}
            return {**{key: value for key, value in judge.items() if key not in table}, "table": table}
        return {"backend": "panel", **judge} if judge.get("panel") else judge

    @model_validator(mode="after")
    def _panel_is_consistent(self) -> Self:
        if (self.backend == "panel") != bool(self.panel):
            raise ValueError("backend: panel needs a panel, and no other backend takes one")
        if (self.backend == "table") != (self.table is not None):
            raise ValueError("backend: table needs a path and columns, and no other backend takes them")
        own = self.model_fields_set & ModelJudgeConfig.model_fields.keys() - {"backend", "batch"}
        if self.table and own:
            raise ValueError(f"backend: table takes no {', '.join(sorted(own))}")
        if self.panel and own:
            raise ValueError(f"the judges of a panel have their own {', '.join(sorted(own))}; set it there")
        if self.panel and self.batch.enabled and all(each.backend != "endpoint" for each in self.panel):
            raise ValueError("no judge of the panel has batches; --batch needs one with backend: endpoint")
        if len(self.panel) == 1:
            raise ValueError("a panel has at least two judges")
        fingerprints = [each.fingerprint() for each in self.panel]
        if any(fingerprints.count(each) > 1 for each in fingerprints):
            raise ValueError("two judges of the panel are the same; use one with samples: 2")
        return self

    @property
    def members(self) -> tuple["JudgeConfig", ...]:
        """The judges of the panel, each with the panel's rubric and batches; without a panel, this judge."""
        members: list[JudgeConfig] = []
        for each in self.panel:
            given = {**each.given, "backend": each.backend, "rubric": self.rubric}
            if each.backend == "endpoint":
                given["batch"] = self.batch.model_copy(update=each.batch.given)
            members.append(JudgeConfig.model_validate({**given, "max_missing_share": self.max_missing_share}))
        return tuple(members) or (self,)

    @property
    def named_endpoints(self) -> dict[str, EndpointConfig]:
        """Every endpoint that reads what is judged, by its key in the config."""
        names = [f"judge.panel[{at}]" for at in range(len(self.panel))] or ["judge"]
        pairs = zip(names, self.members, strict=True)
        return {name: each.endpoint for name, each in pairs if each.endpoint is not None}

    @property
    def endpoints(self) -> tuple[EndpointConfig, ...]:
        """Every endpoint that reads what is judged."""
        return tuple(self.named_endpoints.values())

    def fingerprint(self) -> dict[str, Any]:
        """Return what shapes the ratings: for a panel, its judges."""
        settings = super().fingerprint()
        return {name: settings[name] for name in ("backend", "rubric", "panel")} if self.panel else settings
