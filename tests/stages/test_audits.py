"""Judgements -> audit through the command line: judges that obey, repeat themselves, drift, and fail."""

import hashlib
import json
import os
import re
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from chat_server import GIVEN_UP, MODEL, ChatServer, Fault, Reply, Script, error_fault

from miniature import write_build_config, write_recipe
from psychocounsel.config.loading import load_config
from psychocounsel.config.schema import BuildPreferencesConfig
from psychocounsel.judging.injection import CANARIES
from psychocounsel.stages.audit import Rated, share_of_principles
from psychocounsel.stages.build_preferences import build_preferences
from psychocounsel.store.artifacts import Artifact
from psychocounsel.store.store import Store
from psychocounsel.types import Candidate, Judgement, ReplyStatus, Speech
from running import Cli, Ended

PRINCIPLES = ("empathy", "relevance", "clarity", "safety", "exploration", "autonomy", "staging")
NOTHING = {"retest": 0, "one_principle": 0, "canaries": 0}
SMALL = {"retest": 12, "one_principle": 6, "canaries": 8}

Ratings = Callable[[str, str], int]
"""Of a response and a principle."""


def hashed(*parts: str) -> int:
    return int(hashlib.sha256("/".join(parts).encode()).hexdigest()[:8], 16)


def own_words(response: str) -> str:
    """Return a response without the canary at its end."""
    head, _, tail = response.rpartition("\n\n")
    return head if tail in CANARIES else response


def fair(response: str, principle: str) -> int:
    return 1 + hashed(own_words(response), principle) % 5


def obedient(response: str, principle: str) -> int:
    return 5 if own_words(response) != response else fair(response, principle)


def lifted(response: str, points: int) -> dict[str, int]:
    """Return fair ratings with so many points more, the first principles first."""
    ratings = {name: fair(response, name) for name in PRINCIPLES}
    for name in ratings:
        more = min(points, 5 - ratings[name])
        ratings[name] += more
        points -= more
    return ratings


def asked_for(request: Mapping[str, Any]) -> list[str]:
    schema = request["response_format"]["json_schema"]["schema"]
    return list(schema["properties"]["ratings"]["properties"])


def item_in(request: Mapping[str, Any]) -> dict[str, str]:
    return json.loads(request["messages"][-1]["content"].splitlines()[1])


def rating(request: Mapping[str, Any], rate: Ratings) -> Reply:
    item = item_in(request)
    ratings = {name: rate(item["response"], name) for name in asked_for(request)}
    return Reply(json.dumps({"item_id": item["item_id"], "reasons": "", "ratings": ratings}))


def by(rate: Ratings) -> Script:
    return lambda request, number: rating(request, rate)


class Judged(NamedTuple):
    """A recipe whose judge is a server in this process, and a store in which all is done but the audit."""

    server: ChatServer
    recipe: Path
    store: Path

    def config(self, audit: Mapping[str, int], **changes: Any) -> Path:
        endpoint = {"model": MODEL, "base_url": self.server.base_url, "concurrency": 4, "max_attempts": 1}
        endpoint |= {"price": {"prompt": 0.0, "completion": 1.0e6}}  # a dollar per token
        judge = {"backend": "endpoint", "endpoint": endpoint, **changes.pop("judge", {})}
        return write_build_config(self.recipe, judge=judge, audit=dict(audit), **changes)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judged]:
    folder = tmp_path_factory.mktemp("judged")
    with ChatServer(by(fair)) as server:
        judged = Judged(server, write_recipe(folder / "recipe"), folder / "store")
        config = load_config(BuildPreferencesConfig, judged.config(NOTHING), [])
        build_preferences(config, Store(judged.store))
        shutil.rmtree(judged.store / "audits")
        yield judged


@pytest.fixture
def judged(done: Judged, tmp_path: Path) -> Judged:
    """The same in a store of its own, the judge fair and its count at nothing."""
    done.server.script = by(fair)
    done.server.received.clear()
    return done._replace(store=Path(shutil.copytree(done.store, tmp_path / "store")))


def build(cli: Cli, judged: Judged, audit: Mapping[str, int], *more: str, **changes: Any) -> Ended:
    return cli("build-preferences", judged.config(audit, **changes), "--store", judged.store, *more)


def audits(judged: Judged) -> list[Artifact]:
    return Store(judged.store).artifacts("audits")


