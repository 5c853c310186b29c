"""Speeches -> pairs through the command line: wrong inputs, failing judges, kills."""

import json
import random
import re
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chat_server import GIVEN_UP, MODEL, ChatServer, Fault, Reply, answer_by_schema, error_fault

from miniature import rows, write_build_config, write_recipe, write_rows
from psychocounsel.corpus.topics import load_taxonomy
from psychocounsel.store.schemas import read_speeches
from psychocounsel.store.store import Store
from running import Cli, Ended, Warm, await_until

KEY = "sk-4711-secret"
ENDPOINT = {"model": "scripted-judge-2025-01-01", "base_url": "http://127.0.0.1:9/v1", "concurrency": 4}


def endpoint_judge(base_url: str, **changes: Any) -> dict[str, Any]:
    endpoint = {**ENDPOINT, "base_url": base_url, "max_attempts": 1}
    return {"backend": "endpoint", "endpoint": endpoint, **changes}


def topics_at(base_url: str) -> str:
    topics = {"backend": "endpoint", "endpoint": {**ENDPOINT, "base_url": base_url}}
    return f"corpus.topics={json.dumps(topics)}"


def build(cli: Cli, config: Path, *more: str) -> Ended:
    return cli("build-preferences", config, "--store", config.parent.parent / "store", *more)


def pairs_files(store: Path) -> dict[str, bytes]:
    folder = next((store / "preferences").glob("mini-*"))
    return {path.name: path.read_bytes() for path in sorted(folder.glob("data/*.parquet"))}


CONFIG, RESPONSES, ROW = "changed.yaml", "candidates.jsonl", '{"speech": "anger-1", "author": "elm", "text": "%s"}\n'


@pytest.mark.parametrize(
    ("file", "content", "overrides", "expected"),
    [
        (CONFIG, "name: mini\ncorpus: corpus.yaml\npairng: {}\n", "", ["line 3", "mean 'pairing'"]),
        (CONFIG, "name: mini\ncorpus: corpsu.yaml\n", "", ["corpsu.yaml", "did you mean", "corpus.yaml"]),
        (RESPONSES, None, "", ["candidates.jsonl", "no such file", "check the path"]),
        (RESPONSES, "", "", ["candidates.jsonl", "is empty"]),
        (RESPONSES, ROW % "fine" + ROW % "nul \\u0000 inside", "", ["candidates.jsonl line 2"]),
        (RESPONSES, ROW % "fine" + ROW % "lone \\ud800 surrogate", "", ["candidates.jsonl line 2"]),
        ("", "", "corpus.speeches.0.columns.text=txt", ["no column 'txt'; did you mean 'text'?"]),
        ("", "", "corpus.candidates=[]", ["answers the speeches", "a pool"]),
    ],
)
def test_faults_of_inputs(
    recipe: Path, cli: Cli, file: str, content: str | None, overrides: str, expected: list[str]
) -> None:
    config = write_build_config(recipe)
    if content is None:
        (recipe / file).unlink()
    elif file:
        (recipe / file).write_text(content, encoding="utf-8")
    build(cli, config, *(["--set", overrides] if overrides else [])).says(2, "error: ", *expected)


class TestWhatIsLeft:
    def test_speech_with_one_candidate_is_counted(self, recipe: Path, cli: Cli) -> None:
        path = recipe / "candidates.jsonl"
        content = rows(path)
        alone = content[0]["speech"]
        write_rows(path, [content[0], *(row for row in content if row["speech"] != alone)])
        with ChatServer(answer_by_schema) as server:
            config = write_build_config(recipe, judge=endpoint_judge(server.base_url))
            assert ": 124 calls" in build(cli, config, "--dry-run").out
            ended = build(cli, config)
            assert ended.code == 0
            assert server.count == 124
        assert "1 speech with one candidate" in ended.out
        assert "1 only response" in ended.out
        assert re.search(r"not sent, .*: 1 calls, .* prompt tokens .*; free", ended.err)

    def test_nothing_is_paid_for_a_split_that_can_get_no_pair(self, recipe: Path, cli: Cli) -> None:
        path = recipe / "candidates.jsonl"
        write_rows(path, list({row["speech"]: row for row in rows(path)}.values()))
        with ChatServer(answer_by_schema) as server:
            ended = build(cli, write_build_config(recipe, judge=endpoint_judge(server.base_url)))
            ended.says(4, "no speech of train has two different responses")
            assert server.count == 0

    def test_all_scores_equal(self, recipe: Path, cli: Cli) -> None:
        with ChatServer(same_ratings) as server:
            ended = build(cli, write_build_config(recipe, judge=endpoint_judge(server.base_url)))
        ended.says(4, "no pair is left in train: 114 equal_scores; add responses", "lower pairing.min_gap")


