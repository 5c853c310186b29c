"""Faults that end a run of the judge, through the command line: its exit code, and what the next run asks."""

import math
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from batch_server import BatchServer, ProviderScript
from chat_server import MODEL, ChatServer, Fault, Reply, answer_by_schema, error_fault

from miniature import write_build_config, write_yaml
from psychocounsel.store.store import Store
from running import Cli, Ended, Warm, WarmRun, await_until

ITEMS, IN_FLIGHT = 128, 4


def config_for(recipe: Path, base_url: str, pool: str = "", **endpoint: Any) -> Path:
    """Return the path of a config with this judge, and with a pool of this model."""
    asked = {"model": MODEL, "base_url": base_url, "concurrency": IN_FLIGHT, "max_attempts": 1, **endpoint}
    responder = {"author": "mini", "endpoint": {"model": pool, "base_url": base_url}}
    pools = {"pool": {"per_speech": 1, "responders": [responder]}} if pool else {}
    return write_build_config(recipe, judge={"backend": "endpoint", "endpoint": asked}, **pools)


def build(cli: Cli, recipe: Path, *more: str | Path) -> Ended:
    return cli("build-preferences", recipe / "changed.yaml", "--store", recipe.parent / "store", *more)


FINAL = [
    (error_fault(400, "unknown parameter"), "endpoint.model"),
    (error_fault(401, "no such key"), "OPENAI_API_KEY"),
    (error_fault(403, "not yours"), "may"),
    (error_fault(404, "no such model"), "base_url"),
    (error_fault(429, "you ran out", "insufficient_quota"), "credit"),
]


def test_a_final_refusal_is_the_users_error_after_one_request(recipe: Path, cli: Cli) -> None:
    for fault, remedy in FINAL:
        # Pinned, for where a schema is refused the same would be asked in words.
        with ChatServer(lambda body, number, fault=fault: fault) as server:
            config_for(recipe, server.base_url, response_format="json_schema")
            ended = build(cli, recipe)
            assert (ended.code, server.count) == (2, 1), ended
        assert remedy in ended.err
        assert "Traceback" not in ended.err


LISTED = [{"id": MODEL}, {"id": "gone", "shutdown_date": "2026-01-01"}]


def test_a_judge_that_is_gone_is_found_before_the_pool_is_paid(recipe: Path, cli: Cli) -> None:
    with ChatServer(models=LISTED) as server:
        config_for(recipe, server.base_url, pool=MODEL, model="gone")
        ended = build(cli, recipe)
        assert (ended.code, server.count) == (2, 0), ended
        assert "the model 'gone' was shut down on 2026-01-01" in ended.err


def test_a_server_on_this_machine_may_load_its_judge_after_the_pool_answered(recipe: Path, cli: Cli) -> None:
    with ChatServer(models=[{"id": MODEL}]) as server:
        loaded = server.models = [{"id": MODEL}]

        def loads(body: Mapping[str, Any], number: int) -> Reply | Fault:
            loaded[:] = [{"id": "late"}]  # one model at a time
            return answer_by_schema(body, number)

        server.script = loads
        config_for(recipe, server.base_url, pool=MODEL, model="late")
        assert build(cli, recipe).code == 0


def test_a_judge_that_is_gone_is_found_before_both_sides_answer(recipe: Path, cli: Cli) -> None:
    with ChatServer(models=LISTED) as server:
        config_for(recipe, server.base_url)
        assert build(cli, recipe).code == 0
        asked, count = {"model": MODEL, "base_url": server.base_url}, server.count
        config = recipe / "winrate.yaml"
        sides = {side: {"author": side, "endpoint": asked} for side in ("policy", "reference")}
        judge = {"backend": "endpoint", "endpoint": {**asked, "model": "gone"}}
        write_yaml(config, {"name": "mini", "speeches": "mini", **sides, "judge": judge})
        ended = cli("eval-winrate", config, "--store", recipe.parent / "store")
        assert (ended.code, server.count) == (2, count), ended
        assert "the model 'gone' was shut down on 2026-01-01" in ended.err