def audited(cli: Cli, judged: Judged, audit: Mapping[str, int], **changes: Any) -> tuple[dict[str, Any], str]:
    """Return the metrics of a new audit, and what was printed of it."""
    ended = build(cli, judged, audit, **changes)
    assert ended.code == 0, ended.err
    printed = ended.err[ended.err.index("judge audit (audits/mini@") :]
    return audits(judged)[-1].metrics, printed


class TestCanaries:
    def test_a_judge_that_reads_past_them_resists(self, judged: Judged, cli: Cli) -> None:
        metrics, printed = audited(cli, judged, {**NOTHING, "canaries": 8})
        gain = {"n": 8, "mean": 0.0, "low": 0.0, "high": 0.0, "largest": 0.0}
        counts = {"asked": 8, "missing": 0, "flagged": 8, "gain": gain, "resists": True}
        assert metrics["canaries"] == {**counts, "gained_a_point": [], "lost_a_point": 0}
        assert "The judge resists words that address it" in printed
        assert re.search(r"responses that seem to address the judge +0", printed)
        assert judged.server.count == 8

    def test_a_judge_that_obeys_is_named(self, judged: Judged, cli: Cli) -> None:
        judged.server.script = by(obedient)
        metrics, printed = audited(cli, judged, {**NOTHING, "canaries": 8})
        found = metrics["canaries"]
        assert found["resists"] is False
        assert len(set(found["gained_a_point"])) == 8
        assert 1 <= found["gain"]["low"] < found["gain"]["mean"] < found["gain"]["largest"] <= 4
        assert "8 of 8 copies gained a point or more" in printed
        assert "The judge OBEYS" in printed

    @pytest.mark.parametrize(("points", "resists"), [(6, True), (7, False)])
    def test_a_whole_point_of_the_mean_is_too_much(self, judged: Judged, cli: Cli, points: int, resists: bool) -> None:
        """Seven principles: seven points more are one of the mean rating, six are less."""
        judged.server.script = by(lambda text, name: lifted(text, points if own_words(text) != text else 0)[name])
        found = audited(cli, judged, {**NOTHING, "canaries": 8})[0]["canaries"]
        assert found["gain"]["largest"] == pytest.approx(points / 7)
        assert found["resists"] is resists
        assert len(found["gained_a_point"]) == (0 if resists else 8)

    def test_only_what_can_gain_a_point_is_tried(self, judged: Judged, cli: Cli) -> None:
        audited(cli, judged, {**NOTHING, "canaries": 1000})
        tried = [own_words(item_in(each.body)["response"]) for each in judged.server.received]
        assert len(tried) < 128
        assert max(sum(fair(text, name) for name in PRINCIPLES) for text in tried) == 4 * 7

    def test_where_all_is_rated_highest_nothing_is_proved(self, judged: Judged, cli: Cli) -> None:
        # Equal ratings make no pair: the first two responses of every speech get less.
        low: Counter[str] = Counter()

        def lenient(request: Mapping[str, Any], number: int) -> Reply:
            low[item_in(request)["client"]] += 1
            point = 4 if low[item_in(request)["client"]] <= 2 else 5
            return rating(request, lambda text, name: 5 if name == "safety" else point)

        judged.server.script = lenient
        metrics, printed = audited(cli, judged, {**NOTHING, "canaries": 8}, judge={"temperature": 0.5})
        assert (metrics["canaries"]["asked"], metrics["canaries"]["resists"]) == (0, None)
        assert "no response could gain a point" in printed

    def test_copies_that_fail_are_missing_and_no_resistance(self, judged: Judged, cli: Cli) -> None:
        judged.server.script = lambda request, number: Reply(None, refusal="No.")
        metrics, printed = audited(cli, judged, {**NOTHING, "canaries": 8})
        assert (metrics["canaries"]["missing"], metrics["canaries"]["resists"]) == (8, None)
        assert metrics["canaries"]["gain"] is None
        assert "every copy failed" in printed
        assert "resists" not in printed


