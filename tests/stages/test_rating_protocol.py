"""One rating from several replies, through the command line: samples, panels, their cost, what is refused."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chat_server import GIVEN_UP, ChatServer, Fault, Reply, answer_by_schema

from miniature import write_build_config
from psychocounsel.store.artifacts import Artifact
from psychocounsel.store.schemas import read_judgements, read_pairs, read_table
from psychocounsel.store.store import Store
from running import Cli, Ended

TRAIN = "data/train-00000-of-00001.parquet"


def member(base_url: str, model: str = "elm-2026-01-01", **changes: Any) -> dict[str, Any]:
    endpoint = {"model": model, "base_url": base_url, "concurrency": 8, "max_attempts": 1}
    return {"backend": "endpoint", "endpoint": endpoint, **changes}


def built(cli: Cli, recipe: Path, judge: Mapping[str, Any], *more: str, **changes: Any) -> Ended:
    config = write_build_config(recipe, judge=dict(judge), **changes)
    return cli("build-preferences", config, "--store", recipe.parent / "store", *more)


def newest(recipe: Path, kind: str) -> Artifact:
    return Store(recipe.parent / "store").artifacts(kind)[-1]


def column_types(artifact: Artifact, name: str) -> dict[str, pa.DataType]:
    return {field.name: field.type for field in pq.read_schema(artifact.file(name))}


def by_number(request: Mapping[str, Any], number: int) -> Reply:
    """Rate anew at every request, as a model does that is drawn from."""
    reply = json.loads(answer_by_schema(request, number).text or "")
    if "ratings" in reply:
        reply["ratings"] = {name: 1 + (rating + number) % 5 for name, rating in dict(reply["ratings"]).items()}
    return Reply(json.dumps(reply))


def sample_ratings(judged: Artifact, candidate_id: str) -> list[dict[str, float]]:
    return [
        {column.removesuffix("_rating"): value for column, value in row.items() if column.endswith("_rating")}
        for row in read_table(judged, "samples.parquet")
        if row["candidate_id"] == candidate_id
    ]


class TestSamples:
    def test_means_and_samples_are_kept_and_paired(self, recipe: Path, cli: Cli) -> None:
        with ChatServer(by_number) as server:
            judge = member(server.base_url, temperature=1.0, samples=3)
            counted = built(cli, recipe, judge, "--dry-run")
            assert f": {3 * 128} calls, " in counted.out
            for _ in range(2):
                done = built(cli, recipe, judge)
                assert (done.code, server.count) == (0, 3 * 128), done.err
        judged = newest(recipe, "judgements")
        assert len(list(read_table(judged, "samples.parquet"))) == 3 * 128
        for judgement in read_judgements(judged)[:9]:
            own = sample_ratings(judged, judgement.candidate_id)
            assert judgement.ratings == {name: pytest.approx(sum(each[name] for each in own) / 3) for name in own[0]}
        table = pq.read_table(judged.file("judgements.parquet")).to_pylist()
        assert {row["samples"] for row in table} == {row["valid_samples"] for row in table} == {3}
        assert {row["scored_by"] for row in table} == {"written"}
        assert any(row["empathy_spread"] > 0 for row in table)
        pairs = newest(recipe, "preferences")
        assert column_types(pairs, "data/train-00000-of-00001.parquet")["chosen_empathy_rating"] == pa.float64()
        assert all(pair.margin >= 3.5 for pair in read_pairs(pairs, "train"))  # half a point of seven
        assert judged.metrics["samples"]["asked"] == 3 * 128
        assert judged.metrics["disagreement"]["responses"] == 128
        assert sum(judged.metrics["histograms"]["empathy"].values()) == 3 * 128

    def test_one_sample_keeps_whole_numbers_and_no_samples(self, recipe: Path, cli: Cli) -> None:
        with ChatServer() as server:
            assert built(cli, recipe, member(server.base_url)).code == 0
        judged, pairs = newest(recipe, "judgements"), newest(recipe, "preferences")
        assert {"samples", "scored_by"}.isdisjoint(column_types(judged, "judgements.parquet"))
        types = column_types(pairs, TRAIN)
        assert "_rating` | int64 |" in pairs.file("README.md").read_text(encoding="utf-8")
        assert {kind for name, kind in types.items() if name.endswith("_rating")} == {pa.int64()}
        assert "samples.parquet" not in judged.manifest["files"]
        assert not {"samples", "disagreement"} & judged.metrics.keys()

    def test_a_lost_response_pays_no_sample_twice(self, recipe: Path, cli: Cli) -> None:
        def lose_every_tenth(request: Mapping[str, Any], number: int) -> Reply | Fault:
            return GIVEN_UP if number % 10 == 9 else by_number(request, number)

        with ChatServer(lose_every_tenth) as server:
            judge = member(server.base_url, temperature=1.0, samples=3)
            stopped = built(cli, recipe, judge)
            stopped.says(3, "got no answer from the judge")
            lost = sum(number % 10 == 9 for number in range(server.count))
            asked = server.count
            server.script = by_number
            assert built(cli, recipe, judge).code == 0
            assert (asked, server.count) == (3 * 128, 3 * 128 + lost)

    def test_the_audit_asks_for_samples_of_its_own(self, recipe: Path, cli: Cli) -> None:
        with ChatServer(by_number) as server:
            judge = member(server.base_url, temperature=1.0, samples=2)
            audit = {"retest": 4, "one_principle": 2, "canaries": 3}
            counted = built(cli, recipe, judge, "--dry-run", audit=audit)
            assert re.search(rf"auditing .*: {2 * (4 + 2 * 7 + 3)} calls", counted.out)
            done = built(cli, recipe, judge, audit=audit)
            assert done.code == 0, done.err
            assert server.count == 2 * (128 + 4 + 2 * 7 + 3)
        assert newest(recipe, "audits").metrics["retest"]["asked"] == 4


def seat(request: Mapping[str, Any], number: int) -> Reply:
    """Rate as the model's name says: elm low, yew high, and ash not at all."""
    if request["model"].startswith("ash"):
        return Reply(None, refusal="I would rather not.")
    reply = json.loads(answer_by_schema(request, number).text or "")
    low = request["model"].startswith("elm")
    reply["ratings"] = {
        name: max(1, min(5, rating + (-1 if low else 1))) for name, rating in dict(reply["ratings"]).items()
    }
    return Reply(json.dumps(reply), model=request["model"])


