"""A made-up run, as `ReportData`: every kind of artifact with metrics in the shapes that the stages write."""

import hashlib
import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from psychocounsel.evaluation.winrate import BothOrders
from psychocounsel.reporting.html import ReportData
from psychocounsel.reporting.item_browser import Answer, Item, ItemSet
from psychocounsel.store.artifacts import Artifact
from psychocounsel.types import Comparison, Rate, ReplyStatus, Speech, Winner

_FOLDER = tempfile.TemporaryDirectory(prefix="report-runs-")

OFFLINE = "Rated by the offline judge: no evidence about the quality of counselling."
PRINCIPLES = ("empathy", "relevance", "clarity", "safety", "exploration", "autonomy", "staging")


def rate(estimate: float, width: float = 0.1, n: int = 40, missing: int = 0) -> dict[str, float]:
    low, high = max(0.0, estimate - width), min(1.0, estimate + width)
    return asdict(Rate(estimate, low, high, n, missing))


def artifact(kind: str, name: str, metrics: Mapping[str, Any], **more: Any) -> Artifact:
    """Return an artifact that has a metrics.json and no other file; `parents` are by role."""
    digest = hashlib.sha256(f"{kind}/{name}".encode()).hexdigest()
    parents = [each.as_parent(role)._asdict() for role, each in more.pop("parents", {}).items()]
    manifest: dict[str, Any] = {"kind": kind, "name": name, "id": digest, "parents": parents, "stage": "made-up"}
    manifest |= {"version": 1, "warnings": [], "settings": {}, "rows": {}, "files": {}, "seconds": 1.0, "made_with": {}}
    return _saved({**manifest, "created_at": "2026-01-01T00:00:00", **more}, metrics)


def with_metrics(artifact: Artifact, **changes: Any) -> Artifact:
    return _saved(artifact.manifest, {**artifact.metrics, **changes})


def _saved(manifest: dict[str, Any], metrics: Mapping[str, Any]) -> Artifact:
    folder = Path(tempfile.mkdtemp(dir=_FOLDER.name))
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    return Artifact(folder, manifest)


def reward_metrics() -> dict[str, Any]:
    slope = {"estimate": 0.8, "low": 0.6, "high": 1.0, "speeches": 40}
    fit = {"ties": 0, "calibration": {"ece": 0.071, "calibrated_ece": 0.06, "calibrated_ece_p95": 0.1, "slope": slope}}
    above = {"estimate": 0.15, "low": 0.02, "high": 0.28, "speeches": 40}
    not_above = {"estimate": 0.27, "low": -0.01, "high": 0.55, "speeches": 40}
    baselines = {"author_identity": rate(0.664), "longer_wins": rate(0.541), "same_tier": None}
    return {
        "test": {"accuracy": rate(0.814), "auc": rate(0.876), "brier": rate(0.132), **fit},
        "dev": {"accuracy": rate(0.79), "auc": rate(0.85), "brier": rate(0.15), **fit},
        "baselines": {**baselines, "over_author_identity": above, "over_longer_wins": not_above},
        "normalisation": {"mean": 0.31, "std": 1.42, "split": "dev"},
        "training": training(45, too_long_chosen=2, kept=498),
        "test_margins": [math.sin(place) + 0.9 for place in range(40)],
        "pairs": {"train": 500, "test": 40},
        "leakage": {"speeches": 40, "leaked": 0},
    }


def text_quality(unfinished: float = 0.05) -> dict[str, Any]:
    return {
        "repetition_rate": rate(0.03, 0.03),
        "distinct_4gram_ratio": rate(0.98, 0.02),
        "unfinished_rate": rate(unfinished, 0.04),
        "empty_rate": rate(0.0, 0.0),
        "length_words": {"mean": 54.2, "median": 53.0, "p95": 81.0},
    }


def training(steps: int, *, is_policy: bool = False, **lengths: int) -> dict[str, Any]:
    reasons = ("kept", "too_long_chosen", "too_long_rejected", "not_a_prefix", "identical_tokens")
    history: list[dict[str, float]] = []
    for step in range(1, steps + 1):
        logps = {"logps_chosen": -120 + step / 5, "logps_rejected": -122 - step} if is_policy else {}
        history.append({"step": step, "loss": math.log(2) * math.exp(-step / 20), "margin": step / 15, **logps})
    return {"steps": steps, "seconds": 12.5, "lengths": dict.fromkeys(reasons, 0) | lengths, "history": history}


