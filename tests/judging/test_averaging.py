"""Draws and panels -> one rating: means by hand, what too few draws are, and that nothing is paid twice."""

import json
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_model import FakeModel, client_of, failed, item_of, valid
from psychocounsel.judging.audit import histograms, interval_alpha, sample_metrics, vote_metrics
from psychocounsel.judging.injection import ADDRESSES_JUDGE
from psychocounsel.judging.judge import (
    ComparisonTask,
    averaged,
    in_parts,
    voted,
    with_sample,
    with_vote,
)
from psychocounsel.judging.judges import ChatJudge, ChatJudgeSettings, PanelJudge
from psychocounsel.judging.rubric import load_rubric
from psychocounsel.judging.scorers import SamplingParams
from psychocounsel.llm.journal import Journal
from psychocounsel.llm.types import ChatReply, ChatRequest
from psychocounsel.types import (
    OVERALL,
    Candidate,
    Comparison,
    Judgement,
    Rating,
    RatingSample,
    ReplyStatus,
    Speech,
    Winner,
    exact_rating,
)

RUBRIC = load_rubric("seven-principles")
FIRST, *OTHERS = RUBRIC.principle_ids
SPEECH = Speech("Since the move I don't sleep, and nobody here knows my name.")
ITEMS = [(SPEECH, Candidate(SPEECH.id, "alder", f"What is night {night} like?")) for night in range(3)]
PAIR = ComparisonTask(SPEECH, ITEMS[0][1], ITEMS[1][1])
SAMPLED = ChatJudgeSettings(SamplingParams(temperature=1.0), samples=3)

Script = Callable[[ChatRequest], ChatReply]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "replies.sqlite") as opened:
        yield opened


def ignore(_done: int) -> None:
    return None


def rated(request: ChatRequest, *points: int) -> ChatReply:
    """Give the principles these points, the last one to all that are left."""
    told = [*points, *[points[-1]] * 7][:7]
    ratings = dict(zip(RUBRIC.principle_ids, told, strict=True))
    return valid(json.dumps({"item_id": item_of(request)["item_id"], "reasons": "", "ratings": ratings}))


def sided(request: ChatRequest, side: str) -> ChatReply:
    winners = dict.fromkeys((OVERALL, *RUBRIC.principle_ids), side)
    return valid(json.dumps({"item_id": item_of(request)["item_id"], "reasons": "", "winners": winners}))


class NamedModel(FakeModel):
    def __init__(self, name: str, script: Script) -> None:
        super().__init__(script)
        self.name = name

    @property
    def fingerprint(self) -> dict[str, str]:
        return {"model": self.name, "base_url": "http://127.0.0.1/v1"}


def panel_of(journal: Journal, **scripts: Script) -> PanelJudge:
    once = ChatJudgeSettings()
    return PanelJudge(
        [ChatJudge(client_of(NamedModel(name, script), journal), RUBRIC, once) for name, script in scripts.items()]
    )


@given(st.lists(st.integers(1, 5), min_size=1, max_size=40))
def test_a_mean_comes_back_exactly_from_its_float(points: list[int]) -> None:
    mean = Fraction(sum(points), len(points))
    assert exact_rating(float(mean)) == mean


def test_a_whole_number_stays_one() -> None:
    assert exact_rating(4) == 4
    assert isinstance(exact_rating(4), int)
    assert Judgement("c", "j", ReplyStatus.VALID, {"a": 4, "b": 10 / 3}).total == Fraction(22, 3)


def part(*ratings: Rating, status: ReplyStatus = ReplyStatus.VALID, index: int = 0) -> Judgement:
    told = {f"p{at}": rating for at, rating in enumerate(ratings)}
    reason = "" if ratings else f"it was {status}"
    return with_sample(Judgement("c", "j", status, told, reason), index)


