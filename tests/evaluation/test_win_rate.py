"""Oracle and biased judges, hand-worked counts and the law of the swap."""

from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.errors import DataQualityError
from psychocounsel.evaluation.statistics import BootstrapSettings
from psychocounsel.evaluation.winrate import BothOrders, Outcome, Unanswered, win_rates
from psychocounsel.types import OVERALL, Comparison, ReplyStatus, Winner

FAST = BootstrapSettings(samples=300)
Judge = Callable[[str, str], Winner]
FIRST, SECOND, TIE = Winner.FIRST, Winner.SECOND, Winner.TIE


def verdict(speech: str, first: str, second: str, winners: Mapping[str, Winner] | None) -> Comparison:
    status = ReplyStatus.VALID if winners else ReplyStatus.REFUSAL
    return Comparison(speech, first, second, status, winners or {})


def both(forward: Winner | None, backward: Winner | None, speech: str = "s", criterion: str = OVERALL) -> BothOrders:
    """One comparison from the winner by position in each order; None is a failed verdict."""
    return BothOrders(
        verdict(speech, "policy", "reference", {criterion: forward} if forward else None),
        verdict(speech, "reference", "policy", {criterion: backward} if backward else None),
    )


def judged(speech: str, policy: str, reference: str, judge: Judge) -> BothOrders:
    return BothOrders(
        verdict(speech, policy, reference, {OVERALL: judge(policy, reference)}),
        verdict(speech, reference, policy, {OVERALL: judge(reference, policy)}),
    )


def oracle(first: str, second: str) -> Winner:
    """Prefers the response whose name ends in the higher digit, wherever it stands."""
    if first[-1] == second[-1]:
        return TIE
    return FIRST if first[-1] > second[-1] else SECOND


def always_first(first: str, second: str) -> Winner:
    return FIRST


@pytest.mark.parametrize(
    ("forward", "backward", "outcome"),
    [
        (FIRST, SECOND, Outcome.WIN),
        (SECOND, FIRST, Outcome.LOSS),
        (TIE, TIE, Outcome.TIE),
        (FIRST, FIRST, Outcome.POSITION_INCONSISTENT),
        (SECOND, SECOND, Outcome.POSITION_INCONSISTENT),
        (FIRST, TIE, Outcome.POSITION_INCONSISTENT),
        (TIE, FIRST, Outcome.POSITION_INCONSISTENT),
        (None, SECOND, Outcome.MISSING),
        (FIRST, None, Outcome.MISSING),
        (None, None, Outcome.MISSING),
    ],
)
def test_two_verdicts_make_one_outcome(forward: Winner | None, backward: Winner | None, outcome: Outcome) -> None:
    assert both(forward, backward).outcome() is outcome


def test_an_oracle_judge_gives_every_win_to_the_better_side() -> None:
    rounds = [judged(f"s{i}", "policy-9", "reference-1", oracle) for i in range(20)]
    rates = win_rates(rounds, FAST)
    assert (rates.overall.estimate, rates.wins, rates.position_inconsistent_rate.estimate) == (1.0, 20, 0.0)
    assert rates.first_position_rate.estimate == 0.5
    worse = win_rates([judged(f"s{i}", "policy-1", "reference-9", oracle) for i in range(20)], FAST)
    assert (worse.overall.estimate, worse.losses) == (0.0, 20)


def test_a_judge_that_always_says_first_gives_exactly_one_half() -> None:
    rounds = [judged(f"s{i}", "policy-9", "reference-1", always_first) for i in range(20)]
    rates = win_rates(rounds, FAST)
    assert rates.overall.estimate == 0.5
    assert (rates.wins, rates.ties, rates.losses) == (0, 20, 0)
    assert (rates.position_inconsistent_rate.estimate, rates.first_position_rate.estimate) == (1.0, 1.0)


def test_the_figures_worked_by_hand() -> None:
    rounds = [
        both(FIRST, SECOND, "a"),  # win
        both(FIRST, SECOND, "b"),  # win
        both(TIE, TIE, "c"),  # tie
        both(FIRST, FIRST, "d"),  # flip
        both(SECOND, FIRST, "e"),  # loss
        both(FIRST, None, "f"),  # missing
    ]
    rates = win_rates(rounds, FAST)
    assert rates.overall.estimate == pytest.approx((2 + 0.5 + 0.5) / 5)
    assert (rates.overall.n, rates.overall.missing) == (5, 1)
    assert (rates.wins, rates.ties, rates.losses, rates.missing) == (2, 2, 1, 1)
    assert (rates.position_inconsistent_rate.estimate, rates.position_inconsistent_rate.missing) == (
        pytest.approx(1 / 5),
        1,
    )
    # Halves but for the flip, which gave both to the first place; the lone valid verdict of "f" is out.
    assert rates.first_position_rate.estimate == pytest.approx((4 * 0.5 + 1) / 5)
    assert rates.first_position_rate.n == 5


