"""Batches where what is told cannot be believed: damaged rows, strange answers, refusals, twins, bills."""

import sqlite3
import sys
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from batch_server import Answer, BatchServer, ProviderScript

sys.path.insert(0, str(Path(__file__).parent))

from batch_runs import endpoint_at, questions, run, transport_to

from psychocounsel.config.components import PriceConfig
from psychocounsel.errors import EndpointError, IncompleteError, PsychoCounselError
from psychocounsel.llm.batch.provider import Batch, ProviderAwayError
from psychocounsel.llm.batch.run import run_in_batches, run_live
from psychocounsel.llm.client import OpenAIChatModel
from psychocounsel.llm.cost import Spending, budget_of
from psychocounsel.llm.journal import Entry, Journal
from psychocounsel.llm.runner import RunPolicy, run_requests
from psychocounsel.llm.types import ChatReply
from psychocounsel.types import ReplyStatus

ITEMS = 25
READ = RunPolicy(reader="r")


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "replies.sqlite"


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

    def test_leave_an_item_owed_though_another_of_its_replies_is_intact(self, journal: Path) -> None:
        def accept(index: int, reply: ChatReply) -> bool:
            del index
            return reply.text != "no"

        policy = RunPolicy(accept, reader="r")
        with BatchServer() as server:
            run(server.base_url, journal, 1, policy)
            with Journal(journal) as opened:
                opened.record(digest_of(server, 0), ChatReply(ReplyStatus.VALID, "no", "m", 1, 1))
            self.damage(journal, digest_of(server, 0))
            assert run(server.base_url, journal, 1, policy)[0].text != "no"


class TestRefusals:
    @pytest.mark.parametrize("status", [400, 403, 404])
    def test_are_over_once_they_are_mended(self, journal: Path, status: int) -> None:
        with BatchServer(ProviderScript(line_fault=lambda digest, before: status)) as server:
            with pytest.raises(EndpointError, match=f"refused .HTTP {status}"):
                run(server.base_url, journal, ITEMS)
            server.plan.line_fault = lambda digest, before: None
            with Journal(journal) as opened:
                model = OpenAIChatModel(endpoint_at(server.base_url))
                assert len(run_live(model, questions(2), opened, RunPolicy())) == 2
            assert {each.status for each in run(server.base_url, journal, ITEMS)} == {ReplyStatus.VALID}
            assert server.repeats == 0

    @pytest.mark.parametrize("status", [403, 404])
    def test_of_one_line_among_answered_ones_end_no_other(self, journal: Path, status: int) -> None:
        with BatchServer() as server:
            odd = digest_of(server, 3)
            server.plan.line_fault = lambda digest, before: status if digest == odd else None
            replies = run(server.base_url, journal, ITEMS, RunPolicy(max_attempts=2))
            assert [at for at, each in enumerate(replies) if each.status is not ReplyStatus.VALID] == [3]
            assert replies[3].reason == f"HTTP {status}: scripted fault"
            assert (server.submitted[odd], server.repeats) == (2, 0)


class Portal(BatchServer):
    """Something that answers some paths with a page of its own, so many times."""

    def __init__(self, pattern: str, times: int, plan: ProviderScript | None = None) -> None:
        super().__init__(plan)
        self.pattern, self.times = pattern, times

    def answer(self, method: str, target: str, *rest: Any) -> Answer | None:
        if method == "GET" and self.pattern in target and self.times:
            self.times -= 1
            return Answer(200, b"<html>log in first</html>")
        return super().answer(method, target, *rest)


class TestStrangeAnswers:
    def test_to_questions_about_a_batch_are_not_listened_to_for_ever(self, journal: Path) -> None:
        with Portal("/batches/", 999) as server:
            with pytest.raises(ProviderAwayError, match="not a batch"):
                run(server.base_url, journal, 5)
            assert 999 - server.times == 31
            server.times = 3
            assert len(run(server.base_url, journal, 5)) == 5
            assert server.repeats == 0

    def test_are_no_empty_list_of_batches(self, journal: Path) -> None:
        with Portal("/batches?", 1) as server, pytest.raises(ProviderAwayError, match="not a list"):
            run(server.base_url, journal, 5)

    def test_are_no_empty_output(self, journal: Path) -> None:
        with Portal("/content", 3) as server:
            assert {each.status for each in run(server.base_url, journal, ITEMS)} == {ReplyStatus.VALID}
            assert (server.times, server.repeats, server.files) == (0, 0, {})

    def test_that_stay_are_given_up_only_if_told_so(self, journal: Path) -> None:
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
            told = {"message": "Cannot cancel a batch with status 'completed'."}
            return Answer(409, {"error": told})
        return super()._one(batch_id, is_cancelled)


