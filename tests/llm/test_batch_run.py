"""Batches over real sockets: the same replies as live, and nothing paid for twice."""

import json
import os
import random
import signal
import sqlite3
import time
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from batch_runs import endpoint_at, model_at, questions, reported, run, transport_to
from batch_server import BatchServer, ProviderScript, ScriptedBatch
from local_server import Answer

from psychocounsel.config.components import PriceConfig
from psychocounsel.errors import EndpointError, IncompleteError, Preempted, StoreError
from psychocounsel.llm.batch.run import run_in_batches, run_live
from psychocounsel.llm.batch.shards import Batch, ProviderAwayError
from psychocounsel.llm.cancel import CancelToken
from psychocounsel.llm.client import OpenAIChatModel
from psychocounsel.llm.cost import Spending, budget_of
from psychocounsel.llm.journal import Entry, Journal
from psychocounsel.llm.runner import RunPolicy, run_in_loop, run_requests
from psychocounsel.llm.structured_output import OutputMode
from psychocounsel.llm.types import ChatReply
from psychocounsel.types import ReplyStatus

ITEMS = 25


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "replies.sqlite"


def live(server: BatchServer, path: Path, count: int = ITEMS) -> list[ChatReply]:
    with Journal(path) as journal:
        return run_live(OpenAIChatModel(endpoint_at(server.base_url)), questions(count), journal, RunPolicy())


def answered(server: BatchServer, path: Path, count: int, policy: RunPolicy | None = None, **limits: Any) -> None:
    """Run to the end; every item has its answer, and no line was billed twice."""
    replies = run(server.base_url, path, count, policy, **limits)
    assert {each.status for each in replies} == {ReplyStatus.VALID}
    assert server.repeats == 0


def ordered(server: BatchServer) -> int:
    return server.requests.count("POST /batches")


class TestReplies:
    def test_are_those_of_a_live_run(self, journal: Path, tmp_path: Path) -> None:
        done: list[int] = []
        with BatchServer() as server:
            in_batches = run(server.base_url, journal, ITEMS, RunPolicy(progress=done.append))
            assert live(server, tmp_path / "live.sqlite") == [replace(each, batched=False) for each in in_batches]
            sent = [line["body"] for batch in server.batches.values() for line in batch.lines]
        assert all(each.batched and each.status is ReplyStatus.VALID for each in in_batches)
        assert [len(batch.lines) for batch in server.batches.values()] == [10, 10, 5]
        assert sorted(map(json.dumps, sent)) == sorted(map(json.dumps, server.live))
        assert sum(done) == ITEMS
        assert "unknown-request" in server.written[server.batches["batch-0"].output].decode()

    def test_mix_with_live_ones_in_one_journal(self, journal: Path) -> None:
        with BatchServer() as server:
            live(server, journal, 10)
            run(server.base_url, journal, 20)
            live(server, journal)
            assert run(server.base_url, journal, ITEMS) == live(server, journal)
            assert sum(server.bill().values()) == 10
            assert len(server.live) == 15

    def test_equal_requests_are_submitted_once_and_nothing_pending_sends_nothing(self, journal: Path) -> None:
        cancelled = CancelToken()
        cancelled.cancel()
        with BatchServer() as server, Journal(journal) as opened:
            endpoint = endpoint_at(server.base_url)
            twice = [*questions(3), *questions(3)]
            replies = run_in_batches(transport_to(endpoint), model_at(endpoint), twice, opened, RunPolicy())
            assert replies[:3] == replies[3:]
            assert sum(server.bill().values()) == 3
            before = len(server.requests)
            assert run(server.base_url, journal, 3, RunPolicy(cancel=cancelled)) == replies[:3]
            assert len(server.requests) == before

    def test_that_are_not_accepted_are_asked_for_again_and_no_more_often_than_allowed(self, journal: Path) -> None:
        def accept(index: int, reply: ChatReply) -> bool:
            return index != 1 and "It sounds" in reply.text

        with BatchServer() as server:
            replies = run(server.base_url, journal, 3, RunPolicy(accept, max_attempts=2, reader="r"))
            assert sorted(server.bill().values()) == [1, 1, 2]
            assert replies[1].status is ReplyStatus.VALID
            with Journal(journal) as opened:
                assert len(opened.accepted("r")) == 2

    def test_that_condemn_the_server_end_the_run_and_are_kept(self, journal: Path) -> None:
        seen_replies: list[int] = []

        def on_reply(index: int, reply: ChatReply) -> None:
            seen_replies.append(index)
            raise EndpointError("no good", where="there", remedy="none")

        with BatchServer() as server:
            with pytest.raises(EndpointError, match="no good"):
                run(server.base_url, journal, 3, RunPolicy(on_reply=on_reply))
            assert len(seen_replies) == 1
            # What is kept is not new any more.
            assert len(run(server.base_url, journal, 3, RunPolicy(on_reply=on_reply))) == 3
            assert sum(server.bill().values()) == 3

    def test_of_a_server_of_unknown_abilities_begin_with_a_live_one(self, journal: Path) -> None:
        with BatchServer() as server, Journal(journal) as opened:
            endpoint = endpoint_at(server.base_url)
            run_in_batches(transport_to(endpoint), model_at(endpoint, None), questions(5), opened, RunPolicy())
            assert (len(server.live), sum(server.bill().values())) == (1, 4)


