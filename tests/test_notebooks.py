"""The notebooks, and the API, in a real Jupyter kernel, where an event loop runs."""

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest
from chat_server import ChatServer
from nbclient.exceptions import CellExecutionError

from running import ENVIRONMENT

CLONE = Path(__file__).parents[1]
ENDPOINT = """
import asyncio, psychocounsel
asyncio.get_running_loop()
judge = psychocounsel.Judge(backend="endpoint", endpoint={{"model": "any", "base_url": "{base_url}"}}, store="store")
both = judge.rate_all([("I cannot sleep.", "What keeps you awake?"), ("I cannot sleep.", "Count sheep.")])
again = await asyncio.to_thread(judge.rate, "I cannot sleep.", "Count sheep.")
policy = psychocounsel.Policy("endpoint:any@{base_url}", store="store")
print(again == both[1], *{{each.status for each in both}}, len(policy.respond("I cannot sleep.", n=2)))
"""


@pytest.fixture
def notebooks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """Return `scripts/notebooks.py`; its kernels import this clone and write nothing into the home folder."""
    paths = filter(None, (ENVIRONMENT["PYTHONPATH"], os.environ.get("PYTHONPATH")))
    own = {"PYTHONPATH": os.pathsep.join(paths), "OPENAI_API_KEY": ""}
    for name, value in {**ENVIRONMENT, **own}.items():
        monkeypatch.setenv(name, value)
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    monkeypatch.syspath_prepend(str(CLONE / "scripts"))
    import notebooks

    return notebooks


@pytest.mark.parametrize("name", ["judge-my-answers", "train-a-reward-model", "win-rate"])
def test_a_notebook_runs_from_nothing_and_prints_what_is_in_it(
    notebooks: ModuleType, name: str, tmp_path: Path
) -> None:
    assert len(notebooks.NOTEBOOKS) == 3
    written: Any = nbformat.read(CLONE / "notebooks" / f"{name}.ipynb", as_version=4)
    before = notebooks.printed(written)
    assert any(before), "run scripts/notebooks.py"
    assert str(CLONE) not in str(written)
    notebooks.run(written, tmp_path)
    assert notebooks.printed(written) == before


def test_an_endpoint_answers_in_a_kernel(notebooks: ModuleType, tmp_path: Path) -> None:
    with ChatServer() as server:
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(ENDPOINT.format(base_url=server.base_url))]
        )
        notebooks.run(notebook, tmp_path)
        assert notebooks.printed(notebook) == ["True valid 2\n"]
        assert server.count == 4
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("import psychocounsel\npsychocounsel.Store().open('x')")]
    )
    with pytest.raises(CellExecutionError, match="ConfigError"):
        notebooks.run(notebook, tmp_path)
