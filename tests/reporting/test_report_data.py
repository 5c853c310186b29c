import pytest
from report_runs import artifact, rate, whole_run

from psychocounsel.reporting.tables import as_rate
from psychocounsel.reporting.training_sections import step_history
from psychocounsel.types import Rate


def test_values_are_found_by_path_or_missing() -> None:
    facts = artifact("comparisons", "v", {"win_rate": rate(0.5), "judges": {"same_family": True}, "n": 3, "rows": [1]})
    assert facts.rate("win_rate") == Rate(0.5, 0.4, 0.6, 40, 0)
    assert facts.number("n") == 3
    assert facts.number("judges", "same_family") is None
    assert facts.value("n", "deeper") is None
    assert facts.table("rows") == {}
    assert facts.sequence("rows") == [1]
    assert facts.sequence("win_rate") == ()
    assert facts.rate("missing") is None


@pytest.mark.parametrize("value", [None, 0.5, {}, {"estimate": 0.5}, []])
def test_what_has_not_the_shape_of_a_rate_is_none(value: object) -> None:
    assert as_rate(value) is None


def test_the_policies_shown_are_the_ends_of_their_runs() -> None:
    run = whole_run(3)
    assert [policy.name for policy in run.final_policies] == ["tiny-dpo", "tiny-online"]
    online = run.final_policies[1]
    assert [each.name for each in run.rounds_of(online)] == [
        "tiny-online-round-01",
        "tiny-online-round-02",
        "tiny-online",
    ]


def test_pairs_of_a_round_are_no_dataset() -> None:
    assert [each.name for each in whole_run(2).datasets] == ["sample"]


def test_rounds_are_joined_with_steps_counted_on() -> None:
    run = whole_run(3)
    history = step_history(run.rounds_of(run.final_policies[1]))
    assert [row["step"] for row in history.rows] == list(range(1, 37))
    assert history.ends == [12, 24]