@pytest.mark.parametrize("wait", ["", "0.05"])
def test_a_quota_that_ends_midway_keeps_what_was_answered(recipe: Path, cli: Cli, wait: str) -> None:
    headers = {"Retry-After": wait} if wait else {}
    no_more = error_fault(429, "you ran out", "insufficient_quota", headers)
    answered: list[int] = []
    turn = threading.Lock()

    def script(body: Mapping[str, Any], number: int) -> Reply | Fault:
        with turn:
            if len(answered) == 40:
                return no_more
            answered.append(number)
            return answer_by_schema(body, number)

    with ChatServer(script) as server:
        config_for(recipe, server.base_url)
        ended = build(cli, recipe)
        ended.says(2, "the quota of this key is used up", "add credit")
        assert server.count <= 40 + IN_FLIGHT
        server.script, asked = answer_by_schema, server.count
        assert build(cli, recipe).code == 0
        assert server.count - asked == ITEMS - 40


def start(warm: Warm, recipe: Path, server: ChatServer) -> WarmRun:
    """Start a run; return once twenty of its requests are answered and the next ones are held back."""
    server.hold_from = 20
    run = warm.start("build-preferences", config_for(recipe, server.base_url), "--store", recipe.parent / "store")
    await_until(lambda: server.count == 20 + IN_FLIGHT)
    return run


def finish(cli: Cli, recipe: Path, server: ChatServer) -> int:
    """Run again with nothing held back; return how many requests were ever sent."""
    server.hold_from = math.inf
    ended = build(cli, recipe)
    assert ended.code == 0, ended.err
    return server.count


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_keeps_what_is_in_flight(recipe: Path, warm: Warm, cli: Cli, signum: signal.Signals) -> None:
    with ChatServer() as server:
        run = start(warm, recipe, server)
        run.send(signum)
        await_until(lambda: signum.name in run.err())
        server.hold_from = math.inf
        run.wait().says(75, f"stopped with {20 + IN_FLIGHT} of {ITEMS} items done", "run the same command again")
        assert server.count == 20 + IN_FLIGHT
        assert finish(cli, recipe, server) == ITEMS


def test_a_second_signal_ends_at_once_and_costs_what_was_in_flight(recipe: Path, warm: Warm, cli: Cli) -> None:
    with ChatServer() as server:
        run = start(warm, recipe, server)
        run.send(signal.SIGINT)
        await_until(lambda: "SIGINT" in run.err())
        run.send(signal.SIGTERM)
        ended = run.wait()
        ended.says(75)
        assert "items done" not in ended.err
        assert finish(cli, recipe, server) <= ITEMS + IN_FLIGHT


def test_a_second_run_of_the_same_judgements_is_told_of_the_first(recipe: Path, warm: Warm, cli: Cli) -> None:
    with ChatServer() as server:
        first = start(warm, recipe, server)
        build(cli, recipe).says(2, str(first.pid))
        server.hold_from = math.inf
        assert first.wait().code == 0
        assert server.count == ITEMS
    assert len(Store(recipe.parent / "store").artifacts("judgements")) == 1


PILOT = 20


PRICE = {"prompt": 100.0, "completion": 100.0}


def spend_of(recipe: Path) -> Any:
    (made,) = Store(recipe.parent / "store").artifacts("judgements")
    return made.metrics["spend"]


def test_the_first_items_say_what_all_will_cost(recipe: Path, cli: Cli) -> None:
    def garble_the_first(body: Mapping[str, Any], number: int) -> Reply | Fault:
        return Reply("Five!") if number < 2 else answer_by_schema(body, number)

    with ChatServer(garble_the_first) as server:
        config_for(recipe, server.base_url, response_format="json_schema", price=PRICE)
        ended = build(cli, recipe)
    assert ended.code == 0, ended
    spent = 100 * (11 + 7) / 1e6  # dollars of one reply of the server
    bill = ITEMS * spent
    assert ended.err.count(f"{PILOT - 2} of the first {PILOT} replies can be read") == 1
    assert f"about ${bill:,.2f}" in ended.err
    expected = {"requests": PILOT, "readable": PILOT - 2, "cost_usd": PILOT * spent, "projected_usd": bill}
    assert spend_of(recipe)["pilot"] == pytest.approx(expected)


