"""Run the notebooks and write into them what their cells print; `tests/test_notebooks.py` checks that it stays true.

    .venv/bin/python scripts/notebooks.py

What goes to stderr, such as progress, is left out: it holds times and paths.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
VARIES = "varies"
"""The tag of cells whose numbers differ from machine to machine."""


def run(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Execute a notebook in a fresh kernel in a folder; its outputs are then those of this run.

    Raises:
        CellExecutionError: a cell raises.
    """
    here = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=here, record_timing=False).execute()
    notebook["metadata"]["language_info"] = {"name": "python"}
    for cell in notebook["cells"]:
        if "outputs" in cell:
            cell["outputs"] = [each for each in cell["outputs"] if each.get("name") != "stderr"]


def printed(notebook: nbformat.NotebookNode) -> list[str]:
    """Return what each cell prints that prints the same everywhere."""
    cells = [each for each in notebook["cells"] if VARIES not in each["metadata"].get("tags", [])]
    return ["".join(each.get("text", "") for each in cell.get("outputs", [])) for cell in cells]


if __name__ == "__main__":
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        with TemporaryDirectory() as folder:
            run(notebook, Path(folder))
        nbformat.write(notebook, path)
        print(path.name)
