"""A corpus that many tasks have prepared is the one that a single process builds."""

import random
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from datatrove.executor import LocalPipelineExecutor

from miniature import write_rows
from psychocounsel.config.corpus import CorpusConfig
from psychocounsel.corpus.build import PrepareTexts, make_corpus
from psychocounsel.corpus.preparation import BATCH
from psychocounsel.errors import InputError
from psychocounsel.store.artifacts import Artifact
from psychocounsel.store.store import Store

ROWS = 2 * BATCH + BATCH // 2
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def sentence(rng: random.Random) -> str:
    words = ("".join(rng.choices(LETTERS, k=7)) for _ in range(14))
    return f"My sister {rng.choice(('Anna', 'Maria', 'Joan'))} (415-555-0132) said: {' '.join(words)}."


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> CorpusConfig:
    folder = tmp_path_factory.mktemp("sources")
    rng = random.Random(0)  # noqa: S311
    texts = [sentence(rng) for _ in range(ROWS)]
    write_rows(folder / "speeches.jsonl", [{"key": str(at), "text": text} for at, text in enumerate(texts)])
    answers = [
        {"key": str(at), "author": "one", "text": f"{text} Call me: 415-555-0132."} for at, text in enumerate(texts)
    ]
    write_rows(folder / "responses.jsonl", answers)
    terms = {"licence": "cc0-1.0", "data_class": "public"}
    columns = {"text": "text", "author": "author", "speech_key": "key"}
    return CorpusConfig.model_validate(
        {
            "name": "many",
            "speeches": [{"path": str(folder / "speeches.jsonl"), "columns": {"text": "text", "key": "key"}, **terms}],
            "candidates": [
                {"path": str(folder / "responses.jsonl"), "columns": columns, **terms},
                {
                    "path": str(folder / "speeches.jsonl"),
                    "columns": columns | {"author": {"constant": "echo"}},
                    **terms,
                },
            ],
            "cleaning": {"languages": []},
            "deidentification": {"engine": "patterns"},
        }
    )


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[CorpusConfig], Any]:
    numbers = count()

    def built(config: CorpusConfig) -> dict[str, Any]:
        """Return ids and digests of all files of both artifacts, built in a store of their own."""
        corpus = make_corpus(config, Store(tmp_path_factory.mktemp("stores") / str(next(numbers))))
        assert corpus.candidates is not None

        def described(artifact: Artifact) -> tuple[str, Any]:
            return artifact.id, artifact.manifest["files"]

        return {"speeches": described(corpus.speeches), "candidates": described(corpus.candidates)}

    return built


@pytest.mark.parametrize("tasks", [1, 4, 16])
@pytest.mark.integration
def test_any_number_of_tasks_prepares_the_same_corpus(
    tasks: int, config: CorpusConfig, build: Callable[[CorpusConfig], Any], tmp_path: Path
) -> None:
    step = PrepareTexts(config, tmp_path / "prepared")
    LocalPipelineExecutor([step], tasks=tasks, workers=2 if tasks == 4 else 1, logging_dir=str(tmp_path / "logs")).run()
    assert build(config.model_copy(update={"prepared": str(tmp_path / "prepared")})) == build(config)


@pytest.mark.integration
def test_a_lost_batch_is_an_error_and_prepared_again(
    config: CorpusConfig, build: Callable[[CorpusConfig], Any], tmp_path: Path
) -> None:
    prepared = config.model_copy(update={"prepared": str(tmp_path)})
    for rank in (0, 2):
        PrepareTexts(config, tmp_path)(rank=rank, world_size=3)
    with pytest.raises(InputError) as caught:
        build(prepared)
    assert caught.value.where == str(tmp_path)
    with pytest.raises(InputError):  # neither is a file instead of the folder a full disk
        build(config.model_copy(update={"prepared": config.speeches[0].path}))
    PrepareTexts(config, tmp_path)(rank=1, world_size=3)
    assert build(prepared) == build(config)
    other = prepared.model_copy(update={"cleaning": config.cleaning.model_copy(update={"contacts": "placeholder"})})
    with pytest.raises(InputError):
        build(other)
