"""The picture of where everything came from: boxes in one lane per kind, in the order of the flow.

The rounds of an online run share a box, and an edge that a longer path implies is left out: the picture gives an
overview, and the table at the end of the report lists every parent.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import networkx as nx
from markupsafe import Markup

from psychocounsel.reporting.artifact_tables import row_count
from psychocounsel.reporting.tables import anchor
from psychocounsel.store.artifacts import Artifact

_ROUND = re.compile(r"-round-(\d+)$")
_LANES = (
    *("speeches", "candidates", "judgements", "preferences", "reward-models"),
    *("rounds", "policies", "answers", "comparisons"),
)
_LANE_OF_KIND = {"base-models": "judgements", "scores": "rounds", "audits": "preferences"}
_LABELS = {"base-models": "base model", "reward-models": "reward model"}


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
        return _ROUND.sub("", first) if len(self.artifacts) > 1 else first

    @property
    def detail(self) -> str:
        """Short id and number of rows."""
        count = sum(map(row_count, self.artifacts))
        rows = f"{count} rows" if count else ""
        if len(self.artifacts) > 1:
            return rows
        return f"@{self.artifacts[0].id[:8]}" + (f" · {rows}" if rows else "")


class Edge(NamedTuple):
    """Two boxes by their number; `backward` leads to an earlier lane."""

    start: int
    end: int
    backward: bool


def group_nodes(artifacts: Sequence[Artifact]) -> list[Node]:
    """Return the boxes in the order of the lanes; rounds of one kind and name share one."""
    kinds = {each.id: each.kind for each in artifacts}
    compared = {parent.id for each in artifacts if each.kind == "comparisons" for parent in each.parents}
    nodes: dict[tuple[str, str, str], Node] = {}
    for each in artifacts:
        if each.kind != "reports":
            is_round = _ROUND.search(each.name) is not None
            lane = "answers" if each.kind == "candidates" and each.id in compared else _lane(each, kinds)
            key = (lane, each.kind, f"{_run_of(each)} rounds" if is_round else each.id)
            nodes.setdefault(key, Node(lane)).artifacts.append(each)
    runs = {_run_of(each) for each in artifacts if _ROUND.search(each.name)}

    def place(node: Node) -> tuple[int, bool]:
        """Policies of an online run stand together, before those of none."""
        return _LANES.index(node.lane), node.lane == "policies" and _run_of(node.artifacts[0]) not in runs

    return sorted(nodes.values(), key=place)


def _run_of(artifact: Artifact) -> str:
    return _ROUND.sub("", artifact.name)


def _lane(artifact: Artifact, kinds: Mapping[str, str]) -> str:
    is_round = artifact.kind == "candidates" and _ROUND.search(artifact.name)
    is_round = is_round or (
        artifact.kind == "preferences" and "scores" in {kinds.get(parent.id) for parent in artifact.parents}
    )
    return "rounds" if is_round else _LANE_OF_KIND.get(artifact.kind, artifact.kind)


def find_edges(nodes: Sequence[Node]) -> list[Edge]:
    """Return the edges between boxes, without those that a longer path implies."""
    node_of = {each.id: number for number, node in enumerate(nodes) for each in node.artifacts}
    pairs = {
        (node_of[parent.id], number)
        for number, node in enumerate(nodes)
        for each in node.artifacts
        for parent in each.parents
        if parent.id in node_of and node_of[parent.id] != number
    }
    forward = {(start, end) for start, end in pairs if start < end}  # the boxes are in the order of the lanes
    graph: Any = nx.DiGraph(forward)
    edges = [Edge(*pair, backward=False) for pair in nx.transitive_reduction(graph).edges]
    return sorted([*edges, *(Edge(*pair, backward=True) for pair in pairs - forward)])


_BOX_WIDTH, _BOX_HEIGHT = 158, 58
_TRACK = 8
_GAP_WIDE, _GAP_TALL = 40, 34
_GAP_ACROSS = 16
_MARGIN = 8
_BACKWARD_SPACE = 40
_TITLE_CHARACTERS = 23


class Stop(NamedTuple):
    """What needs space on a line: a box (`line` None), or the track of a box's edges past a line."""

    box: int
    line: int | None = None


class Point(NamedTuple):
    """A place on the page."""

    x: float
    y: float


class Picture(NamedTuple):
    """Where everything stands: the line of each box along the flow, the middle of each stop across it."""

    tall: bool
    line_of: list[int]
    across: dict[Stop, float]
    space: float = 0.0
    """Kept free above a wide picture, and to the left of a tall one, for edges that lead back."""

    def middle(self, stop: Stop) -> Point:
        """Return the middle of a box or of a track."""
        line = self.line_of[stop.box] if stop.line is None else stop.line
        step = _BOX_HEIGHT + _GAP_TALL if self.tall else _BOX_WIDTH + _GAP_WIDE
        half = (_BOX_HEIGHT if self.tall else _BOX_WIDTH) / 2
        along = _MARGIN + half + line * step
        across = self.space + self.across[stop]
        return Point(across, along) if self.tall else Point(along, across)


