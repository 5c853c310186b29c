"""A store with one small preference dataset and its ancestors, written table by table without running a stage.

The numbers are small enough to count by hand.
"""

import json
import struct
from collections.abc import Callable
from typing import Any

from psychocounsel.judging.rubric import Principle, Rubric
from psychocounsel.store.artifacts import Artifact, ArtifactSpec, ArtifactWriter, Parent
from psychocounsel.store.schemas import SplitSpeech, write_candidates, write_judgements, write_pairs, write_speeches
from psychocounsel.store.store import Store
from psychocounsel.types import Candidate, Judgement, PreferencePair, ReplyStatus, ScoredCandidate, Speech

NOTICE = "Rated by a stand-in: no evidence about counselling."
JUDGE = "judge-2025-01-01"
PRINCIPLES = ("empathy", "safety")
ANCHORS = {point: f"point {point}" for point in range(1, 6)}
RUBRIC = Rubric(
    "2026.1", "en", 1, 5, tuple(Principle(name, name.title(), f"on {name}", ANCHORS) for name in PRINCIPLES)
)
SPEECHES = (
    SplitSpeech(Speech("I cannot sleep since she left.", "grief", False, "a.csv"), "train", "c1"),
    SplitSpeech(Speech("My boss shouts at me all day.", "work", False, "a.csv"), "train", "c2"),
    SplitSpeech(Speech("I do not want to wake up.", "crisis", True, "b.csv"), "test", "c3"),
)
ANSWERS = (
    ("small-model", "Cheer up.", (1, 2)),
    ("large-model", "That sounds heavy. What do you miss most at night?", (5, 4)),
)
MODEL_FILES = (
    *("README.md", "config.json", "generation_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
)
SOURCES = [
    {"name": "a.csv", "licence": "mit", "data_class": "public", "speeches": 2},
    {"name": "b.csv", "licence": "cc-by-nc-4.0", "data_class": "deidentified", "speeches": 1},
]


def step(name: str, rows_in: int, rows_out: int, dropped: dict[str, int], changed: int = 0) -> dict[str, Any]:
    counts = {"rows_in": rows_in, "rows_out": rows_out, "changed": changed}
    return {"step": name, **counts, "dropped": dropped}


def found_pii(marked: int, found: int, finds: int, false: int) -> dict[str, int]:
    return {"marked": marked, "found": found, "finds": finds, "false": false}


STEPS = [step("markup", 5, 5, {}, changed=2), step("length", 5, 4, {"too_short": 1})]
STEPS.append(step("repeats", 4, 3, {"repeated_speech": 1}))
SPEECH_METRICS: dict[str, Any] = {
    "funnel": {"rows_in": 5, "kept": 3, "dropped": {"too_short": 1, "repeated_speech": 1}, "steps": STEPS},
    "splits": {"train": 2, "dev": 0, "test": 1},
    "clusters": 3,
    "near_duplicates": 0,
    "crisis": 1,
    "sources": SOURCES,
    "topics": {"grief": 1, "work": 1, "crisis": 1},
    "fine_topics": {"break-up": 1, "bullying": 1, "suicidal thoughts": 1},
    "deidentification": {
        "engine": "patterns",
        "found": {"PERSON": 2, "EMAIL": 0},
        "pii_evaluation": {"PERSON": found_pii(20, 15, 20, 5), "EMAIL": found_pii(4, 2, 2, 0)},
        "pii_evaluation_overall": found_pii(24, 17, 22, 5),
        "planted": {"PERSON": found_pii(100, 87, 94, 3)},
        "planted_overall": found_pii(100, 87, 94, 3),
        "planted_language": "en",
    },
}


def pairs() -> dict[str, list[PreferencePair]]:
    by_split: dict[str, list[PreferencePair]] = {"train": [], "test": []}
    for speech, split, _ in SPEECHES:
        rejected, chosen = (
            ScoredCandidate(Candidate(speech.id, author, text), sum(ratings), ratings_of(ratings))
            for author, text, ratings in ANSWERS
        )
        by_split[split].append(PreferencePair(speech, chosen, rejected))
    return by_split


def ratings_of(ratings: tuple[int, ...]) -> dict[str, int]:
    return dict(zip(PRINCIPLES, ratings, strict=True))


def candidates() -> list[Candidate]:
    return [Candidate(each.speech.id, author, text) for each in SPEECHES for author, text, _ in ANSWERS]


def judgements() -> list[Judgement]:
    """Rate every response except the last, on which the judge refused."""
    rated = {text: ratings_of(ratings) for _, text, ratings in ANSWERS}
    valid = [Judgement(each.id, JUDGE, ReplyStatus.VALID, rated[each.text]) for each in candidates()]
    return [*valid[:-1], Judgement(valid[-1].candidate_id, JUDGE, ReplyStatus.REFUSAL, reason="no")]


def judgement_metrics() -> dict[str, Any]:
    return {
        "judged": 6,
        "left_out": {"repeated_text": 0, "empty": 0},
        "status": {"valid": 5, "refusal": 1},
        "addresses_judge": 0,
        "missing_by_topic": {"crisis": {"missing": 1, "total": 2}, "grief": {"missing": 0, "total": 2}},
        "histograms": {
            name: {str(point): counts.get(point, 0) for point in range(1, 6)}
            for name, counts in {"empathy": {1: 3, 5: 2}, "safety": {2: 3, 4: 2}}.items()
        },
    }


def preference_metrics() -> dict[str, Any]:
    counts = {"combinations": 2, "kept": 2, "dropped": {}}
    return {"pairing": {"train": counts, "test": {**counts, "combinations": 1, "kept": 1}}, "words": {}}


def make_dataset(store: Store, write_card: Callable[[ArtifactWriter], None], *, data_class: str = "public") -> Artifact:
    """Create the dataset and its ancestors; `write_card` finishes the dataset."""

    def build_speeches(writer: ArtifactWriter) -> None:
        write_speeches(writer, SPEECHES)
        writer.write_metrics(SPEECH_METRICS)

    def build_candidates(writer: ArtifactWriter) -> None:
        write_candidates(writer, candidates())
        writer.write_metrics({"kept": 6, "repeated_text": 1, "failed": {"large-model": {"cut": 2}}})

    def build_judgements(writer: ArtifactWriter) -> None:
        write_judgements(writer, judgements(), PRINCIPLES)
        writer.write_metrics(judgement_metrics())

    def build_dataset(writer: ArtifactWriter) -> None:
        for split, each in pairs().items():
            write_pairs(writer, split, each, PRINCIPLES)
        writer.write_metrics(preference_metrics())
        write_card(writer)

    named = [{"path": {"sha256": "a" * 64}, "licence": each["licence"], "data_class": data_class} for each in SOURCES]
    settings = {"speeches": named, "cleaning": {"languages": ["en"]}}
    read = ArtifactSpec("speeches", "small", "read-corpus", 1, settings)
    speeches = store.make(read, build_speeches).as_parent("speeches")
    asked = ArtifactSpec("candidates", "small-pool", "build-preferences", 1, {}, (speeches,))
    answered = store.make(asked, build_candidates).as_parent("asked candidates")
    rated = ArtifactSpec("judgements", "small", "build-preferences", 1, {}, (speeches, answered), (NOTICE,))
    parents = (store.make(rated, build_judgements).as_parent("judgements"), speeches, answered)
    settings = {"pairing": {"min_gap": 1.0, "weights": {"empathy": 1.0}, "length": None}}
    return store.make(ArtifactSpec("preferences", "small", "build-preferences", 1, settings, parents), build_dataset)


def weights(metadata: dict[str, str]) -> bytes:
    header = json.dumps({"__metadata__": metadata}).encode()
    return struct.pack("<Q", len(header)) + header


def make_model(store: Store, kind: Any = "policies", parents: tuple[Parent, ...] = (), **files: bytes) -> Artifact:
    def build(writer: ArtifactWriter) -> None:
        for name in MODEL_FILES:
            writer.file(name).write_text("{}", encoding="utf-8")
        writer.write_card("---\nlibrary_name: transformers\n---\n# tiny\n")
        for name, content in {"model.safetensors": weights({"format": "pt"}), **files}.items():
            writer.file(name).write_bytes(content)
        writer.file("metrics.json").write_text("{}", encoding="utf-8")

    return store.make(ArtifactSpec(kind, "tiny", "align", 1, {}, parents), build)
