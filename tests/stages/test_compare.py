"""`compare`: several policies over one reference, by several judges."""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer, Reply, answer_by_schema

from miniature import SAMPLING, configs, write_yaml
from psychocounsel.evaluation.winrate import sample_speeches
from psychocounsel.store.artifacts import ArtifactSpec
from psychocounsel.store.schemas import read_speeches
from psychocounsel.store.store import Store
from psychocounsel.types import Rate
from running import Cli, Miniature


def win_rate_of(policy: str, cli: Cli, miniature: Miniature, store: Path, *sets: str) -> None:
    words = [word for each in (f"policy.author={policy}", *sets) for word in ("--set", each)]
    ended = cli("eval-winrate", miniature.recipe / "eval-winrate.yaml", "--store", store, *words)
    assert ended.code == 0, ended.err


def table(out: str, title: str) -> list[list[str]]:
    """Return the cells of a table below its title."""
    lines = out[out.index(title) :].split("\n\n")[0].splitlines()[2:]
    return [re.split(r" {2,}", line.strip()) for line in lines]


def test_policies_are_compared_by_speech_and_ranked(
    miniature: Miniature, cli: Cli, store: Path, tmp_path: Path
) -> None:
    config = configs(miniature.recipe)["eval-winrate"]
    greedy = {"author": "greedy", "model": "mini-base", "sampling": {**SAMPLING, "temperature": 0.0}}
    config["policies"] = [{"author": "dpo", "model": "mini-dpo", "sampling": SAMPLING}, greedy, config.pop("policy")]
    write_yaml(tmp_path / "eval.yaml", config)
    ended = cli("eval-winrate", tmp_path / "eval.yaml", "--store", store)
    assert ended.code == 0, ended.err
    assert len(Store(store).artifacts("comparisons")) == 4  # the last one under a second name
    command = ended.out.splitlines()[-1].partition("next: psychocounsel ")[2]
    ended = cli(*shlex.split(command))
    assert ended.code == 0, ended.err
    policies = table(ended.out, "Win rates of the policies")
    assert {row[1] for row in policies} == {"online", "dpo", "greedy"}
    assert {row[2] for row in policies} == {"base"}
    rates = {row[1]: float(row[4].split()[0]) for row in policies}
    differences = table(ended.out, "Paired differences")
    assert len(differences) == 3
    for policies_of, over, judge, difference, _, speeches, _, _ in differences:
        first, second = policies_of.split(" - ")
        assert abs(float(difference) - (rates[first] - rates[second])) < 0.11  # both are rounded to a tenth
        assert (over, judge, speeches) == ("base", "offline", "8")
    data = json.loads(cli(*shlex.split(command), "--json").out)
    assert len(data["comparisons"]) == len(data["paired_differences"]) == 3
    points = {f"{100 * each['estimate']:+.1f}" for each in data["paired_differences"]}
    assert points == {row[3] for row in differences}
    assert "policy answers: responder.sampling.temperature" in data["settings"]
    ranking = table(ended.out, "Ranking by Bradley and Terry")
    assert {row[0] for row in ranking} == {"online", "dpo", "greedy", "base"}
    slices = table(ended.out, "Win rates by slice")
    assert all(len(row) == 4 for row in slices)
    assert any(row[0] == "speeches about crisis" for row in slices)
    assert not [row for row in differences if "speeches" in row[-1]]  # few in crisis: n, and no difference
    assert "policy answers: responder.sampling.temperature" in ended.out
    assert "judge." not in ended.out[ended.out.index("Settings that differ") :]