def draw_lineage(artifacts: Sequence[Artifact], *, tall: bool) -> Markup:
    """Draw the artifacts; `tall` stacks the lanes from top to bottom for a narrow page."""
    nodes = group_nodes(artifacts)
    edges = find_edges(nodes)
    picture = lay_out(nodes, edges, tall=tall)
    middles = [picture.middle(Stop(number)) for number in range(len(nodes))]
    tracks = [picture.middle(stop) for stop in picture.across]
    width = max((each.x for each in [*middles, *tracks]), default=0) + _BOX_WIDTH / 2 + _MARGIN
    height = max((each.y for each in [*middles, *tracks]), default=0) + _BOX_HEIGHT / 2 + _MARGIN
    drawn = [_draw_edge(edge, picture) for edge in edges]
    drawn += [_draw_node(node, middle) for node, middle in zip(nodes, middles, strict=True)]
    shape = "tall" if tall else "wide"
    return Markup(
        '<svg class="{}" viewBox="0 0 {:g} {:g}" style="max-width:{:g}px" aria-hidden="true">{}</svg>'
    ).format(shape, width, height, width, Markup("").join(drawn))


def lay_out(nodes: Sequence[Node], edges: Sequence[Edge], *, tall: bool) -> Picture:
    """Return where boxes and tracks stand: each near what leads to it, no two in one place."""
    line_of = _lines(nodes, tall)
    leads_to = _leads(edges, line_of)
    across: dict[Stop, float] = {}
    for line in range(max(line_of, default=-1) + 1):
        boxes = [Stop(number) for number, at in enumerate(line_of) if at == line]
        tracks = [stop for stop in leads_to if stop.line == line]
        preferred = _preferred_places(boxes, tracks, leads_to, across)
        at = 0.0
        for stop in sorted(preferred, key=lambda stop: (preferred[stop], stop.line is not None, stop.box)):
            size = _TRACK if stop.line is not None else (_BOX_WIDTH if tall else _BOX_HEIGHT)
            across[stop] = at + size / 2
            at += size + _GAP_ACROSS
        for stop in preferred:
            across[stop] -= (at - _GAP_ACROSS) / 2
    half = (_BOX_WIDTH if tall else _BOX_HEIGHT) / 2
    first = min((place - (half if stop.line is None else 0) for stop, place in across.items()), default=0.0)
    placed = {stop: place - first + _MARGIN for stop, place in across.items()}
    space = _BACKWARD_SPACE if any(edge.backward for edge in edges) else 0
    return Picture(tall, line_of, placed, space)


def _lines(nodes: Sequence[Node], tall: bool) -> list[int]:
    """Return the line of each box: its lane, or on a narrow page one of the lines of its lane."""
    lines: list[int] = []
    in_line = 0
    for number, node in enumerate(nodes):
        if number == 0:
            lines.append(0)
            in_line = 1
            continue
        full = tall and in_line == (1 if node.lane == "rounds" else 2)
        opens = full or node.lane != nodes[number - 1].lane
        lines.append(lines[-1] + opens)
        in_line = 1 if opens else in_line + 1
    return lines


def _leads(edges: Sequence[Edge], line_of: Sequence[int]) -> dict[Stop, list[Stop]]:
    """Return, for every box and every track, the stops just before it."""
    leads: dict[Stop, list[Stop]] = {}
    for edge in edges:
        way = _way(edge, line_of)
        if not edge.backward:
            for before, after in pairwise(way):
                leads.setdefault(after, []).append(before)
    return leads


def _way(edge: Edge, line_of: Sequence[int]) -> list[Stop]:
    passed = range(line_of[edge.start] + 1, line_of[edge.end])
    return [Stop(edge.start), *(Stop(edge.start, line) for line in passed), Stop(edge.end)]


def _preferred_places(
    boxes: Sequence[Stop], tracks: Sequence[Stop], leads: dict[Stop, list[Stop]], across: dict[Stop, float]
) -> dict[Stop, float]:
    """Return the place of each stop of a line amid the stops that lead to it, boxes in order."""
    preferred: dict[Stop, float] = {}
    least = float("-inf")
    for stop in [*boxes, *tracks]:
        before = [across[each] for each in leads.get(stop, []) if each in across]
        place = sum(before) / len(before) if before else max(least, 0.0)
        if stop.line is None:
            place = least = max(least, place)
        preferred[stop] = place
    return preferred