class TestPanel:
    def test_every_judge_is_asked_and_one_may_fail(self, recipe: Path, cli: Cli) -> None:
        with ChatServer(seat) as server:
            members = [member(server.base_url, f"{name}-2026-01-01") for name in ("elm", "yew", "ash")]
            counted = built(cli, recipe, {"panel": members}, "--dry-run")
            assert len(re.findall(r"rating responses.*: 128 calls", counted.out)) == 3
            done = built(cli, recipe, {"panel": members})
            assert done.code == 0, done.err
            assert server.count == 3 * 128
            assert "means of 384 samples, scored by 256 written" in done.out
            server.script = lambda request, number: Reply(None, refusal="asked again")
            assert built(cli, recipe, {"panel": members}).code == 0
            assert server.count == 3 * 128
        judged = newest(recipe, "judgements")
        names = [f"{name}-2026-01-01" for name in ("elm", "yew", "ash")]
        assert judged.manifest["notes"]["judge"] == " + ".join(names)
        statuses = [{"valid": 128}, {"valid": 128}, {"refusal": 128}]
        assert judged.metrics["samples"]["status"] == dict(zip(names, statuses, strict=True))
        (pair,) = judged.metrics["disagreement"]["pairs"]
        assert pair["judges"] == names[:2]
        assert pair["by_principle"]["empathy"]["n"] == 128
        means = judged.metrics["disagreement"]["mean_rating"]
        assert means[names[0]]["safety"] < means[names[1]]["safety"]
        first = read_judgements(judged)[0]
        own = sample_ratings(judged, first.candidate_id)
        assert len(own) == 3
        assert first.ratings == {name: (own[0][name] + own[1][name]) / 2 for name in own[0]}
        assert judged.metrics["spend"]["models"].keys() >= set(names[:2])

    def test_each_member_counts_its_ratings_towards_its_own_limit(self, recipe: Path, cli: Cli) -> None:
        def panel(base_url: str, **limit: float) -> dict[str, Any]:
            members = [member(base_url, f"{name}-2026-01-01") for name in ("yew", "ash")]
            for each in members:
                each["endpoint"] |= {"concurrency": 1, "price": {"prompt": 0.0, "completion": 1.0e6}}
            members[1]["endpoint"] |= limit
            return {"panel": members}

        def breaks_once(request: Mapping[str, Any], number: int) -> Reply | Fault:
            return Fault(reset=True) if number == 140 else by_number(request, number)

        audit = {"retest": 12, "one_principle": 0, "canaries": 0}
        with ChatServer(breaks_once) as server:
            assert built(cli, recipe, panel(server.base_url)).code == 0
            # 128 ratings of 7 tokens, and 600 whose line broke; another costs at its worst 600.
            limited = panel(server.base_url, max_cost=128 * 7.0 + 600 + 600 + 10)
            ended = built(cli, recipe, limited, audit=audit)
            ended.says(3, "with $1510.0000 spent the limit of $2106")
            assert server.count == 2 * 128 + 1 + 12 + 2
        spend = newest(recipe, "judgements").metrics["spend"]
        costs = {name: each["cost_usd"] for name, each in spend["by_judge"].items()}
        assert costs == dict.fromkeys(("yew-2026-01-01", "ash-2026-01-01"), 896.0)
        assert spend["cost_usd"] == 1792.0
        assert spend["possibly_billed"] == {"calls": 1, "cost_usd": 600.0}


