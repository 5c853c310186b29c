import re
import xml.etree.ElementTree as ElementTree

import pytest
from report_runs import artifact, whole_run

from psychocounsel.reporting.lineage import draw_lineage, find_edges, group_nodes


def boxes(svg: str) -> list[tuple[float, float, float, float]]:
    found = re.findall(r'<rect class="box" x="([^"]+)" y="([^"]+)" width="(\d+)" height="(\d+)"', svg)
    return [(float(x), float(y), float(width), float(height)) for x, y, width, height in found]


def size(svg: str) -> tuple[float, float]:
    """Return the width, and the height of all pictures, which go on where the one before ends."""
    views = [list(map(float, view.split())) for view in re.findall(r'viewBox="([^"]+)"', svg)]
    ends = [0.0, *(top + height for _, top, _, height in views)]
    assert [top for _, top, _, _ in views] == ends[:-1]
    return views[0][2], ends[-1]


@pytest.mark.parametrize("rounds", [0, 1, 3, 16])
def test_boxes_neither_overlap_nor_leave_the_picture(rounds: int) -> None:
    svg = draw_lineage(whole_run(rounds).artifacts)
    ElementTree.fromstring(f"<figure>{svg}</figure>")  # noqa: S314 - our own drawing
    (width, height), placed = size(svg), boxes(svg)
    for number, (x, y, w, h) in enumerate(placed):
        assert 0 <= x <= width - w
        assert 0 <= y <= height - h
        for other_x, other_y, other_w, other_h in placed[number + 1 :]:
            assert x + w <= other_x or other_x + other_w <= x or y + h <= other_y or other_y + other_h <= y


def test_what_is_too_long_for_a_sheet_of_paper_is_cut_between_boxes() -> None:
    kinds = ("speeches", "candidates", "judgements", "preferences", "reward-models", "policies")
    long = [artifact(kind, f"{kind}-{number}", {}) for kind in kinds for number in range(5)]
    for artifacts, count in ((long, 2), (long[:20], 2), (long[:15], 1), ([], 1)):
        pictures = re.findall("<svg.*?</svg>", draw_lineage(artifacts))
        assert len(pictures) == count
        for picture in pictures:
            top, width, height = map(float, re.findall(r'viewBox="0 (\S+) (\S+) (\S+)"', picture)[0])
            assert height <= 1000
            for x, y, w, h in boxes(picture):
                assert 0 <= x <= width - w
                assert top <= y <= top + height - h
        assert "".join(pictures).count('id="edges"') == 1


def test_edges_end_at_the_rim_of_a_box_and_run_behind_none() -> None:
    svg = draw_lineage(whole_run(3).artifacts)
    placed = boxes(svg)
    ends = re.findall(r'<circle class="end" cx="([^"]+)" cy="([^"]+)"', svg)
    for at_x, at_y in ((float(x), float(y)) for x, y in ends):
        assert any(
            (at_x in (x, x + w) and y <= at_y <= y + h) or (at_y in (y, y + h) and x <= at_x <= x + w)
            for x, y, w, h in placed
        )
    paths = " ".join(re.findall(r' d="([^"]+)"', svg))
    tracks = re.findall(r" ([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)", paths)
    assert tracks
    for start_x, start_y, end_x, end_y in (map(float, track) for track in tracks):
        for x, y, w, h in placed:  # a track is level or upright
            spans_x = min(start_x, end_x) < x + w and x < max(start_x, end_x)
            spans_y = min(start_y, end_y) < y + h and y < max(start_y, end_y)
            assert not (spans_x and y < start_y < y + h and start_x != end_x)
            assert not (spans_y and x < start_x < x + w and start_y != end_y)


def test_the_way_back_stays_in_the_picture_and_meets_no_other_box() -> None:
    svg = draw_lineage(whole_run(3).artifacts)
    width, height = size(svg)
    (path,) = re.findall(r'class="edge back" d="([^"]+)"', svg)
    numbers = [float(number) for number in re.findall(r"-?[\d.]+", path)]
    corners = list(zip(numbers[::2], numbers[1::2], strict=True))
    for part in (step / 50 for step in range(1, 50)):
        weights = ((1 - part) ** 3, 3 * part * (1 - part) ** 2, 3 * part**2 * (1 - part), part**3)
        at_x, at_y = (sum(w * corner[axis] for w, corner in zip(weights, corners, strict=True)) for axis in (0, 1))
        assert 0 <= at_x <= width
        assert 0 <= at_y <= height
        assert not any(x < at_x < x + w and y < at_y < y + h for x, y, w, h in boxes(svg))


def test_rounds_share_a_box_and_each_artifact_stands_in_one_lane_by_lane() -> None:
    run = whole_run(3)
    nodes = group_nodes(run.artifacts)
    drawn = [each.id for node in nodes for each in node.artifacts]
    assert sorted(drawn) == sorted(each.id for each in run.artifacts if each.kind != "probes")
    assert [len(node.artifacts) for node in nodes if node.lane == "rounds"] == [3, 3, 3]
    assert [node.kind for node in nodes if len(node.artifacts) == 3][-1:] == ["policies x 3 rounds"]
    # Compared answers stand after the policies.
    lanes = [node.lane for node in nodes]
    assert lanes.index("candidates") < lanes.index("policies") < lanes.index("answers") < lanes.index("comparisons")
    assert (lanes.count("candidates"), lanes.count("answers")) == (1, 4)
    # Only the way into the next round leads back.
    back = [(nodes[edge.start].kind, nodes[edge.end].kind) for edge in find_edges(nodes) if edge.backward]
    assert back == [("policies x 3 rounds", "candidates x 3 rounds")]


def test_an_edge_that_a_longer_way_implies_is_left_out() -> None:
    speeches = artifact("speeches", "s", {})
    candidates = artifact("candidates", "c", {}, parents={"speeches": speeches})
    judgements = artifact("judgements", "j", {}, parents={"speeches": speeches, "candidates": candidates})
    edges = find_edges(group_nodes([speeches, candidates, judgements]))
    assert [(edge.start, edge.end) for edge in edges] == [(0, 1), (1, 2)]


def test_a_long_name_is_cut_in_the_box_and_whole_in_its_title() -> None:
    name = "a-very-long-name-indeed-for-an-artifact-of-ours"
    svg = draw_lineage([artifact("speeches", name, {}, rows={"speeches.parquet": 3})])
    assert f"speeches {name}@" in svg
    assert "(3 speeches.parquet)" in svg
    assert f">{name}<" not in svg
    assert "…" in svg
