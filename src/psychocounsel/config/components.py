"""dict -> Settings: the one shape of every config block."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, model_validator


class SpeedKnob:
    """Marks a field that changes how fast a result comes, never which result: it stays out of ids."""


class Gate:
    """Marks a field that decides whether a result is accepted, never which result: it stays out of ids."""


class Settings(BaseModel):
    """A frozen config block: unknown keys and wrong types are refused, nothing is coerced."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def fingerprint(self) -> dict[str, Any]:
        """Return the settings that affect the result, ready for JSON; speed knobs and gates are left out."""
        return {name: _plain(getattr(self, name)) for name in self._identity_fields()}

    def _identity_fields(self) -> list[str]:
        fields = type(self).model_fields
        return [
            name
            for name, info in fields.items()
            if not any(isinstance(mark, SpeedKnob | Gate) for mark in info.metadata)
        ]


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.fingerprint()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return value


def _beside_config(name: str, info: ValidationInfo) -> str:
    beside = Path(info.context or "") / name
    return str(beside) if beside.is_file() else name


BesideConfig = Annotated[str, AfterValidator(_beside_config)]
"""A file beside the config that names it, so that a folder of configs can be moved; else unchanged."""

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]


_PACKAGE = Path(__file__).resolve().parent.parent
_CLONE = _PACKAGE.parent.parent
PREFIX = "bundled:"


def recipes_folder() -> Path:
    """Return the folder with one folder per bundled recipe."""
    installed = _PACKAGE / "_bundled" / "configs"
    return installed if installed.is_dir() else _CLONE / "configs"


def samples_folder() -> Path:
    """Return the folder with the sample speeches and responses."""
    installed = _PACKAGE / "_bundled" / "samples"
    return installed if installed.is_dir() else _CLONE / "data" / "samples"


def locate(path: str) -> Path:
    """Resolve `bundled:FILE` to the sample file of that name; any other path stays as it is."""
    if path.startswith(PREFIX):
        return samples_folder() / path.removeprefix(PREFIX)
    return Path(path)


def written_out_prompt(prompt: str) -> str:
    """Return the text of `bundled:NAME`, a system prompt that ships; any other prompt stays as it is.

    Raises:
        ValueError: none of that name ships.
    """
    if not prompt.startswith(PREFIX):
        return prompt
    shipped = {path.stem: path for path in (_PACKAGE / "config" / "prompts").glob("*.txt")}
    name = prompt.removeprefix(PREFIX)
    if name not in shipped:
        raise ValueError(f"there is no system prompt {name!r}; known: {', '.join(sorted(shipped))}")
    return shipped[name].read_text(encoding="utf-8").strip()


DEFAULT_JUDGE = "gpt-4o-2024-08-06"
"""A dated snapshot: an alias would drift."""


DEFAULT_DECIDER = "gpt-6-luna"
"""The one model that answers at OpenAI's decisions endpoint, as its client says."""

TopP = Annotated[float, Field(gt=0, le=1)]


class PriceConfig(Settings):
    """US dollars per million tokens, where the bundled table lacks a model or is out of date.

    `cached_prompt` is for tokens read from the provider's prefix cache; null means the price of the prompt.
    """

    prompt: NonNegativeFloat
    completion: NonNegativeFloat
    cached_prompt: NonNegativeFloat | None = None