class TestAskedAgain:
    def test_a_judge_that_repeats_itself(self, judged: Judged, cli: Cli) -> None:
        metrics, printed = audited(cli, judged, {**NOTHING, "retest": 12})
        found = metrics["retest"]
        assert (found["asked"], found["missing"], found["kappa"]) == (12, 0, 1.0)
        assert found["equal"]["estimate"] == found["within_one"]["estimate"] == found["equal"]["high"] == 1.0
        assert found["equal"]["low"] < 1  # twelve equal answers are no certainty
        assert found["change"]["largest"] == 0
        assert re.search(r"retest: equal ratings +100.0", printed)
        assert judged.server.count == 12

    def test_a_judge_that_drifts_is_shown_by_principle(self, judged: Judged, cli: Cli) -> None:
        """Every second answer has another rating of empathy, two points away, and of clarity, one away."""
        away = {"empathy": 2, "clarity": 1}

        def drifting(text: str, name: str) -> int:
            step = away.get(name, 0)
            return fair(text, name) + (step if fair(text, name) <= 3 else -step)

        judged.server.script = by(drifting)
        found = audited(cli, judged, {**NOTHING, "retest": 12})[0]["retest"]
        assert found["equal"]["estimate"] == pytest.approx(5 / 7)
        assert found["within_one"]["estimate"] == pytest.approx(6 / 7)
        assert found["equal"]["n"] == 12
        exact = {name: each["exact"] for name, each in found["by_principle"].items()}
        assert exact == {name: 0.0 if name in away else 1.0 for name in PRINCIPLES}
        assert found["by_principle"]["clarity"]["within_one"] == 1.0
        assert 0 < found["kappa"] < 1
        assert found["change"]["largest"] in {3 / 7, 1 / 7}

    def test_means_one_point_apart_are_within_a_point(self) -> None:
        speech = Speech("I cannot sleep.")
        candidate = Candidate(speech.id, "alder", "Since when?")
        one, other = (Judgement(candidate.id, "j", ReplyStatus.VALID, {"empathy": each}) for each in (7 / 3, 4 / 3))
        assert 7 / 3 - 4 / 3 > 1
        shares = [share_of_principles([Rated(speech, candidate, one)], [other], points) for points in (0, 1)]
        assert [share and share.estimate for share in shares] == [0.0, 1.0]

    def test_second_answers_that_fail_are_missing(self, judged: Judged, cli: Cli) -> None:
        def refuse_some(request: Mapping[str, Any], number: int) -> Reply:
            return Reply(None, refusal="No.") if number % 3 == 0 else rating(request, fair)

        judged.server.script = refuse_some
        found = audited(cli, judged, {**NOTHING, "retest": 12})[0]["retest"]
        assert (found["asked"], found["missing"], found["change"]["n"]) == (12, 4, 8)
        assert (found["equal"]["n"], found["equal"]["missing"]) == (8, 4)

    def test_one_principle_per_call_unveils_a_halo(self, judged: Judged, cli: Cli) -> None:
        def impressed(request: Mapping[str, Any], number: int) -> Reply:
            whole = len(asked_for(request)) > 1
            return rating(request, lambda text, name: fair(text, "empathy" if whole else name))

        judged.server.script = impressed
        metrics, printed = audited(cli, judged, {**NOTHING, "one_principle": 30}, judge={"temperature": 0.5})
        found = metrics["one_principle"]
        assert (found["asked"], found["missing"], found["halo"]["pairs"]) == (30, 0, 21)
        assert found["halo"]["together"] == pytest.approx(1.0)
        assert metrics["halo"] == pytest.approx(1.0)
        assert abs(found["halo"]["alone"]) < 0.3
        assert 0.5 < found["halo"]["low"] < found["halo"]["difference"] < found["halo"]["high"]
        assert found["mean_difference"] > 1
        assert re.search(r"halo, all principles in one reply +1.00", printed)
        assert judged.server.count == 128 + 7 * 30

    def test_a_response_counts_only_with_every_principle(self, judged: Judged, cli: Cli) -> None:
        def no_word_on_safety(request: Mapping[str, Any], number: int) -> Reply:
            refused = asked_for(request) == ["safety"] and number % 2
            return Reply(None, refusal="No.") if refused else rating(request, fair)

        judged.server.script = no_word_on_safety
        found = audited(cli, judged, {**NOTHING, "one_principle": 6})[0]["one_principle"]
        assert (found["asked"], found["missing"], found["halo"]["responses"]) == (6, 3, 3)
        assert found["mean_difference"] == 0.0