def test_three_samples_by_hand() -> None:
    whole = averaged("j", [part(3, 5), part(4, 5, index=1), part(4, 4, index=2)])
    assert whole.ratings == {"p0": 11 / 3, "p1": 14 / 3}
    assert whole.total == Fraction(25, 3)
    assert [(each.sample_index, dict(each.ratings)) for each in whole.samples] == [
        (0, {"p0": 3, "p1": 5}),
        (1, {"p0": 4, "p1": 5}),
        (2, {"p0": 4, "p1": 4}),
    ]


def test_equal_samples_still_make_a_float() -> None:
    assert [type(each) for each in averaged("j", [part(3), part(3)]).ratings.values()] == [float]


CUT, REFUSAL, ERROR = ReplyStatus.CUT, ReplyStatus.REFUSAL, ReplyStatus.ERROR


@pytest.mark.parametrize(
    ("failures", "samples", "status"),
    [
        ([CUT], 2, ReplyStatus.VALID),  # half is enough
        ([CUT, REFUSAL, REFUSAL], 5, REFUSAL),
        ([CUT, REFUSAL], 3, CUT),  # as many of each: the first that came
        ([CUT, CUT], 4, ReplyStatus.VALID),
        ([CUT, CUT], 3, CUT),
        ([ERROR], 5, ERROR),  # owed, however many others there are
    ],
)
def test_fewer_than_half_is_missing(failures: list[ReplyStatus], samples: int, status: ReplyStatus) -> None:
    succeeded = samples - len(failures)
    whole = averaged("j", [*(part(status=each) for each in failures), *(part(4) for _ in range(succeeded))])
    assert whole.status is status
    assert len(whole.samples) == samples
    if status is not ReplyStatus.VALID:
        assert whole.reason == f"{succeeded} of {samples} succeeded: it was {status}"


def test_the_mark_of_a_text_that_addresses_the_judge_is_kept() -> None:
    marked = with_sample(Judgement("c", "j", ReplyStatus.VALID, {"p0": 2}, ADDRESSES_JUDGE))
    assert averaged("j", [part(status=CUT), marked]).reason == ADDRESSES_JUDGE


def verdict(winner: Winner | None, judge: str = "j") -> Comparison:
    status = ReplyStatus.VALID if winner else ReplyStatus.INVALID
    return with_vote(Comparison("s", "a", "b", status, {OVERALL: winner} if winner else {}), judge)


@pytest.mark.parametrize(
    ("votes", "winner"),
    [
        ((Winner.FIRST, Winner.FIRST, Winner.SECOND), Winner.FIRST),
        ((Winner.FIRST, Winner.SECOND), Winner.TIE),
        ((Winner.TIE, Winner.TIE, Winner.SECOND), Winner.SECOND),
        ((Winner.FIRST, None, Winner.TIE), Winner.FIRST),
        ((Winner.FIRST, None, None), None),
    ],
)
def test_votes_by_hand(votes: tuple[Winner | None, ...], winner: Winner | None) -> None:
    whole = voted([verdict(each) for each in votes])
    assert whole.winners.get(OVERALL) is winner
    assert [vote.winners.get(OVERALL) for vote in whole.votes] == list(votes)
    swapped = [vote.winners.get(OVERALL) for vote in whole.swap().votes]
    assert swapped == [each.swap() if each else None for each in votes]


def test_progress_counts_whole_items() -> None:
    told: list[int] = []
    advance = in_parts(told.append, 3)
    for newly_done in (1, 1, 2, 5):
        advance(newly_done)
    assert told == [1, 2]


def test_every_sample_is_asked_once_and_the_mean_counts(journal: Journal) -> None:
    model = FakeModel(lambda request: rated(request, 2 + request.sample_index, 3))
    done: list[int] = []
    judgements = ChatJudge(client_of(model, journal), RUBRIC, SAMPLED).rate(ITEMS, done.append)
    assert [each.ratings[FIRST] for each in judgements] == [3.0, 3.0, 3.0]
    assert sorted(request.sample_index for request in model.asked) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert sum(done) == 3
    again = FakeModel(lambda _: pytest.fail("nothing is owed"))
    assert ChatJudge(client_of(again, journal), RUBRIC, SAMPLED).rate(ITEMS, ignore) == judgements