class EndpointConfig(Settings):
    """An OpenAI-compatible chat endpoint; the key itself never stands in a config.

    The budgets per minute are kept beside those that the server's own headers tell; null sets none.
    `max_cost` (US dollars) is what the replies to the requests of one step may cost together, those of
    earlier runs included; before the next request could pass it, the run stops and can be resumed. `replies`
    says how the server is held to a JSON schema; `auto` finds out what it enforces.
    """

    model: str
    base_url: str | None = None
    api_key_env: Annotated[str, SpeedKnob()] = "OPENAI_API_KEY"
    timeout_seconds: Annotated[PositiveFloat, SpeedKnob()] = 120.0
    max_attempts: Annotated[PositiveInt, Gate()] = 3
    concurrency: Annotated[PositiveInt, SpeedKnob()] = 8
    requests_per_minute: Annotated[PositiveInt | None, SpeedKnob()] = None
    tokens_per_minute: Annotated[PositiveInt | None, SpeedKnob()] = None
    price: Annotated[PriceConfig | None, Gate()] = None
    max_cost: Annotated[PositiveFloat | None, Gate()] = None
    replies: Literal["auto", "json_schema", "json_object", "text"] = "auto"

    def fingerprint(self) -> dict[str, Any]:
        """Return what shapes the replies; what a server can do is its own part, unless it is pinned."""
        settings = super().fingerprint()
        return settings if self.replies != "auto" else {k: v for k, v in settings.items() if k != "replies"}


class BatchConfig(Settings):
    """How requests go through a provider's batch endpoint: half the price, an answer within a day.

    A file holds at most `max_lines` requests and `max_file_mb` megabytes. File after file is submitted while
    the prompts with the provider have fewer than `enqueued_tokens`; null, and the provider says when it has
    enough. Batches are looked at every `first_poll_seconds`, more and more seldom, at last every
    `longest_poll_seconds`. A batch of which nobody knows whether the provider took it is looked for in its
    list for `confirm_seconds` before it is submitted again. `resubmit_lost` asks again what stands in batches
    that the provider no longer knows.
    """

    enabled: bool = False
    max_lines: Annotated[int, Field(gt=0, le=50_000)] = 50_000
    max_file_mb: Annotated[float, Field(gt=0, le=200)] = 64.0
    enqueued_tokens: PositiveInt | None = None
    first_poll_seconds: PositiveFloat = 5.0
    longest_poll_seconds: PositiveFloat = 60.0
    confirm_seconds: NonNegativeFloat = 60.0
    transfer_timeout_seconds: PositiveFloat = 600.0
    resubmit_lost: bool = False


class ChatFormat(Settings):
    """How a speech becomes a prompt, the same for a model on this machine and one behind an endpoint.

    `system_prompt` is sent as it stands here: left empty, there is none; `bundled:counsellor` is the shipped
    one. `date_string` pins the date that Llama templates write.
    """

    system_prompt: Annotated[str, AfterValidator(written_out_prompt)] = ""
    date_string: str = "26 Jul 2024"


class SamplingConfig(Settings):
    """How a model draws an answer. Temperature 0 is greedy.

    A temperature or top_p of null is not sent to an endpoint, for some models refuse it; a model on this
    machine draws at 1.
    """

    temperature: NonNegativeFloat | None = 1.0
    top_p: TopP | None = 1.0
    max_new_tokens: PositiveInt = 512
    batch_size: Annotated[PositiveInt, SpeedKnob()] = 16

    @property
    def local_temperature(self) -> float:
        """The temperature at which a model on this machine draws."""
        return 1.0 if self.temperature is None else self.temperature

    @property
    def local_top_p(self) -> float:
        """The top_p at which a model on this machine draws."""
        return 1.0 if self.top_p is None else self.top_p


class ResponderConfig(Settings):
    """One author of responses: an endpoint, a local model (reference), or a file of responses.

    `max_missing_share` is the largest share of its speeches that may stay unanswered.
    """

    author: Name
    endpoint: EndpointConfig | None = None
    model: str | None = None
    file: str | None = None
    sampling: SamplingConfig = SamplingConfig()
    chat: ChatFormat = ChatFormat()
    max_missing_share: Annotated[Share, Gate()] = 0.05

    @model_validator(mode="after")
    def _one_kind(self) -> "ResponderConfig":
        if sum(kind is not None for kind in (self.endpoint, self.model, self.file)) != 1:
            raise ValueError("give exactly one of endpoint, model and file")
        return self


