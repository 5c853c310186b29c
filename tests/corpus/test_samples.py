"""The sample speeches and responses: what their datasheets promise to a corpus that is built from them."""

from collections import Counter, defaultdict
from pathlib import Path
from statistics import mean

import numpy as np
import pytest

from miniature import SAMPLES, rows
from psychocounsel.config.corpus import CleaningConfig, SplitConfig
from psychocounsel.corpus.deduplicate import cluster_ids
from psychocounsel.types import Speech

FOLDERS = [SAMPLES, SAMPLES / "messy"]


@pytest.mark.parametrize("folder", FOLDERS, ids=["polished", "messy"])
def test_every_speech_has_four_authors_and_the_better_answers_are_not_the_longer_ones(folder: Path) -> None:
    speeches, candidates = rows(folder / "speeches.jsonl"), rows(folder / "candidates.jsonl")
    assert len({*Counter(row["topic"] for row in speeches).values()}) == 1, "topics are equally frequent"
    kept = CleaningConfig()
    assert all(kept.min_chars <= len(row["text"]) <= kept.max_chars for row in speeches)
    authors: dict[str, set[str]] = {row["key"]: set() for row in speeches}
    words: dict[str, list[int]] = defaultdict(list)
    for row in candidates:
        authors[row["speech"]].add(row["author"])
        words[row["intent"]].append(len(row["text"].split()))
    assert {len(each) for each in authors.values()} == {4}
    assert len(candidates) == 4 * len(speeches)
    assert mean(words["good"]) == pytest.approx(mean(words["poor"]), rel=0.15)


def test_no_two_sample_speeches_are_alike() -> None:
    texts = [row["text"] for folder in FOLDERS for row in rows(folder / "speeches.jsonl")]
    ids = np.array([int(Speech(text).id, 16) for text in texts], dtype=np.uint64)
    assert len({*cluster_ids(ids, texts, SplitConfig().near_duplicate_similarity).tolist()}) == len(texts)
