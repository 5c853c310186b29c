"""Token choices -> expected ratings: by hand, with odd tokens, missing mass and servers that tell nothing."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_model import FakeModel, client_of, count_replies, item_of, valid
from psychocounsel.errors import ConfigError, EndpointError
from psychocounsel.judging.audit import sample_metrics
from psychocounsel.judging.judge import ComparisonTask
from psychocounsel.judging.judges import ChatJudge, ChatJudgeSettings
from psychocounsel.judging.parsing import (
    ParsedRatings,
    ParseFailure,
    expected_ratings,
    has_distinct_tokens,
    parse_ratings,
    rating_places,
)
from psychocounsel.judging.rubric import Rubric, load_rubric
from psychocounsel.judging.scorers import LogprobScorer, SamplingParams, require_expectable
from psychocounsel.llm.journal import Journal
from psychocounsel.llm.replies import kept_choices, read_choices, read_completion
from psychocounsel.llm.types import ChatReply, ChatRequest
from psychocounsel.types import Candidate, ReplyStatus, Scoring, Speech

SEVEN = load_rubric("seven-principles")
FLAT = SEVEN.reply.model_copy(update={"flat": True, "echo_id": False, "reasons": False})
ONE = replace(SEVEN.only("empathy"), reply=FLAT)
"""A rubric whose reply is {"empathy": 4}."""

Token = dict[str, Any]


def token(text: str, **others: float) -> Token:
    """Return a token that is certain, or one among alternatives with their probabilities."""
    shares = {name.removeprefix("_"): share for name, share in others.items()} or {text: 1.0}
    return token_among(text, shares)


def token_among(text: str, shares: Mapping[str, float]) -> Token:
    top = [{"token": other, "logprob": math.log(share)} for other, share in shares.items()]
    return {"token": text, "logprob": math.log(shares.get(text, 1e-9)), "top_logprobs": top}


def expected(tokens: Sequence[Token], rubric: Rubric = ONE, text: str | None = None) -> Any:
    told = "".join(each["token"] for each in tokens) if text is None else text
    return expected_ratings(told, read_choices(kept_choices(list(tokens), told)), rubric)


def test_an_expectation_by_hand() -> None:
    tokens = [token('{"empathy"'), token(": "), token("4", _3=0.2, _4=0.5, _5=0.1), token("}")]
    # (3 * 0.2 + 4 * 0.5 + 5 * 0.1) / 0.8
    assert expected(tokens) == {"empathy": 3.875}


def test_a_certain_token_is_its_number() -> None:
    assert expected([token('{"empathy":'), token("2"), token("}")]) == {"empathy": 2.0}


@pytest.mark.parametrize(
    ("tokens", "rating"),
    [
        ([token('{"empathy":'), token_among(" 4", {" 4": 0.6, " 2": 0.2, "2": 0.2}), token("}")], 3.2),
        ([token('{"empathy"'), token_among(": 4", {": 4": 0.75, ":  1": 0.25}), token("}")], 3.25),
        ([token('{"empathy":'), token_among("4}", {"4}": 0.5, "5}": 0.25, "5": 0.25})], 4.5),
        ([token('{"empathy":'), token_among("4\n}", {"4\n}": 0.5, "2": 0.5})], 3.0),
        ([token('{"empathy": '), token_among("4", {"4": 0.5, "4.5": 0.2, "44": 0.2}), token("}")], 4.0),
        ([token('{"emp'), token('athy": '), token_among("1", {"5": 0.9, "1": 0.1}), token(" }")], 4.6),
    ],
)
def test_tokens_split_oddly(tokens: list[Token], rating: float) -> None:
    assert expected(tokens) == {"empathy": rating}


def test_a_fence_thoughts_and_an_end_mark_around_it() -> None:
    answer = [token('```json\n{"empathy": '), token_among("4", {"4": 0.5, "2": 0.5}), token("}\n```")]
    tokens = [
        token("<think>"),
        token(' {"empathy": '),
        token("1"),
        token("}</think>"),
        *answer,
        token("<|e|>"),
    ]
    text = "".join(each["token"] for each in answer)
    assert expected(tokens, text=text) == {"empathy": 3.0}


def test_letters_of_several_tokens_are_counted_by_their_bytes() -> None:
    pieces = ['{"reasons": "', b"\xf0\x9f", b"\x91\xa9", ' 3: 2", "empathy": ']
    tokens: list[Token] = [
        token(piece) if isinstance(piece, str) else {"token": "\ufffd", "bytes": list(piece), "logprob": 0.0}
        for piece in pieces
    ]
    tokens += [token_among("4", {"4": 0.5, "3": 0.5}), token("}")]
    text = '{"reasons": "\U0001f469 3: 2", "empathy": 4}'
    rubric = replace(ONE, reply=FLAT.model_copy(update={"reasons": True}))
    assert expected(tokens, rubric, text) == {"empathy": 3.5}


def test_too_little_mass_on_the_scale_is_told() -> None:
    shares = {"7": 0.6, "4": 0.3, "3": 0.1}
    found = expected([token('{"empathy": '), token_among("4", shares), token("}")])
    assert found == ParseFailure("of 'empathy' the scale has 40% of the probability")


def test_a_number_of_two_tokens_tells_nothing() -> None:
    wide = replace(ONE, minimum=-2, maximum=2)
    found = expected([token('{"empathy": '), token("-"), token("2"), token("}")], wide)
    assert found == ParseFailure("no single token writes the rating of 'empathy'")


def test_tokens_that_do_not_add_up_to_the_text_tell_nothing() -> None:
    tokens = [token('{"empathy": '), token("5"), token("}")]
    assert kept_choices(tokens, '{"empathy": 4}') == "[]"
    assert isinstance(expected(tokens, text='{"empathy": 4}'), ParseFailure)


@pytest.mark.parametrize("told", [None, [], {}, "4", 4])
def test_a_server_that_sends_no_tokens(told: object) -> None:
    assert kept_choices(told, '{"empathy": 4}') == ""


@pytest.mark.parametrize(
    "entry",
    [
        {"token": "4"},
        {"token": "4", "logprob": None, "top_logprobs": None},
        {"token": "4", "logprob": float("nan"), "top_logprobs": [{"token": None}, 3, {"logprob": 1}]},
        {"token": "4", "logprob": -9999.0, "bytes": ["x"], "top_logprobs": {}},
    ],
)
def test_broken_entries_tell_nothing_and_harm_nobody(entry: Token) -> None:
    found = expected([token('{"empathy": '), entry, token("}")])
    assert found == ParseFailure("of 'empathy' the scale has 0% of the probability")


def test_only_numbers_that_are_values_are_kept() -> None:
    text = '{"item_id": "a3f", "reasons": "3 of 5: 4", "ratings": {"empathy": 4}}'
    head, tail = '{"item_id": "a', '", "ratings": {"empathy": '
    pieces = [head, "3", 'f", "reasons": "', "3", " of ", "5", ": ", "4", tail]
    kept = kept_choices([*map(token, pieces), token("4", _4=0.5, _of=0.5), token("}}")], text)
    assert [(each.start, each.token) for each in read_choices(kept)] == [(39, "4"), (66, "4")]
    assert read_choices(kept)[-1].alternatives == (("4", round(math.log(0.5), 6)),)
    assert len(kept) < 60


def test_places_are_those_of_the_principles_at_their_depth() -> None:
    ratings = dict.fromkeys(SEVEN.principle_ids, 3)
    reasons = 'she said {"empathy": 1} and \\ "safety": 2'
    text = "Here: " + json.dumps({"item_id": "i", "reasons": reasons, "ratings": ratings}, indent=1)
    places = rating_places(text, SEVEN)
    assert list(places) == list(SEVEN.principle_ids)
    assert {text[place.start : place.stop] for place in places.values()} == {"3"}
    assert min(places.values()).start > text.index('"ratings"')


def test_a_key_beside_the_ratings_that_holds_a_principle_is_not_its_rating() -> None:
    layout = SEVEN.reply.model_copy(update={"extra_keys": {"notes": "string"}})
    rubric = replace(SEVEN, reply=layout)
    notes = {"empathy": 3, "ratings": {"safety": 3}, "list": [{"clarity": 3}, 3]}
    ratings = dict.fromkeys(SEVEN.principle_ids, 4)
    text = json.dumps({"item_id": "i", "reasons": "", "ratings": ratings, "notes": notes})
    assert isinstance(parse_ratings(text, rubric, "i"), ParsedRatings)
    places = rating_places(text, rubric)
    assert {text[place.start : place.stop] for place in places.values()} == {"4"}


@given(st.lists(st.floats(0.01, 1.0), min_size=5, max_size=5))
def test_an_expectation_lies_on_the_scale_and_scaling_all_changes_nothing(weights: list[float]) -> None:
    shares = {str(at): weight / sum(weights) for at, weight in enumerate(weights, start=1)}
    head, tail = token('{"empathy": '), token("}")
    found = expected([head, token_among("3", shares), tail])["empathy"]
    by_hand = sum(at * weight for at, weight in enumerate(weights, start=1)) / sum(weights)
    assert found == pytest.approx(by_hand, abs=1e-4)
    halved = {name: 0.6 * share for name, share in shares.items()}
    assert expected([head, token_among("3", halved), tail])["empathy"] == pytest.approx(found, abs=1e-4)


def test_scales_whose_points_begin_alike_are_refused() -> None:
    assert has_distinct_tokens(range(1, 6))
    assert has_distinct_tokens(range(-2, 3))
    assert not has_distinct_tokens(range(1, 11))
    with pytest.raises(ConfigError, match="begin alike"):
        require_expectable(replace(ONE, minimum=0, maximum=10))


# --- the judge ---------------------------------------------------------------------------------------------

SPEECH = Speech("Since the move I don't sleep, and nobody here knows my name.")
ITEMS = [(SPEECH, Candidate(SPEECH.id, "alder", f"What is night {night} like?")) for night in range(3)]
EXPECTED = ChatJudgeSettings(SamplingParams(), scorer=LogprobScorer)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "replies.sqlite") as opened:
        yield opened


def ignore(_done: int) -> None:
    return None


def rated(request: ChatRequest, shares: Mapping[str, float] | None) -> ChatReply:
    """Rate every principle with 4, and tell these alternatives at each."""
    heads = [f'{"," if at else ""}"{name}":' for at, name in enumerate(SEVEN.principle_ids)]
    before = f'{{"item_id":"{item_of(request)["item_id"]}","reasons":"so","ratings":{{'
    tokens = [token(before)]
    for head in heads:
        tokens += [token(head), token_among("4", shares or {"4": 1.0})]
    tokens.append(token("}}"))
    text = "".join(each["token"] for each in tokens)
    return replace(valid(text), choices=kept_choices(tokens, text) if shares else "")


def test_a_judge_expects_and_says_so(journal: Journal) -> None:
    model = FakeModel(lambda request: rated(request, {"4": 0.5, "3": 0.25, "5": 0.25, "2": 0.25}))
    judge = ChatJudge(client_of(model, journal, 2), SEVEN, EXPECTED)
    judgements = judge.rate(ITEMS, ignore)
    assert {request.top_logprobs for request in model.asked} == {20}
    # (2 + 3 + 5) * 0.25 + 4 * 0.5, over 1.25
    assert judgements[0].ratings == dict.fromkeys(SEVEN.principle_ids, 3.6)
    assert [(draw.scored_by, draw.status) for draw in judgements[0].samples] == [(Scoring.EXPECTED, ReplyStatus.VALID)]
    assert judge.fingerprint["score"] == "expected"
    unasked = FakeModel(lambda _: pytest.fail("nothing is owed"))
    assert ChatJudge(client_of(unasked, journal, 2), SEVEN, EXPECTED).rate(ITEMS, ignore) == judgements


def test_a_reply_whose_tokens_do_not_tell_keeps_its_numbers_and_says_so(journal: Journal) -> None:
    def some(request: ChatRequest) -> ChatReply:
        told = item_of(request)["response"] != ITEMS[1][1].text
        return rated(request, {"4": 0.5, "3": 0.5} if told else {"4": 0.1, "6": 0.9})

    judgements = ChatJudge(client_of(FakeModel(some), journal, 2), SEVEN, EXPECTED).rate(ITEMS, ignore)
    assert [each.ratings["empathy"] for each in judgements] == [3.5, 4, 3.5]
    assert judgements[1].samples[0].scored_by is Scoring.WRITTEN
    assert "10% of the probability" in judgements[1].samples[0].reason
    metrics = sample_metrics(judgements, SEVEN.principle_ids)
    assert metrics["samples"]["scored_by"] == {"expected": 2, "written": 1}


def test_a_server_without_probabilities_costs_one_request_and_is_named(journal: Journal) -> None:
    model = FakeModel(lambda request: rated(request, None))
    with pytest.raises(EndpointError, match="without log-probabilities") as refused:
        ChatJudge(client_of(model, journal, 2), SEVEN, EXPECTED).rate(ITEMS, ignore)
    assert "samples: 5" in refused.value.remedy
    assert len(model.asked) == 1
    assert count_replies(journal) == 1


def test_a_server_that_was_mended_is_asked_anew_what_it_answered_without_probabilities(
    journal: Journal,
) -> None:
    mute = FakeModel(lambda request: rated(request, None))
    with pytest.raises(EndpointError):
        ChatJudge(client_of(mute, journal, 2), SEVEN, EXPECTED).rate(ITEMS, ignore)
    mended = FakeModel(lambda request: rated(request, {"4": 0.5, "5": 0.5}))
    judge = ChatJudge(client_of(mended, journal, 2), SEVEN, EXPECTED)
    judgements = judge.rate(ITEMS, ignore)
    assert [each.ratings["empathy"] for each in judgements] == [4.5] * len(ITEMS)
    assert len(mended.asked) == len(ITEMS)
    unasked = FakeModel(lambda _: pytest.fail("nothing is owed"))
    again = ChatJudge(client_of(unasked, journal, 2), SEVEN, EXPECTED)
    assert again.rate(ITEMS, ignore) == judgements


def test_comparisons_need_no_probabilities(journal: Journal) -> None:
    winners = dict.fromkeys(("overall", *SEVEN.principle_ids), "A")

    def say_first(request: ChatRequest) -> ChatReply:
        told = {"item_id": item_of(request)["item_id"], "reasons": "so", "winners": winners}
        return valid(json.dumps(told))

    pair = ComparisonTask(ITEMS[0][0], ITEMS[0][1], ITEMS[1][1])
    (verdict,) = ChatJudge(client_of(FakeModel(say_first), journal, 2), SEVEN, EXPECTED).compare([pair], ignore)
    assert verdict.status is ReplyStatus.VALID


def test_draws_of_expectations_are_averaged(journal: Journal) -> None:
    def by_index(request: ChatRequest) -> ChatReply:
        return rated(request, {"4": 0.5, "3": 0.5} if request.sample_index else {"4": 1.0})

    both = replace(EXPECTED, samples=2)
    (judgement,) = ChatJudge(client_of(FakeModel(by_index), journal, 2), SEVEN, both).rate(ITEMS[:1], ignore)
    assert judgement.ratings["empathy"] == 3.75


def test_the_body_of_a_completion_gives_its_choices() -> None:
    tokens = [token('{"empathy": '), token("4", _4=0.5, _5=0.5), token("}")]
    choice = {
        "message": {"content": '{"empathy": 4}'},
        "finish_reason": "stop",
        "logprobs": {"content": tokens},
    }
    reply = read_completion(json.dumps({"model": "m", "choices": [choice]}).encode())
    assert expected_ratings(reply.text, read_choices(reply.choices), ONE) == {"empathy": 4.5}
