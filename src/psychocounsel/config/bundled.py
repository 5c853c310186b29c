"""Name -> what ships with the package: recipes, sample data, system prompts.

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
