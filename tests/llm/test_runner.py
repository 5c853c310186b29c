"""Pending requests are sent once, their replies are journalled before use, and faults end a run."""

import asyncio
import gc
import os
import signal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_model import count_replies
from psychocounsel.errors import EndpointError, IncompleteError, Preempted
from psychocounsel.llm.cancel import CancelToken
from psychocounsel.llm.journal import Entry, Journal
from psychocounsel.llm.runner import RunPolicy, run_in_loop, run_requests
from psychocounsel.llm.types import ChatReply, ChatRequest, Message, RefusedRequestError
from psychocounsel.types import ReplyStatus


def ask_for(text, sample_index=0):
    return ChatRequest((Message("user", text),), 0.0, 1.0, 20, sample_index=sample_index)


def valid(text):
    return ChatReply(ReplyStatus.VALID, text, "fake-1", 1, 1)


def failed(status):
    return ChatReply(status, "", "fake-1", 1, 1, "scripted")


class FakeModel:
    """Answers by `script(text, how often this text was asked before)`; counts, and knows who is in flight."""

    fingerprint = {"model": "fake-1", "base_url": "memory"}  # noqa: RUF012

    def __init__(self, script=lambda text, times: valid(f"re: {text}"), seconds=0.0):
        self.script = script
        self.seconds = seconds
        self.asked = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.closed = 0

    async def generate(self, request, context):
        text = request.messages[0].content
        times = self.asked.count(text)
        self.asked.append(text)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.in_flight -= 1
        outcome = self.script(text, times)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def aclose(self):
        self.closed += 1


def test_the_first_request_goes_alone_the_others_by_concurrency_and_replies_keep_the_order(journal):
    in_flight, tasks = [], []

    class Watched(FakeModel):
        async def generate(self, request, context):
            tasks.append(len(asyncio.all_tasks()))
            reply = await super().generate(request, context)
            in_flight.append((request.messages[0].content, self.most_in_flight))
            return reply

    model = Watched(seconds=0.002)
    texts = [f"t{number}" for number in range(50)]
    replies = run_requests(model, [ask_for(text) for text in texts], journal, RunPolicy(concurrency=7))
    assert [reply.text for reply in replies] == [f"re: {text}" for text in texts]
    assert sorted(model.asked) == sorted(texts)
    assert in_flight[0] == ("t0", 1)
    assert (model.most_in_flight, model.closed) == (7, 1)
    assert max(tasks) <= 7 + 2  # the run itself and one commit


def test_equal_requests_are_sent_once_and_a_second_run_sends_nothing(journal):
    model, done, cancelled = FakeModel(seconds=0.001), [], CancelToken()
    cancelled.cancel()
    texts = ["a", "b", "a", "a", "b"] * 4
    for token in (CancelToken(), cancelled):
        policy = RunPolicy(progress=done.append, cancel=token)
        replies = run_requests(model, [ask_for(text) for text in texts], journal, policy)
        assert [reply.text for reply in replies] == [f"re: {text}" for text in texts]
        assert sorted(model.asked) == ["a", "b"]
    assert sum(done) == 20 + 20


@pytest.mark.parametrize("status", sorted(set(ReplyStatus) - {ReplyStatus.VALID}))
def test_a_failure_is_tried_again_in_this_run_and_in_the_next(journal, status):
    requests = [ask_for("good"), ask_for("bad")]
    model = FakeModel(lambda text, times: valid(text) if text == "good" else failed(status))
    first = run_requests(model, requests, journal, RunPolicy(max_attempts=3))
    assert [reply.status for reply in first] == [ReplyStatus.VALID, status]
    assert model.asked.count("bad") == 3
    kept = 0 if status is ReplyStatus.ERROR else 3
    assert len(journal.replies(ask_for("bad").digest(model.fingerprint))) == kept
    better = FakeModel()
    second = run_requests(better, requests, journal, RunPolicy(max_attempts=3))
    assert [reply.text for reply in second] == ["good", "re: bad"]
    assert better.asked == ["bad"]


def test_accept_decides_what_ends_an_item_also_for_journalled_replies(journal):
    requests = [ask_for("a")]
    model = FakeModel(lambda text, times: valid(str(times)))

    def two(index, reply):
        assert index == 0
        return reply.text == "2"

    assert run_requests(model, requests, journal, RunPolicy(accept=two, max_attempts=5))[0].text == "2"
    assert len(model.asked) == 3
    fresh = FakeModel()
    assert run_requests(fresh, requests, journal, RunPolicy(accept=lambda _, r: r.text == "1"))[0].text == "1"
    assert fresh.asked == []