def test_only_failed_samples_are_asked_again(journal: Journal) -> None:
    def second_fails(request: ChatRequest) -> ChatReply:
        return failed(ReplyStatus.REFUSAL, "no") if request.sample_index == 1 else rated(request, 4)

    (judgement,) = ChatJudge(client_of(FakeModel(second_fails), journal), RUBRIC, SAMPLED).rate(ITEMS[:1], ignore)
    assert (judgement.status, judgement.ratings[FIRST]) == (ReplyStatus.VALID, 4.0)
    model = FakeModel(lambda request: rated(request, 1))
    owing = ChatJudge(client_of(model, journal), RUBRIC, SAMPLED)
    (judgement,) = owing.rate(ITEMS[:1], ignore)
    assert judgement.ratings[FIRST] == 3.0
    assert [request.sample_index for request in model.asked] == [1]


def test_a_retest_samples_what_was_not_drawn_yet(journal: Journal) -> None:
    model = FakeModel(lambda request: rated(request, 3))
    judge = ChatJudge(client_of(model, journal), RUBRIC, SAMPLED)
    judge.rate(ITEMS[:1], ignore)
    judge.resampled().rate(ITEMS[:1], ignore)
    assert [request.sample_index for request in model.asked] == [0, 1, 2, 3, 4, 5]


def test_sampled_verdicts_are_votes(journal: Journal) -> None:
    model = FakeModel(lambda request: sided(request, "A" if request.sample_index else "B"))
    (whole,) = ChatJudge(client_of(model, journal), RUBRIC, SAMPLED).compare([PAIR], ignore)
    assert set(whole.winners.values()) == {Winner.FIRST}
    assert [(vote.sample_index, vote.winners[OVERALL]) for vote in whole.votes] == [
        (0, Winner.SECOND),
        (1, Winner.FIRST),
        (2, Winner.FIRST),
    ]


def test_one_sample_is_what_it_always_was(journal: Journal) -> None:
    judge = ChatJudge(client_of(FakeModel(lambda request: rated(request, 4)), journal), RUBRIC)
    (judgement,) = judge.rate(ITEMS[:1], ignore)
    assert (judgement.samples, judgement.ratings[FIRST], type(judgement.ratings[FIRST])) == ((), 4, int)


def test_a_panel_is_the_mean_of_its_judges_and_keeps_what_each_said(journal: Journal) -> None:
    panel = panel_of(journal, elm=lambda request: rated(request, 2, 4), yew=lambda request: rated(request, 5, 4))
    judgements = panel.rate(ITEMS, ignore)
    assert {each.judge for each in judgements} == {"elm + yew"}
    assert judgements[0].ratings == {FIRST: 3.5, **dict.fromkeys(OTHERS, 4.0)}
    assert [(each.judge, each.ratings[FIRST]) for each in judgements[0].samples] == [("elm", 2), ("yew", 5)]


def test_a_judge_that_fails_leaves_the_others(journal: Journal) -> None:
    panel = panel_of(
        journal,
        elm=lambda request: rated(request, 2),
        yew=lambda _: failed(ReplyStatus.REFUSAL, "I would rather not"),
        ash=lambda request: rated(request, 5),
    )
    (judgement,) = panel.rate(ITEMS[:1], ignore)
    assert (judgement.status, judgement.ratings[FIRST]) == (ReplyStatus.VALID, 3.5)
    assert [each.status for each in judgement.samples] == [ReplyStatus.VALID, REFUSAL, ReplyStatus.VALID]
    metrics = sample_metrics([judgement], panel.principles)
    assert metrics["samples"]["status"] == {"elm": {"valid": 1}, "yew": {"refusal": 1}, "ash": {"valid": 1}}
    assert metrics["samples"]["valid_per_judgement"] == {"2": 1}