class TestPending:
    def test_a_second_run_asks_nothing_and_prints_nothing(self, judged: Judged, cli: Cli) -> None:
        audited(cli, judged, SMALL)
        asked = judged.server.count
        again = build(cli, judged, SMALL)
        assert (again.code, judged.server.count) == (0, asked)
        assert "up to date: preferences" in again.out
        assert "judge audit (" not in again.err
        shown = cli("show", "audits/mini", "--store", judged.store)
        assert "gained a point or more" in shown.out

    def test_a_dry_run_tells_what_the_run_asks(self, judged: Judged, cli: Cli) -> None:
        for audit in (SMALL, {**SMALL, "retest": 500, "canaries": 1000}):
            before = judged.server.count
            said = build(cli, judged, audit, "--dry-run").out
            (paid,) = (line for line in said.splitlines() if line.startswith("to pay:"))
            assert judged.server.count == before
            audited(cli, judged, audit)
            assert f"auditing the judge, scripted-judge-2025-01-01 at {judged.server.base_url}" in paid
            assert f": {judged.server.count - before} calls, " in paid
        assert "nothing to pay:" in build(cli, judged, SMALL, "--dry-run").out

    def test_another_sample_makes_another_audit_and_nothing_else(self, judged: Judged, cli: Cli) -> None:
        audited(cli, judged, SMALL)
        before = {each.id for each in Store(judged.store).artifacts()}
        asked = judged.server.count
        metrics, printed = audited(cli, judged, {"retest": 14, "one_principle": 0, "canaries": 5})
        made = [each for each in Store(judged.store).artifacts() if each.id not in before]
        assert [each.kind for each in made] == ["audits"]
        assert judged.server.count == asked + 2  # of fourteen, twelve were asked again before
        assert metrics["retest"]["asked"] == 14
        assert metrics["one_principle"] is None
        assert "one principle per reply" not in printed

    def test_nothing_is_asked_for_an_audit_of_nothing_or_by_the_offline_judge(self, judged: Judged, cli: Cli) -> None:
        metrics, printed = audited(cli, judged, NOTHING)
        assert [metrics[part] for part in ("retest", "one_principle", "canaries")] == [None] * 3
        assert "spend" not in metrics
        assert "rank correlation of rating and length" in printed
        metrics, printed = audited(cli, judged, SMALL, judge={"backend": "offline", "endpoint": None})
        assert (metrics["retest"], metrics["one_principle"]) == (None, None)
        assert (metrics["canaries"]["gain"]["n"], metrics["canaries"]["resists"]) == (8, True)
        assert "retest" not in printed
        assert "The judge resists" in printed
        assert "the offline judge" in audits(judged)[-1].warnings[0]
        assert judged.server.count == 0


class TestFailingEndpoint:
    def test_a_lost_answer_leaves_only_the_audit_pending(self, judged: Judged, cli: Cli, tmp_path: Path) -> None:
        def fail_late(request: Mapping[str, Any], number: int) -> Reply | Fault:
            return GIVEN_UP if number == 130 else rating(request, fair)

        judged.server.script = fail_late
        anew = judged._replace(store=tmp_path / "anew")
        first = build(cli, anew, SMALL)
        (pairs,) = Store(anew.store).artifacts("preferences")
        first.says(3, f"preferences {pairs.ref} is complete; the audit of its judge is pending")
        first.says(3, "\nerror: judge.endpoint: 1 of 12 ratings of the judge's audit got no answer")
        assert "run the same command again" in first.err.splitlines()[-1]
        assert audits(anew) == []
        written = {path: path.read_bytes() for path in pairs.folder.rglob("*") if path.is_file()}
        asked = judged.server.count
        second = build(cli, anew, SMALL)
        assert second.code == 0
        assert "up to date: preferences" in second.out
        assert judged.server.count == asked + 1 + 7 * 6 + 8  # of the first twelve, the lost one
        assert {path: path.read_bytes() for path in written} == written
        assert audits(anew)[0].metrics["retest"]["missing"] == 0

    def test_a_key_that_is_refused_ends_with_its_own_code(self, judged: Judged, cli: Cli) -> None:
        judged.server.script = lambda request, number: error_fault(401, "Incorrect API key provided")
        ended = build(cli, judged, SMALL)
        ended.says(2, "the audit of its judge is pending", "retest, one_principle and canaries of audit at 0")
        assert judged.server.count == 1
        judged.server.script = by(fair)
        assert build(cli, judged, NOTHING).code == 0
        assert judged.server.count == 1

    def test_a_signal_stops_the_audit_and_what_was_answered_is_kept(self, judged: Judged, cli: Cli) -> None:
        def stop_here(request: Mapping[str, Any], number: int) -> Reply:
            if number == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            return rating(request, fair)

        judged.server.script = stop_here
        stopped = build(cli, judged, SMALL)
        stopped.says(75, "the audit of its judge is pending")
        assert (audits(judged), judged.server.count < 12) == ([], True)
        judged.server.script = by(fair)
        assert build(cli, judged, SMALL).code == 0
        assert judged.server.count == 12 + 7 * 6 + 8

    def test_ratings_and_audit_share_the_limit(self, judged: Judged, cli: Cli) -> None:
        rated = 128 * 7.0  # what the ratings cost; an answer has 7 tokens, at its worst 600
        limit = ["--set", f"judge.endpoint.max_cost={rated + 600 + 10}"]
        ended = build(cli, judged, SMALL, *limit)
        ended.says(3, "with $910.0000 spent the limit of $1506")
        assert judged.server.count == 2
        assert build(cli, judged, SMALL).code == 0
        spend = audits(judged)[0].metrics["spend"]
        assert spend["cost_usd"] == 7.0 * (12 + 7 * 6 + 8)


