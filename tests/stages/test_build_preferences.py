"""Speeches -> pairs through the command line: wrong inputs, failing judges, kills."""

import json
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from chat_server import MODEL, ChatServer, Fault, Reply, answer_by_schema, error_fault

from miniature import rows, write_recipe, write_rows, write_yaml
from psychocounsel.corpus.topics import load_taxonomy
from psychocounsel.store.schemas import read_speeches
from psychocounsel.store.store import Store
from running import Cli, Ended, Warm, await_until

KEY = "sk-planted-4711-secret"
ENDPOINT = {"model": "scripted-judge-2025-01-01", "base_url": "http://127.0.0.1:9/v1", "concurrency": 4}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "recipe")


def config_with(recipe: Path, **changes: Any) -> Path:
    path = recipe / "changed.yaml"
    content = {
        "name": "mini",
        "corpus": "corpus.yaml",
        "pairing": {"min_gap": 0.5},
        "audit": {"retest": 0, "one_principle": 0, "canaries": 0},
        **changes,
    }
    write_yaml(path, content)
    return path


def endpoint_judge(base_url: str, **changes: Any) -> dict[str, Any]:
    endpoint = {**ENDPOINT, "base_url": base_url, "max_attempts": 1}
    return {"backend": "endpoint", "endpoint": endpoint, **changes}


def build(cli: Cli, config: Path, *more: str) -> Ended:
    return cli("build-preferences", config, "--store", config.parent.parent / "store", *more)


def pairs_files(store: Path) -> dict[str, bytes]:
    folder = next((store / "preferences").glob("mini-*"))
    return {path.name: path.read_bytes() for path in sorted(folder.glob("data/*.parquet"))}


def is_the_users_error(ended: Ended, *told: str) -> None:
    assert ended.code == 2, ended
    assert "Traceback" not in ended.err
    assert ended.err.splitlines()[-1].startswith("error: ")
    for each in told:
        assert each in ended.err, ended.err


class TestConfigs:
    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("name: mini\ncorpus: corpus.yaml\npairng: {}\n", ["line 3", "mean 'pairing'"]),
            ("name: mini\ncorpus: corpsu.yaml\n", ["corpsu.yaml", "did you mean", "corpus.yaml"]),
        ],
    )
    def test_faults_say_what_where_and_how_to_mend(self, recipe: Path, cli: Cli, text: str, told: list[str]) -> None:
        path = recipe / "changed.yaml"
        path.write_text(text, encoding="utf-8")
        is_the_users_error(build(cli, path), *told)


class TestSources:
    def test_missing_file(self, recipe: Path, cli: Cli) -> None:
        (recipe / "speeches.jsonl").unlink()
        is_the_users_error(build(cli, config_with(recipe)), "speeches.jsonl", "no such file", "check the path")

    def test_empty_file(self, recipe: Path, cli: Cli) -> None:
        (recipe / "candidates.jsonl").write_bytes(b"")
        is_the_users_error(build(cli, config_with(recipe)), "candidates.jsonl", "is empty")

    def test_wrong_column(self, recipe: Path, cli: Cli) -> None:
        ended = build(cli, config_with(recipe), "--set", "corpus.speeches.0.columns.text=txt")
        is_the_users_error(ended, "speeches.jsonl line 1", "no column 'txt'", "set columns to one of: key, topic")

    @pytest.mark.parametrize("text", ["nul \\u0000 inside", "lone \\ud800 surrogate"])
    def test_text_that_no_table_holds(self, recipe: Path, cli: Cli, text: str) -> None:
        path = recipe / "candidates.jsonl"
        lines = path.read_text(encoding="utf-8").split("\n")
        row = json.loads(lines[6])
        lines[6] = json.dumps({**row, "text": "TEXT"}).replace("TEXT", text)
        path.write_text("\n".join(lines), encoding="utf-8")
        is_the_users_error(build(cli, config_with(recipe)), "candidates.jsonl line 7")

    def test_nothing_answers_the_speeches(self, recipe: Path, cli: Cli) -> None:
        ended = build(cli, config_with(recipe), "--set", "corpus.candidates=[]")
        is_the_users_error(ended, "answers the speeches", "a pool")