class PoolConfig(Settings):
    """Responders of which `per_speech` answer each speech, drawn by a hash of its content."""

    responders: Annotated[tuple[ResponderConfig, ...], Field(strict=False, min_length=1)]
    per_speech: PositiveInt = 4
    seed: Seed = 0

    @model_validator(mode="after")
    def _enough(self) -> "PoolConfig":
        if self.per_speech > len(self.responders):
            raise ValueError("per_speech exceeds the number of responders")
        if len({responder.author for responder in self.responders}) < len(self.responders):
            raise ValueError("two responders share an author name")
        return self


class AskedJudge(Settings):
    """A model that judges, behind an endpoint or on this machine, and how it is asked.

    An endpoint that names no model asks `DEFAULT_JUDGE`. A temperature or top_p of null is not sent. `model`
    is that of `backend: local`: an artifact, a folder, or `hub:owner/name@revision`. Each question is asked
    `samples` times: ratings are means of the samples, comparisons their vote. `score: expected` takes for a rating
    what is to be expected by the log-probabilities of its tokens, not the number that is written. `backend:
    decisions` asks an endpoint that scores questions directly; its ratings are expectations, too; where it
    names no model, it asks `DEFAULT_DECIDER`. `batch` is another road to the same replies.
    """

    backend: Literal["endpoint", "decisions", "local"] = "endpoint"
    endpoint: EndpointConfig | None = None
    model: str | None = None
    batch_size: Annotated[PositiveInt, SpeedKnob()] = 8
    batch: Annotated[BatchConfig, SpeedKnob()] = BatchConfig()
    temperature: NonNegativeFloat | None = 0.0
    top_p: TopP | None = 1.0
    max_tokens: PositiveInt = 600
    samples: PositiveInt = 1
    score: Literal["written", "expected"] = "written"

    @model_validator(mode="before")
    @classmethod
    def _default_model(cls, given: Any) -> Any:
        usual = cls.model_fields["backend"].default
        return _with_model(cast("dict[str, Any]", given), usual) if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _fits_its_backend(self) -> Self:
        if self.backend not in _BEHIND_ENDPOINTS and self.endpoint is not None:
            raise ValueError(f"backend: {self.backend} takes no endpoint block")
        if self.backend != "endpoint" and self.batch.enabled:
            raise ValueError(f"backend: {self.backend} has no batches; --batch needs backend: endpoint")
        if (self.backend == "local") != (self.model is not None):
            raise ValueError("backend: local needs a model, and no other backend takes one")
        unsent = self.model_fields_set & _NOT_DECIDED_BY
        if self.backend == "decisions" and unsent:
            raise ValueError(f"backend: decisions takes no {', '.join(sorted(unsent))}; leave it out")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("samples at temperature 0 are one and the same; set a temperature, such as 1.0")
        if self.score == "expected" and self.backend != "endpoint":
            raise ValueError(f"backend: {self.backend} gives no log-probabilities; leave score out")
        return self

    @property
    def given(self) -> dict[str, Any]:
        """What was said of it, and not left at its default."""
        return {name: getattr(self, name) for name in self.model_fields_set}

    def fingerprint(self) -> dict[str, Any]:
        """Return what shapes the ratings; what stands at its default and came later is left out."""
        settings = super().fingerprint()
        if self.backend == "decisions":
            settings = {name: value for name, value in settings.items() if name not in _NOT_DECIDED_BY}
        return {name: value for name, value in settings.items() if value != _UNSAID.get(name, _SAID)}


