"""A journal of its own for each test of a judge."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from psychocounsel.llm.journal import Journal


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "replies.sqlite") as opened:
        yield opened
