"""`run --sweep`: points side by side, names that tell them apart, one table with paired differences."""

import re
from pathlib import Path

from psychocounsel.store.store import Store
from running import Cli, Miniature, Warm

SWEEP = ("--sweep", "align.beta=0.1,0.3,1.0")


def rows(out: str) -> list[list[str]]:
    """Return the cells of the table of points."""
    lines = out[out.index("Points of the sweep") :].splitlines()
    return [re.split(r" {2,}", line.strip()) for line in lines[2:] if line.startswith("  ")]


def test_points_share_what_is_the_same_and_stand_in_one_table(miniature: Miniature, warm: Warm, store: Path) -> None:
    before = {each.ref for each in Store(store).artifacts()}
    ended = warm.run("run", miniature.recipe, "--store", store, *SWEEP)
    assert ended.code == 0, ended.err
    made = [each for each in Store(store).artifacts() if each.ref not in before]
    own = {(each.kind, each.name) for each in made}
    suffixes = ("align.beta-0.1", "align.beta-0.3", "align.beta-1.0")
    assert {("policies", f"mini-online-{each}") for each in suffixes} < own
    assert {("comparisons", f"mini-{each}") for each in suffixes} < own
    assert {kind for kind, _ in own}.isdisjoint({"base-models", "judgements", "reward-models"})
    (report,) = [each for each in made if each.kind == "reports"]  # one about all points
    assert sum(parent.kind == "comparisons" for parent in report.parents) == 3
    assert ended.out.splitlines()[-1] == f"report: {report.file('report.html').resolve()}"
    first, *others = rows(ended.out)
    assert [row[0] for row in (first, *others)] == ["align.beta=0.1", "align.beta=0.3", "align.beta=1.0"]
    assert {row[1] for row in (first, *others)} == {"online"}
    assert "] eval-winrate, policy online, align.beta=0.3, rubric" in ended.err
    rates = [float(row[2].split()[0]) for row in (first, *others)]
    assert first[3] == "–"  # noqa: RUF001
    for row, rate in zip(others, rates[1:], strict=True):
        assert abs(float(row[3]) - (rate - rates[0])) < 0.11
        assert row[5] == "8"
    assert [row[-1].partition("@")[0] for row in (first, *others)] == [f"mini-{each}" for each in suffixes]
    again = warm.run("run", miniature.recipe, "--store", store, *SWEEP)
    assert (again.code, "created:" in again.out) == (0, False)
    assert rows(again.out) == rows(ended.out)


def test_sweeps_multiply_and_a_dry_run_shows_each_point(miniature: Miniature, cli: Cli) -> None:
    sweep = ("--sweep", "eval-winrate.confidence=0.8,0.9", "--sweep", "eval-winrate.max_speeches=4,6")
    ended = cli("run", miniature.recipe, "--store", miniature.store, "--dry-run", *sweep)
    assert ended.code == 0, ended.err
    headings = [line for line in ended.out.splitlines() if line.startswith("# ")]
    assert len([each for each in headings if each.startswith("# eval-winrate, policy online, eval-")]) == 4
    assert len([each for each in headings if each.startswith("# train-reward")]) == 1
    assert "mini-eval-winrate.confidence-0.8-eval-winrate.max_speeches-4@" in ended.out
    assert [each for each in headings if "report" in each] == ["# report, one of all points"]


def test_a_point_without_a_result_does_not_end_the_others(miniature: Miniature, warm: Warm, store: Path) -> None:
    sweep = ("--sweep", "align.length.max_length_tokens=1024,40", "--from", "align")
    ended = warm.run("run", miniature.recipe, "--store", store, *sweep)
    assert ended.code == 4, ended.err
    (row,) = rows(ended.out)
    assert row[0] == "align.length.max_length_tokens=1024"
    assert row[-1].startswith("mini-align.length.max_length_tokens-1024@")
    assert "max_length_tokens=40 has no result" in ended.out
    (report,) = [each for each in Store(store).artifacts("reports") if each.name == "mini-sweep"]
    assert len(report.parents) == 3


def test_points_that_are_left_share_only_what_all_would_share(miniature: Miniature, warm: Warm, store: Path) -> None:
    before = {each.ref for each in Store(store).artifacts()}
    sweep = ("--sweep", "train-reward.length.max_length_tokens=1000,40", "--sweep", "eval-winrate.confidence=0.8,0.9")
    ended = warm.run("run", miniature.recipe, "--store", store, *sweep, "--set", "align-dpo.beta=0.2")
    ended.says(4)
    assert ended.out.count("has no result") == 2
    made = {(each.kind, each.name) for each in Store(store).artifacts() if each.ref not in before}
    own = {(kind, name) for kind, name in made if "max_length_tokens" in name}
    assert {kind for kind, _ in own} >= {"reward-models", "policies", "comparisons"}
    assert {name for _, name in made - own} == {"mini-dpo", "mini-sweep"}  # the same for all points, and about all
    names = [row[-1].partition("@")[0] for row in rows(ended.out)]
    assert len(set(names)) == 2
    assert all(name.startswith("mini-train-reward.length.max_length_tokens-1000-") for name in names)


def test_without_data_no_point_has_a_result(miniature: Miniature, warm: Warm, store: Path) -> None:
    sweep = ("--sweep", "align-dpo.length.max_length_tokens=40,41", "--from", "align-dpo")
    ended = warm.run("run", miniature.recipe, "--store", store, *sweep)
    ended.says(4)
    assert ended.out.count("has no result") == 2


def test_a_sweep_of_nothing_is_refused(miniature: Miniature, cli: Cli, tmp_path: Path) -> None:
    for text in ("align.beta", "align.beta="):
        cli("run", miniature.recipe, "--store", tmp_path, "--sweep", text).says(2, f"--sweep {text}")
    cli("run", miniature.recipe, "--store", tmp_path, "--sweep", "align.betta=0.1,0.2").says(2, "align.beta")
