"""The picture of where everything came from: boxes in one lane per kind, in the order of the flow.

The rounds of an online run share a box, and an edge that a longer path implies is left out: the picture gives an
overview without the probes, and the table at the end of the report lists every parent.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import networkx as nx
from markupsafe import Markup

from psychocounsel.reporting.artifact_tables import row_count
from psychocounsel.reporting.tables import anchor, reasons
from psychocounsel.store.artifacts import ROUND, Artifact

_LANES = (
    *("speeches", "candidates", "judgements", "preferences", "reward-models"),
    *("rounds", "policies", "answers", "comparisons"),
)
_LANE_OF_KIND = {  # of the kinds without a lane of their name; that of all others is the last
    **{"base-models": "judgements", "scores": "rounds", "reference-logps": "rounds", "audits": "preferences"},
}
_COMPARING = ("comparisons", "crisis-evaluations")
_NOT_DRAWN = ("reports", "probes", "annotation-tasks")
_LABELS = {
    **{"base-models": "base model", "reward-models": "reward model", "reward-evaluations": "reward evaluation"},
    "reference-logps": "reference",
}


@dataclass
class Node:
    """A box: one artifact, or the artifacts of one kind in all rounds of an online run."""

    lane: str
    artifacts: list[Artifact] = field(default_factory=list[Artifact])

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
        return ROUND.sub("", first) if len(self.artifacts) > 1 else first

    @property
    def detail(self) -> str:
        """Short id and number of rows."""
        count = sum(map(row_count, self.artifacts))
        rows = f"{count} rows" if count else ""
        if len(self.artifacts) > 1:
            return rows
        return f"@{self.artifacts[0].id[:8]}" + (f" · {rows}" if rows else "")


class Edge(NamedTuple):
    """Two boxes by their number, which follows the order of the lanes."""

    start: int
    end: int

    @property
    def backward(self) -> bool:
        """Whether it leads to an earlier lane."""
        return self.end < self.start


def group_nodes(artifacts: Sequence[Artifact]) -> list[Node]:
    """Return the boxes in the order of the lanes; rounds of one kind and name share one."""
    kinds = {each.id: each.kind for each in artifacts}
    compared = {parent.id for each in artifacts if each.kind in _COMPARING for parent in each.parents}
    nodes: dict[tuple[str, str, str], Node] = {}
    for each in artifacts:
        if each.kind not in _NOT_DRAWN:
            is_round = ROUND.search(each.name) is not None
            from_scores = any(kinds.get(parent.id) == "scores" for parent in each.parents)
            lane = each.kind if each.kind in _LANES else _LANE_OF_KIND.get(each.kind, _LANES[-1])
            if each.kind == "candidates" and each.id in compared:
                lane = "answers"
            elif (each.kind == "candidates" and is_round) or (each.kind == "preferences" and from_scores):
                lane = "rounds"
            key = (lane, each.kind, f"{_run_of(each)} rounds" if is_round else each.id)
            nodes.setdefault(key, Node(lane)).artifacts.append(each)
    runs = {_run_of(each) for each in artifacts if ROUND.search(each.name)}

    def place(node: Node) -> tuple[int, bool]:
        """Policies of an online run stand together, before those of none."""
        return _LANES.index(node.lane), node.lane == "policies" and _run_of(node.artifacts[0]) not in runs

    return sorted(nodes.values(), key=place)


def _run_of(artifact: Artifact) -> str:
    return ROUND.sub("", artifact.name)


def find_edges(nodes: Sequence[Node]) -> list[Edge]:
    """Return the edges between boxes, without those that a longer path implies."""
    node_of = {each.id: number for number, node in enumerate(nodes) for each in node.artifacts}
    pairs = {
        Edge(node_of[parent.id], number)
        for number, node in enumerate(nodes)
        for each in node.artifacts
        for parent in each.parents
        if parent.id in node_of and node_of[parent.id] != number
    }
    graph: Any = nx.DiGraph(edge for edge in pairs if not edge.backward)
    forward = [Edge(*pair) for pair in nx.transitive_reduction(graph).edges]
    return sorted([*forward, *(edge for edge in pairs if edge.backward)])


_BOX_WIDTH, _BOX_HEIGHT = 158, 58
_TRACK = 8
_GAP_ALONG = 34
_GAP_ACROSS = 16
_MARGIN = 17
_LINES_PER_PAGE = 10
"""Of paper, on which the words can still be read."""
_BACKWARD_SPACE = 40
_TITLE_CHARACTERS = 23


class Stop(NamedTuple):
    """What needs space on a line: a box (`line` None), or the track of a box's edges past a line."""

    box: int
    line: int | None = None


