"""Win rates with oracle, biased, noisy and failing judges, and with unanswered speeches."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.errors import DataQualityError
from psychocounsel.evaluation.winrate import (
    BothOrders,
    Compared,
    Outcome,
    Unanswered,
    sample_speeches,
    win_rates,
    winrate_metrics,
)
from psychocounsel.types import OVERALL, Candidate, Comparison, ReplyStatus, Speech, Winner

Judge = Callable[[str, str], Winner]
FIRST, SECOND, TIE = Winner.FIRST, Winner.SECOND, Winner.TIE


def comparison(speech: str, first: str, second: str, winners: Mapping[str, Winner] | None) -> Comparison:
    status = ReplyStatus.VALID if winners else ReplyStatus.REFUSAL
    return Comparison(speech, first, second, status, winners or {})


def both(forward: Winner | None, backward: Winner | None, speech: str = "s", criterion: str = OVERALL) -> BothOrders:
    """One comparison from the winner by position in each order; None is a failed comparison."""
    return BothOrders(
        comparison(speech, "policy", "reference", {criterion: forward} if forward else None),
        comparison(speech, "reference", "policy", {criterion: backward} if backward else None),
    )


def judged(speech: str, policy: str, reference: str, judge: Judge) -> BothOrders:
    return BothOrders(
        comparison(speech, policy, reference, {OVERALL: judge(policy, reference)}),
        comparison(speech, reference, policy, {OVERALL: judge(reference, policy)}),
    )


def oracle(first: str, second: str) -> Winner:
    """Prefers the response whose name ends in the higher digit, wherever it stands."""
    return FIRST if first[-1] > second[-1] else SECOND


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
    ],
)
def test_two_orders_make_one_outcome(forward: Winner | None, backward: Winner | None, outcome: Outcome) -> None:
    assert both(forward, backward).outcome() is outcome


@pytest.mark.parametrize(
    ("policy", "reference", "judge", "counts", "rates"),
    [
        ("policy-9", "reference-1", oracle, (20, 0, 0), (1.0, 0.0, 0.5)),
        ("policy-1", "reference-9", oracle, (0, 0, 20), (0.0, 0.0, 0.5)),
        ("policy-9", "reference-1", lambda _first, _second: FIRST, (0, 20, 0), (0.5, 1.0, 1.0)),
    ],
)
def test_an_oracle_and_a_judge_of_positions(
    policy: str, reference: str, judge: Judge, counts: tuple[int, ...], rates: tuple[float, ...]
) -> None:
    found = win_rates([judged(f"s{i}", policy, reference, judge) for i in range(20)])
    assert (found.wins, found.ties, found.losses) == counts
    shown = (found.win_rate, found.position_inconsistent_rate, found.first_position_rate)
    assert tuple(each.estimate for each in shown) == rates
    assert (found.win_rate_decided is None) == (counts[1] == 20)
    assert (found.order_kappa is None) == (counts[1] == 0), "agreement beyond chance needs two kinds of verdict"
    assert found.order_kappa is None or found.order_kappa.estimate <= 0


def test_figures_by_hand() -> None:
    compared = [
        both(FIRST, SECOND, "a"),  # win
        both(FIRST, SECOND, "b"),  # win
        both(TIE, TIE, "c"),  # tie
        both(FIRST, FIRST, "d"),  # position-inconsistent
        both(SECOND, FIRST, "e"),  # loss
        both(FIRST, None, "f"),  # missing
    ]
    rates = win_rates(compared)
    assert rates.win_rate.estimate == pytest.approx((2 + 0.5 + 0.5) / 5)
    assert (rates.win_rate.n, rates.win_rate.missing) == (5, 1)
    assert (rates.wins, rates.ties, rates.losses, rates.missing) == (2, 2, 1, 1)
    inconsistent = rates.position_inconsistent_rate
    assert (inconsistent.estimate, inconsistent.missing) == (pytest.approx(1 / 5), 1)
    # Halves but for the inconsistent one, which gave both to the first; the lone valid comparison of "f" is left out.
    assert rates.first_position_rate.estimate == pytest.approx((4 * 0.5 + 1) / 5)
    assert rates.first_position_rate.n == 5
    assert rates.win_rate_decided is not None
    assert (rates.win_rate_decided.estimate, rates.win_rate_decided.n, rates.win_rate_decided.missing) == (
        pytest.approx(2 / 3),
        3,
        1,
    )
    assert rates.missing_as_losses.estimate == pytest.approx(3 / 6)
    assert rates.missing_as_wins.estimate == pytest.approx(4 / 6)
    # Verdicts of the two orders for the policy: wins 3 and 2, ties 1 and 1, losses 1 and 2, four of five equal:
    # kappa = (4/5 - 9/25) / (1 - 9/25).
    assert rates.order_kappa is not None
    assert (rates.order_kappa.estimate, rates.order_kappa.n) == (pytest.approx((20 - 9) / (25 - 9)), 5)


def test_criteria_are_kept_apart_and_overall_is_not_among_them() -> None:
    def shown(empathy: Winner, overall: Winner, speech: str) -> BothOrders:
        winners = {"empathy": empathy, OVERALL: overall}
        swapped = {name: winner.swap() for name, winner in winners.items()}
        return BothOrders(comparison(speech, "p", "r", winners), comparison(speech, "r", "p", swapped))

    rates = win_rates([shown(FIRST, SECOND, "a"), shown(TIE, SECOND, "b"), both(FIRST, None, "c")])
    assert rates.win_rate.estimate == 0.0
    assert list(rates.by_criterion) == ["empathy"]
    assert (rates.by_criterion["empathy"].estimate, rates.by_criterion["empathy"].missing) == (0.75, 1)
    assert (rates.losses, rates.missing) == (2, 1)


def test_a_judge_that_fails_at_random_or_by_outcome() -> None:
    rng = np.random.default_rng(3)
    won = rng.random(600) < 0.8
    true = [both(FIRST, SECOND, f"s{at}") if win else both(SECOND, FIRST, f"s{at}") for at, win in enumerate(won)]
    at_random, by_outcome = (
        win_rates(
            [both(None, SECOND, each.speech_id) if lost else each for each, lost in zip(true, fails, strict=True)]
        )
        for fails in (rng.random(600) < 0.2, ~won & (rng.random(600) < 0.5))
    )
    assert at_random.win_rate.low < 0.8 < at_random.win_rate.high
    assert by_outcome.win_rate.low > 0.8, "what is left of the verdicts is not what was judged"
    assert by_outcome.missing_as_losses.low < 0.8 < by_outcome.missing_as_wins.high
    assert by_outcome.missing_as_losses.estimate == pytest.approx(won.mean())


answers = st.sampled_from([FIRST, SECOND, TIE, None])
outcomes = st.lists(st.tuples(answers, answers, st.sampled_from("abcdef")), min_size=1, max_size=20).filter(
    lambda rows: any(forward and backward for forward, backward, _ in rows)
)


@given(outcomes, st.randoms(use_true_random=False))
def test_laws_of_the_win_rate(rows: list[tuple[Winner | None, Winner | None, str]], random: Random) -> None:
    compared = [both(*row) for row in rows]
    rates = win_rates(compared)
    assert 0 <= rates.win_rate.low <= rates.win_rate.estimate <= rates.win_rate.high <= 1
    assert rates.wins + rates.ties + rates.losses + rates.missing == len(compared)
    # Exchanging the sides mirrors it.
    other = win_rates([BothOrders(one.backward, one.forward) for one in compared])
    assert other.win_rate.estimate == pytest.approx(1 - rates.win_rate.estimate)
    assert (other.win_rate.low, other.win_rate.high) == pytest.approx((1 - rates.win_rate.high, 1 - rates.win_rate.low))
    assert (other.wins, other.ties, other.losses) == (rates.losses, rates.ties, rates.wins)
    assert other.position_inconsistent_rate == rates.position_inconsistent_rate
    # The order of rows changes nothing, and one more win never lowers the estimate.
    shuffled = win_rates(random.sample(compared, len(compared)))
    assert asdict(shuffled.win_rate) == pytest.approx(asdict(rates.win_rate))
    assert (shuffled.wins, shuffled.ties, shuffled.losses) == (rates.wins, rates.ties, rates.losses)
    assert win_rates([*compared, both(FIRST, SECOND, "g")]).win_rate.estimate >= rates.win_rate.estimate - 1e-12


def test_orders_of_different_comparisons_are_an_error() -> None:
    forward = comparison("s", "p", "r", {OVERALL: FIRST})
    with pytest.raises(ValueError, match="exchanged places"):
        BothOrders(forward, forward)
    with pytest.raises(ValueError, match="exchanged places"):
        BothOrders(forward, comparison("s", "r", "q", {OVERALL: FIRST}))
    with pytest.raises(ValueError, match="one speech"):
        BothOrders(forward, comparison("t", "r", "p", {OVERALL: FIRST}))


def test_speech_without_an_answer_is_missing_from_every_figure() -> None:
    answered = [both(FIRST, SECOND, "a"), both(SECOND, FIRST, "b"), both(FIRST, SECOND, "c")]
    rates = win_rates([*answered, Unanswered("d"), Unanswered("e")])
    without = win_rates(answered)
    assert rates.win_rate.estimate == without.win_rate.estimate == pytest.approx(2 / 3)
    assert (rates.wins, rates.ties, rates.losses, rates.missing) == (2, 0, 1, 2)
    for rate in (rates.win_rate, rates.position_inconsistent_rate, rates.first_position_rate):
        assert (rate.n, rate.missing) == (3, 2)
    for nothing in ([Unanswered("d")], [both(None, FIRST), both(FIRST, None)]):
        with pytest.raises(DataQualityError, match="missing"):
            win_rates(nothing)


SPEECHES = [Speech(f"speech {number}", "grief" if number < 4 else "sleep") for number in range(6)]


def test_unanswered_speech_is_missing_overall_and_from_its_topic() -> None:
    answered = SPEECHES[:3]
    policy = [Candidate(speech.id, "p", "word " * 5) for speech in SPEECHES[:4]]
    reference = [Candidate(speech.id, "r", "word " * 7) for speech in answered]
    wins = {each.id for each in policy}
    compared: list[Compared] = [
        judged(ours.speech_id, ours.id, theirs.id, lambda first, _: FIRST if first in wins else SECOND)
        for ours, theirs in zip(policy, reference, strict=False)
    ]
    compared += [Unanswered(speech.id) for speech in SPEECHES[3:]]
    metrics = winrate_metrics(compared, {each.id: each for each in SPEECHES}, policy, reference)
    assert (metrics["win_rate"]["estimate"], metrics["win_rate"]["missing"]) == (1.0, 3)
    assert metrics["wins"] + metrics["missing"] == 6
    assert metrics["missing_by_topic"] == {"grief": {"missing": 1, "total": 4}, "sleep": {"missing": 2, "total": 2}}
    assert (metrics["by_topic"]["grief"].n, metrics["by_topic"]["grief"].missing) == (3, 1)
    assert metrics["by_topic"]["sleep"] is None  # nothing of it was judged
    assert metrics["crisis"] is None
    assert metrics["length_controlled"].rate is None
    assert "3 comparisons" in metrics["length_controlled"].reason


def test_long_and_short_speeches_stand_apart() -> None:
    speeches = [Speech(f"{number} " + "word " * words) for number, words in enumerate([2, 9, 30, 2, 40, 8])]
    policy, reference = ([Candidate(speech.id, author, "Yes.") for speech in speeches] for author in "pr")
    wins = {each.id for each in policy[:3]}
    compared: list[Compared] = [
        judged(ours.speech_id, ours.id, theirs.id, lambda first, _: FIRST if first in wins else SECOND)
        for ours, theirs in zip(policy, reference, strict=True)
    ]
    metrics = winrate_metrics(compared, {each.id: each for each in speeches}, policy, reference)
    parts = {words: part.n for words, part in metrics["by_speech_length"].items()}
    assert parts == {"3 to 3": 2, "4 to 10": 2, "11 to 41": 2}


def test_draws_of_one_speech_do_not_pass_for_independent_speeches() -> None:
    once = [both(FIRST, SECOND, "a"), both(FIRST, SECOND, "b"), both(SECOND, FIRST, "c"), both(TIE, TIE, "d")]
    often = [each for each in once for _ in range(16)]
    found, repeated = win_rates(once).win_rate, win_rates(often).win_rate
    assert (repeated.estimate, repeated.low, repeated.high) == (found.estimate, found.low, found.high)
    assert (found.n, repeated.n) == (4, 64)


def test_sample_depends_on_seed_and_content_and_keeps_the_order() -> None:
    corpus = [Speech(f"{topic} {number}", topic) for topic in ("anger", "grief", "sleep") for number in range(25)]
    assert sample_speeches(corpus, None, 0) == sample_speeches(corpus, 1000, 0) == corpus
    sampled = sample_speeches(corpus, 30, 0)
    assert len(sampled) == 30
    assert {speech.topic for speech in sampled} == {"anger", "grief", "sleep"}
    assert sample_speeches(corpus[::-1], 30, 0) == sampled[::-1]
    assert set(sample_speeches(corpus, 10, 0)) < set(sampled) != set(sample_speeches(corpus, 30, 1))