@pytest.mark.parametrize(("stage", "run"), [("align-dpo", "mini-dpo"), ("align", "mini-online")])
def test_settings_of_the_policies_explain_what_differs(
    miniature: Miniature, cli: Cli, store: Path, stage: str, run: str
) -> None:
    config = miniature.recipe / f"{stage}.yaml"
    ended = cli("align", config, "--set", "name=other", "--set", "beta=0.3", "--store", store)
    assert ended.code == 0, ended.err
    for model in (run, "other"):
        win_rate_of(model, cli, miniature, store, f"name=by-{model}", f"policy.model=policies/{model}")
    ended = cli("compare", f"comparisons/by-{run}", "comparisons/by-other", "--store", store)
    assert ended.code == 0, ended.err
    settings = {row[0]: row[1:] for row in table(ended.out, "Settings that differ")}
    assert settings.pop("policy answers: model: beta")[1] == "0.3"
    assert settings.keys() <= {"policy answers: responder.author", "policy answers: model: weights_of_round"}


def test_policies_made_in_other_ways_differ_by_their_mode(miniature: Miniature, cli: Cli, store: Path) -> None:
    for model in ("mini-dpo", "mini-online"):
        win_rate_of("same", cli, miniature, store, f"name=by-{model}", f"policy.model=policies/{model}")
    ended = cli("compare", "comparisons/by-mini-dpo", "comparisons/by-mini-online", "--store", store)
    settings = {row[0]: row[1:] for row in table(ended.out, "Settings that differ")}
    assert settings["policy answers: model: mode"] == ["'dpo'", "'online'"]
    assert settings["policy answers: model: round"][0] == "(absent)"
    assert not [name for name in settings if "parent" in name]


def test_second_judge_stands_beside_the_first(miniature: Miniature, cli: Cli, store: Path) -> None:
    def first_is_better(request: Mapping[str, Any], number: int) -> Reply:
        reply = answer_by_schema(request, number)
        content = json.loads(reply.text or "")
        return Reply(json.dumps({**content, "winners": dict.fromkeys(content["winners"], "A")}))

    with ChatServer(first_is_better) as server:
        endpoint = f"judge.endpoint={{model: second-judge, base_url: '{server.base_url}'}}"
        win_rate_of("online", cli, miniature, store, "name=mini-second", "judge.backend=endpoint", endpoint)
    ended = cli("compare", "mini", "mini-second", "--store", store)
    assert ended.code == 0, ended.err
    (judges,) = table(ended.out, "Judges of the same answers")
    assert judges[0] == "offline, second-judge"
    assert judges[3] == "50.0\xa0%"
    assert judges[5] == "8"
    assert "Paired differences" not in ended.out  # one policy
    assert "Ranking" not in ended.out
    assert "corrected by people's labels" not in ended.out  # nobody labelled them


@pytest.mark.parametrize(
    ("fails", "reading"), [(True, "differs, unless for what is missing"), (False, "differs")], ids=["fails", "unasked"]
)
def test_a_difference_that_hangs_on_failed_verdicts_is_marked(
    miniature: Miniature, cli: Cli, store: Path, tmp_path: Path, fails: bool, reading: str
) -> None:
    held_out = [each.speech for each in read_speeches(Store(store).artifacts("speeches")[-1]) if each.split == "test"]
    five = sample_speeches(held_out, 5, 0)

    def judge(request: Mapping[str, Any], number: int) -> Reply:
        """`Failing.` wins five speeches and loses the others, perhaps without a verdict; `Even.` wins just those."""
        said = request["messages"][-1]["content"]
        is_won = any(each.text[:40] in said for each in five)
        if fails and "Failing." in said and not is_won:
            return Reply(None, refusal="No.")
        found = re.search(r'^\{"item_id".*$', said, re.MULTILINE)
        assert found is not None
        is_first = json.loads(found.group())["response_A"] != "Oh."
        content = json.loads(answer_by_schema(request, number).text or "")
        wins = is_won != ("Even." in said)
        return Reply(json.dumps({**content, "winners": dict.fromkeys(content["winners"], "AB"[is_first != wins])}))

    def side(text: str) -> str:
        file = tmp_path / f"{text}jsonl"
        file.write_text("".join(json.dumps({"speech": each.text, "response": text}) + "\n" for each in held_out))
        return json.dumps({"author": text[:-1].lower(), "file": str(file), "licence": "mit", "data_class": "public"})

    with ChatServer(judge) as server:
        endpoint = f"judge.endpoint={{model: a-judge, base_url: '{server.base_url}'}}"
        for text in ("Failing.", "Even."):
            sets = ["judge.backend=endpoint", endpoint, "judge.max_missing_share=0.5", f"reference={side('Oh.')}"]
            sets += ["max_speeches=5"] if text == "Even." and not fails else []
            win_rate_of(
                text[:-1].lower(), cli, miniature, store, f"name={text[:-1].lower()}", f"policy={side(text)}", *sets
            )
    ended = cli("compare", "comparisons/failing", "comparisons/even", "--store", store)
    (row,) = table(ended.out, "Paired differences")
    assert (row[5], row[6]) == ("5", reading)
    settings = {row[0]: row[1:] for row in table(ended.out, "Settings that differ")}
    assert all(re.fullmatch("'[0-9a-f]{12}'", each) for each in settings["policy answers: responder.file.sha256"])
    ended = cli("power", "--from", "comparisons/failing", "--target", "0.15", "--icc", "0.05", "--store", store)
    assert "Neither side's answers vary: take more speeches" in ended.out