class TestTable:
    def test_missing_by_status_and_topic_and_every_rating(self, judged: Judged, cli: Cli, tmp_path: Path) -> None:
        grieving: list[str] = []

        def touchy(request: Mapping[str, Any], number: int) -> Reply:
            if number < 4 and len(grieving) < 4:
                grieving.append(item_in(request)["client"])
            if item_in(request)["client"] == grieving[0]:
                return Reply(None, refusal="No.")
            return Reply("Five!") if number == 60 else rating(request, fair)

        judged.server.script = touchy
        anew = judged._replace(store=tmp_path / "anew")
        metrics, printed = audited(cli, anew, NOTHING, judge={"max_missing_share": 0.5})
        counts = metrics["judged"]
        assert counts["status"] == {"invalid": 1, "refusal": 4, "valid": 123}
        assert "5 of 128 judgements" in printed
        missing = {topic: each for topic, each in counts["missing_by_topic"].items() if each["missing"]}
        assert sum(each["missing"] for each in missing.values()) == 5
        for topic, each in missing.items():
            assert re.search(rf"{topic} +{each['missing']} +{each['total']} ", printed)
        assert all(sum(each.values()) == 123 for each in counts["histograms"].values())

    def test_every_key_is_documented(self, judged: Judged, cli: Cli) -> None:
        metrics = audited(cli, judged, SMALL)[0]
        text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
        printed = text[text.index("### `audits`") : text.index("### `preferences`")]
        parts = ("retest", "one_principle", "canaries")
        nested = [f"{part}.{key}" for part in parts for key in metrics[part]]
        agreement = metrics["retest"]["by_principle"]["empathy"]
        quoted = [f'"{key}"' for key in (*metrics["canaries"]["gain"], *metrics["length"], *agreement)]
        keys = [f"`{key}`" for key in (*metrics, *nested, *metrics["one_principle"]["halo"])]
        assert len(nested) > 15
        assert [key for key in (*quoted, *keys) if key not in printed] == []

    def test_ties_and_length_are_those_of_the_ratings(self, judged: Judged, cli: Cli) -> None:
        def longer_is_better(request: Mapping[str, Any], number: int) -> Reply:
            point = min(5, 1 + len(item_in(request)["response"]) // 120)
            return rating(request, lambda text, name: point)

        judged.server.script = longer_is_better
        metrics, printed = audited(cli, judged, NOTHING, judge={"temperature": 0.5})
        assert (metrics["length"]["estimate"] > 0.8, metrics["length"]["n"]) == (True, 128)
        items = [item_in(each.body) for each in judged.server.received]
        points = [(item["client"], min(5, 1 + len(item["response"]) // 120)) for item in items]
        tied = [a[1] == b[1] for at, a in enumerate(points) for b in points[:at] if a[0] == b[0]]
        share = sum(tied) / len(tied)
        assert (metrics["ties"]["estimate"], metrics["ties"]["n"]) == (pytest.approx(share), len(tied))
        assert re.search(rf"ties between responses to one speech +{100 * share:.1f}", printed)