def comparison_metrics(**changes: Any) -> dict[str, Any]:
    topics = ("anxiety-and-stress", "grief", "relationships")
    return {
        **{"speeches": 41, "draws": 1},
        "win_rate": rate(0.72),
        "win_rate_by_criterion": {name: rate(0.6 + 0.02 * place) for place, name in enumerate(PRINCIPLES)},
        **{"wins": 27, "ties": 4, "losses": 9, "missing": 1},
        "position_inconsistent_rate": rate(0.05, 0.04),
        "first_position_rate": rate(0.5, 0.02),
        "win_rate_decided": rate(0.75, n=36),
        "missing_as_losses": rate(0.71, n=42),
        "missing_as_wins": rate(0.73, n=42),
        "order_kappa": {"estimate": 0.8, "low": 0.6, "high": 0.95, "n": 41},
        "length_controlled": {
            **{"rate": rate(0.68), "reason": "", "sigma": 12.0, "shorter": 0.3, "longer": 0.6},
            "length_effect": {"estimate": 0.4, "low": 0.1, "high": 0.7},
        },
        "crisis": rate(0.66, 0.3, n=5),
        "by_topic": {topic: rate(0.7, 0.2, n=9) for topic in topics},
        "by_speech_length": {"5 to 40": rate(0.7, n=20), "41 to 90": rate(0.74, n=20)},
        "policy_text_quality": text_quality(),
        "reference_text_quality": text_quality(0.2),
        "judges": {
            **{"labels": ["offline"], "evaluation": "offline", "same_family": True, "own_family": []},
            "judged": {"policy": [], "reference": []},
        },
        "answered_by_both": 41,
        "leakage": {"speeches": 41, "leaked": 0},
        "missing_answers": {"policy": {}, "reference": {}},
        "missing_by_topic": {topic: {"missing": 0, "total": 9} for topic in topics},
        **changes,
    }


def dataset() -> dict[str, Artifact]:
    funnel = {"rows_in": 170, "kept": 160, "dropped": {"too_short": 7, "repeated_speech": 3}}
    splits = {"train": 104, "dev": 16, "test": 40}
    sources = [{"name": "sample", "licence": "cc-by-4.0", "data_class": "public", "speeches": 160}]
    counts = {"clusters": 158, "near_duplicates": 2, "crisis": 18}
    speeches = artifact(
        *("speeches", "sample", {"funnel": funnel, "splits": splits, **counts, "sources": sources}),
        rows={"speeches.parquet": 160},
        settings={"speeches": [{"path": "bundled:speeches.jsonl", "licence": "cc-by-4.0"}]},
        files={"speeches.parquet": {"bytes": 31_402, "sha256": "a" * 64}},
        made_with={"python": "3.11"},
    )
    funnel = {"rows_in": 640, "kept": 636, "dropped": {"repeated_text": 4}}
    rows = {"candidates.parquet": 636}
    candidates = artifact("candidates", "sample", {"funnel": funnel}, parents={"speeches": speeches}, rows=rows)
    created = {"speeches": speeches, "candidates": candidates}
    metrics = {
        **{"judged": 636, "addresses_judge": 0, "left_out": {"repeated_text": 0, "empty": 0}},
        "missing_by_topic": {"grief": {"missing": 1, "total": 90}},
        "status": {"valid": 635, "refusal": 1},
        "histograms": {each: {"1": 40, "2": 160, "3": 200, "4": 180, "5": 55} for each in PRINCIPLES},
    }
    rows = {"judgements.parquet": 636}
    judgements = artifact("judgements", "sample", metrics, parents=created, warnings=[OFFLINE], rows=rows)
    pairing = {
        "train": {"combinations": 624, "kept": 500, "dropped": {"gap_too_small": 120, "safety_inverted": 4}},
        "dev": {"combinations": 96, "kept": 80, "dropped": {"gap_too_small": 16}},
        "test": {"combinations": 40, "kept": 40, "dropped": {}},
    }
    preferences = artifact(
        "preferences",
        "sample",
        {"pairing": pairing, "words": {"train": {"chosen": 48.1, "rejected": 51.7}}},
        settings={"pairing": {"test_rule": "extremes"}},
        parents={"judgements": judgements, **created},
        warnings=[OFFLINE],
        rows={f"data/{split}-00000-of-00001.parquet": by["kept"] for split, by in pairing.items()},
    )
    return {**created, "judgements": judgements, "preferences": preferences}