def test_a_new_reply_may_condemn_the_server_and_is_kept(journal):
    def on_reply(index, reply):
        raise EndpointError(f"{index}: {reply.text}", where="memory", remedy="none")

    requests = [ask_for("a"), ask_for("b")]
    model = FakeModel()
    with pytest.raises(EndpointError, match="0: re: a"):
        run_requests(model, requests, journal, RunPolicy(on_reply=on_reply))
    assert model.asked == ["a"]
    # What is kept is not new any more.
    with pytest.raises(EndpointError, match="1: re: b"):
        run_requests(model, requests, journal, RunPolicy(on_reply=on_reply))
    replies = run_requests(model, requests, journal, RunPolicy(on_reply=on_reply))
    assert [each.text for each in replies] == ["re: a", "re: b"]
    assert model.asked == ["a", "b"]


def test_equal_requests_with_different_demands_each_get_a_reply_journalled_before_it_is_used(journal):
    model, request = FakeModel(lambda text, times: valid(str(times))), ask_for("a")

    def accept(index, reply):
        assert reply in journal.replies(request.digest(model.fingerprint))
        return reply.text == str(index)

    replies = run_requests(model, [request] * 3, journal, RunPolicy(accept=accept, max_attempts=9))
    assert [reply.text for reply in replies] == ["0", "1", "2"]
    assert len(model.asked) == 3


def test_an_endpoint_that_answers_no_more_ends_the_run(journal):
    model = FakeModel(lambda text, times: valid(text) if int(text) < 10 else failed(ReplyStatus.ERROR))
    policy = RunPolicy(max_attempts=2, concurrency=3)
    requests = [ask_for(str(n)) for n in range(100)]
    with pytest.raises(IncompleteError, match="5 requests in a row were not answered: scripted") as caught:
        run_requests(model, requests, journal, policy)
    assert len(model.asked) <= 10 + 5 + 3
    assert caught.value.where == "memory"
    assert count_replies(journal) == 10
    rest = FakeModel()
    run_requests(rest, requests, journal, policy)
    assert len(rest.asked) == 90


def test_unanswered_requests_between_answered_ones_stop_nothing(journal):
    model = FakeModel(lambda text, times: failed(ReplyStatus.ERROR) if int(text) % 3 else valid(text))
    policy = RunPolicy(max_attempts=1, concurrency=2)
    replies = run_requests(model, [ask_for(str(n)) for n in range(30)], journal, policy)
    assert [reply.status.value for reply in replies].count("error") == 20


def test_a_refused_request_stops_the_run_and_fails_alone_once_another_was_taken_in_any_run(journal):
    requests = [ask_for("a"), ask_for("b")]
    model = FakeModel(lambda text, times: RefusedRequestError("I do not take it", where="memory", remedy="mend it"))
    with pytest.raises(RefusedRequestError):
        run_requests(model, requests, journal, RunPolicy())
    run_requests(FakeModel(), requests[1:], journal, RunPolicy())
    replies = run_requests(model, requests, journal, RunPolicy())
    assert [reply.status for reply in replies] == [ReplyStatus.INVALID, ReplyStatus.VALID]
    assert replies[0].reason == "I do not take it"
    assert model.asked == ["a", "a"], "once in each run"
    assert count_replies(journal) == 1


def test_a_late_refusal_keeps_what_is_in_flight(journal):
    def script(text, times):
        return EndpointError("quota") if text == "t5" else valid(text)

    model = FakeModel(script, seconds=0.005)
    with pytest.raises(EndpointError, match="quota"):
        run_requests(model, [ask_for(f"t{n}") for n in range(100)], journal, RunPolicy(concurrency=4))
    assert len(model.asked) <= 6 + 2 * 4
    assert count_replies(journal) == len(model.asked) - model.asked.count("t5")


def test_stop_finishes_what_is_in_flight_and_no_more(journal):
    cancel = CancelToken()

    class Cancelling(FakeModel):
        async def generate(self, request, context):
            if len(self.asked) == 19:
                cancel.cancel()
            return await super().generate(request, context)

    model = Cancelling(seconds=0.002)
    requests = [ask_for(f"t{n}") for n in range(100)]
    policy = RunPolicy(concurrency=4, cancel=cancel)
    with pytest.raises(Preempted, match="20 of 100"):
        run_requests(model, requests, journal, policy)
    assert len(model.asked) == 20
    assert count_replies(journal) == 20
    rest = FakeModel()
    assert len(run_requests(rest, requests, journal, RunPolicy())) == 100
    assert len(rest.asked) == 80


