"""Name -> path of what ships with the package: recipes and sample data.

An installed wheel carries them inside the package; in a clone they stand at its top.
"""

from pathlib import Path

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