def audit_metrics(**changes: Any) -> dict[str, Any]:
    gain = {"n": 19, "mean": 0.12, "low": -0.03, "high": 0.27, "largest": 0.57}
    difference = {"difference": 0.23, "low": 0.08, "high": 0.38}
    same = {"n": 49, "exact": 0.82, "within_one": 1.0, "kappa": 0.93}
    counts = {"judged": 636, "status": {"refusal": 1, "valid": 635}, "addresses_judge": 2}
    missing = {"missing_by_topic": {"grief": {"missing": 1, "total": 90}}}
    return {
        "judged": {**counts, **missing, "histograms": {"empathy": {"1": 35, "4": 600}}},
        "ties": rate(0.061, 0.02, 950),
        "halo": 0.74,
        "length": {"estimate": 0.21, "low": 0.13, "high": 0.28, "n": 635},
        "retest": {
            "asked": 50,
            "missing": 1,
            "equal": rate(0.84, 0.05, 49, 1),
            "within_one": rate(0.99, 0.01, 49, 1),
            "kappa": 0.91,
            "by_principle": {**dict.fromkeys(PRINCIPLES, same), "safety": {**same, "kappa": None}},
            "change": {**gain, "mean": -0.01},
        },
        "one_principle": {
            "asked": 20,
            "missing": 2,
            "halo": {"responses": 18, "pairs": 21, "together": 0.78, "alone": 0.55, **difference},
            "mean_difference": 0.41,
        },
        "canaries": {
            **{"asked": 20, "missing": 1, "flagged": 13, "gain": gain},
            **{"gained_a_point": [], "lost_a_point": 0, "resists": True},
        },
        **changes,
    }


def probe_metrics(number: int) -> dict[str, Any]:
    """Return what the probe after a round measured; number 0 is the initial policy."""
    compared = {"win_rate": rate(0.5 + 0.1 * number) if number else None, "agreement": rate(0.7)}
    crisis = {"answers": 3, "reward": -0.4, "unfinished_rate": rate(0.1), "win_rate": compared["win_rate"]}
    return {
        **{"reward": {"mean": 0.2 * number, "std": 0.9, "n": 16}, "text_quality": text_quality()},
        "kl": {"per_answer": 2.0 * number, "per_token": 0.03 * number, "k3_per_token": 0.02 * number},
        **{"questions_per_answer": 1.2, "entropy": 2.5, "crisis": crisis, **compared},
    }


def probe(number: int, created: dict[str, Artifact], **parents: Artifact) -> Artifact:
    parents = {"speeches": created["speeches"], "reward model": created["reward"], **parents}
    rows = {"candidates.parquet": 16, "scores.parquet": 16}
    return artifact("probes", f"tiny-online-round-{number:02d}", probe_metrics(number), parents=parents, rows=rows)


def online_result(created: dict[str, Artifact], rounds: list[Artifact], probes: list[Artifact]) -> Artifact:
    trained = [each for each in rounds if each.kind == "policies"]
    rows = [
        {"probe": each.metrics, "pairs": 58, "trained_on": 57, "logps_chosen": -118.0, "logps_rejected": -131.0}
        for each in probes[1:]
    ]
    own = {name: trained[-1].metrics[name] for name in ("training", "pairs")}
    metrics = {**own, "initial": probes[0].metrics, "rounds": rows, "best": len(trained)}
    numbered = {f"probe {number}": each for number, each in enumerate(probes)}
    parents = {"last round": trained[-1], **numbered, "initial policy": created["base"]}
    return artifact("policies", "tiny-online", metrics, parents=parents, warnings=[OFFLINE])


def online_round(number: int, created: dict[str, Artifact], before: Artifact) -> list[Artifact]:
    name = f"tiny-online-round-{number:02d}"
    speeches = {"speeches": created["speeches"]}
    sampled = artifact(
        *("candidates", name, {"speeches": 60, "text_quality": text_quality()}),
        parents={**speeches, "previous policy": before},
        rows={"candidates.parquet": 240},
    )
    scores = artifact(
        *("scores", name, {"scored": 240, "reward": {"mean": 0.1, "std": 1.0, "n": 240}}),
        parents={"candidates": sampled, **speeches, "reward model": created["reward"]},
        rows={"scores.parquet": 240},
    )
    pairing = {"combinations": 60, "kept": 58, "dropped": {"equal_scores": 2}}
    pairs = artifact(
        *("preferences", name, {"pairing": pairing, "left_out": {"unfinished": 6, "empty": 0}}),
        parents={"scores": scores, "candidates": sampled, **speeches},
        rows={"data/train-00000-of-00001.parquet": 58},
    )
    parents = {"pairs": pairs, **speeches, "previous policy": before}
    parents |= {"initial policy": created["base"], "reward model": created["reward"]}
    trained = {"training": training(12, is_policy=True, kept=57, too_long_rejected=1), "pairs": 58}
    policy = artifact(
        *("policies", name, trained),
        parents=parents,
        warnings=[OFFLINE],
    )
    return [sampled, scores, pairs, policy]


