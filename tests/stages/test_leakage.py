"""Evaluation refuses speeches that a model was trained on, and near-duplicates of them."""

from pathlib import Path

import pytest

from psychocounsel.stages.leakage import leaked_speeches
from psychocounsel.store.artifacts import Artifact
from psychocounsel.store.store import Store
from psychocounsel.types import Speech, Turn
from running import Cli, Ended, Miniature

LONG = "Since the move I lie awake, and nobody here knows my name. I count the cars until it is light outside."


def test_a_near_duplicate_of_a_training_speech_leaks_and_another_speech_does_not() -> None:
    copy, other = Speech(LONG.replace("cars", "lorries")), Speech("My brother rang after two years. I let it ring.")
    assert leaked_speeches([Speech(LONG), copy, other], [Speech(LONG)], 0.5) == [Speech(LONG), copy]
    assert leaked_speeches([copy, other], [Speech(LONG)], 0.99) == []
    assert leaked_speeches([other], [], 0.5) == []


def test_speeches_in_the_histories_of_training_speeches_leak_and_so_do_later_turns_of_a_session() -> None:
    before = (Turn("user", LONG), Turn("assistant", "Go on."))
    first, second = Speech(LONG), Speech("My brother rang. I let it ring.", history=before)
    third = Speech("And then?", history=(*second.turns, Turn("assistant", "Why?")))
    cut = Speech("And then?", history=third.history[2:])
    for evaluated, trained_on in (
        (first, second),
        (second, first),
        (first, third),
        (second, third),
        (second, cut),
        (cut, second),
    ):
        assert leaked_speeches([evaluated], [trained_on], 0.5) == [evaluated]
    assert leaked_speeches([first], [Speech("And then?", history=(Turn("assistant", "Go on."),))], 0.5) == []


@pytest.fixture
def store(store: Path, miniature: Miniature, cli: Cli) -> Path:
    """Return a store in which the newest corpus has another test split than the one that models were trained with."""
    build = miniature.recipe / "build-preferences.yaml"
    ended = cli("build-preferences", build, "--store", store, "--set", "corpus.split.test_share=0.5")
    assert ended.code == 0, ended.err
    return store


def run(cli: Cli, miniature: Miniature, stage: str, store: Path, *more: str) -> Ended:
    return cli(stage, miniature.recipe / f"{stage}.yaml", "--store", store, *more)


def newest(store: Path, kind: str) -> Artifact:
    return [each for each in Store(store).artifacts() if each.kind == kind][-1]


def test_a_policy_is_not_measured_on_its_training_speeches(miniature: Miniature, cli: Cli, store: Path) -> None:
    before = len(Store(store).artifacts())
    refused = run(cli, miniature, "eval-winrate", store)
    refused.says(4, "evaluated speeches, or near-duplicates of them, were trained on", "--allow-leakage")
    assert len(Store(store).artifacts()) == before, "nothing is answered for it"
    allowed = run(cli, miniature, "eval-winrate", store, "--allow-leakage")
    assert allowed.code == 0, allowed.err
    made = newest(store, "comparisons")
    leakage = made.metrics["leakage"]
    assert 0 < leakage["leaked"] < leakage["speeches"]
    assert f"{leakage['leaked']} of {leakage['speeches']}" in made.warnings[-1]
    assert made.warnings[-1] in allowed.out
    assert f"{leakage['leaked']} of {leakage['speeches']} evaluated speeches" in refused.err


def test_the_split_of_the_training_corpus_does_not_leak(miniature: Miniature, cli: Cli, store: Path) -> None:
    speeches = next(each for each in Store(store).artifacts() if each.kind == "speeches")
    ended = run(cli, miniature, "eval-winrate", store, "--set", f"speeches={speeches.ref}")
    assert ended.code == 0, ended.err
    assert newest(Path(store), "comparisons").metrics["leakage"]["leaked"] == 0


def test_a_reward_model_is_not_measured_on_speeches_of_its_base_model(
    miniature: Miniature, cli: Cli, store: Path
) -> None:
    refused = run(cli, miniature, "train-reward", store)
    refused.says(4, "were trained on", "base-models mini")