@dataclass(frozen=True)
class Layout:
    """Places of boxes and tracks: their line, from top to bottom, and the x of their middle."""

    line_of: list[int]
    x: dict[Stop, float]

    def y(self, stop: Stop) -> float:
        """Return the y of the middle of a box or of a track."""
        line = self.line_of[stop.box] if stop.line is None else stop.line
        return _MARGIN + _BOX_HEIGHT / 2 + line * (_BOX_HEIGHT + _GAP_ALONG)

    def stops(self, edge: Edge) -> list[Stop]:
        """Return what an edge passes, from its first box to its last."""
        passed = range(self.line_of[edge.start] + 1, self.line_of[edge.end])
        return [Stop(edge.start), *(Stop(edge.start, line) for line in passed), Stop(edge.end)]


def draw_lineage(artifacts: Sequence[Artifact]) -> Markup:
    """Draw the artifacts, lane under lane: narrow enough for a phone, and in as many pictures as it takes on paper."""
    nodes = group_nodes(artifacts)
    edges = find_edges(nodes)
    layout = lay_out(nodes, edges)
    width = max(layout.x.values(), default=0) + _BOX_WIDTH / 2 + _MARGIN
    lines = max(layout.line_of, default=0) + 1
    per_page = math.ceil(lines / math.ceil(lines / _LINES_PER_PAGE))
    height = per_page * (_BOX_HEIGHT + _GAP_ALONG)
    shown = Markup('<g id="edges">{}</g>').format(Markup("").join(_draw_edge(edge, layout) for edge in edges))
    pictures: list[Markup] = []
    for number, first in enumerate(range(0, lines, per_page)):
        own = [at for at, line in enumerate(layout.line_of) if first <= line < first + per_page]
        boxes = Markup("").join(_draw_node(nodes[at], layout.x[Stop(at)], layout.y(Stop(at))) for at in own)
        pictures.append(
            Markup('<svg viewBox="0 {:g} {:g} {:g}" style="max-width:{:g}px" aria-hidden="true">{}{}</svg>').format(
                number * height, width, height, width, shown, boxes
            )
        )
        shown = Markup('<use href="#edges"/>')  # of which a picture shows its part
    return Markup("").join(pictures)


def lay_out(nodes: Sequence[Node], edges: Sequence[Edge]) -> Layout:
    """Return the places of boxes and tracks: each near what leads to it, no two in one place."""
    places: dict[Stop, float] = {}
    layout = Layout(_lines(nodes), places)
    before: dict[Stop, list[Stop]] = {}
    for edge in edges:
        if not edge.backward:
            for stop, following in pairwise(layout.stops(edge)):
                before.setdefault(following, []).append(stop)
    for line in range(max(layout.line_of, default=-1) + 1):
        boxes = [Stop(number) for number, at in enumerate(layout.line_of) if at == line]
        tracks = [stop for stop in before if stop.line == line]
        preferred = _preferred_places(boxes, tracks, before, places)
        at = 0.0
        for stop in sorted(preferred, key=lambda stop: (preferred[stop], stop.line is not None, stop.box)):
            size = _TRACK if stop.line is not None else _BOX_WIDTH
            places[stop] = at + size / 2
            at += size + _GAP_ACROSS
        for stop in preferred:
            places[stop] -= (at - _GAP_ACROSS) / 2
    first = min((at - (_BOX_WIDTH / 2 if stop.line is None else 0) for stop, at in places.items()), default=0.0)
    # Edges that lead back run outside, before the first box.
    space = _BACKWARD_SPACE if any(edge.backward for edge in edges) else 0
    return replace(layout, x={stop: at - first + _MARGIN + space for stop, at in places.items()})


