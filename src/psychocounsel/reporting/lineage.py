"""Artifacts -> SVG: where everything came from, one lane per kind in the order of the flow.

The rounds of an online run share a box, and an edge that a longer way implies is left out: the picture is for
seeing, the table at the end of the report for looking up.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from markupsafe import Markup

from psychocounsel.reporting.report_data import ArtifactFacts

_ROUND = re.compile(r"-round-(\d+)$")
_LANES = ("speeches", "candidates", "judgements", "preferences", "reward-models", "rounds", "policies", "answers")
_LANE_OF_KIND = {
    "base-models": "judgements",
    "reference-logps": "rounds",
    "scores": "rounds",
    "annotations": "verdicts",
}
_LABELS = {"judgements": "judgements", "base-models": "base model", "reward-models": "reward model"}
_BOX_WIDTH, _BOX_HEIGHT = 158, 58
_GAP_ALONG, _GAP_ACROSS = 46, 18
_TITLE_CHARACTERS = 23
_MARGIN = 8


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
        """The name, in all its rounds."""
        first = self.artifacts[0].name
        return _ROUND.sub("-round-…", first) if len(self.artifacts) > 1 else first

    @property
    def detail(self) -> str:
        """Short id and number of rows."""
        rows = row_words(self.artifacts)
        if len(self.artifacts) > 1:
            return rows
        return f"@{self.artifacts[0].id[:8]}" + (f" · {rows}" if rows else "")


class Place(NamedTuple):
    """Upper left corner of a box."""

    x: float
    y: float


class Edge(NamedTuple):
    """Two boxes by their number; `backward` leads to an earlier lane."""

    start: int
    end: int
    backward: bool


def draw_lineage(artifacts: Sequence[ArtifactFacts], *, tall: bool) -> Markup:
    """Draw the artifacts; `tall` stacks the lanes from top to bottom for a narrow page."""
    nodes = group_nodes(artifacts)
    edges = find_edges(nodes)
    places = _lay_out(nodes, tall)
    width = max((place.x for place in places), default=0) + _BOX_WIDTH + _MARGIN
    dip = 40 if any(edge.backward for edge in edges) else 0
    height = max((place.y for place in places), default=0) + _BOX_HEIGHT + _MARGIN
    width, height = (width + dip, height) if tall else (width, height + dip)
    drawn = [_draw_edge(edge, places, tall) for edge in edges]
    drawn += [_draw_node(node, place) for node, place in zip(nodes, places, strict=True)]
    frame = Markup('<svg class="{}" viewBox="0 0 {:g} {:g}" style="max-width:{:g}px" aria-hidden="true">{}</svg>')
    return frame.format("tall" if tall else "wide", width, height, width, Markup("").join(drawn))


def row_words(artifacts: Iterable[ArtifactFacts]) -> str:
    """Return row counts by table: `train 480, test 40` for splits, `160 rows` for one table."""
    totals: dict[str, int] = {}
    for artifact in artifacts:
        for name, count in artifact.rows.items():
            stem = name.rsplit("/", maxsplit=1)[-1].split("-")[0].split(".")[0]
            totals[stem] = totals.get(stem, 0) + count
    if len(totals) == 1:
        return f"{sum(totals.values())} rows"
    return " + ".join(f"{count}" for count in totals.values()) + (" rows" if totals else "")


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
        key = (lane, each.kind, _ROUND.sub("", each.name) + " rounds" if is_round else each.id)
        nodes.setdefault(key, Node(lane)).artifacts.append(each)
    order = [*_LANES, "verdicts"]
    return sorted(nodes.values(), key=lambda node: order.index(node.lane))


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


def _lay_out(nodes: Sequence[Node], tall: bool) -> list[Place]:
    """Return where each box stands: lanes along the flow, their boxes centred across it."""
    per_line = 2 if tall else 99
    lanes = list(dict.fromkeys(node.lane for node in nodes))
    groups = [[number for number, node in enumerate(nodes) if node.lane == lane] for lane in lanes]
    rows = [group[at : at + per_line] for group in groups for at in range(0, len(group), per_line)]
    along_step = (_BOX_HEIGHT if tall else _BOX_WIDTH) + _GAP_ALONG * (0.7 if tall else 1)
    across_step = (_BOX_WIDTH if tall else _BOX_HEIGHT) + _GAP_ACROSS
    widest = max((len(row) for row in rows), default=0)
    places: dict[int, Place] = {}
    for line, row in enumerate(rows):
        for at, number in enumerate(row):
            across = (at + (widest - len(row)) / 2) * across_step
            along = line * along_step
            x, y = (across, along) if tall else (along, across)
            places[number] = Place(_MARGIN + x, _MARGIN + y)
    return [places[number] for number in range(len(nodes))]


def _draw_edge(edge: Edge, places: Sequence[Place], tall: bool) -> Markup:
    start, end = places[edge.start], places[edge.end]
    across, down = _BOX_WIDTH, _BOX_HEIGHT
    if edge.backward:
        far = max(start.x, end.x) + across + 40 if tall else max(start.y, end.y) + down + 40
        if tall:
            points = (start.x + across, start.y + down / 2, far, start.y, far, end.y + down)
            last = (end.x + across, end.y + down / 2)
        else:
            points = (start.x + across / 2, start.y + down, start.x, far, end.x + across, far)
            last = (end.x + across / 2, end.y + down)
    elif tall or start.x == end.x:
        middle = (start.y + down + end.y) / 2
        points = (start.x + across / 2, start.y + down, start.x + across / 2, middle, end.x + across / 2, middle)
        last = (end.x + across / 2, end.y)
    else:
        middle = (start.x + across + end.x) / 2
        points = (start.x + across, start.y + down / 2, middle, start.y + down / 2, middle, end.y + down / 2)
        last = (end.x, end.y + down / 2)
    path = "M{:g} {:g}C{:g} {:g} {:g} {:g} {:g} {:g}".format(*points, *last)
    return Markup('<path class="{}" d="{}"/><circle class="end" cx="{:g}" cy="{:g}" r="2.5"/>').format(
        "edge back" if edge.backward else "edge", path, *last
    )


def _draw_node(node: Node, place: Place) -> Markup:
    whole = ", ".join(f"{each.kind} {each.ref}" for each in node.artifacts)
    box = Markup(
        '<a href="#{}"><title>{}</title><rect class="box" x="{:g}" y="{:g}" width="{}" height="{}" rx="6"/>'
    ).format(node.artifacts[-1].anchor, whole, place.x, place.y, _BOX_WIDTH, _BOX_HEIGHT)
    texts = [("kind", 16, node.kind), ("name", 33, _shortened(node.name)), ("detail", 49, node.detail)]
    lines = [
        Markup('<text class="{}" x="{:g}" y="{:g}">{}</text>').format(style, place.x + 9, place.y + down, text)
        for style, down, text in texts
    ]
    return box + Markup("").join(lines) + Markup("</a>")


def _shortened(name: str) -> str:
    if len(name) <= _TITLE_CHARACTERS:
        return name
    kept = _TITLE_CHARACTERS - 1
    return f"{name[: kept // 2]}…{name[-(kept - kept // 2) :]}"