class JudgeConfig(AskedJudge):
    """Who rates and compares: the offline stand-in, a model that is asked, or a panel of such models.

    `rubric` is the name of a bundled one or a YAML file, looked for beside the config first. A `panel` has at
    least two judges: each is asked everything, and the mean of their ratings counts. Its `batch` is that of
    all its judges behind endpoints.
    """

    backend: Literal["offline", "endpoint", "decisions", "local", "panel"] = "offline"  # pyright: ignore[reportIncompatibleVariableOverride]
    rubric: BesideConfig = "seven-principles"
    max_missing_share: Annotated[Share, Gate()] = 0.05
    panel: Annotated[tuple[AskedJudge, ...], Field(strict=False)] = ()

    @model_validator(mode="before")
    @classmethod
    def _panel_is_a_backend(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        judge = cast("dict[str, Any]", given)
        return {"backend": "panel", **_with_batches_inside(judge)} if judge.get("panel") else judge

    @model_validator(mode="after")
    def _panel_stands_alone(self) -> Self:
        if (self.backend == "panel") != bool(self.panel):
            raise ValueError("backend: panel needs a panel, and no other backend takes one")
        own = self.model_fields_set & AskedJudge.model_fields.keys() - {"backend"}
        if self.panel and own:
            raise ValueError(f"a panel's judges have {', '.join(sorted(own))} of their own; set it there")
        if len(self.panel) == 1:
            raise ValueError("a panel has at least two judges")
        identities = [each.fingerprint() for each in self.panel]
        if any(identities.count(each) > 1 for each in identities):
            raise ValueError("two judges of the panel are one and the same; ask one with samples: 2")
        return self

    @property
    def members(self) -> tuple["JudgeConfig", ...]:
        """The judges of the panel, each with the panel's rubric; without a panel, this one."""
        shared = {"rubric": self.rubric, "max_missing_share": self.max_missing_share}
        asked = [{"backend": each.backend, **each.given, **shared} for each in self.panel]
        return tuple(map(JudgeConfig.model_validate, asked)) or (self,)

    @property
    def named_endpoints(self) -> dict[str, EndpointConfig]:
        """Every endpoint that reads what is judged, by the key under which it stands."""
        names = [f"judge.panel[{at}]" for at in range(len(self.panel))] or ["judge"]
        asked = zip(names, self.members, strict=True)
        return {name: each.endpoint for name, each in asked if each.endpoint is not None}

    @property
    def endpoints(self) -> tuple[EndpointConfig, ...]:
        """Every endpoint that reads what is judged."""
        return tuple(self.named_endpoints.values())

    def fingerprint(self) -> dict[str, Any]:
        """Return what shapes the ratings: of a panel, its judges."""
        settings = super().fingerprint()
        return {name: settings[name] for name in ("backend", "rubric", "panel")} if self.panel else settings


_BEHIND_ENDPOINTS = ("endpoint", "decisions")
_NOT_DECIDED_BY = {"temperature", "top_p", "max_tokens", "samples"}
_SAID = object()
_UNSAID: Mapping[str, Any] = {"model": None, "samples": 1, "score": "written", "panel": []}
"""Defaults of keys that were added after ids had been made without them."""


def _with_batches_inside(judge: dict[str, Any]) -> dict[str, Any]:
    """Return a panel with its `batch` moved to those of its judges that can be asked in batches."""
    if not isinstance(judge.get("batch"), dict) or not isinstance(judge["panel"], list | tuple):
        return judge
    panel = cast("Sequence[Any]", judge["panel"])
    able = [
        isinstance(each, dict) and cast("dict[str, Any]", each).get("backend", "endpoint") == "endpoint"
        for each in panel
    ]
    if not any(able):
        return judge
    batch, rest = judge["batch"], {name: value for name, value in judge.items() if name != "batch"}
    moved = [_with_batch(each, batch) if can else each for each, can in zip(panel, able, strict=True)]
    return {**rest, "panel": moved}


def _with_batch(judge: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
    own: Any = judge.get("batch", {})
    return {**judge, "batch": {**batch, **own} if isinstance(own, dict) else own}


def _with_model(judge: dict[str, Any], usual_backend: str) -> dict[str, Any]:
    endpoint: Any = judge.get("endpoint")
    backend = judge.get("backend", usual_backend)
    if endpoint is None and backend in _BEHIND_ENDPOINTS:
        endpoint = {}
    usual = DEFAULT_DECIDER if backend == "decisions" else DEFAULT_JUDGE
    named = isinstance(endpoint, dict) and {"model": usual, **cast("dict[str, Any]", endpoint)}
    return {**judge, "endpoint": named} if named else judge
