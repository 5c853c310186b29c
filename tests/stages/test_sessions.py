"""Sessions of several turns through all stages: earlier turns reach judge, policy, reward model and readers."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import load_dataset

import psychocounsel
from miniature import rows, write_rows, write_yaml
from psychocounsel.store.artifacts import Artifact, Kind
from psychocounsel.store.schemas import read_comparisons, read_pairs, read_scores, read_speeches
from psychocounsel.store.store import Store
from psychocounsel.types import Turn
from running import Miniature, Warm

OPENING_CHARS = 110


def write_sessions(recipe: Path) -> None:
    """Make the speeches of the recipe the second thing that a client says, after the next client's opening words."""
    speeches = rows(recipe / "speeches.jsonl")
    sessions = [
        {
            "topic": one["topic"],
            "said": [
                {"role": "client", "content": other["text"][:OPENING_CHARS]},
                {"role": "counsellor", "content": "Go on."},
                {"role": "client", "content": one["text"]},
                {"role": "counsellor", "content": "What would help?"},
            ],
        }
        for one, other in zip(speeches, [*speeches[1:], speeches[0]], strict=True)
    ]
    keys = {one["key"]: f"sessions.jsonl line {number} turn 2" for number, one in enumerate(speeches, start=1)}
    write_rows(recipe / "sessions.jsonl", sessions)
    answers = [{**each, "speech": keys[each["speech"]]} for each in rows(recipe / "candidates.jsonl")]
    write_rows(recipe / "candidates.jsonl", answers)
    config: dict[str, Any] = yaml.safe_load((recipe / "corpus.yaml").read_text(encoding="utf-8"))
    columns = {"text": "turn.text", "history": "turn.history", "key": "turn.key", "topic": "topic"}
    source = {"path": str(recipe / "sessions.jsonl"), "conversation": {"messages": "said"}, "columns": columns}
    config["speeches"] = [config["speeches"][0] | source]
    config["candidates"][0]["path"] = str(recipe / "candidates.jsonl")
    write_yaml(recipe / "corpus.yaml", config)


@pytest.fixture(scope="module")
def sessions(miniature: Miniature, warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Return the store that the whole pipeline filled."""
    folder = tmp_path_factory.mktemp("sessions")
    recipe = Path(shutil.copytree(miniature.recipe, folder / "recipe"))
    write_sessions(recipe)
    ended = warm.run("run", recipe, "--store", folder / "store")
    assert ended.code == 0, ended.err
    return Store(folder / "store")


def newest(store: Store, kind: Kind, name: str = "mini") -> Artifact:
    return [each for each in store.artifacts(kind) if each.name == name][-1]


def test_sessions_stay_whole_and_their_pairs_have_a_history(sessions: Store) -> None:
    by_text = {each.speech.text: each for each in read_speeches(newest(sessions, "speeches"))}
    second = [each for each in by_text.values() if each.speech.history]
    assert len(second) > 20
    for each in second:
        opening, answer = each.speech.history
        assert answer == Turn("assistant", "Go on.")
        before = by_text[opening.content]
        assert (before.split, before.cluster, before.speech.history) == (each.split, each.cluster, ())
    preferences = newest(sessions, "preferences")
    opened = load_dataset(str(preferences.folder), cache_dir=str(sessions.root / "cache"))
    for split in ("train", "dev", "test"):
        pairs = read_pairs(preferences, split)
        assert [each["history"] for each in opened[split]] == [
            [turn._asdict() for turn in pair.speech.history] for pair in pairs
        ]
        assert all(pair.speech.history for pair in pairs)


def test_rewards_are_those_of_training_with_the_history_alone(sessions: Store, warm: Warm, tmp_path: Path) -> None:
    model = newest(sessions, "reward-models")
    pair = read_pairs(newest(sessions, "preferences"), "test")[0]
    known = {each.candidate_id: each.raw_reward for each in read_scores(model)}[pair.chosen.candidate.id]
    answer = pair.chosen.candidate.text
    loaded = psychocounsel.RewardModel(model.ref, store=sessions.root)
    (reward,), (without,) = (loaded.score(each, [answer]) for each in (pair.speech, pair.speech.text))
    assert reward.raw == pytest.approx(known, abs=1e-5)
    assert without.raw != pytest.approx(known, abs=1e-5)
    row = {"speech": pair.speech.text, "response": answer, "said": [each._asdict() for each in pair.speech.history]}
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_rows(source, [row])
    files = ("--in", source, "--out", target, "--history", "said", "--store", sessions.root)
    ended = warm.run("score", model.ref, *files)
    assert ended.code == 0, ended.err
    assert rows(target)[0]["raw_reward"] == pytest.approx(known, abs=1e-5)


def test_readers_see_the_earlier_turns(sessions: Store, warm: Warm, tmp_path: Path) -> None:
    comparison, report = newest(sessions, "comparisons"), newest(sessions, "reports")
    words = "Counsellor: Go on."
    assert words in report.file("report.html").read_text(encoding="utf-8")
    every = len({each.comparison.speech_id for each in read_comparisons(comparison)})  # half have no earlier turns
    exported = warm.run("annotate", "export", comparison.ref, "--sample", str(every), "--store", sessions.root)
    assert exported.code == 0, exported.err
    tasks = newest(Store(sessions.root), "annotation-tasks")
    for name in ("annotate.html", "annotate.csv"):
        assert words in tasks.file(name).read_text(encoding="utf-8")