class TestWhatIsLeft:
    def test_speech_with_one_candidate_is_counted(self, recipe: Path, cli: Cli) -> None:
        path = recipe / "candidates.jsonl"
        content = rows(path)
        alone = content[0]["speech"]
        write_rows(path, [content[0], *(row for row in content if row["speech"] != alone)])
        ended = build(cli, config_with(recipe))
        assert ended.code == 0
        assert "1 speech with one candidate" in ended.out

    def test_all_scores_equal(self, recipe: Path, cli: Cli) -> None:
        with ChatServer(same_ratings) as server:
            ended = build(cli, config_with(recipe, judge=endpoint_judge(server.base_url)))
        assert ended.code == 4
        assert "no pair is left in train: 114 equal_scores; add responses" in ended.err
        assert "lower pairing.min_gap" in ended.err

    def test_empty_split(self, recipe: Path, cli: Cli) -> None:
        ended = build(cli, config_with(recipe, pairing={"min_gap": 4.0}))
        assert ended.code == 4
        assert "no pair is left in train" in ended.err
        assert "Traceback" not in ended.err


class TestPrivacy:
    REMOTE = "https://judge.invalid/v1"

    def test_restricted_text_stays_here(self, recipe: Path, cli: Cli) -> None:
        config = config_with(recipe, judge=endpoint_judge(self.REMOTE))
        restricted = ["--set", "corpus.speeches.0.data_class=restricted"]
        for more in (restricted, [*restricted, "--dry-run"]):
            is_the_users_error(build(cli, config, *more), "speeches.jsonl", self.REMOTE, "de-identify it")

    def test_restricted_text_may_go_to_this_machine(self, recipe: Path, cli: Cli) -> None:
        with ChatServer() as server:
            config = config_with(recipe, judge=endpoint_judge(server.base_url))
            assert build(cli, config, "--set", "corpus.speeches.0.data_class=restricted").code == 0

    @pytest.mark.parametrize("more", [[], ["--dry-run"]])
    def test_offline_opens_no_connection(
        self, recipe: Path, cli: Cli, no_way_out: list[object], monkeypatch: pytest.MonkeyPatch, more: list[str]
    ) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        config = config_with(recipe, judge=endpoint_judge(self.REMOTE))
        ended = build(cli, config, "--offline", *more)
        is_the_users_error(ended, "offline", self.REMOTE, "drop --offline")
        assert no_way_out == []
        assert not (recipe.parent / "store").exists()

    def test_offline_with_the_offline_judge(self, recipe: Path, cli: Cli, no_way_out: list[object]) -> None:
        assert build(cli, config_with(recipe), "--offline").code == 0
        assert no_way_out == []

    def test_offline_may_ask_this_machine(self, recipe: Path, cli: Cli, no_way_out: list[object]) -> None:
        with ChatServer() as server:
            config = config_with(recipe, judge=endpoint_judge(server.base_url))
            assert build(cli, config, "--offline").code == 0
        assert no_way_out == []

    def test_a_missing_key_is_named_before_anything_is_read(
        self, recipe: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("MY_KEY", raising=False)
        judge = endpoint_judge(self.REMOTE)
        judge["endpoint"]["api_key_env"] = "MY_KEY"
        ended = build(cli, config_with(recipe, judge=judge))
        is_the_users_error(ended, "MY_KEY", "holds no API key", "export MY_KEY=")
        assert not (recipe.parent / "store" / "speeches").exists()


GIVEN_UP = error_fault(500, "come tomorrow", headers={"Retry-After": "86400"})
"""A fault that is not waited for: the request is lost at once."""


class TestFailingJudge:
    def test_failed_replies_are_asked_again_and_valid_ones_never(self, recipe: Path, cli: Cli) -> None:
        def refuse_every_eighth(request: Mapping[str, Any], number: int) -> Reply:
            if number % 8 == 0:
                return Reply(None, refusal="I would rather not.")
            return answer_by_schema(request, number)

        with ChatServer(refuse_every_eighth) as server:
            config = config_with(recipe, judge=endpoint_judge(server.base_url, max_missing_share=0.05))
            first = build(cli, config)
            assert first.code == 4
            assert "7 of the first" in first.err, first.err
            assert "the same command" in first.err
            asked = server.count
            assert asked <= 49 + ENDPOINT["concurrency"]
            server.script = answer_by_schema
            second = build(cli, config)
            assert second.code == 0
            assert server.count == 128 + 7
            assert build(cli, config).code == 0
            assert server.count == 128 + 7

    def test_few_failures_are_left_out_and_shown(self, recipe: Path, cli: Cli) -> None:
        def garble_once(request: Mapping[str, Any], number: int) -> Reply:
            return Reply("Five stars!") if number == 3 else answer_by_schema(request, number)

        with ChatServer(garble_once) as server:
            ended = build(cli, config_with(recipe, judge=endpoint_judge(server.base_url)))
        assert ended.code == 0
        assert re.search(r"responses judged +128 +127 .*1 invalid", ended.out)
        assert re.search(r"Missing judgements by topic.*\n.*\n +[a-z-]+ +1 ", ended.out), ended.out

    def test_a_lost_request_is_pending_however_much_may_be_missing(self, recipe: Path, cli: Cli) -> None:
        lost: list[Any] = []

        def lose_one(request: Mapping[str, Any], number: int) -> Reply | Fault:
            lost.extend([request["messages"]] if number == 3 else [])
            return GIVEN_UP if request["messages"] in lost else answer_by_schema(request, number)

        with ChatServer(lose_one) as server:
            config = config_with(recipe, judge=endpoint_judge(server.base_url, max_missing_share=1.0))
            first = build(cli, config)
            assert first.code == 3
            assert "1 of 128 judgements got no answer from the judge" in first.err
            assert Store(recipe.parent / "store").artifacts("judgements") == []
            server.script, asked = answer_by_schema, server.count
            assert build(cli, config).code == 0
            assert server.count == asked + 1

    def test_one_item_that_is_refused_does_not_stop_the_run(self, recipe: Path, cli: Cli) -> None:
        def refuse_one(request: Mapping[str, Any], number: int) -> Reply | Fault:
            return error_fault(400, "not this one") if number == 3 else answer_by_schema(request, number)

        with ChatServer(refuse_one) as server:
            ended = build(cli, config_with(recipe, judge=endpoint_judge(server.base_url)))
        assert ended.code == 0, ended.err
        assert re.search(r"responses judged +128 +127 .*1 invalid", ended.out)

    def test_failures_of_a_completed_result_are_asked_again_in_a_new_one(self, recipe: Path, cli: Cli) -> None:
        def garble_once(request: Mapping[str, Any], number: int) -> Reply:
            return Reply("Five stars!") if number == 3 else answer_by_schema(request, number)

        with ChatServer(garble_once) as server:
            config = config_with(recipe, judge=endpoint_judge(server.base_url))
            assert build(cli, config).code == 0
            retried = build(cli, config, "--retry-failed")
            assert retried.code == 0
            assert re.search(r"responses judged +128 +128 ", retried.out)
            assert server.count == 128 + 1
            for more in ([], ["--retry-failed"]):
                assert "up to date" in build(cli, config, *more).out
            assert server.count == 128 + 1
        first, second = Store(recipe.parent / "store").artifacts("judgements")
        assert second.manifest["settings"]["retried_from"] == first.id
        assert [each.metrics["status"].get("invalid", 0) for each in (first, second)] == [1, 0]


def pool_of(base_url: str, *authors: str, **changes: Any) -> dict[str, Any]:
    endpoint = {**ENDPOINT, "base_url": base_url, "max_attempts": 1}
    responders = [{"author": author, "endpoint": endpoint, **changes} for author in authors]
    return {"responders": responders, "per_speech": len(authors)}


class TestFailingPool:
    def test_a_pool_that_refuses_everything_is_not_completed(self, recipe: Path, cli: Cli) -> None:
        store = Store(recipe.parent / "store")
        with ChatServer(lambda request, number: Reply(None, refusal="No.")) as server:
            config = config_with(recipe, pool=pool_of(server.base_url, "elm"))
            for _ in range(2):
                ended = build(cli, config)
                assert ended.code == 4
                assert "responder elm: 32 of 32 speeches got no answer (32 refusal)" in ended.err
            assert [each.name for each in store.artifacts("candidates")] == ["mini"]
            assert server.count == 64
            server.script = answer_by_schema
            assert re.search(r"responses of the pool +32 +32 ", build(cli, config).out)

    def test_a_dead_port_ends_the_run_and_its_requests_are_pending(self, recipe: Path, cli: Cli) -> None:
        with ChatServer() as server:
            dead = server.base_url
        ended = build(cli, config_with(recipe, pool=pool_of(dead, "elm")))
        assert ended.code == 3
        assert f"{dead}: no server answers: no connection" in ended.err
        assert "start the server" in ended.err
        assert [each.name for each in Store(recipe.parent / "store").artifacts("candidates")] == ["mini"]

    def test_every_missing_key_is_named_before_anything_is_asked(
        self, recipe: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("MY_KEY", "OPENAI_API_KEY"):
            monkeypatch.delenv(name, raising=False)
        with ChatServer() as server:
            here = pool_of(server.base_url, "elm")["responders"]
            there = pool_of("https://oak.invalid/v1", "oak")["responders"]
            there[0]["endpoint"]["api_key_env"] = "MY_KEY"
            pool = {"responders": [*here, *there], "per_speech": 2}
            judge = endpoint_judge("https://judge.invalid/v1")
            ended = build(cli, config_with(recipe, pool=pool, judge=judge))
            is_the_users_error(ended, "responder oak: ", "MY_KEY", "judge: ", "OPENAI_API_KEY")
            assert server.count == 0


class TestCosts:
    def test_calls_are_counted_down_as_the_journal_fills(self, recipe: Path, cli: Cli) -> None:
        def refuse_some(request: Mapping[str, Any], number: int) -> Reply:
            return Reply(None, refusal="No.") if number >= 108 else answer_by_schema(request, number)

        with ChatServer(refuse_some) as server:
            config = config_with(recipe, judge=endpoint_judge(server.base_url))
            before = build(cli, config, "--dry-run")
            assert not (recipe.parent / "store").exists()
            assert ": 128 calls, up to 128 with retries; about " in before.out
            assert server.count == 0
            build(cli, config)
            refused = server.count - 108
            between = build(cli, config, "--dry-run")
            assert ": 20 calls, up to 20 " in between.out
            server.script = answer_by_schema
            build(cli, config)
            assert "paid:" not in build(cli, config, "--dry-run").out
        assert server.count == 128 + refused

    def test_answers_still_to_be_given_make_an_upper_bound(self, recipe: Path, cli: Cli) -> None:
        judge = endpoint_judge("http://127.0.0.1:9/v1")
        asked = {"author": "asked", "endpoint": ENDPOINT, "sampling": {"max_new_tokens": 50}}
        config = config_with(recipe, judge=judge, pool={"responders": [asked], "per_speech": 1})
        paid = [line for line in build(cli, config, "--dry-run").out.splitlines() if line.startswith("paid:")]
        assert "answers of asked" in paid[0]
        assert ": 32 calls, up to 96 with retries" in paid[0]
        assert "rating answers" in paid[1]
        assert ": 160 calls, up to 160 with retries" in paid[1]  # 128 ready answers and one to each of 32 speeches

    def test_calls_tokens_and_dollars_are_shown(self, recipe: Path, cli: Cli) -> None:
        endpoint = {**ENDPOINT, "model": "gpt-4o-2024-08-06", "base_url": "http://127.0.0.1:9/v1"}
        priced = {**endpoint, "price": {"prompt": 2.5, "cached_prompt": 1.25, "completion": 10.0}}
        for each in (endpoint, priced):
            judge = {"backend": "endpoint", "endpoint": each}
            said = build(cli, config_with(recipe, judge=judge), "--dry-run").out
            (paid,) = (line for line in said.splitlines() if line.startswith("paid:"))
            pattern = r": 128 calls, up to 384 .*; ([\d,]+) prompt tokens \(([\d,]+) of a .*up to ([\d,]+) completion"
            found = re.search(pattern, paid)
            assert found is not None
            prompt, cached, answers = (int(number.replace(",", "")) for number in found.groups())
            assert 127 * 1024 < cached < prompt
            assert answers == 128 * 600
            dollars = (prompt * 2.5 + answers * 10) / 1e6 if each is priced else 0.0
            assert f"; ${dollars:,.2f}" in paid
            assert f"up to ${3 * dollars:,.2f} with retries" in paid
            if each is priced:
                assert f"${dollars - cached * 1.25 / 1e6:,.2f} with the prefix from the cache" in paid
                assert f"as a batch ${dollars / 2:,.2f}" in paid

    def test_a_limit_stops_the_run_before_it_is_passed_and_nothing_is_paid_twice(self, recipe: Path, cli: Cli) -> None:
        with ChatServer(answer_by_schema) as server:
            judge = endpoint_judge(server.base_url)
            # A dollar per token of an answer: a reply has 7, and at its worst 600.
            judge["endpoint"] |= {"price": {"prompt": 0.0, "completion": 1.0e6}, "max_cost": 600.0 + 140.0}
            config = config_with(recipe, judge=judge)
            stopped = build(cli, config)
            assert stopped.code == 3
            assert "endpoint.max_cost: the next request could cost $600.0000" in stopped.err
            assert "with $147.0000 spent" in stopped.err
            assert server.count == 21
            finished = build(cli, config, "--set", "judge.endpoint.max_cost=9000.0")
            assert finished.code == 0
            assert server.count == 128
            assert "107 calls in this run ($749.00), 21 in earlier ones ($147.00)" in finished.err
        (metrics,) = (recipe.parent / "store" / "judgements").glob("mini-*/metrics.json")
        spend = json.loads(metrics.read_text(encoding="utf-8"))["spend"]
        tokens = {"calls": 128, "prompt": 128 * 11, "cached": 0, "completion": 128 * 7}
        assert spend == {"models": {MODEL: tokens}, "cost_usd": 896.0, "price_from": "the config"}

    def test_a_limit_without_a_price_is_refused(self, recipe: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        judge = endpoint_judge("https://models.example.org/v1")
        judge["endpoint"] |= {"max_cost": 5.0}
        is_the_users_error(build(cli, config_with(recipe, judge=judge)), "endpoint.max_cost", "endpoint.price")

    def test_offline_judge_costs_nothing(self, recipe: Path, cli: Cli) -> None:
        assert "paid:" not in build(cli, config_with(recipe), "--dry-run").out


class TestTopics:
    def asked_at(self, base_url: str) -> str:
        topics = {"backend": "endpoint", "endpoint": {**ENDPOINT, "base_url": base_url}}
        return f"corpus.topics={json.dumps(topics)}"

    def test_they_are_counted_asked_once_and_written_with_the_speeches(self, recipe: Path, cli: Cli) -> None:
        with ChatServer(answer_by_schema) as server:
            topics = self.asked_at(server.base_url)
            config = config_with(recipe)
            paid = build(cli, config, "--set", topics, "--dry-run").out
            assert re.search(r"naming topics, .*: 32 calls", paid), paid
            build(cli, config, "--set", topics)
            assert server.count == 32
            build(cli, config, "--set", topics, "--set", "corpus.split.seed=3")
            assert server.count == 32
        store = Store(recipe.parent / "store")
        speeches = [row.speech for row in read_speeches(store.artifacts("speeches")[0])]
        fine = load_taxonomy("counselling").coarse_of
        assert all(fine[speech.fine_topic] == speech.topic for speech in speeches)

    def test_a_dead_endpoint_completes_nothing(self, recipe: Path, cli: Cli) -> None:
        ended = build(cli, config_with(recipe), "--set", self.asked_at("http://127.0.0.1:9/v1"))
        assert ended.code == 3, ended
        assert Store(recipe.parent / "store").artifacts("speeches") == []

    def test_restricted_text_does_not_leave_for_a_topic(self, recipe: Path, cli: Cli) -> None:
        restricted = ["--set", "corpus.speeches.0.data_class=restricted"]
        topics = self.asked_at("https://topics.invalid/v1")
        ended = build(cli, config_with(recipe), "--set", topics, *restricted, "--dry-run")
        is_the_users_error(ended, "must not be sent to https://topics.invalid")


class Counting(NamedTuple):
    """A server in a process of its own that counts what it was asked."""

    base_url: str
    count: Callable[[], int]


@pytest.fixture
def counting(tmp_path: Path) -> Iterator[Counting]:
    port, count = tmp_path / "port", tmp_path / "count"
    count.write_text("0", encoding="utf-8")
    script = Path(__file__).parents[1] / "servers" / "chat_server.py"
    command = [sys.executable, str(script), "--port-file", str(port), "--count-file", str(count)]
    with subprocess.Popen([*command, "--delay-seconds", "0.01"]) as server:
        await_until(port.exists)
        yield Counting(f"http://127.0.0.1:{port.read_text()}/v1", lambda: int(count.read_text() or "0"))
        server.kill()


KILLS_WHILE_ASKING = 6


def asking_judge(base_url: str) -> dict[str, Any]:
    return {"judge": endpoint_judge(base_url)}


def asking_pool(base_url: str) -> dict[str, Any]:
    endpoint = endpoint_judge(base_url)["endpoint"]
    responders = [{"author": name, "endpoint": endpoint} for name in ("alder", "birch")]
    return {"pool": {"responders": responders, "per_speech": 2}}


@pytest.mark.parametrize(
    ("asking", "items", "made"),
    [(asking_judge, 128, "judgements/*/manifest.json"), (asking_pool, 64, "candidates/mini-pool-*/manifest.json")],
)
def test_killed_anywhere_the_pairs_are_the_same_and_little_is_asked_twice(
    warm: Warm, counting: Counting, tmp_path: Path, asking: Callable[[str], dict[str, Any]], items: int, made: str
) -> None:
    config = config_with(write_recipe(tmp_path / "recipe"), **asking(counting.base_url))
    concurrency = int(ENDPOINT["concurrency"])
    whole, store = tmp_path / "whole", tmp_path / "killed"
    assert warm.run("build-preferences", config, "--store", whole).code == 0
    assert counting.count() == items
    drawn = random.Random(7)  # noqa: S311, a test's instants are no secret
    targets = sorted(drawn.sample(range(items + 1, 2 * items - concurrency), KILLS_WHILE_ASKING))
    instants: list[Callable[[], bool]] = [
        lambda: any(store.glob("speeches/*")),
        *(lambda target=target: counting.count() >= target for target in targets),
        lambda: any(store.glob(made)),
    ]
    for instant in instants:
        run = warm.start("build-preferences", config, "--store", store)
        await_until(instant)
        run.send(signal.SIGKILL)
        assert run.wait().code in (-9, 0)
    assert warm.run("build-preferences", config, "--store", store).code == 0
    assert counting.count() <= 2 * items + KILLS_WHILE_ASKING * concurrency
    assert pairs_files(store) == pairs_files(whole)
    assert len(pairs_files(store)) == 3
    assert [each.id for each in Store(store).artifacts("preferences")] == [
        each.id for each in Store(whole).artifacts("preferences")
    ]


def same_ratings(request: Mapping[str, Any], number: int) -> Reply:
    reply = json.loads(answer_by_schema(request, number).text or "")
    reply["ratings"] = dict.fromkeys(reply["ratings"], 3)
    return Reply(json.dumps(reply))
