"""YAML -> who answers and who judges: endpoints, responders, judges, chat format, sampling."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from psychocounsel.config.base import (
    Name,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Seed,
    Settings,
    Share,
    SpeedKnob,
)


class EndpointConfig(Settings):
    """An OpenAI-compatible chat endpoint; the key itself never stands in a config."""

    model: str
    base_url: str | None = None
    api_key_env: Annotated[str, SpeedKnob()] = "OPENAI_API_KEY"
    timeout_seconds: Annotated[PositiveFloat, SpeedKnob()] = 120.0
    max_attempts: PositiveInt = 3
    concurrency: Annotated[PositiveInt, SpeedKnob()] = 8


class ChatFormat(Settings):
    """How a speech becomes a prompt; `date_string` pins the date that Llama templates write."""

    system_prompt: str = ""
    date_string: str = "26 Jul 2024"


class SamplingConfig(Settings):
    """How a model draws an answer. Temperature 0 is greedy."""

    temperature: NonNegativeFloat = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_new_tokens: PositiveInt = 512
    batch_size: Annotated[PositiveInt, SpeedKnob()] = 16


class ResponderConfig(Settings):
    """One author of responses: an endpoint, a local model (reference), or a file of responses."""

    author: Name
    endpoint: EndpointConfig | None = None
    model: str | None = None
    file: str | None = None
    sampling: SamplingConfig = SamplingConfig()
    chat: ChatFormat = ChatFormat()

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


class JudgeConfig(Settings):
    """Who rates and compares: the offline stand-in, or a model behind an endpoint."""

    backend: Literal["offline", "endpoint"] = "offline"
    rubric: str = "seven-principles"
    endpoint: EndpointConfig | None = None
    temperature: NonNegativeFloat = 0.0
    max_tokens: PositiveInt = 600
    max_missing_share: Share = 0.05

    @model_validator(mode="after")
    def _endpoint_named(self) -> "JudgeConfig":
        if (self.backend == "endpoint") != (self.endpoint is not None):
            raise ValueError("backend: endpoint needs an endpoint block, backend: offline takes none")
        return self