@pytest.mark.parametrize(("headline", "rate", "words"), [("anchored", 0.61, "judge and"), ("human_only", 0.6, "alone")])
def test_a_rate_that_labels_correct_stands_beside_the_judges(
    miniature: Miniature, cli: Cli, store: Path, headline: str, rate: float, words: str
) -> None:
    win_rate_of("dpo", cli, miniature, store, "name=by-dpo", "policy.model=mini-dpo")
    opened = Store(store)
    compared = next(each for each in opened.artifacts("comparisons") if each.name == "by-dpo")
    rates = {"judge_only": 0.9, "human_only": 0.6, "anchored": 0.61}
    metrics = {
        **{name: asdict(Rate(each, each - 0.1, each + 0.05, 120)) for name, each in rates.items()},
        **{"judge": "offline", "labelled": 120, "unlabelled": 9, "skipped": 0, "judge_holds": False, "bias": None},
        **{
            "headline": headline,
            "rho": None,
            "kappa": None,
            "lambda": 0.4,
            "labels_worth": None,
            "raters": {"ann": 120},
        },
        "agreement": {"items": 0, "raw": None, "kappa": None, "alpha": None},
    }
    parents = tuple(compared.as_parent(role) for role in ("comparisons", "labels"))
    spec = ArtifactSpec("anchors", "by-dpo", "anchor", 1, {}, parents)
    opened.make(spec, lambda writer: writer.write_metrics(metrics))
    command = ("compare", "comparisons/by-dpo", "comparisons/mini", "--store", store)
    out = cli(*command).out.replace("\N{NO-BREAK SPACE}", " ")
    assert "! by-dpo: The interval of the judge's win rate (80.0 to 95.0 %) does not hold" in out
    (row,) = table(out, "Win rates corrected")
    assert row[0] == compared.ref
    assert row[2:4] == [
        "90.0 % [80.0 to 95.0 %]",
        f"{100 * rate:.1f} % [{100 * rate - 10:.1f} to {100 * rate + 5:.1f} %]",
    ]
    assert words in row[4]
    assert "120 speeches (raters: ann)" in row[4]
    data = json.loads(cli(*command, "--json").out)["comparisons"]
    assert data[0]["corrected"]["estimate"] == rate
    assert (data[0]["corrected"]["by"], data[1]["corrected"]) == (headline, None)


def test_what_cannot_be_compared_is_refused(miniature: Miniature, cli: Cli) -> None:
    cli("compare", "mini", "--store", miniature.store).says(2, "one comparison", "another one")
    cli("compare", "comparisons/mini", "policies/mini-dpo", "--store", miniature.store).says(2, "policies")