def test_criteria_are_kept_apart_and_overall_is_not_among_them() -> None:
    def shown(empathy: Winner, overall: Winner, speech: str) -> BothOrders:
        winners = {"empathy": empathy, OVERALL: overall}
        swapped = {name: winner.swap() for name, winner in winners.items()}
        return BothOrders(
            verdict(speech, "p", "r", winners),
            verdict(speech, "r", "p", swapped),
        )

    rates = win_rates([shown(FIRST, SECOND, "a"), shown(TIE, SECOND, "b"), both(FIRST, None, "c")], FAST)
    assert rates.overall.estimate == 0.0
    assert list(rates.by_criterion) == ["empathy"]
    assert (rates.by_criterion["empathy"].estimate, rates.by_criterion["empathy"].missing) == (0.75, 1)
    shape = rates.as_dict()
    assert shape["win_rate"] == rates.overall.as_dict()
    assert shape["win_rate_by_criterion"] == {"empathy": rates.by_criterion["empathy"].as_dict()}
    assert (shape["losses"], shape["missing"]) == (2, 1)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([FIRST, SECOND, TIE, None]),
            st.sampled_from([FIRST, SECOND, TIE, None]),
            st.sampled_from("abcdef"),
        ),
        min_size=1,
        max_size=20,
    ).filter(lambda rows: any(forward and backward for forward, backward, _ in rows))
)
def test_the_swapped_win_rate_is_one_minus_it(rows: list[tuple[Winner | None, Winner | None, str]]) -> None:
    rounds = [both(*row) for row in rows]
    rates = win_rates(rounds, FAST)
    other = win_rates([one.swap() for one in rounds], FAST)
    assert other.overall.estimate == pytest.approx(1 - rates.overall.estimate)
    assert (other.overall.low, other.overall.high) == pytest.approx((1 - rates.overall.high, 1 - rates.overall.low))
    assert (other.wins, other.ties, other.losses) == (rates.losses, rates.ties, rates.wins)
    assert other.position_inconsistent_rate == rates.position_inconsistent_rate
    assert rates.wins + rates.ties + rates.losses + rates.missing == len(rounds)
    assert rounds[0].swap().swap() == rounds[0]


def test_verdicts_of_different_comparisons_are_refused() -> None:
    forward = verdict("s", "p", "r", {OVERALL: FIRST})
    with pytest.raises(ValueError, match="exchanged places"):
        BothOrders(forward, forward)
    with pytest.raises(ValueError, match="exchanged places"):
        BothOrders(forward, verdict("s", "r", "q", {OVERALL: FIRST}))
    with pytest.raises(ValueError, match="one speech"):
        BothOrders(forward, verdict("t", "r", "p", {OVERALL: FIRST}))


def test_only_failures_are_an_error_and_not_a_half() -> None:
    with pytest.raises(DataQualityError, match="missing"):
        win_rates([both(None, FIRST), both(FIRST, None)], FAST)


def test_a_speech_without_an_answer_is_missing_from_every_figure_and_a_win_for_nobody() -> None:
    answered = [both(FIRST, SECOND, "a"), both(SECOND, FIRST, "b"), both(FIRST, SECOND, "c")]
    rates = win_rates([*answered, Unanswered("d"), Unanswered("e")], FAST)
    without = win_rates(answered, FAST)
    assert rates.overall.estimate == without.overall.estimate == pytest.approx(2 / 3)
    assert (rates.wins, rates.ties, rates.losses, rates.missing) == (2, 0, 1, 2)
    for rate in (rates.overall, rates.position_inconsistent_rate, rates.first_position_rate):
        assert (rate.n, rate.missing) == (3, 2)
    assert Unanswered("d").swap() == Unanswered("d")
    with pytest.raises(DataQualityError, match="missing"):
        win_rates([Unanswered("d")], FAST)
