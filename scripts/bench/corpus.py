"""Seconds and memory for a synthetic corpus: from raw rows to the released folder, without the models' work.

    python scripts/bench/corpus.py speeches --count 1000000
    python scripts/bench/corpus.py dataset

`speeches` reads, cleans, de-identifies, de-duplicates, splits and assigns topics to that many client speeches.
`dataset` does so with the paper's 26,483 speeches and four responses to each, gives every response random
ratings, and times reading, pairing, card and figures. The texts of `speeches` are those of near_duplicates.py,
because a million must differ; those of `dataset` recombine sentences of the samples. Entities, HTML, names and
missing spaces are added. The memory is the growth of the largest resident set after all imports.
"""

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from near_duplicates import COPY_EVERY, Generator, sentences

from psychocounsel.config.corpus import CorpusConfig
from psychocounsel.config.schema import BuildPreferencesConfig
from psychocounsel.corpus.build import make_corpus
from psychocounsel.judging.rubric import load_rubric
from psychocounsel.stages import build_preferences
from psychocounsel.store.artifacts import ArtifactWriter
from psychocounsel.store.schemas import read_candidates, write_judgements
from psychocounsel.store.store import Store
from psychocounsel.types import Judgement, ReplyStatus

PAPER_SPEECHES = 26_483
RESPONSES = 4
SAMPLES = Path(__file__).parents[2] / "data" / "samples"
DIRT = (
    (". ", "."),
    (" and ", " &amp; "),
    (" ", "\u00a0"),
    (" my ", " my sister Anna's "),
    (". ", ".<br>"),
    (" the ", " the <b>"),
)


def dirty(text: str, rng: random.Random) -> str:
    """Return the text with a fault of real sources in one of three."""
    clean, fault = rng.choice(DIRT)
    return text.replace(clean, fault, 1) if rng.random() < 1 / 3 else text


def random_speeches(count: int) -> Iterator[str]:
    """Yield speeches of random words, one in twenty a near copy of another."""
    generator = Generator(0)
    for number in range(count):
        is_copy = number % COPY_EVERY == COPY_EVERY - 1
        original = number // COPY_EVERY * COPY_EVERY
        yield generator.near_copy(number, original) if is_copy else generator.speech(number)


def recombined(file: str, count: int, seed: int) -> Iterator[str]:
    """Yield texts of three to six sentences of the samples."""
    rng = random.Random(seed)  # noqa: S311
    texts = [json.loads(line)["text"] for line in (SAMPLES / file).read_text(encoding="utf-8").splitlines()]
    pool = [sentence for text in texts for sentence in sentences(text)]
    for _ in range(count):
        yield " ".join(rng.sample(pool, rng.randrange(3, 7)))


def write_speeches(path: Path, texts: Iterator[str]) -> None:
    """Write rows with a key and a text."""
    rng = random.Random(1)  # noqa: S311
    with path.open("w", encoding="utf-8") as file:
        for number, text in enumerate(texts):
            file.write(json.dumps({"key": str(number), "text": dirty(text, rng)}) + "\n")


def write_responses(path: Path, texts: Iterator[str]) -> None:
    """Write four responses to each speech, two of five with an address or a signature."""
    rng = random.Random(3)  # noqa: S311
    endings = ("", "", "", " See www.example.org/help.", "\n\nWarmly,\nJane Doe, LCSW")
    with path.open("w", encoding="utf-8") as file:
        for number, text in enumerate(texts):
            whole = dirty(text, rng) + rng.choice(endings)
            author = f"model-{rng.randrange(20)}"
            row = {"key": str(number // RESPONSES), "author": author, "text": whole}
            file.write(json.dumps(row) + "\n")


def corpus_settings(folder: Path) -> dict[str, Any]:
    """Return a corpus with every step switched on."""
    return {
        "name": "synthetic",
        "speeches": [
            {
                "path": str(folder / "speeches.jsonl"),
                "columns": {"text": "text", "key": "key"},
                "licence": "cc0-1.0",
                "data_class": "public",
            }
        ],
        "deidentification": {"engine": "patterns"},
        "topics": {"taxonomy": "counselling"},
    }


def ready_settings(folder: Path) -> dict[str, Any]:
    """Return the ready responses of the corpus."""
    columns = {"text": "text", "author": "author", "speech_key": "key"}
    terms = {"licence": "cc0-1.0", "data_class": "public"}
    return {"candidates": [{"path": str(folder / "responses.jsonl"), "columns": columns, **terms}]}


def measured(label: str, before_kib: int, started: float) -> None:
    """Print what something took."""
    seconds = time.monotonic() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) / 1024
    print(f"{label}: {seconds:.1f} s, memory {grown:.0f} MiB above {before_kib / 1024:.0f} MiB", flush=True)


def run_speeches(folder: Path, store: Store) -> None:
    """Build the speeches of a corpus."""
    config = CorpusConfig.model_validate(corpus_settings(folder))
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    made = make_corpus(config, store).speeches
    measured("speeches", before, started)
    metrics = made.metrics
    print({key: metrics["funnel"][key] for key in ("rows_in", "kept", "dropped")})
    print({key: metrics[key] for key in ("splits", "clusters", "near_duplicates")})


def run_dataset(folder: Path, store: Store) -> None:
    """Build a dataset whose ratings are random."""
    corpus = corpus_settings(folder) | ready_settings(folder)
    config = BuildPreferencesConfig.model_validate({"name": "synthetic", "corpus": corpus})
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    make_corpus(config.corpus, store)
    measured("speeches and responses", before, started)
    specs = build_preferences.specs(config, store)
    store.make(specs.judgements, lambda writer: rate_at_random(config, store, writer))
    paired = time.monotonic()
    made = build_preferences.build_preferences(config, store)
    measured("pairs, card and figures", before, paired)
    print({split: counts["kept"] for split, counts in made.metrics["pairing"].items()})


def rate_at_random(config: BuildPreferencesConfig, store: Store, writer: ArtifactWriter) -> None:
    """Write random ratings of every response."""
    rng, names = random.Random(4), load_rubric(config.judge.rubric).principle_ids  # noqa: S311
    candidates = read_candidates(store.open(writer.parent("ready candidates")))

    def judgements() -> Iterator[Judgement]:
        for candidate in candidates:
            ratings = {name: rng.randint(1, 5) for name in names}
            yield Judgement(candidate.id, "random", ReplyStatus.VALID, ratings)

    write_judgements(writer, judgements(), names)
    writer.notes["judge"] = "random"
    counts = {"judged": len(candidates), "status": {"valid": len(candidates)}, "left_out": {}}
    writer.write_metrics({**counts, "missing_by_topic": {}, "addresses_judge": 0, "histograms": {}})


def main() -> None:
    """Write the sources, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", choices=["speeches", "dataset"])
    parser.add_argument("--count", type=int, default=PAPER_SPEECHES)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if options.part == "speeches":
            write_speeches(folder / "speeches.jsonl", random_speeches(options.count))
        else:
            write_speeches(folder / "speeches.jsonl", recombined("speeches.jsonl", options.count, 5))
            answers = recombined("candidates.jsonl", options.count * RESPONSES, 6)
            write_responses(folder / "responses.jsonl", answers)
        print(f"{options.count} speeches written", file=sys.stderr)
        run = run_speeches if options.part == "speeches" else run_dataset
        run(folder, Store(folder / "store"))


if __name__ == "__main__":
    main()
