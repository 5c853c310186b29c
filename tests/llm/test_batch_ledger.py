"""Lines of batch files, and the ledger of shards."""

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.errors import StoreError
from psychocounsel.llm.batch.client import read_output
from psychocounsel.llm.batch.shards import BatchLedger, Shard, ShardState, digests_in_batches, input_line
from psychocounsel.llm.cost import Price, Spending, Tokens
from psychocounsel.llm.journal import Entry, Journal
from psychocounsel.llm.rate_limit import OnStatus
from psychocounsel.llm.types import ChatReply
from psychocounsel.types import ReplyStatus

REPLY = ChatReply(ReplyStatus.VALID, "yes", "m", 3, 2, batched=True)


def output_line(**parts: object) -> bytes:
    return json.dumps({"custom_id": "d", "response": None, "error": None, **parts}).encode()


def response(status: int, body: object) -> dict[str, object]:
    return {"status_code": status, "body": body}


def completion(text: str) -> dict[str, object]:
    return {"model": "m", "choices": [{"message": {"content": text}, "finish_reason": "stop"}]}


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_an_input_line_is_one_line_for_every_reader_and_holds_the_live_body(text: str) -> None:
    body = json.dumps({"messages": [text]}, ensure_ascii=False).encode()
    line = input_line("d" * 64, body).decode()
    assert len(line.splitlines()) == 1
    reported = json.loads(line)
    assert reported["body"] == json.loads(body)
    assert (reported["custom_id"], reported["method"], reported["url"]) == ("d" * 64, "POST", "/v1/chat/completions")


def test_an_answered_line_is_read_as_a_live_reply_is_and_a_filtered_prompt_is_a_reply() -> None:
    filtered = response(400, {"error": {"code": "content_filter", "message": "no"}})
    lines = [output_line(response=each) for each in (response(200, completion("\ud800 ok")), filtered)]
    one, other = (each.reply for each in read_output(b"\n".join(lines), "asked") if each)
    assert one == ChatReply(ReplyStatus.VALID, "\ufffd ok", "m", 0, 0, batched=True)
    assert other is not None
    assert (other.status, other.model) == (ReplyStatus.CONTENT_FILTER, "asked")


@pytest.mark.parametrize(
    ("parts", "reason", "action"),
    [
        ({"error": {"code": "batch_expired", "message": "too late"}}, "too late", OnStatus.RETRY),
        ({"error": {"code": "batch_cancelled"}}, "batch_cancelled", OnStatus.RETRY),
        ({"response": response(200, {"error": {}})}, "unreadable answer: ", OnStatus.RETRY),
        ({"response": response(200, None)}, "unreadable answer: ", OnStatus.RETRY),
        ({"response": response(429, {"error": {"message": "slow"}})}, "HTTP 429: slow", OnStatus.SLOW_DOWN_FREE),
        ({"response": response(500, "<html>")}, "HTTP 500: no reason given", OnStatus.RETRY),
        ({"response": response(400, {"error": {"message": "no"}})}, "HTTP 400: no", OnStatus.REFUSE_REQUEST),
        ({"response": response(401, {"error": {"message": "no"}})}, "HTTP 401: no", OnStatus.REFUSE_ALL),
        ({}, "no reason given", OnStatus.RETRY),
    ],
)
def test_an_unanswered_line_says_why(parts: dict[str, object], reason: str, action: OnStatus) -> None:
    (outcome,) = read_output(output_line(**parts), "asked")
    assert outcome is not None
    assert outcome.reply is None
    assert outcome.reason.startswith(reason)
    assert outcome.action is action


@given(st.binary())
def test_no_output_crashes_the_reader(content: bytes) -> None:
    assert all(each is None or each.reply is None for each in read_output(content, "asked"))


def test_a_request_stands_in_one_unfinished_shard_at_most(journal: Journal) -> None:
    ledger = BatchLedger(journal, "here")
    ledger.add(Shard("one", "run", "sha", 2), ["a", "b"])
    with pytest.raises(StoreError, match="another run has submitted"):
        BatchLedger(journal, "here").add(Shard("two", "run", "sha", 2), ["c", "b"])
    assert [each.id for each in ledger.open_shards()] == ["one"]
    ledger.add(Shard("three", "run", "sha", 1), ["c"])
    ledger.close("one", ShardState.VOID)
    ledger.add(Shard("four", "run", "sha", 1), ["b"])
    assert [each.id for each in ledger.open_shards()] == ["three", "four"]
    assert BatchLedger(journal, "elsewhere").open_shards() == []


def test_states_follow_each_other_and_only_what_may_be_sent_is_awaited(journal: Journal) -> None:
    ledger = BatchLedger(journal, "here")
    ledger.add(Shard("one", "run", "sha", 1), ["a"])
    assert digests_in_batches(journal) == set()
    ledger.advance("one", ShardState.SENDING)
    assert digests_in_batches(journal) == {"a"}
    ledger.advance("one", ShardState.RUNNING, "batch")
    (shard,) = ledger.open_shards()
    assert (shard.state, shard.batch) == (ShardState.RUNNING, "batch")
    ledger.close("one", ShardState.ENDED)
    assert (ledger.open_shards(), digests_in_batches(journal)) == ([], set())


def test_a_reply_is_kept_once_however_often_its_file_is_read(journal: Journal) -> None:
    ledger = BatchLedger(journal, "here")
    ledger.add(Shard("one", "run", "sha", 1), ["a"])
    entries = [Entry("a", REPLY), Entry("a", REPLY), Entry("stranger", REPLY)]
    assert ledger.record("another", entries) == []
    assert ledger.record("one", entries) == entries[:1]
    assert ledger.record("one", entries) == []
    assert journal.replies("a") == [REPLY]
    assert journal.replies("stranger") == []
    assert ledger.pending_of("one") == set()


def test_a_batched_reply_costs_half_and_its_cached_prefix_is_no_cheaper() -> None:
    price = Price(Decimal(2), Decimal(1), Decimal(10), "test")
    spending = Spending(price)
    for batched in (False, True):
        reply = ChatReply(ReplyStatus.VALID, "", "m", 1_000_000, 100_000, "", 500_000, batched)
        spending.add(reply, is_new=True)
    # Live: 0.5 x 2 + 0.5 x 1 + 0.1 x 10 = 2.5; in a batch: (1 x 2 + 0.1 x 10) / 2 = 1.5.
    assert spending.total == Decimal("4.0")
    assert price.batch_cost(Tokens(1_000_000, 500_000, 100_000)) == Decimal("1.5")
    assert spending.as_dict()["models"]["m"] == {
        "calls": 2,
        "prompt": 2_000_000,
        "cached": 1_000_000,
        "completion": 200_000,
        "batched_calls": 1,
    }