class TestDuplicates:
    LOST = ProviderScript(lose_creations=1, list_lag_seconds=0.4, work_seconds=0.8)

    def test_that_cannot_be_cancelled_block_nothing(self, journal: Path) -> None:
        with Stubborn(replace(self.LOST)) as server:
            replies = run(server.base_url, journal, 5, confirm_seconds=0.3)
            assert {each.status for each in replies} == {ReplyStatus.VALID}
            assert (len(server.batches), set(server.cancelled)) == (2, {"batch-1"})

    def test_of_which_one_is_done_cancel_the_other(self, journal: Path) -> None:
        def finish_the_second(event: str) -> None:
            if event == "list asked" and "batch-1" in server.batches:
                server.plan.list_lag_seconds = 0
                server.bill_for("batch-1")

        with BatchServer(replace(self.LOST, work_seconds=9)) as server:
            server.watch = finish_the_second
            replies = run(server.base_url, journal, 5, confirm_seconds=0.3)
            assert {each.status for each in replies} == {ReplyStatus.VALID}
            assert (len(server.batches), server.cancelled, server.repeats) == (2, ["batch-0"], 0)

    def test_of_which_the_first_failed_leave_the_other(self, journal: Path) -> None:
        with BatchServer(replace(self.LOST, fails=["odd"])) as server:
            replies = run(server.base_url, journal, 5, confirm_seconds=0.3)
            assert {each.status for each in replies} == {ReplyStatus.VALID}
            assert (len(server.batches), server.cancelled, server.repeats) == (2, [], 0)


class TestOldBills:
    def spent(self, server: BatchServer, path: Path, ask: Any, knows: bool = True, max_cost: float = 1.0) -> Spending:
        price = PriceConfig(prompt=1.0, completion=1000.0)
        endpoint = endpoint_at(server.base_url, price=price, max_cost=max_cost)
        model, budget = OpenAIChatModel(endpoint), budget_of(endpoint)
        policy = RunPolicy(budget=budget)
        known = [True] if knows else []
        transport = replace(transport_to(endpoint), is_known=lambda: bool(known))
        with Journal(path) as opened:
            if ask is run_in_batches:
                run_in_batches(transport, model, questions(3), opened, policy)
            else:
                ask(model, questions(3), opened, policy)
        return budget.spending

    @pytest.mark.parametrize("knows", [True, False])
    def test_of_lines_that_broke_in_a_live_run_count(self, journal: Path, tmp_path: Path, knows: bool) -> None:
        with BatchServer() as server:
            told: list[Spending] = []
            for ask, path in ((run_in_batches, journal), (run_requests, tmp_path / "live.sqlite")):
                with Journal(path) as opened:
                    for number in (0, 0, 1, 2):
                        opened.record_lost_responses([digest_of(server, number)])
                told.append(self.spent(server, path, ask, knows))
        assert [each.possibly_billed for each in told] == [4, 4]
        assert told[0].possible_cost == told[1].possible_cost > Decimal("0.08")  # 20 tokens at 0.001 each, four times

    def test_count_before_the_first_request_goes_live(self, journal: Path) -> None:
        with BatchServer() as server:
            with Journal(journal) as opened:
                paid = ChatReply(ReplyStatus.VALID, "x", "judge", 0, 200)  # 200 x 0.001 dollars
                opened.record_many([Entry(digest_of(server, 0), paid)])
            with pytest.raises(IncompleteError, match=r"with .0.2000 spent the limit of .0.2 would be passed"):
                self.spent(server, journal, run_in_batches, knows=False, max_cost=0.2)
            assert server.live == []

    def test_name_the_first_live_request_once(self, journal: Path) -> None:
        with BatchServer() as server:
            spending = self.spent(server, journal, run_in_batches, knows=False)
            assert len(server.live) == 1
        (spent,) = spending.new.values()
        assert (spent.calls, spent.batched_calls, spending.kept) == (3, 2, {})

    def test_of_a_first_live_request_whose_line_breaks_count(
        self, journal: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def break_once(model: Any, requests: Any, opened: Journal, policy: RunPolicy) -> list[ChatReply]:
            opened.record_lost_responses([requests[0].digest(model.fingerprint)])
            return run_requests(model, requests, opened, policy)

        monkeypatch.setattr("psychocounsel.llm.batch.run.run_requests", break_once)
        with BatchServer() as server:
            assert self.spent(server, journal, run_in_batches, knows=False).possibly_billed == 1


def test_every_fault_is_one_that_is_told(journal: Path) -> None:
    """A list of batches that vanishes after the run began is no fault of ours."""

    class Vanishing(BatchServer):
        def _list(self, asked: Any) -> Answer:
            self.plan.has_batches = False
            return super()._list(asked)

    with Vanishing() as server, pytest.raises(PsychoCounselError, match="there is no batch API here"):
        run(server.base_url, journal, 5)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (Batch("b", "completed", 2, answered=500), Batch("a", "expired", 1, answered=0)),
        (Batch("b", "in_progress", 2, answered=400), Batch("a", "expired", 1, answered=0)),
        (Batch("b", "completed", 2, answered=500), Batch("a", "in_progress", 1, answered=400)),
        (Batch("b", "expired", 2, answered=90), Batch("a", "expired", 1, answered=10)),
        (Batch("b", "in_progress", 2), Batch("a", "failed", 1)),
        (Batch("b", "in_progress", 1), Batch("a", "in_progress", 2)),
    ],
)
def test_of_two_duplicates_the_one_is_kept_that_was_paid_for_more(better: Batch, worse: Batch) -> None:
    assert min([worse, better], key=lambda batch: batch.rank) is better