def test_a_disk_that_fills_ends_the_run_and_the_next_one_asks_the_rest(journal):
    journal.record_many([Entry("before", valid("earlier"))])
    connection = journal._connection
    model = FakeModel(lambda text, times: valid(text * 400), seconds=0.001)
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count={pages + 20}")
    requests = [ask_for(f"t{n}") for n in range(200)]
    with pytest.raises(IncompleteError, match="disk is full") as caught:
        run_requests(model, requests, journal, RunPolicy(concurrency=4))
    assert (caught.value.where, caught.value.exit_code) == (str(journal.path), 3)
    kept = count_replies(journal) - 1
    assert 0 < kept < 200
    assert len(model.asked) <= kept + 2 * 4
    connection.execute(f"PRAGMA max_page_count={100 * pages + 10_000}")
    rest = FakeModel()
    run_requests(rest, requests, journal, RunPolicy(concurrency=4))
    assert len(rest.asked) == 200 - kept
    assert journal.replies("before") == [valid("earlier")]


def test_a_reply_whose_bytes_flipped_is_asked_for_again_and_no_other(tmp_path, caplog):
    path, model = tmp_path / "j.sqlite", FakeModel()
    requests, policy = [ask_for(f"t{n}") for n in range(10)], RunPolicy(reader="any")
    with Journal(path) as journal:
        first = run_requests(FakeModel(), requests, journal, policy)
    assert path.read_bytes().count(b"re: t3") == 1
    path.write_bytes(path.read_bytes().replace(b"re: t3", b"re: t9"))
    with Journal(path) as journal:
        assert run_requests(model, requests, journal, policy) == first
        assert model.asked == ["t3"]
        assert journal.damaged_rows > 0
        assert "paid for, again" in caplog.text


@pytest.fixture
def default_interrupts():
    """A process started in the background by a shell ignores SIGINT at first."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_keyboard_interrupt_keeps_every_reply_that_came(journal, default_interrupts):
    model = FakeModel(seconds=0.002)
    came = []

    def script(text, times):
        came.append(text)
        if len(came) == 50:
            os.kill(os.getpid(), signal.SIGINT)
        return valid(text)

    model.script = script
    with pytest.raises(KeyboardInterrupt):
        run_requests(model, [ask_for(f"t{n}") for n in range(1000)], journal, RunPolicy())
    assert 50 <= len(came) < 1000
    assert count_replies(journal) == len(came)
    assert model.closed == 1


@given(
    st.lists(st.sampled_from("abcdefgh"), max_size=12),
    st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 4)),
    st.integers(1, 3),
    st.integers(1, 5),
)
@settings(max_examples=25, deadline=None)
def test_runs_until_nothing_is_pending_send_each_request_exactly_as_often_as_needed(
    tmp_path_factory, texts, needed, max_attempts, concurrency
):
    total = {}

    def script(text, times):
        total[text] = total.get(text, 0) + 1
        return valid(text) if total[text] >= needed.get(text, 1) else failed(ReplyStatus.REFUSAL)

    policy = RunPolicy(max_attempts=max_attempts, concurrency=concurrency)
    with Journal(tmp_path_factory.mktemp("run") / "j.sqlite") as opened:
        for _ in range(4):
            replies = run_requests(FakeModel(script), [ask_for(text) for text in texts], opened, policy)
    assert [reply.text for reply in replies] == texts
    assert total == {text: needed.get(text, 1) for text in set(texts)}


def test_older_objects_are_not_collected_while_requests_run() -> None:
    async def frozen() -> int:
        return gc.get_freeze_count()

    assert run_in_loop(frozen()) > 1000
    assert gc.get_freeze_count() == 0


def test_an_error_comes_out_as_it_is_and_what_still_ran_is_ended() -> None:
    ended: list[str] = []

    async def lasting() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("lasting")

    async def failing() -> None:
        task = asyncio.create_task(lasting())
        await asyncio.sleep(0)
        assert not task.done()
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run_in_loop(failing())
    assert ended == ["lasting"]
    assert gc.get_freeze_count() == 0
