"""No speech stays at the provider; what cannot be deleted stops no run."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from batch_runs import endpoint_at, model_at, questions, run, transport_to
from batch_server import BatchServer, ProviderScript
from local_server import Answer

from psychocounsel.errors import ConfigError, EndpointError
from psychocounsel.llm.batch.client import OpenAIBatches
from psychocounsel.llm.batch.run import run_in_batches
from psychocounsel.llm.batch.shards import BatchLedger, Shard, ShardState
from psychocounsel.llm.journal import Entry, Journal
from psychocounsel.llm.runner import RunPolicy
from psychocounsel.llm.types import ChatReply, endpoint_fingerprint
from psychocounsel.types import ReplyStatus

ITEMS = 25


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "replies.sqlite"


class KilledError(BaseException):
    """Stands for a kill: no code of the package catches it."""


def reports_of(
    server: BatchServer, path: Path, connect: Callable[[], OpenAIBatches] | None = None, items: int = ITEMS
) -> list[str]:
    """Return what a run through batches reports."""
    reports: list[str] = []
    endpoint = endpoint_at(server.base_url)
    transport = transport_to(endpoint, reports.append)
    transport = transport if connect is None else replace(transport, connect=connect)
    with Journal(path) as opened:
        replies = run_in_batches(transport, model_at(endpoint), questions(items), opened, RunPolicy())
    assert {each.status for each in replies} == {ReplyStatus.VALID}
    return reports


class TestFilesAreDeleted:
    def test_of_a_batch_that_was_never_made(self, journal: Path) -> None:
        class Refusing(BatchServer):
            def _make(self, order: object) -> Answer:
                return Answer(400, {"error": {"message": "no batches today", "code": None}})

        with Refusing() as server:
            with pytest.raises(EndpointError, match="no batches today"):
                run(server.base_url, journal, 5)
            assert (len(server.written), server.files) == (1, {})

    def test_of_an_upload_that_a_kill_left_alone(self, journal: Path) -> None:
        with BatchServer() as server:
            endpoint = endpoint_at(server.base_url)
            digest = questions(1)[0].digest(endpoint_fingerprint(endpoint))
            with Journal(journal) as opened:
                shard = Shard("run-0001", "run", "sha", 1)
                BatchLedger(opened, f"judge at {server.base_url}").add(shard, [digest])
            server.files["file-of-the-dead"] = b"what a client said"
            server.names["file-of-the-dead"] = "run-0001.jsonl"
            server.files["file-of-others"] = b"not ours"
            server.names["file-of-others"] = "run-0002.jsonl"
            run(server.base_url, journal, 1)
            assert list(server.files) == ["file-of-others"]

    def test_by_either_of_two_runs_that_wait_for_them(self, journal: Path) -> None:
        with BatchServer(ProviderScript(work_seconds=0.2)) as server, ThreadPoolExecutor() as pool:
            both = [pool.submit(run, server.base_url, journal, ITEMS) for _ in range(2)]
            assert both[0].result() == both[1].result()
            assert (len(server.batches), server.repeats, server.files) == (3, 0, {})

    @pytest.mark.parametrize(("expires", "days", "uploads"), [(True, (7, 30), 3), (False, (0, 0), 4)])
    def test_and_expire_otherwise_if_the_provider_knows_expiry_which_it_is_asked_once(
        self, journal: Path, expires: bool, days: tuple[int, int], uploads: int
    ) -> None:
        with BatchServer(ProviderScript(expires=expires)) as server:
            reports_of(server, journal)
            assert set(server.expiry_seconds.values()) == {days[0] * 86_400}
            assert {each.output_seconds for each in server.batches.values()} == {days[1] * 86_400}
            assert (len(server.batches), server.repeats, server.files) == (3, 0, {})
            assert server.requests.count("POST /files") == uploads


class TestFilesThatStay:
    def test_are_reported_once_and_deleted_by_the_next_run(self, journal: Path) -> None:
        with BatchServer(ProviderScript(deletes=False)) as server:
            (stays,) = [line for line in reports_of(server, journal) if "deleted" in line]
            assert "could not be deleted at the provider" in stays
            assert "this key may not delete files" in stays
            assert len(server.files) == len(server.written)
            server.settings.deletes = True
            assert reports_of(server, journal) == []
            assert (server.files, len(server.batches)) == ({}, 3)
            before = len(server.requests)
            reports_of(server, journal)
            assert len(server.requests) == before

    def test_hinder_no_run_without_pending_requests(self, journal: Path) -> None:
        def without_key() -> OpenAIBatches:
            raise ConfigError("there is no key")

        with BatchServer(ProviderScript(deletes=False)) as server:
            reports_of(server, journal)
            (stays,) = reports_of(server, journal, without_key)
            assert "(there is no key); the next run tries again" in stays

    @pytest.mark.parametrize("owner", [OpenAIBatches, BatchLedger])
    @pytest.mark.parametrize("times", [1, 2, 6])
    def test_a_kill_between_reading_and_deleting_loses_nothing(
        self, journal: Path, monkeypatch: pytest.MonkeyPatch, owner: type, times: int
    ) -> None:
        step = "delete" if owner is OpenAIBatches else "forget_file"  # before it is deleted, or before that is noted
        take, calls = getattr(owner, step), count(1)

        def killed(*given: object) -> object:
            if next(calls) == times:
                raise KilledError
            return take(*given)

        monkeypatch.setattr(owner, step, killed)
        with BatchServer() as server:
            with pytest.raises(KilledError):
                reports_of(server, journal)
            monkeypatch.undo()
            reports_of(server, journal)
            assert (len(server.batches), server.repeats, server.files) == (3, 0, {})

    @pytest.mark.parametrize("whole", [True, False])
    def test_a_kill_before_a_batch_that_was_read_is_closed_loses_nothing(
        self, journal: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
    ) -> None:
        def killed(*given: object) -> None:
            raise KilledError(given)

        with BatchServer() as server:
            monkeypatch.setattr(BatchLedger, "close", killed)
            with pytest.raises(KilledError):
                reports_of(server, journal, items=10)
            monkeypatch.undo()
            assert server.files
            reports_of(server, journal, items=10 if whole else ITEMS)
            assert (server.repeats, server.files) == (0, {})
            with Journal(journal) as opened:
                assert BatchLedger(opened, f"judge at {server.base_url}").open_shards() == []

    def test_with_lines_that_cannot_be_read(self, journal: Path) -> None:
        with BatchServer() as server:

            def spoil(event: str) -> None:
                if event == "content asked":
                    output = server.batches["batch-0"].output
                    server.files[output] = server.written[output] + b"{torn\n"

            server.watch = spoil
            run(server.base_url, journal, 5)
            assert list(server.files) == [server.batches["batch-0"].output]


def test_a_shard_that_another_run_has_read_needs_no_file(journal: Path) -> None:
    """Its files are deleted while this run still waits for it."""
    reply = ChatReply(ReplyStatus.VALID, "read elsewhere", "judge", 1, 1, batched=True)
    with BatchServer(ProviderScript(work_seconds=0.1)) as server:

        def read_elsewhere(event: str) -> None:
            if event != "content asked":
                return
            server.files.clear()
            with Journal(journal) as opened:
                ledger = BatchLedger(opened, f"judge at {server.base_url}")
                (shard,) = ledger.open_shards()
                ledger.record(shard.id, [Entry(digest, reply) for digest in ledger.pending_of(shard.id)])
                ledger.close(shard.id, ShardState.ENDED)

        server.watch = read_elsewhere
        assert run(server.base_url, journal, 5) == [reply] * 5
        assert len(server.batches) == 1
