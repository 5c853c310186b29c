"""The base class of every config block, and the types of its values."""

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo


class SpeedSetting:
    """Marks a field that changes how fast a result comes but not the result. It stays out of ids."""


class Gate:
    """Marks a field that decides whether a result is accepted but not the result. It stays out of ids."""


class Settings(BaseModel):
    """A frozen config block. Unknown keys and wrong types are errors; nothing is converted."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def fingerprint(self) -> dict[str, Any]:
        """Return the settings that affect the result, ready for JSON: all but speed settings and gates."""
        return {
            name: _plain(getattr(self, name))
            for name, info in type(self).model_fields.items()
            if not any(isinstance(mark, SpeedSetting | Gate) for mark in info.metadata)
        }

    @property
    def given(self) -> dict[str, Any]:
        """The fields that were set, and not left at their defaults."""
        return {name: getattr(self, name) for name in self.model_fields_set}


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.fingerprint()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


_Item = TypeVar("_Item")
Several = Annotated[tuple[_Item, ...], Field(strict=False)]
"""A list in YAML, a tuple here: configs are frozen, and everything else in them is strict."""
OneOrMore = Annotated[tuple[_Item, ...], Field(strict=False, min_length=1)]
PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
TopP = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
NAME_CHARS = 64
NAME_PATTERN = r"^[a-z0-9][a-z0-9_.-]*$"
Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=NAME_CHARS)]


def _next_to_config(name: str, info: ValidationInfo) -> str:
    """Return a path beside the config that names it, if something is there; any other name unchanged."""
    folder = Path(info.context or "")
    is_there = not Path(name).is_absolute() and ((folder / name).exists() or next(folder.glob(name), None) is not None)
    return str(folder / name) if name and is_there else name


PathBeside = Annotated[str, AfterValidator(_next_to_config)]
"""A path of a file, folder or several files (`*`), first looked for beside the config that names it."""


def _file_next_to_config(name: str, info: ValidationInfo) -> str:
    return _next_to_config(name, info) if "/" in name or "." in name else name


RefOrPathBeside = Annotated[str, AfterValidator(_file_next_to_config)]
"""The reference of an artifact, or a path as above; a name without a slash or a dot is a reference."""