class TestPrivacy:
    REMOTE = "https://judge.invalid/v1"

    def test_restricted_text_stays_here(self, recipe: Path, cli: Cli) -> None:
        judge = endpoint_judge(self.REMOTE)
        restricted = ["--set", "corpus.speeches.0.data_class=restricted"]
        topics = ["--set", topics_at(self.REMOTE)]
        for changes, more in (({"judge": judge}, []), ({"judge": judge}, ["--dry-run"]), ({}, [*topics, "--dry-run"])):
            ended = build(cli, write_build_config(recipe, **changes), *restricted, *more)
            ended.says(2, "speeches.jsonl", f"must not be sent to {self.REMOTE}", "de-identify it")

    @pytest.mark.parametrize("more", [[], ["--dry-run"]])
    def test_offline_opens_no_connection(
        self, recipe: Path, cli: Cli, no_way_out: list[object], monkeypatch: pytest.MonkeyPatch, more: list[str]
    ) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        config = write_build_config(recipe, judge=endpoint_judge(self.REMOTE))
        ended = build(cli, config, "--offline", *more)
        if more:
            assert ended.code == 0, "a dry run sends nothing"
        else:
            ended.says(2, "offline", self.REMOTE, "drop --offline")
        assert no_way_out == []
        assert not (recipe.parent / "store").exists()

    def test_offline_runs_may_use_this_machine(self, recipe: Path, cli: Cli, no_way_out: list[object]) -> None:
        restricted = ["--set", "corpus.speeches.0.data_class=restricted"]
        with ChatServer() as server:
            config = write_build_config(recipe, judge=endpoint_judge(server.base_url))
            assert build(cli, config, "--offline", *restricted).code == 0
        assert "nothing to pay:" in build(cli, write_build_config(recipe), "--offline", "--dry-run").out
        assert build(cli, write_build_config(recipe), "--offline").code == 0
        assert no_way_out == []


class TestFailingJudge:
    @pytest.mark.parametrize("failure", [Reply("Five stars!"), error_fault(400, "not this one")])
    def test_few_failures_are_left_out_and_shown(self, recipe: Path, cli: Cli, failure: Reply | Fault) -> None:
        def fail_once(request: Mapping[str, Any], number: int) -> Reply | Fault:
            return failure if number == 3 else answer_by_schema(request, number)

        with ChatServer(fail_once) as server:
            ended = build(cli, write_build_config(recipe, judge=endpoint_judge(server.base_url)))
        assert ended.code == 0
        assert re.search(r"responses judged +128 +127 .*1 invalid", ended.out)
        assert re.search(r"Missing judgements by topic.*\n.*\n +[a-z-]+ +1 ", ended.out), ended.out

    def test_a_lost_request_is_pending_however_much_may_be_missing(self, recipe: Path, cli: Cli) -> None:
        lost: list[Any] = []

        def lose_one(request: Mapping[str, Any], number: int) -> Reply | Fault:
            lost.extend([request["messages"]] if number == 3 else [])
            return GIVEN_UP if request["messages"] in lost else answer_by_schema(request, number)

        with ChatServer(lose_one) as server:
            config = write_build_config(recipe, judge=endpoint_judge(server.base_url, max_missing_share=1.0))
            first = build(cli, config)
            first.says(3, "1 of 128 judgements got no answer from the judge")
            assert Store(recipe.parent / "store").artifacts("judgements") == []
            server.script, asked = answer_by_schema, server.count
            assert build(cli, config).code == 0
            assert server.count == asked + 1

    def test_failures_of_a_completed_result_are_asked_again_in_a_new_one(self, recipe: Path, cli: Cli) -> None:
        def garble_once(request: Mapping[str, Any], number: int) -> Reply:
            return Reply("Five stars!") if number == 3 else answer_by_schema(request, number)

        with ChatServer(garble_once) as server:
            config = write_build_config(recipe, judge=endpoint_judge(server.base_url))
            assert build(cli, config).code == 0
            retried = build(cli, config, "--retry-failed")
            assert retried.code == 0
            assert re.search(r"responses judged +128 +128 ", retried.out)
            assert server.count == 128 + 1
            (made,) = re.findall(r"created: (preferences \S+)", retried.out)
            for more in (["--retry-failed"], []):
                assert f"up to date: {made}" in build(cli, config, *more).out
            assert server.count == 128 + 1
        first, second = Store(recipe.parent / "store").artifacts("judgements")
        assert Store(recipe.parent / "store").artifacts("preferences")[-1].parent("judgements").id == second.id
        assert second.manifest["settings"]["retried_from"] == first.id
        assert [each.metrics["status"].get("invalid", 0) for each in (first, second)] == [1, 0]


