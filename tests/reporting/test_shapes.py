"""The made-up run of these tests has the metrics that stages write, and the page reads what they write."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from report_runs import whole_run

from psychocounsel.config.schema import ReportConfig
from psychocounsel.reporting.tables import ArtifactFacts
from psychocounsel.stages.report import make_report
from psychocounsel.store.store import Store
from running import Miniature

BY_DATA = {"dropped", "failed", "left_out", "status", "topics", "fine_topics", "histograms", "by_topic"}
BY_DATA |= {"win_rate_by_criterion", "missing_by_topic", "missing_answers", "judged", "words"}
"""Mappings whose keys are reasons, topics, principles, authors or sides of the data at hand."""

Paths = set[tuple[str, ...]]


def paths(metrics: Any, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield where every value stands; of a list that of its first entry."""
    if isinstance(metrics, list) and metrics and isinstance(metrics[0], dict):
        yield from paths(metrics[0], before)
    elif isinstance(metrics, Mapping) and metrics and (not before or before[-1] not in BY_DATA):
        for key, value in metrics.items():
            yield from paths(value, (*before, key))
    else:
        yield before


def beyond(paths: Paths, known: Paths) -> Paths:
    """Return the paths that are not known, nor lead to known ones, nor go on from a null among them."""
    leading = {path[:length] for path in known for length in range(len(path) + 1)}
    ends = (path for path in paths if not any(path[:length] in known for length in range(len(path))))
    return {path for path in ends if path not in leading}


def paths_by_kind(metrics: Mapping[str, list[Any]]) -> dict[str, Paths]:
    return {kind: {path for each in group for path in paths(each)} for kind, group in metrics.items()}


@pytest.fixture(scope="module")
def written(miniature: Miniature) -> dict[str, Paths]:
    """Return where every value stands in the metrics of a real run, by kind."""
    metrics: dict[str, list[Any]] = {}
    for each in Store(miniature.store).artifacts():
        metrics.setdefault(each.kind, []).append(each.metrics)
    return paths_by_kind(metrics)


def test_made_up_metrics_stand_where_the_stages_write_them(written: dict[str, Paths]) -> None:
    metrics: dict[str, list[Any]] = {}
    for each in whole_run().artifacts:
        metrics.setdefault(each.kind, []).append(each.metrics)
    invented = paths_by_kind(metrics)
    assert {kind: found for kind in invented if (found := beyond(invented[kind], written[kind]))} == {}


NOT_IN_A_MINIATURE = {
    ("candidates", ("kept",)),  # asked of a pool
    ("preferences", ("flaws",)),  # imported
    ("speeches", ("clusters_across_splits",)),  # imported
}
"""Asked of every artifact of the kind, and written by an origin that the miniature recipe does not have."""


def test_the_page_reads_what_the_stages_write(
    miniature: Miniature, written: dict[str, Paths], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    read: set[tuple[str, tuple[str, ...]]] = set()
    value = ArtifactFacts.value

    def noted(self: ArtifactFacts, *path: str) -> Any:
        read.add((self.kind, path))
        return value(self, *path)

    monkeypatch.setattr(ArtifactFacts, "value", noted)
    store = Store(Path(shutil.copytree(miniature.store, tmp_path / "store")))
    shown = ("reward-models/mini", "policies/mini-dpo", "comparisons/mini")
    make_report(ReportConfig(name="all", artifacts=shown), store)
    assert len(read) > 40
    assert {(kind, path) for kind, path in read if beyond({path}, written[kind])} == NOT_IN_A_MINIATURE