class TestFaults:
    @pytest.mark.parametrize(("ending", "again"), [("expired", 4), ("cancelled", 10)])
    def test_lines_of_a_batch_that_ended_early_are_sent_again(self, journal: Path, ending: str, again: int) -> None:
        def cancel(event: str) -> None:
            if event == "state asked":
                server.batches["batch-0"].status = "cancelled"

        script = ProviderScript(expired_share=0.4) if ending == "expired" else ProviderScript(work_seconds=0.1)
        with BatchServer(script) as server:
            server.watch = cancel if ending == "cancelled" else server.watch
            answered(server, journal, ITEMS)
            assert [len(batch.lines) for batch in server.batches.values()] == [10, 10, 5, again]

    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_lines_that_fail_in_passing_are_submitted_again(self, journal: Path, status: int) -> None:
        def first_time(digest: str, before: int) -> int | None:
            return status if before == 0 and digest < "8" else None

        with BatchServer(ProviderScript(line_fault=first_time)) as server:
            answered(server, journal, ITEMS)
            assert (server.repeats, len(server.billed), server.files) == (0, ITEMS, {})
            assert len(server.written) > 2 * len(server.batches), "inputs, outputs and errors"

    def test_lines_that_always_fail_end_unanswered_and_are_pending(self, journal: Path) -> None:
        with BatchServer(ProviderScript(line_fault=lambda digest, before: 500 if digest < "8" else None)) as server:
            replies = run(server.base_url, journal, ITEMS, RunPolicy(max_attempts=2))
            lost = [each for each in replies if each.status is ReplyStatus.ERROR]
            assert 0 < len(lost) == ITEMS - len(server.billed)
            assert lost[0].reason == "HTTP 500: scripted fault"
            assert max(server.submitted.values()) == 2
            server.settings.line_fault = lambda digest, before: None
            answered(server, journal, ITEMS)

    @pytest.mark.parametrize(
        ("status", "end", "submitted"), [(400, "invalid", 1), (403, "error", 2), (404, "error", 2)]
    )
    def test_a_refusal_of_one_line_among_answered_ones_ends_no_other(
        self, journal: Path, status: int, end: str, submitted: int
    ) -> None:
        with BatchServer() as server:
            odd = digest_of(server, 3)
            server.settings.line_fault = lambda digest, before: status if digest == odd else None
            replies = run(server.base_url, journal, ITEMS, RunPolicy(max_attempts=2))
            assert {at: each.status for at, each in enumerate(replies) if each.status is not ReplyStatus.VALID} == {
                3: end
            }
            assert replies[3].reason == f"HTTP {status}: scripted fault"
            assert (server.submitted[odd], server.repeats) == (submitted, 0)

    @pytest.mark.parametrize("status", [400, 403, 404])
    def test_lines_that_are_all_refused_end_the_run_until_it_is_mended(self, journal: Path, status: int) -> None:
        with BatchServer(ProviderScript(line_fault=lambda digest, before: status)) as server:
            with pytest.raises(EndpointError, match=f"refused .HTTP {status}: scripted fault"):
                run(server.base_url, journal, ITEMS)
            server.settings.line_fault = lambda digest, before: None
            with Journal(journal) as opened:
                model = OpenAIChatModel(endpoint_at(server.base_url))
                assert len(run_live(model, questions(2), opened, RunPolicy())) == 2
            answered(server, journal, ITEMS)
            assert server.files == {}

    def test_a_batch_that_fails_as_a_whole_is_tried_again_so_often(self, journal: Path) -> None:
        with BatchServer(ProviderScript(fails=["odd"])) as server:
            assert len(run(server.base_url, journal, 5)) == 5
            assert (server.repeats, server.files) == (0, {})
        with BatchServer(ProviderScript(fails=["odd"] * 9)) as server:
            with pytest.raises(EndpointError, match="the batch failed: scripted: odd"):
                run(server.base_url, journal.with_name("other"), 5)
            assert (ordered(server), server.files) == (3, {})

    def test_a_full_queue_makes_smaller_files_and_one_without_any_room_ends_resumably(self, journal: Path) -> None:
        with BatchServer(ProviderScript(queue_tokens=1)) as server:
            with pytest.raises(IncompleteError, match="the provider's queue has no room"):
                run(server.base_url, journal, 3)
            server.settings.queue_tokens, server.settings.work_seconds = 60, 0.05
            answered(server, journal, 12)
            assert server.files == {}
            assert "failed" in {batch.status for batch in server.batches.values()}

    def test_the_queue_holds_no_more_than_its_limit(self, journal: Path) -> None:
        at_once: list[int] = []
        with BatchServer(ProviderScript(work_seconds=0.05)) as server:

            def watch(event: str) -> None:
                if event == "batch made":
                    at_once.append(sum(len(each.lines) for each in server.batches.values() if not each.output))

            server.watch = watch
            run(server.base_url, journal, 20, enqueued_tokens=50)  # 6 tokens each
            assert max(at_once) == 8
            assert server.repeats == 0

    def test_a_batch_whose_creation_lost_its_response_is_looked_for_first(self, journal: Path) -> None:
        with BatchServer(ProviderScript(lose_creations=1, list_lag_seconds=0.1, work_seconds=0.2)) as server:
            run(server.base_url, journal, 5, confirm_seconds=2.0)
            assert (ordered(server), server.repeats) == (1, 0)

    def test_a_batch_is_found_though_the_clock_was_days_ahead_when_it_was_created(self, journal: Path) -> None:
        with BatchServer(ProviderScript(lose_creations=1, work_seconds=0.2)) as server:
            server.settings.list_lag_seconds = 3600
            with pytest.raises(Preempted):
                cancel = CancelToken()
                server.watch = lambda event: cancel.cancel() if event == "list asked" and server.batches else None
                run(server.base_url, journal, 5, RunPolicy(cancel=cancel))
            server.watch, server.settings.list_lag_seconds = lambda event: None, 0
            with sqlite3.connect(journal) as tables:
                tables.execute("UPDATE batch_shards SET changed_at = changed_at + 3 * 86400")
            tables.close()
            answered(server, journal, 5)
            assert len(server.batches) == 1

    def test_an_unknown_batch_is_submitted_again_only_if_the_config_says_so(self, journal: Path) -> None:
        with BatchServer(ProviderScript(work_seconds=3600)) as server:
            stop_while_waiting(server, journal)
            server.batches.clear()
            with pytest.raises(EndpointError, match=r"does not know the batch batch-0.*of the project"):
                run(server.base_url, journal, 5)
            server.settings.work_seconds = 0
            assert len(run(server.base_url, journal, 5, resubmit_lost=True)) == 5

    @pytest.mark.parametrize(("lost", "api"), [("batch made", "the batch batch-0"), ("upload stored", "no batch API")])
    def test_a_batch_api_that_vanishes_ends_the_run_and_nothing_is_paid_for_twice_once_it_is_back(
        self, journal: Path, lost: str, api: str
    ) -> None:
        with BatchServer() as server:
            server.watch = lambda event: setattr(server.settings, "has_batches", event != lost)
            with pytest.raises(EndpointError, match=api):
                run(server.base_url, journal, 5)
            server.watch, server.settings.has_batches = lambda event: None, True
            answered(server, journal, 5)
            assert (len(server.batches), server.repeats) == (1, 0)

    def test_a_provider_that_is_away_for_a_while_is_waited_for(self, journal: Path) -> None:
        with BatchServer(ProviderScript(outages=12)) as server:  # five tries make one look
            answered(server, journal, 5)

    def test_a_list_of_many_pages_is_read_to_its_end_and_no_further_than_asked(self) -> None:
        async def listed(base_url: str, since: float) -> list[str]:
            provider = transport_to(endpoint_at(base_url)).connect()
            try:
                return [batch.id for batch in await provider.newest(since)]
            finally:
                await provider.aclose()

        with BatchServer() as server:
            server.batches = {
                f"batch-{at}": ScriptedBatch(f"batch-{at}", [], {}, made_at=float(at)) for at in range(250)
            }
            assert run_in_loop(listed(server.base_url, 0.0)) == [f"batch-{at}" for at in reversed(range(250))]
            server.requests.clear()
            assert len(run_in_loop(listed(server.base_url, 180.0))) == 70
            assert len(server.requests) == 1

    def test_no_batch_api(self, journal: Path) -> None:
        refused = pytest.raises(EndpointError, match="there is no batch API here; leave --batch out")
        with BatchServer(ProviderScript(has_batches=False)) as server, refused:
            run(server.base_url, journal, 3)

    def test_wrong_key(self, journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-123")
        with BatchServer(ProviderScript(key="another")) as server:
            with pytest.raises(EndpointError, match="the key is not accepted") as caught:
                run(server.base_url, journal, 3)
            assert "OPENAI_API_KEY" in str(caught.value)
            assert "sk-secret-123" not in str(caught.value)
            assert not server.files


def stop_while_waiting(server: BatchServer, path: Path, count: int = 5) -> Preempted:
    cancel = CancelToken()
    server.watch = lambda event: cancel.cancel() if event == "state asked" else None
    with pytest.raises(Preempted) as caught:
        run(server.base_url, path, count, RunPolicy(cancel=cancel))
    server.watch = lambda event: None
    return caught.value


class TestStopping:
    def test_says_that_the_batches_go_on_and_the_next_run_picks_them_up(self, journal: Path) -> None:
        with BatchServer(ProviderScript(work_seconds=3600)) as server:
            stopped = stop_while_waiting(server, journal, 15)
            assert "2 batches with 15 of them" in str(stopped)
            assert "run the same command again: it picks them up" in str(stopped)
            server.settings.work_seconds = 0
            assert len(run(server.base_url, journal, ITEMS)) == ITEMS
            assert [len(batch.lines) for batch in server.batches.values()] == [10, 5, 10]
            assert server.repeats == 0

    def test_what_is_with_the_provider_is_not_asked_live(self, journal: Path) -> None:
        with BatchServer(ProviderScript(work_seconds=3600)) as server:
            stop_while_waiting(server, journal)
            with pytest.raises(StoreError, match=r"5 of these requests are with the provider.*run with"):
                live(server, journal)
            with Journal(journal) as opened:
                others = questions(ITEMS)[5:]
                run_live(OpenAIChatModel(endpoint_at(server.base_url)), others, opened, RunPolicy())
            assert len(server.live) == ITEMS - 5


class TestCost:
    PRICE = PriceConfig(prompt=0.0, completion=1_000_000.0)
    """A dollar per token of an answer: 20 at most, and 7 in truth; in a batch half of that."""

    def budgeted(self, server: BatchServer, path: Path, max_cost: float) -> dict[str, Any]:
        endpoint = endpoint_at(server.base_url, price=self.PRICE, max_cost=max_cost)
        budget = budget_of(endpoint)
        with Journal(path) as journal:
            run_in_batches(transport_to(endpoint), model_at(endpoint), questions(10), journal, RunPolicy(budget=budget))
        return budget.spending.as_dict()

    def test_a_limit_stops_the_run_before_it_is_passed_and_the_next_goes_on(self, journal: Path) -> None:
        with BatchServer() as server:
            with pytest.raises(IncompleteError, match=r"could cost .10.0000, and with .21.0000 spent"):
                self.budgeted(server, journal, 30.0)
            # Three at 10 dollars, 3.5 each in truth, so one more at a time while 10 are left.
            assert [len(batch.lines) for batch in server.batches.values()] == [3, 1, 1, 1]
            spend = self.budgeted(server, journal, 45.0)
            assert server.repeats == 0
        assert spend["cost_usd"] == 10 * 3.5
        assert spend["models"]["scripted-judge-2025-01-01"]["batched_calls"] == 10

    def test_live_and_batched_replies_cost_what_they_cost(self, journal: Path) -> None:
        with BatchServer() as server:
            live(server, journal, 4)
            spend = self.budgeted(server, journal, 1000.0)
        assert spend["cost_usd"] == 4 * 7 + 6 * 3.5


EVENTS = {
    "upload arrived": 3,
    "upload stored": 3,
    "batch ordered": 3,
    "batch made": 3,
    "state asked": 4,
    "content asked": 3,
    "deletion asked": 6,
    "file deleted": 6,
}
"""Steps of the provider at which a run is killed, and how often each is taken at least."""


def test_killed_at_any_step_pays_for_nothing_twice(forks: Any, tmp_path: Path) -> None:
    journal, pids = tmp_path / "replies.sqlite", [0]
    drawn = random.Random(11)  # noqa: S311, a test's instants are no secret
    instants = [(event, drawn.randint(1, most)) for event, most in EVENTS.items()]
    left: list[int] = [0]
    wanted = [""]

    def kill(event: str) -> None:
        if event == wanted[0] and pids[0]:
            left[0] -= 1
            if left[0] == 0:
                os.kill(pids[0], signal.SIGKILL)
                pids[0] = 0

    plan = ProviderScript(work_seconds=0.1)
    with BatchServer(plan, kill) as server:
        whole = reported(run(server.base_url, tmp_path / "whole.sqlite", ITEMS))
        server.billed.clear()
        server.batches.clear()
        killed: list[bool] = []
        for at, (event, number) in enumerate(instants):
            path = journal.with_name(f"{at}.sqlite")
            wanted[0], left[0] = event, number
            pids[0] = forks.start(server.base_url, path, ITEMS, limits={"confirm_seconds": 0.2})
            killed.append(forks.number() == signal.SIGKILL)
            pids[0] = 0
            assert forks.finish(server.base_url, path, ITEMS, limits={"confirm_seconds": 0.2}) == whole
            assert set(server.bill().values()) == {1}, (event, number)
            assert len(server.billed) == ITEMS
            assert server.files == {}, (event, number)
            server.billed.clear()
            server.batches.clear()
    assert all(killed)


READ = RunPolicy(reader="r")


def digest_of(server: BatchServer, number: int) -> str:
    return questions(number + 1)[number].digest(OpenAIChatModel(endpoint_at(server.base_url)).fingerprint)


class TestDamagedRows:
    def damage(self, path: Path, digest: str) -> None:
        with sqlite3.connect(path) as tables:
            tables.execute("UPDATE replies SET text = x'00' WHERE digest = ? AND attempt = 0", (digest,))
        tables.close()

    def test_are_asked_again_and_every_item_keeps_its_place(self, journal: Path) -> None:
        with BatchServer() as server:
            first = run(server.base_url, journal, 4, READ)
            self.damage(journal, digest_of(server, 1))
            assert run(server.base_url, journal, 4, READ) == first
            assert sorted(server.bill().values()) == [1, 1, 1, 2]

    def test_leave_an_item_pending_though_another_of_its_replies_is_intact(self, journal: Path) -> None:
        policy = RunPolicy(lambda index, reply: reply.text != "no", reader="r")
        with BatchServer() as server:
            run(server.base_url, journal, 1, policy)
            with Journal(journal) as opened:
                opened.record_many([Entry(digest_of(server, 0), ChatReply(ReplyStatus.VALID, "no", "m", 1, 1))])
            self.damage(journal, digest_of(server, 0))
            assert run(server.base_url, journal, 1, policy)[0].text != "no"


class Portal(BatchServer):
    """Something that answers some paths with a page of its own, so many times."""

    def __init__(self, pattern: str, times: int, settings: ProviderScript | None = None) -> None:
        super().__init__(settings)
        self.pattern, self.times = pattern, times

    def respond(self, method: str, target: str, *rest: Any) -> Answer | None:
        if method == "GET" and self.pattern in target and self.times:
            self.times -= 1
            return Answer(200, b"<html>log in first</html>")
        return super().respond(method, target, *rest)


class TestStrangeAnswers:
    def test_to_questions_about_a_batch_are_not_awaited_for_ever(self, journal: Path) -> None:
        with Portal("/batches/", 999) as server:
            with pytest.raises(ProviderAwayError, match="not a batch"):
                run(server.base_url, journal, 5)
            assert 999 - server.times == 31
            server.times = 3
            answered(server, journal, 5)

    def test_are_no_empty_list_of_batches(self, journal: Path) -> None:
        with Portal("/batches?", 1) as server, pytest.raises(ProviderAwayError, match="not a list"):
            run(server.base_url, journal, 5)

    def test_are_no_empty_output(self, journal: Path) -> None:
        with Portal("/content", 3) as server:
            answered(server, journal, ITEMS)
            assert (server.times, server.repeats, server.files) == (0, 0, {})

    def test_are_no_numbers(self, journal: Path) -> None:
        class Odd(BatchServer):
            def _reported(self, batch: ScriptedBatch) -> dict[str, Any]:
                counts = {"completed": "many", "failed": float("nan")}
                return {**super()._reported(batch), "created_at": float("inf"), "request_counts": counts}

        with Odd() as server:
            answered(server, journal, 5)

    def test_are_no_output_that_stops_half_way(self, journal: Path) -> None:
        cuts = [lambda whole: b"", lambda whole: whole[: len(whole) // 2], lambda whole: whole[:-40]]
        cuts += [lambda whole: whole.partition(b"\n")[0], lambda whole: whole.decode().encode("utf-16")]

        def cut(event: str) -> None:
            if event == "content asked":
                output = server.batches["batch-0"].output
                server.files[output] = (cuts.pop() if cuts else bytes)(server.written[output])

        with BatchServer(watch=cut) as server:
            answered(server, journal, 5)
            assert (len(server.batches), cuts) == (1, [])

    def test_are_no_lost_answers_of_a_batch_of_which_others_expired(self, journal: Path) -> None:
        class Counting(BatchServer):
            def _reported(self, batch: ScriptedBatch) -> dict[str, Any]:
                answers = self.written.get(batch.output, b"").count(b"\n") - 1  # one is to nobody's request
                counts = {"completed": max(0, answers), "failed": 0}
                return {**super()._reported(batch), "request_counts": counts}

        def cut(event: str) -> None:
            if event == "content asked" and not cuts:
                output = server.batches["batch-0"].output
                server.files[output] = b"".join(server.written[output].splitlines(keepends=True)[:2])
                cuts.append(output)
            elif cuts:
                server.files[cuts[0]] = server.written[cuts[0]]

        cuts: list[str] = []
        with Counting(ProviderScript(expired_share=0.4), watch=cut) as server:
            answered(server, journal, 5)
            assert [len(batch.lines) for batch in server.batches.values()] == [5, 2]

    def test_that_stay_are_given_up_only_if_the_config_says_so(self, journal: Path) -> None:
        with Portal("/content", 999) as server:
            with pytest.raises(ProviderAwayError, match=r"no line that can be read; .*resubmit_lost: true"):
                run(server.base_url, journal, 5)
            server.times = 1
            assert len(run(server.base_url, journal, 5, resubmit_lost=True)) == 5
            assert len(server.batches) == 2


class Stubborn(BatchServer):
    """Cancels nothing."""

    def _one(self, batch_id: str, is_cancelled: bool) -> Answer:
        if is_cancelled:
            self.cancelled.append(batch_id)
            reported = {"message": "Cannot cancel a batch with status 'completed'."}
            return Answer(409, {"error": reported})
        return super()._one(batch_id, is_cancelled)


class TestDuplicates:
    def list_late(self, server: BatchServer) -> None:
        """Lose the response to the first order; the list has its batch after the second order, whose it has not yet."""

        def watch(event: str) -> None:
            made = [batch.made_at for batch in server.batches.values()]
            server.settings.list_lag_seconds = time.time() - made[0] if len(made) > 1 else 3600

        server.settings.lose_creations, server.watch = 1, watch

    @pytest.mark.parametrize(
        ("kind", "fails", "cancelled"),
        [(BatchServer, [], ["batch-1"]), (Stubborn, [], ["batch-1"]), (BatchServer, ["odd"], [])],
    )
    def test_that_appear_late_are_cancelled_if_they_can_be_and_block_nothing(
        self, journal: Path, kind: type[BatchServer], fails: list[str], cancelled: list[str]
    ) -> None:
        with kind(ProviderScript(fails=fails)) as server:
            self.list_late(server)
            assert len(run(server.base_url, journal, 5, confirm_seconds=0.1)) == 5
            assert (len(server.batches), sorted({*server.cancelled})) == (2, cancelled)
            assert kind is Stubborn or server.repeats == 0

    def test_of_which_one_is_done_cancel_the_other(self, journal: Path) -> None:
        def finish_the_second(event: str) -> None:
            late(event)
            if event == "list asked" and "batch-1" in server.batches:
                server.settings.list_lag_seconds = 0
                server.bill_for("batch-1")

        with BatchServer(ProviderScript(work_seconds=3600)) as server:
            self.list_late(server)
            late, server.watch = server.watch, finish_the_second
            answered(server, journal, 5, confirm_seconds=0.1)
            assert (len(server.batches), server.cancelled, server.repeats) == (2, ["batch-0"], 0)


class TestOldBills:
    def spent(self, server: BatchServer, path: Path, ask: Any, knows: bool = True, max_cost: float = 1.0) -> Spending:
        price = PriceConfig(prompt=1.0, completion=1000.0)
        endpoint = endpoint_at(server.base_url, price=price, max_cost=max_cost)
        model, budget = model_at(endpoint, OutputMode.JSON_SCHEMA if knows else None), budget_of(endpoint)
        policy = RunPolicy(budget=budget)
        with Journal(path) as opened:
            if ask is run_in_batches:
                run_in_batches(transport_to(endpoint), model, questions(3), opened, policy)
            else:
                ask(model, questions(3), opened, policy)
        return budget.spending

    @pytest.mark.parametrize("knows", [True, False])
    def test_of_responses_lost_in_a_live_run_count(self, journal: Path, tmp_path: Path, knows: bool) -> None:
        with BatchServer() as server:
            reported: list[Spending] = []
            for ask, path in ((run_in_batches, journal), (run_requests, tmp_path / "live.sqlite")):
                with Journal(path) as opened:
                    for number in (0, 0, 1, 2):
                        opened.record_lost_responses([digest_of(server, number)])
                reported.append(self.spent(server, path, ask, knows))
        assert [each.possibly_billed for each in reported] == [4, 4]
        # 20 tokens at 0.001 each, four times.
        assert reported[0].possible_cost == reported[1].possible_cost > Decimal("0.08")

    def test_count_before_the_first_request_goes_live(self, journal: Path) -> None:
        with BatchServer() as server:
            with Journal(journal) as opened:
                paid = ChatReply(ReplyStatus.VALID, "x", "judge", 0, 200)  # 200 x 0.001 dollars
                opened.record_many([Entry(digest_of(server, 0), paid)])
            with pytest.raises(IncompleteError, match=r"with .0.2000 spent the limit of .0.2 would be passed"):
                self.spent(server, journal, run_in_batches, knows=False, max_cost=0.2)
            assert server.live == []

    @pytest.mark.parametrize("lost", [0, 1])
    def test_name_the_first_live_request_once_and_each_response_that_it_lost(self, journal: Path, lost: int) -> None:
        with BatchServer(ProviderScript(lose_live=lost)) as server:
            spending = self.spent(server, journal, run_in_batches, knows=False)
            assert (len(server.live), sum(server.bill().values())) == (1 + lost, 2)
        (spent,) = spending.new.values()
        assert (spent.calls, spent.batched_calls, spending.kept) == (3, 2, {})
        assert spending.possibly_billed == lost


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (Batch("b", "completed", 2, completed=500), Batch("a", "expired", 1, completed=0)),
        (Batch("b", "in_progress", 2, completed=400), Batch("a", "expired", 1, completed=0)),
        (Batch("b", "completed", 2, completed=500), Batch("a", "in_progress", 1, completed=400)),
        (Batch("b", "expired", 2, completed=90), Batch("a", "expired", 1, completed=10)),
        (Batch("b", "in_progress", 2), Batch("a", "failed", 1)),
        (Batch("b", "in_progress", 1), Batch("a", "in_progress", 2)),
    ],
)
def test_of_two_duplicates_the_one_is_kept_that_was_paid_for_more(better: Batch, worse: Batch) -> None:
    assert min([worse, better], key=lambda batch: batch.rank) is better