def with_choices(reply: Reply, shares: Mapping[str, float]) -> Fault:
    """Return a reply with these alternatives at every rating, as a server tells them."""
    text = reply.text or ""
    top = [{"token": each, "logprob": math.log(share)} for each, share in shares.items()]
    tokens = [
        {"token": piece, "logprob": -40.0, "top_logprobs": top if piece.isdigit() else []}
        for piece in re.split(r"(\d)", text)
        if piece
    ]
    choice = {"message": {"content": text}, "finish_reason": "stop", "logprobs": {"content": tokens}}
    usage = {"prompt_tokens": 11, "completion_tokens": 7}
    return Fault(body=json.dumps({"model": reply.model, "choices": [choice], "usage": usage}).encode())


class TestExpected:
    def test_the_expectation_is_rated_and_told(self, recipe: Path, cli: Cli) -> None:
        def script(request: Mapping[str, Any], number: int) -> Fault:
            assert (request["logprobs"], request["top_logprobs"]) == (True, 20)
            high = 0.1 + 0.007 * (37 * number % 100)
            return with_choices(answer_by_schema(request, number), {"2": 0.9 - high, "4": high})

        with ChatServer(script) as server:
            for _ in range(2):
                done = built(cli, recipe, member(server.base_url, score="expected"))
                assert (done.code, server.count) == (0, 128), done.err
        judged = newest(recipe, "judgements")
        assert judged.metrics["samples"]["scored_by"] == {"expected": 128}
        ratings = {each.ratings["empathy"] for each in read_judgements(judged)}
        assert round(min(ratings), 4) == 2.2222  # 0.8 of 2 and 0.1 of 4
        assert len(ratings) > 50
        row = pq.read_table(judged.file("judgements.parquet")).to_pylist()[0]
        assert (row["samples"], row["scored_by"], row["empathy_spread"]) == (1, "expected", None)

    def test_a_server_without_them_is_named_at_its_first_reply(self, recipe: Path, cli: Cli) -> None:
        with ChatServer() as server:
            ended = built(cli, recipe, member(server.base_url, score="expected"))
            assert server.count == 1
        ended.says(2, "judge.score", "without log-probabilities")


def decide(request: Mapping[str, Any], number: int) -> Fault:
    """Answer the questions of a decisions endpoint, anew at every request."""
    share = (37 * number % 100) / 100
    answers: list[dict[str, Any]] = []
    for question in request["questions"]:
        levels = [
            {"label": level["label"], "value": at, "probability": {0: 1 - share, 4: share}.get(at, 0.0)}
            for at, level in enumerate(question["levels"])
        ]
        answers.append({"type": "score", "name": question["name"], "probabilities": levels})
    usage = {"input_tokens": 1500, "output_tokens": 0}
    return Fault(body=json.dumps({"model": request["model"], "answers": answers, "usage": usage}).encode())


class TestDecisions:
    def test_one_call_rates_every_principle(self, recipe: Path, cli: Cli) -> None:
        with ChatServer(decide) as server:
            judge = {"backend": "decisions", "endpoint": {"base_url": server.base_url, "concurrency": 8}}
            counted = built(cli, recipe, judge, "--dry-run")
            assert re.search(r"gpt-6-luna.*: 128 calls", counted.out)
            for _ in range(2):
                done = built(cli, recipe, judge)
                assert (done.code, server.count) == (0, 128), done.err
            assert server.received[0].body["model"] == "gpt-6-luna"
            assert "messages" not in server.received[0].body
        judged = newest(recipe, "judgements")
        assert judged.metrics["samples"]["scored_by"] == {"expected": 128}
        ratings = {each.ratings["empathy"] for each in read_judgements(judged)}
        assert min(ratings) == 1.0
        assert round(max(ratings), 6) == 4.96

    def test_a_decider_sits_on_a_panel(self, recipe: Path, cli: Cli) -> None:
        def either(request: Mapping[str, Any], number: int) -> Reply | Fault:
            return decide(request, number) if "questions" in request else answer_by_schema(request, number)

        with ChatServer(either) as server:
            decider = {"backend": "decisions", "endpoint": {"base_url": server.base_url, "concurrency": 8}}
            done = built(cli, recipe, {"panel": [member(server.base_url), decider]})
            assert done.code == 0, done.err
            assert server.count == 2 * 128
        samples = newest(recipe, "judgements").metrics["samples"]
        assert samples["scored_by"] == {"expected": 128, "written": 128}