def pool_of(base_url: str, *authors: str, **changes: Any) -> dict[str, Any]:
    endpoint = {**ENDPOINT, "base_url": base_url, "max_attempts": 1}
    responders = [{"author": author, "endpoint": endpoint, **changes} for author in authors]
    return {"responders": responders, "per_speech": len(authors)}


def test_a_file_of_the_pool_with_several_answers_to_a_speech_is_named(recipe: Path, cli: Cli) -> None:
    assert build(cli, write_build_config(recipe)).code == 0
    said = [each.speech.text for each in read_speeches(Store(recipe.parent / "store").artifacts("speeches")[-1])]
    write_rows(recipe / "said.jsonl", ({"speech": each, "response": text} for each in said for text in ("Oh.", "Ah.")))
    file = {"author": "said", "file": "said.jsonl", "licence": "mit", "data_class": "public"}
    ended = build(cli, write_build_config(recipe, pool={"responders": [file], "per_speech": 1}))
    assert ended.code == 0, ended.err
    warning = f"the file of said has several answers to {len(said)} of {len(said)} speeches; the first counts"
    assert warning in " ".join(ended.out.split())


class TestFailingPool:
    def test_a_pool_that_refuses_everything_is_not_completed(self, recipe: Path, cli: Cli) -> None:
        store = Store(recipe.parent / "store")
        with ChatServer(lambda request, number: Reply(None, refusal="No.")) as server:
            config = write_build_config(recipe, pool=pool_of(server.base_url, "elm"))
            for _ in range(2):
                ended = build(cli, config)
                ended.says(4, "responder elm: 32 of 32 answers are missing (32 refusal)")
            assert [each.name for each in store.artifacts("candidates")] == ["mini"]
            assert server.count == 64
            server.script = answer_by_schema
            assert re.search(r"responses of the pool +32 +32 ", build(cli, config).out)

    def test_a_dead_port_ends_the_run_and_its_requests_are_pending(self, recipe: Path, cli: Cli) -> None:
        with ChatServer() as server:
            dead = server.base_url
        store = Store(recipe.parent / "store")
        assert build(cli, write_build_config(recipe), "--set", topics_at(dead)).code == 3
        assert store.artifacts("speeches") == []
        ended = build(cli, write_build_config(recipe, pool=pool_of(dead, "elm")))
        ended.says(3, f"{dead}: no server answers: no connection", "start the server")
        assert [each.name for each in store.artifacts("candidates")] == ["mini"]

    def test_every_missing_key_is_named_first(self, recipe: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("MY_KEY", "OPENAI_API_KEY"):
            monkeypatch.delenv(name, raising=False)
        with ChatServer() as server:
            here = pool_of(server.base_url, "elm")["responders"]
            there = pool_of("https://oak.invalid/v1", "oak")["responders"]
            there[0]["endpoint"]["api_key_env"] = "MY_KEY"
            pool = {"responders": [*here, *there], "per_speech": 2}
            judge = {"panel": [endpoint_judge(server.base_url), endpoint_judge("https://judge.invalid/v1")]}
            ended = build(cli, write_build_config(recipe, pool=pool, judge=judge))
            ended.says(2, "responder oak: ", "export MY_KEY=", "judge.panel[1]: ", "OPENAI_API_KEY")
            assert not (recipe.parent / "store" / "speeches").exists()
            assert server.count == 0


class TestCosts:
    def test_calls_are_counted_down_as_the_journal_fills(self, recipe: Path, cli: Cli) -> None:
        def refuse_some(request: Mapping[str, Any], number: int) -> Reply:
            return Reply(None, refusal="No.") if number >= 108 else answer_by_schema(request, number)

        with ChatServer(refuse_some) as server:
            config = write_build_config(recipe, judge=endpoint_judge(server.base_url))
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
            assert "nothing to pay:" in build(cli, config, "--dry-run").out
        assert server.count == 128 + refused

    def test_answers_still_to_be_given_make_an_upper_bound(self, recipe: Path, cli: Cli) -> None:
        judge = endpoint_judge("http://127.0.0.1:9/v1")
        asked = {"author": "asked", "endpoint": ENDPOINT, "sampling": {"max_new_tokens": 50}}
        audit = {"retest": 12, "one_principle": 6, "canaries": 8}
        config = write_build_config(recipe, judge=judge, audit=audit, pool={"responders": [asked], "per_speech": 1})
        paid = [line for line in build(cli, config, "--dry-run").out.splitlines() if line.startswith("to pay:")]
        assert "answers of asked" in paid[0]
        assert ": 32 calls, up to 96 with retries" in paid[0]
        assert "rating responses" in paid[1]
        assert ": 160 calls, up to 160 with retries" in paid[1]  # 128 ready answers and one to each of 32 speeches
        assert f": {12 + 7 * 6 + 8} calls, " in paid[2]
        assert "at full length" in paid[2]

    def test_calls_tokens_and_dollars_are_shown(self, recipe: Path, cli: Cli) -> None:
        endpoint = {**ENDPOINT, "model": "gpt-4o-2024-08-06", "base_url": "http://127.0.0.1:9/v1"}
        priced = {**endpoint, "price": {"prompt": 2.5, "cached_prompt": 1.25, "completion": 10.0}}
        for each in (endpoint, priced):
            judge = {"backend": "endpoint", "endpoint": each}
            said = build(cli, write_build_config(recipe, judge=judge), "--dry-run").out
            (paid,) = (line for line in said.splitlines() if line.startswith("to pay:"))
            pattern = r": 128 calls, up to 384 .*; ([\d,]+) prompt tokens \(([\d,]+) of a .*up to ([\d,]+) completion"
            prompt, cached, answers = (int(each.replace(",", "")) for each in re.search(pattern, paid).groups())
            assert 127 * 1024 < cached < prompt
            assert answers == 128 * 600
            if each is endpoint:
                assert "; free" in paid
            else:
                dollars = (prompt * 2.5 + answers * 10) / 1e6
                assert f"; ${dollars:,.2f}, " in paid
                assert f"up to ${3 * dollars:,.2f} with retries" in paid
                assert f"${dollars - cached * 1.25 / 1e6:,.2f} with the prefix from the cache" in paid
                assert f"as a batch ${dollars / 2:,.2f}" in paid

    def test_a_limit_stops_the_run_before_it_is_passed_and_nothing_is_paid_twice(self, recipe: Path, cli: Cli) -> None:
        with ChatServer(answer_by_schema) as server:
            judge = endpoint_judge(server.base_url)
            # A dollar per token of an answer: a reply has 7, and at its worst 600.
            judge["endpoint"] |= {"price": {"prompt": 0.0, "completion": 1.0e6}, "max_cost": 600.0 + 140.0}
            config = write_build_config(recipe, judge=judge)
            stopped = build(cli, config)
            stopped.says(3, "endpoint.max_cost: the next request could cost $600.0000", "with $147.0000 spent")
            assert server.count == 21
            finished = build(cli, config, "--set", "judge.endpoint.max_cost=9000.0")
            assert finished.code == 0
            assert server.count == 128
            assert "107 calls in this run ($749.00), 21 in earlier ones ($147.00)" in finished.err
        (metrics,) = (recipe.parent / "store" / "judgements").glob("mini-*/metrics.json")
        spend = json.loads(metrics.read_text(encoding="utf-8"))["spend"]
        tokens = {"calls": 128, "prompt": 128 * 11, "cached": 0, "completion": 128 * 7}
        pilot = {"requests": 20, "readable": 20, "cost_usd": 140.0, "projected_usd": 896.0}
        assert spend == {"models": {MODEL: tokens}, "cost_usd": 896.0, "price_from": "the config", "pilot": pilot}


def test_topics_are_counted_asked_once_and_written_with_the_speeches(recipe: Path, cli: Cli) -> None:
    with ChatServer(answer_by_schema) as server:
        topics = topics_at(server.base_url)
        config = write_build_config(recipe)
        paid = build(cli, config, "--set", topics, "--dry-run").out
        assert re.search(r"naming topics, .*: 32 calls", paid), paid
        for more in ([], ["--set", "corpus.split.seed=3"]):
            build(cli, config, "--set", topics, *more)
            assert server.count == 32
    store = Store(recipe.parent / "store")
    speeches = [row.speech for row in read_speeches(store.artifacts("speeches")[0])]
    fine = load_taxonomy("counselling").coarse_of
    assert all(fine[speech.fine_topic] == speech.topic for speech in speeches)


KILLS_WHILE_ASKING = 6


@pytest.mark.parametrize(
    ("asked", "items", "made"),
    [("judge", 128, "judgements/*/manifest.json"), ("pool", 64, "candidates/mini-pool-*/manifest.json")],
)
def test_kills_change_no_pair_and_repeat_little(warm: Warm, tmp_path: Path, asked: str, items: int, made: str) -> None:
    with ChatServer(lambda request, number: replace(answer_by_schema(request, number), delay_seconds=0.01)) as server:
        asking = {"judge": endpoint_judge(server.base_url), "pool": pool_of(server.base_url, "alder", "birch")}
        config = write_build_config(write_recipe(tmp_path / "recipe"), **{asked: asking[asked]})
        concurrency = int(ENDPOINT["concurrency"])
        whole, store = tmp_path / "whole", tmp_path / "killed"
        assert warm.run("build-preferences", config, "--store", whole).code == 0
        assert server.count == items
        rng = random.Random(7)  # noqa: S311, a test's instants are no secret
        targets = sorted(rng.sample(range(items + 1, 2 * items - concurrency), KILLS_WHILE_ASKING))
        instants: list[Callable[[], bool]] = [
            lambda: any(store.glob("speeches/*")),
            *(lambda target=target: server.count >= target for target in targets),
            lambda: any(store.glob(made)),
        ]
        for instant in instants:
            run = warm.start("build-preferences", config, "--store", store)
            await_until(instant)
            run.send(signal.SIGKILL)
            assert run.wait().code in (-9, 0)
        assert warm.run("build-preferences", config, "--store", store).code == 0
        assert server.count <= 2 * items + KILLS_WHILE_ASKING * concurrency
    assert pairs_files(store) == pairs_files(whole)
    assert len(pairs_files(store)) == 3
    assert [each.id for each in Store(store).artifacts("preferences")] == [
        each.id for each in Store(whole).artifacts("preferences")
    ]


def same_ratings(request: Mapping[str, Any], number: int) -> Reply:
    reply = json.loads(answer_by_schema(request, number).text or "")
    reply["ratings"] = dict.fromkeys(reply["ratings"], 3)
    return Reply(json.dumps(reply))