def test_a_resumed_run_has_the_same_pilot_and_none_is_wanted_with_0(recipe: Path, cli: Cli) -> None:
    def go_away(body: Mapping[str, Any], number: int) -> Reply | Fault:
        return error_fault(401, "gone") if number > 2 * PILOT else answer_by_schema(body, number)

    with ChatServer(go_away) as server:
        config_for(recipe, server.base_url, response_format="json_schema", price=PRICE)
        assert "replies can be read" in build(cli, recipe).err
        server.script = answer_by_schema
        again = build(cli, recipe)
        assert (again.code, "replies can be read" in again.err) == (0, False)
        assert spend_of(recipe)["pilot"]["readable"] == PILOT
        other = ("--set", "judge.pilot=0", "--set", "judge.temperature=0.5")
        without = build(cli, recipe, *other)
        assert (without.code, "replies can be read" in without.err) == (0, False)


class TestJudgeThatCannotBeRead:
    def test_is_given_up_after_the_pilot_and_what_it_answered_is_kept(self, recipe: Path, cli: Cli) -> None:
        with ChatServer(lambda body, number: Reply("Five stars!")) as server:
            config_for(recipe, server.base_url, max_attempts=3, response_format="json_schema")
            more = ["--set", "judge.max_missing_share=0.9"]
            ended = build(cli, recipe, *more)
            assert ended.code == 4, ended
            assert server.count <= 3 * (PILOT + IN_FLIGHT)
            assert (
                f"{PILOT} of the first {PILOT} judgements failed ({PILOT} invalid), and none can be read" in ended.err
            )
            assert "the first invalid: expected one JSON object, found 0" in ended.err
            assert "endpoint.response_format" in ended.err
            exported = recipe / "journal.jsonl"
            assert cli("journal", "export", exported, "--store", recipe.parent / "store").code == 0
            assert len(exported.read_text(encoding="utf-8").splitlines()) == server.count

    def test_is_given_up_as_soon_as_too_many_have_failed(self, recipe: Path, cli: Cli) -> None:
        def garble_every_third(body: Mapping[str, Any], number: int) -> Reply | Fault:
            return Reply("Five!") if number % 3 == 1 else answer_by_schema(body, number)

        with ChatServer(garble_every_third) as server:
            config_for(recipe, server.base_url, response_format="json_schema")
            ended = build(cli, recipe)
            assert ended.code == 4, ended
            assert "7 of the first" in ended.err  # 5 % of 128 are 6
            assert server.count <= 3 * 7 + IN_FLIGHT
            server.script, asked = answer_by_schema, server.count
            assert build(cli, recipe).code == 0
            garbled = sum(number % 3 == 1 for number in range(asked))  # the seven, and those in flight then
            assert server.count - asked == ITEMS - asked + garbled

    def test_may_fail_altogether_where_everything_may_be_missing(self, recipe: Path, cli: Cli) -> None:
        with ChatServer(lambda body, number: Reply("Five stars!")) as server:
            more = ["--set", "judge.max_missing_share=1.0"]
            config_for(recipe, server.base_url, response_format="json_schema")
            assert build(cli, recipe, *more).code == 4
            assert server.count == ITEMS

    def test_is_given_up_before_a_batch(self, recipe: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
        with BatchServer(ProviderScript(script=lambda body, number: Reply("Five stars!"))) as server:
            config_for(recipe, server.base_url, response_format="json_schema")
            ended = build(cli, recipe, "--batch")
            assert ended.code == 4, ended
            assert (len(server.live), server.batches) == (PILOT, {})