def _lines(nodes: Sequence[Node]) -> list[int]:
    """Return the line of each box: two boxes of a lane share one, those of online rounds stand below each other."""
    lines: list[int] = []
    for _, lane in groupby(nodes, key=lambda node: node.lane):
        boxes = list(lane)
        per_line = 1 if boxes[0].lane == "rounds" else 2
        first = lines[-1] + 1 if lines else 0
        lines += [first + number // per_line for number in range(len(boxes))]
    return lines


def _preferred_places(
    boxes: Sequence[Stop], tracks: Sequence[Stop], before: Mapping[Stop, list[Stop]], x: Mapping[Stop, float]
) -> dict[Stop, float]:
    """Return the place of each stop of a line amid the stops that lead to it, boxes in order."""
    preferred: dict[Stop, float] = {}
    least = float("-inf")
    for stop in [*boxes, *tracks]:
        leading = [x[each] for each in before.get(stop, []) if each in x]
        place = sum(leading) / len(leading) if leading else max(least, 0.0)
        if stop.line is None:
            place = least = max(least, place)
        preferred[stop] = place
    return preferred


def _draw_edge(edge: Edge, layout: Layout) -> Markup:
    start, end = Stop(edge.start), Stop(edge.end)
    if edge.backward:  # a curve around the outside
        left = [layout.x[stop] - _BOX_WIDTH / 2 for stop in (start, end)]
        far = min(left) - 1.3 * _BACKWARD_SPACE
        points = [(left[0], layout.y(start)), (far, layout.y(start)), (far, layout.y(end)), (left[1], layout.y(end))]
        commands = ["M", "C", "", ""]
    elif layout.line_of[edge.start] == layout.line_of[edge.end]:  # within a line: straight across
        points = [
            (layout.x[start] + _BOX_WIDTH / 2, layout.y(start)),
            (layout.x[end] - _BOX_WIDTH / 2, layout.y(end)),
        ]
        commands = ["M", "L"]
    else:
        points = list[tuple[float, float]]()
        commands = list[str]()
        for stop, following in pairwise(layout.stops(edge)):
            leave, enter = layout.y(stop) + _BOX_HEIGHT / 2, layout.y(following) - _BOX_HEIGHT / 2
            x, next_x, middle = layout.x[stop], layout.x[following], (leave + enter) / 2
            points += [(x, leave), (x, middle), (next_x, middle), (next_x, enter)]
            commands += ["L" if commands else "M", "C", "", ""]
    d = "".join(f"{command or ' '}{x:g} {y:g}" for command, (x, y) in zip(commands, points, strict=True))
    return Markup('<path class="{}" d="{}"/><circle class="end" cx="{:g}" cy="{:g}" r="2.5"/>').format(
        "edge back" if edge.backward else "edge", d, *points[-1]
    )


def _draw_node(node: Node, middle_x: float, middle_y: float) -> Markup:
    whole = ", ".join(
        f"{each.kind} {each.ref}" + (f" ({reasons(each.manifest['rows'])})" if each.manifest["rows"] else "")
        for each in node.artifacts
    )
    x, y = middle_x - _BOX_WIDTH / 2, middle_y - _BOX_HEIGHT / 2
    box = Markup(
        '<a href="#{}"><title>{}</title><rect class="box" x="{:g}" y="{:g}" width="{}" height="{}" rx="6"/>'
    ).format(anchor(node.artifacts[-1]), whole, x, y, _BOX_WIDTH, _BOX_HEIGHT)
    texts = [("kind", 16, node.kind), ("name", 33, _shortened(node.name)), ("detail", 49, node.detail)]
    lines = [
        Markup('<text class="{}" x="{:g}" y="{:g}">{}</text>').format(style, x + 9, y + down, text)
        for style, down, text in texts
    ]
    return box + Markup("").join(lines) + Markup("</a>")


def _shortened(name: str) -> str:
    if len(name) <= _TITLE_CHARACTERS:
        return name
    kept = _TITLE_CHARACTERS - 1
    return f"{name[: kept // 2]}…{name[-(kept - kept // 2) :]}"