def test_a_judge_that_answers_nobody_is_owed(journal: Journal) -> None:
    panel = panel_of(journal, elm=lambda request: rated(request, 2), yew=lambda _: failed(ERROR, "HTTP 500"))
    assert [each.status for each in panel.rate(ITEMS[:1], ignore)] == [ERROR]


def test_a_panel_of_one_model_twice_tells_its_seats_apart(journal: Journal) -> None:
    twice = [NamedModel("elm", lambda request: rated(request, 3)) for _ in range(2)]
    cool, warm = ChatJudgeSettings(), ChatJudgeSettings(SamplingParams(temperature=0.7))
    panel = PanelJudge(
        [ChatJudge(client_of(model, journal), RUBRIC, how) for model, how in zip(twice, (cool, warm), strict=True)]
    )
    assert panel.name == "elm + elm (2)"
    (judgement,) = panel.resampled().rate(ITEMS[:1], ignore)
    assert [each.judge for each in judgement.samples] == ["elm", "elm (2)"]


def test_a_panel_votes(journal: Journal) -> None:
    panel = panel_of(
        journal,
        elm=lambda request: sided(request, "A"),
        yew=lambda request: sided(request, "tie"),
        ash=lambda request: sided(request, "A"),
    )
    verdicts = panel.compare([PAIR], ignore)
    assert verdicts[0].winners[OVERALL] is Winner.FIRST
    assert [vote.judge for vote in verdicts[0].votes] == ["elm", "yew", "ash"]
    assert vote_metrics(verdicts)["votes"] == {
        "asked": 3,
        "status": {"elm": {"valid": 1}, "yew": {"valid": 1}, "ash": {"valid": 1}},
        "unanimous": 0,
        "comparisons": 1,
    }


def test_alpha_by_hand() -> None:
    # Observed: (2 + 0 + 2) / 6. Expected: 120 / 30 over the six values.
    assert interval_alpha([(1, 2), (3, 3), (5, 4), (2,)]) == pytest.approx(1 - (4 / 6) / 4)
    assert interval_alpha([(1, 1), (4, 4)]) == 1.0
    assert interval_alpha([(3, 3), (3, 3)]) is None
    assert interval_alpha([(3,), (4,)]) is None


def both(low: int, high: int) -> Judgement:
    samples = tuple(RatingSample(judge, 0, ReplyStatus.VALID, {"p": r}) for judge, r in (("a", low), ("b", high)))
    return Judgement("c", "a + b", ReplyStatus.VALID, {"p": (low + high) / 2}, samples=samples)


def test_disagreement_by_hand() -> None:
    told = sample_metrics([both(1, 2), both(3, 3), both(5, 4)], ("p",))["disagreement"]
    assert told["responses"] == 3
    assert told["spread"]["p"] == pytest.approx((0.5 + 0 + 0.5) / 3)
    assert told["alpha"]["p"] == pytest.approx(5 / 6)
    assert told["mean_rating"] == {"a": {"p": 3.0}, "b": {"p": 3.0}}
    (pair,) = told["pairs"]
    assert pair["judges"] == ["a", "b"]
    # Squared distance 2/3 of an expected (35 + 29) / 3 - 2 * 3 * 3 = 10/3.
    assert pair["by_principle"]["p"]["kappa"] == pytest.approx(1 - (2 / 3) / (10 / 3))
    assert pair["by_principle"]["p"]["exact"] == pytest.approx(1 / 3)


def test_histograms_count_every_reply_to_the_nearest_point() -> None:
    plain = Judgement("c", "j", ReplyStatus.VALID, {"p": 4})
    missing = Judgement("c", "j", ReplyStatus.CUT)
    assert histograms([plain, missing, both(1, 4)], ("p",)) == {"p": {"1": 1, "4": 2}}
    expected = Judgement("c", "j", ReplyStatus.VALID, {"p": 2.5})
    assert histograms([expected], ("p",)) == {"p": {"3": 1}}
    assert sample_metrics([plain, missing], ("p",)) == {}
