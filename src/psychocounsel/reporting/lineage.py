"""Artifacts -> boxes and edges: where everything came from, one lane per kind in the order of the flow.

The rounds of an online run share a box, and an edge that a longer way implies is left out: the picture is for
seeing, the table at the end of the report for looking up.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from psychocounsel.reporting.report_data import ArtifactFacts

_ROUND = re.compile(r"-round-(\d+)$")
_LANES = (
    "speeches",
    "candidates",
    "judgements",
    "preferences",
    "reward-models",
    "rounds",
    "policies",
    "answers",
)
_LANE_OF_KIND = {
    "base-models": "judgements",
    "reference-logps": "rounds",
    "scores": "rounds",
    "annotations": "verdicts",
    "audits": "preferences",
}
_LABELS = {"judgements": "judgements", "base-models": "base model", "reward-models": "reward model"}


@dataclass
class Node:
    """A box: one artifact, or the artifacts of one kind in all rounds of an online run."""

    lane: str
    artifacts: list[ArtifactFacts] = field(default_factory=list[ArtifactFacts])

    @property
    def kind(self) -> str:
        """Words for the kind; answers to be compared are candidates too."""
        kind = self.artifacts[0].kind
        label = "answers" if self.lane == "answers" else _LABELS.get(kind, kind)
        return label + (f" x {len(self.artifacts)} rounds" if len(self.artifacts) > 1 else "")

    @property
    def name(self) -> str:
        """The name, without the number where it stands for all rounds."""
        first = self.artifacts[0].name
        return _ROUND.sub("", first) if len(self.artifacts) > 1 else first

    @property
    def detail(self) -> str:
        """Short id and number of rows."""
        rows = row_words(self.artifacts)
        if len(self.artifacts) > 1:
            return rows
        return f"@{self.artifacts[0].id[:8]}" + (f" · {rows}" if rows else "")


class Edge(NamedTuple):
    """Two boxes by their number; `backward` leads to an earlier lane."""

    start: int
    end: int
    backward: bool


def row_words(artifacts: Iterable[ArtifactFacts]) -> str:
    """Return the number of rows in all tables together, empty for a model without one."""
    total = sum(count for artifact in artifacts for count in artifact.rows.values())
    return f"{total} rows" if total else ""


def group_nodes(artifacts: Sequence[ArtifactFacts]) -> list[Node]:
    """Return the boxes in the order of the lanes; rounds of one kind and name share one."""
    ids = {each.id: each for each in artifacts}
    compared = {parent.id for each in artifacts if each.kind == "verdicts" for parent in each.parents}
    nodes: dict[tuple[str, str, str], Node] = {}
    for each in artifacts:
        if each.kind == "reports":
            continue
        is_round = _ROUND.search(each.name) is not None
        lane = _lane(each, ids, compared)
        key = (lane, each.kind, f"{_run_of(each)} rounds" if is_round else each.id)
        nodes.setdefault(key, Node(lane)).artifacts.append(each)
    order = [*_LANES, "verdicts"]
    runs = {_run_of(each) for each in artifacts if _ROUND.search(each.name)}
    return sorted(nodes.values(), key=lambda node: (order.index(node.lane), _is_apart(node, runs)))


def _is_apart(node: Node, runs: set[str]) -> bool:
    """Whether a policy is of no online run: those of a run stand together, before it."""
    return node.lane == "policies" and _run_of(node.artifacts[0]) not in runs


def _run_of(artifact: ArtifactFacts) -> str:
    return _ROUND.sub("", artifact.name)


def _lane(artifact: ArtifactFacts, ids: Mapping[str, ArtifactFacts], compared: set[str]) -> str:
    lane = _LANE_OF_KIND.get(artifact.kind, artifact.kind)
    parents = [ids[parent.id].kind for parent in artifact.parents if parent.id in ids]
    if lane == "candidates" and artifact.id in compared:
        return "answers"
    if lane == "candidates" and _ROUND.search(artifact.name):
        return "rounds"
    if lane == "preferences" and "scores" in parents:
        return "rounds"
    return lane


def find_edges(nodes: Sequence[Node]) -> list[Edge]:
    """Return the edges between boxes, without those that a longer way implies."""
    node_of = {each.id: number for number, node in enumerate(nodes) for each in node.artifacts}
    pairs = {
        (node_of[parent.id], number)
        for number, node in enumerate(nodes)
        for each in node.artifacts
        for parent in each.parents
        if parent.id in node_of and node_of[parent.id] != number
    }
    lanes = [[*_LANES, "verdicts"].index(node.lane) for node in nodes]
    forward = {pair for pair in pairs if lanes[pair[0]] < lanes[pair[1]] or pair[0] < pair[1]}
    needed = [pair for pair in forward if not _is_implied(pair, forward)]
    edges = [Edge(*pair, backward=False) for pair in needed]
    return sorted([*edges, *(Edge(*pair, backward=True) for pair in pairs - forward)])


def _is_implied(pair: tuple[int, int], edges: set[tuple[int, int]]) -> bool:
    reached: set[int] = set()
    waiting = [end for start, end in edges if start == pair[0] and end != pair[1]]
    while waiting:
        at = waiting.pop()
        if at not in reached:
            reached.add(at)
            waiting += [end for start, end in edges if start == at]
    return pair[1] in reached