def _draw_edge(edge: Edge, picture: Picture) -> Markup:
    if edge.backward:
        path, end = _backward_path(edge, picture)
    else:
        path, end = _forward_path(edge, picture)
    style = "edge back" if edge.backward else "edge"
    return Markup('<path class="{}" d="{}"/><circle class="end" cx="{:g}" cy="{:g}" r="2.5"/>').format(
        style, path, *end
    )


class Path(NamedTuple):
    """The `d` of a path, and where it ends."""

    d: str
    end: Point


def _forward_path(edge: Edge, picture: Picture) -> Path:
    way = [picture.middle(stop) for stop in _way(edge, picture.line_of)]
    if picture.line_of[edge.start] == picture.line_of[edge.end]:  # within a lane of a wide picture: straight down
        start, end = (
            Point(way[0].x, way[0].y + _BOX_HEIGHT / 2),
            Point(way[-1].x, way[-1].y - _BOX_HEIGHT / 2),
        )
        if picture.tall:
            start, end = (
                Point(way[0].x + _BOX_WIDTH / 2, way[0].y),
                Point(way[-1].x - _BOX_WIDTH / 2, way[-1].y),
            )
        return Path(f"M{start.x:g} {start.y:g}L{end.x:g} {end.y:g}", end)
    half_x, half_y = (0, _BOX_HEIGHT / 2) if picture.tall else (_BOX_WIDTH / 2, 0)
    at = Point(way[0].x + half_x, way[0].y + half_y)
    d = f"M{at.x:g} {at.y:g}"
    for middle in way[1:]:
        enter = Point(middle.x - half_x, middle.y - half_y)
        d += _bend(at, enter, picture.tall)
        at = enter
        if middle is not way[-1]:
            at = Point(middle.x + half_x, middle.y + half_y)
            d += f"L{at.x:g} {at.y:g}"
    return Path(d, at)


def _bend(start: Point, end: Point, tall: bool) -> str:
    if tall:
        half = (start.y + end.y) / 2
        return f"C{start.x:g} {half:g} {end.x:g} {half:g} {end.x:g} {end.y:g}"
    half = (start.x + end.x) / 2
    return f"C{half:g} {start.y:g} {half:g} {end.y:g} {end.x:g} {end.y:g}"


def _backward_path(edge: Edge, picture: Picture) -> Path:
    """Return a curve around the outside, from the later box back to the earlier one."""
    start, end = picture.middle(Stop(edge.start)), picture.middle(Stop(edge.end))
    if picture.tall:
        start, end = Point(start.x - _BOX_WIDTH / 2, start.y), Point(end.x - _BOX_WIDTH / 2, end.y)
        far = min(start.x, end.x) - 1.3 * _BACKWARD_SPACE
        return Path(f"M{start.x:g} {start.y:g}C{far:g} {start.y:g} {far:g} {end.y:g} {end.x:g} {end.y:g}", end)
    start, end = Point(start.x, start.y - _BOX_HEIGHT / 2), Point(end.x, end.y - _BOX_HEIGHT / 2)
    far = min(start.y, end.y) - 1.3 * _BACKWARD_SPACE
    return Path(f"M{start.x:g} {start.y:g}C{start.x:g} {far:g} {end.x:g} {far:g} {end.x:g} {end.y:g}", end)


def _draw_node(node: Node, middle: Point) -> Markup:
    whole = ", ".join(_whole(each) for each in node.artifacts)
    place = Point(middle.x - _BOX_WIDTH / 2, middle.y - _BOX_HEIGHT / 2)
    box = Markup(
        '<a href="#{}"><title>{}</title><rect class="box" x="{:g}" y="{:g}" width="{}" height="{}" rx="6"/>'
    ).format(anchor(node.artifacts[-1]), whole, place.x, place.y, _BOX_WIDTH, _BOX_HEIGHT)
    texts = [("kind", 16, node.kind), ("name", 33, _shortened(node.name)), ("detail", 49, node.detail)]
    lines = [
        Markup('<text class="{}" x="{:g}" y="{:g}">{}</text>').format(style, place.x + 9, place.y + down, text)
        for style, down, text in texts
    ]
    return box + Markup("").join(lines) + Markup("</a>")


def _whole(artifact: Artifact) -> str:
    rows = ", ".join(f"{count} {name}" for name, count in artifact.manifest["rows"].items())
    return f"{artifact.kind} {artifact.ref}" + (f" ({rows})" if rows else "")


def _shortened(name: str) -> str:
    if len(name) <= _TITLE_CHARACTERS:
        return name
    kept = _TITLE_CHARACTERS - 1
    return f"{name[: kept // 2]}…{name[-(kept - kept // 2) :]}"