def models(created: dict[str, Artifact], rounds: int) -> tuple[dict[str, Artifact], list[Artifact]]:
    sft = {"first_loss": 5.9, "last_loss": 3.1, "steps": 40, "seconds": 9.0, "parameters": 22_112}
    parents = {key: created[key] for key in ("speeches", "candidates")}
    base = artifact("base-models", "tiny", {"sft": sft, "training_speeches": 104}, parents=parents)
    parents = {"preferences": created["preferences"], "base model": base}
    reward = artifact(
        "reward-models", "sample", reward_metrics(), parents=parents, warnings=[OFFLINE], rows={"scores.parquet": 80}
    )
    parents = {"preferences": created["preferences"], "initial policy": base}
    trained = {"training": training(30, is_policy=True, kept=500), "pairs": 500}
    dpo = artifact("policies", "tiny-dpo", trained, parents=parents, warnings=[OFFLINE])
    named = {"base": base, "reward": reward, "dpo": dpo}
    in_rounds: list[Artifact] = []
    created = {**created, **named}
    probes = [probe(0, created)] if rounds else []
    before = base
    for number in range(1, rounds + 1):
        in_rounds += online_round(number, created, before)
        before = in_rounds[-1]
        probes.append(probe(number, created, policy=before, initial=probes[0]))
    if rounds:
        in_rounds += [*probes, online_result(created, in_rounds, probes)]
    return named, in_rounds


def comparison(name: str, policy: Artifact, created: dict[str, Artifact], **changes: Any) -> list[Artifact]:
    speeches = {"speeches": created["speeches"]}
    sides = {
        f"{role} answers": artifact(
            *("candidates", f"{name}-{role}", {"speeches": 41, "draws": 1, "failed": {}}),
            parents={**speeches, "model": model},
            settings={"responder": {"author": author}},
            rows={"candidates.parquet": 41},
        )
        for role, model, author in (("policy", policy, name), ("reference", created["base"], "base"))
    }
    more: dict[str, Any] = {"settings": {"confidence": 0.95}, "rows": {"comparisons.parquet": 82}}
    metrics = comparison_metrics(**changes)
    compared = artifact("comparisons", name, metrics, parents={**sides, **speeches}, warnings=[OFFLINE], **more)
    return [*sides.values(), compared]


def item(text: str, *, crisis: bool = False, wins: bool = True, **changes: str) -> Item:
    """Return a speech whose comparison the policy wins, or loses; on empathy the verdict flips."""
    winner = Winner.FIRST if wins else Winner.SECOND
    answers = ("That sounds heavy. What do you miss most?", "Cheer up.")
    forward = Comparison(
        *("speech", "policy", "reference", ReplyStatus.VALID),
        {"overall": winner, changes.get("criterion", "empathy"): Winner.FIRST},
        reasons="A listens.",
    )
    backward = Comparison(
        *("speech", "reference", "policy", ReplyStatus.VALID),
        {"overall": winner.swap(), changes.get("criterion", "empathy"): Winner.FIRST},
        reasons="B asks what is missed.",
    )
    both = BothOrders(forward, backward)
    written = (changes.get("answer", each) for each in answers)
    authors = (changes.get("author", each) for each in ("dpo", "base"))
    sides = tuple(Answer(*each) for each in zip(authors, written, strict=True))
    return Item(Speech(text, changes.get("topic", "grief"), crisis), sides, both)


def whole_run(rounds: int = 3) -> ReportData:
    """Return a run of everything: DPO and online, each compared with the base."""
    created = dataset()
    named, in_rounds = models(created, rounds)
    created |= named
    compared = comparison("dpo", named["dpo"], created)
    if in_rounds:
        compared += comparison("online", in_rounds[-1], created, crisis=None)
    artifacts = (*created.values(), *in_rounds, *compared)
    items = (item("(Crying) I keep her voicemail."), item("I do not want to be here any more.", crisis=True))
    shown = next(each for each in compared if each.kind == "comparisons")
    return ReportData("sample-run", artifacts, (ItemSet(shown, ("overall", "empathy"), 2, items),))
