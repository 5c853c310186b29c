"""dict -> Settings: the one shape of every config block."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo


class SpeedKnob:
    """Marks a field that changes how fast a result comes, never which result: it stays out of ids."""


class Gate:
    """Marks a field that decides whether a result is accepted, never which result: it stays out of ids."""


class Settings(BaseModel):
    """A frozen config block: unknown keys and wrong types are refused, nothing is coerced."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def identity(self) -> dict[str, Any]:
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
        return value.identity()
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
