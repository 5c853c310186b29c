"""Stages work with the parents that the lineage records, also when a name gets another meaning meanwhile."""

import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file

from miniature import SAMPLING
from psychocounsel.config.components import ResponderConfig
from psychocounsel.config.loading import load_config
from psychocounsel.config.schema import EvalRewardConfig, TrainRewardConfig
from psychocounsel.llm.session import open_session
from psychocounsel.stages.eval_reward import eval_reward
from psychocounsel.stages.respond import Responder
from psychocounsel.stages.train_reward import train_reward
from psychocounsel.store.artifacts import Artifact, ArtifactSpec, ArtifactWriter, Kind
from psychocounsel.store.schemas import SCORES_FILE
from psychocounsel.store.store import Store
from psychocounsel.types import Speech
from running import Miniature


def newest(store: Store, kind: Kind) -> Artifact:
    return store.artifacts(kind)[-1]


def make_another(store: Store, artifact: Artifact) -> None:
    """Make a newer artifact of the same name with twice the weights."""

    def build(writer: ArtifactWriter) -> None:
        kept = shutil.ignore_patterns("manifest*", "README.md")
        shutil.copytree(artifact.folder, writer.folder, dirs_exist_ok=True, ignore=kept)
        weights = artifact.file("model.safetensors")
        save_file({name: 2 * each for name, each in load_file(weights).items()}, writer.file(weights.name))

    made = store.make(ArtifactSpec(artifact.kind, artifact.name, "test", 1, {}), build)
    assert newest(store, artifact.kind).id == made.id != artifact.id


class Moving(Store):
    """A store in which a name gets another meaning once the parents of an artifact are known."""

    def make(self, spec: ArtifactSpec, build: Callable[[ArtifactWriter], None]) -> Artifact:
        other = Store(self.root)
        for kind in ("base-models", "reward-models"):
            make_another(other, newest(other, kind))
        return super().make(spec, build)


def test_a_reward_model_starts_from_the_parent(miniature: Miniature, store: Path) -> None:
    config = load_config(TrainRewardConfig, miniature.recipe / "train-reward.yaml").model_copy(update={"seed": 5})
    undisturbed = Store(Path(shutil.copytree(store, store.with_name("undisturbed"))))
    expected, found = train_reward(config, undisturbed), train_reward(config, Moving(store))
    assert (found.id, found.kept_files["model.safetensors"]) == (expected.id, expected.kept_files["model.safetensors"])


def test_the_reward_model_that_is_measured_is_the_parent(store: Path) -> None:
    config = EvalRewardConfig(name="measured", model="mini", on="mini")
    undisturbed = Store(Path(shutil.copytree(store, store.with_name("undisturbed"))))
    expected, found = eval_reward(config, undisturbed), eval_reward(config, Moving(store))
    assert (found.id, found.kept_files[SCORES_FILE]) == (expected.id, expected.kept_files[SCORES_FILE])


def test_the_model_that_answers_is_the_parent(store: Path, tmp_path: Path) -> None:
    speeches = [Speech(f"I cannot sleep, for the {number}th night.") for number in range(4)]
    config = ResponderConfig.model_validate({"author": "base", "model": "mini-base", "sampling": SAMPLING})
    with open_session(Store(store)) as session:
        first, second = (Responder(config, session, "policy") for _ in range(2))
        expected = first.answer(speeches, 0, tmp_path / "first")
        make_another(session.store, newest(session.store, "base-models"))
        assert second.answer(speeches, 0, tmp_path / "second") == expected
        assert Responder(config, session, "policy").answer(speeches, 0, tmp_path / "third") != expected
