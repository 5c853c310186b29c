"""Tables of reward models: figures on test pairs, slices, principles, calibration, best-of-k, the paper's figures."""

from collections.abc import Mapping, Sequence

from psychocounsel.reporting.tables import NONE, RATE_HEADER, Row, Table, interval, percent, rate_row, reasons
from psychocounsel.store import metrics as m
from psychocounsel.store.shapes import Baselines, PrincipleAccuracy, RankedPairs, ReliabilityBin, RewardMetrics, Slice
from psychocounsel.types import Rate, Spread

BASELINES = {"author_identity": "who wrote it", "longer_wins": "longer wins", "same_tier": "same-tier pairs"}
"""Short labels of the baselines; the last is the accuracy of the reward model itself on a part of the pairs."""

PAPER: Mapping[str, tuple[float, float | None, float | None, float | None]] = {
    "Skywork-Reward-Llama-3.1-8B-v0.2": (57.9, 0.623, 0.331, 0.379),
    "Skywork-Reward-Gemma-2-27B": (69.2, 0.740, 0.123, 0.229),
    "Llama-3.1-Nemotron-70B-Reward": (87.3, 0.938, 0.040, 0.102),
    "Llama-3.1-70B-Instruct as a ranker": (88.2, None, None, None),
    "PsychoCounsel-Llama3-3B-Reward": (98.1, 0.997, 0.050, 0.014),
    "PsychoCounsel-Llama3-8B-Reward": (97.8, 0.998, 0.045, 0.016),
}
"""Accuracy in percent, AUC, ECE and Brier score on the released test split (arXiv 2502.19731)."""

_FIGURES = {"accuracy": "accuracy", "auc": "AUC", "brier": "Brier"}
_BASELINE_ROWS = {
    "author_identity": "baseline: the better author wins",
    "longer_wins": "baseline: the longer response wins",
    "same_tier": "between authors of one tier",
}
_OVER = {"over_author_identity": "the better author", "over_longer_wins": "the longer response"}
_SLICES = {
    "source": "source of the speech",
    "topic": "topic of the speech",
    "gap": "gap of the mean ratings",
    "length": "difference in length",
}

REWARD_DETAILS = (*(f"by_{name}" for name in _SLICES), "principles", "reliability", "paper")
"""Keys of the tables that the report shows below the figures."""


def _headline(accuracy: Rate, baselines: Baselines) -> str:
    """Return a sentence that says by how much a reward model is right more often than each baseline."""
    found: list[str] = []
    for key, name in _OVER.items():
        above: Spread | None = getattr(baselines, key)
        if above is None:
            continue
        ends = f"({100 * above.low:+.1f} to {100 * above.high:+.1f} points)"
        points = f"{abs(100 * above.estimate):.1f} points {'more' if above.estimate > 0 else 'less'} often than {name}"
        found.append(f"{points} {ends}" if above.is_distinct else f"not distinguishable from {name} {ends}")
    return f"Right in {percent(accuracy.estimate)} of the pairs: {', '.join(found)}."


def reward_tables(model: m.RewardModelMetrics) -> list[Table]:
    """Return the tables of a reward model that was trained here."""
    normalisation = model.normalisation
    title = (
        f"{_title(model.test, model.baselines)} Rewards are normalised by mean {normalisation.mean:.3f} and deviation "
        f"{normalisation.std:.3f} of the {normalisation.split} split."
    )
    baselines = _baseline_rows(model.baselines)
    shown = (*_figures("test", model.test), *baselines, *(_figures("dev", model.dev) if model.dev else ()))
    sources = tuple((each.source, str(each.pairs), str(each.used), reasons(each.dropped)) for each in model.sources)
    header = ("source", "pairs", "trained on", "rows without a pair")
    return [
        Table("reward", title, RATE_HEADER, "lrll", shown),
        Table("pair_sources", "Training pairs by source.", header, "lrrl", sources if len(sources) > 1 else ()),
        *_ranked_tables(model, "this model"),
    ]


def evaluation_tables(evaluated: m.PairEvaluationMetrics) -> list[Table]:
    """Return the tables of a reward model's evaluation on pairs."""
    left_out = f" Rows without a pair: {reasons(evaluated.dropped)}." if evaluated.dropped else ""
    unknown = " What the model was trained on is not known." if evaluated.leakage is None else ""
    title = f"{evaluated.model} on {evaluated.on}. {_title(evaluated.test, evaluated.baselines)}{left_out}{unknown}"
    rows = (*_figures("test", evaluated.test), *_baseline_rows(evaluated.baselines))
    return [Table("reward", title, RATE_HEADER, "lrll", rows), *_ranked_tables(evaluated, evaluated.model)]


def _title(test: RewardMetrics, baselines: Baselines) -> str:
    authors = (
        " The better author is the one with the higher mean rating in train; authors of one tier are about equal "
        "there, and that accuracy is the reward model's own."
    )
    return (
        f"{_headline(test.accuracy, baselines)} Held-out pairs, 95 % intervals over speeches. Low is good for "
        f"Brier and ECE.{authors if baselines.author_identity else ''}"
    )


def _figures(split: str, found: RewardMetrics) -> list[Row]:
    rows = [
        rate_row(f"{label}, {split}", getattr(found, name), as_percent=name == "accuracy")
        for name, label in _FIGURES.items()
    ]
    fit = found.calibration
    calibrated = f"of calibrated rewards: mean {fit.calibrated_ece:.3f}, 95 % below {fit.calibrated_ece_p95:.3f}"
    rows.append((f"ECE, {split}", f"{fit.ece:.3f}", "", calibrated))
    if fit.slope is not None:
        ends = f"{fit.slope.low:.2f} to {fit.slope.high:.2f}"
        rows.append((f"calibration slope, {split}", f"{fit.slope.estimate:.2f}", ends, "1 if calibrated"))
    return rows


def _baseline_rows(baselines: Baselines) -> list[Row]:
    rows: list[Row] = []
    for name, label in _BASELINE_ROWS.items():
        rate: Rate | None = getattr(baselines, name)
        if rate is None:
            rows.append((label, NONE, "no such pair", ""))
            continue
        rows.append(rate_row(label, rate))
        over = f"over_{name}"
        above: Spread | None = getattr(baselines, over) if over in _OVER else None
        if above is not None:
            ends = f"{100 * above.low:+.1f} to {100 * above.high:+.1f}"
            points = f"{100 * above.estimate:+.1f}"
            rows.append((f"points above {_OVER[over]}", points, ends, f"n = {above.speeches} speeches"))
    return rows


def _ranked_tables(ranked: RankedPairs, name: str) -> list[Table]:
    test = ranked.test
    own = (100 * test.accuracy.estimate, test.auc.estimate, test.calibration.ece, test.brier.estimate)
    rows: dict[str, tuple[float | None, ...]] = {f"{name}, on its own test pairs": own, **PAPER}
    title = (
        "The paper's reward models on the released test split (arXiv 2502.19731). The first row compares with them "
        "only if it was measured on the same pairs."
    )
    cells = tuple(
        (label, *(NONE if each is None else f"{each:.1f}" if at == 0 else f"{each:.3f}" for at, each in enumerate(row)))
        for label, row in rows.items()
    )
    return [
        *(
            _slice_table(f"by_{key}", f"Accuracy by {words}.", ranked.slices.get(key, ()))
            for key, words in _SLICES.items()
        ),
        _principle_table(ranked.principles),
        _reliability_table(ranked.reliability),
        Table("paper", title, ("model", "accuracy, %", "AUC", "ECE", "Brier"), "lrrrr", cells, is_detail=True),
    ]


def _slice_table(key: str, title: str, slices: Sequence[Slice]) -> Table:
    rows = tuple((each.label or "(none)", *_counted(each.n, each.accuracy)) for each in slices)
    header = ("slice", "pairs", "accuracy", "interval")
    return Table(key, title + _FEW, header, "lrrl", rows if len(rows) > 1 else (), is_detail=True)


_FEW = " A slice of fewer than 20 shows its size only."


def _counted(n: int, rate: Rate | None) -> tuple[str, str, str]:
    return (str(n), NONE, "") if rate is None else (str(n), percent(rate.estimate), interval(rate))


def _principle_table(principles: Mapping[str, PrincipleAccuracy]) -> Table:
    has_heads = any(each.head for each in principles.values())
    rows = tuple(
        (name, *_counted(each.n, each.reward), *(_counted(each.n, each.head)[1:] if has_heads else ()))
        for name, each in principles.items()
    )
    heads = ("its own head", "interval of its own head") if has_heads else ()
    title = "Pairs whose ratings differ on a principle: how often the better rated side has the higher reward." + _FEW
    header = ("principle", "pairs", "overall reward", "interval", *heads)
    return Table("principles", title, header, "lrrl" + "rl" * has_heads, rows, is_detail=True)


def _reliability_table(bins: tuple[ReliabilityBin, ...]) -> Table:
    rows = tuple(
        (f"{each.low:.1f} to {each.high:.1f}", f"{each.confidence:.3f}", *_counted(each.n, each.right)) for each in bins
    )
    title = "Pairs by the model's probability of the side that it prefers, and how often that side is the chosen one."
    header = ("probability", "mean", "pairs", "right", "interval")
    return Table("reliability", title + _FEW, header, "lrrrl", rows, is_detail=True)


def best_of_k_tables(evaluated: m.BestOfKMetrics) -> list[Table]:
    """Return the tables of a reward model's evaluation on best-of-k rows."""
    rows: list[Row] = [(each.label or "(none)", *_counted(each.n, each.accuracy)) for each in evaluated.by_subset]
    if evaluated.ties is not None:
        rows.append(("Ties: its own score", str(evaluated.ties.prompts), percent(evaluated.ties.score), ""))
    rows.append(("mean of the subsets", str(evaluated.prompts), percent(evaluated.mean), ""))
    if evaluated.accuracy is not None:
        rows.append(("all prompts but Ties", *_counted(evaluated.accuracy.n, evaluated.accuracy)))
    title = (
        f"{evaluated.model} on {evaluated.on}: {evaluated.prompts} prompts with {evaluated.responses} responses. A "
        "prompt counts if the highest reward is that of a correct response." + _FEW
    )
    found = [Table("best_of_k", title, ("subset", "prompts", "accuracy", "interval"), "lrrl", tuple(rows))]
    if evaluated.ties is not None:
        labels = {
            "reference_accuracy": "one correct answer: it beats all wrong ones",
            "tied_accuracy": "several: all of them do",
            "correctness_preferred": "lead over wrong answers exceeds the spread of correct ones",
            "correctness_preferred_hard": "the same, with the smaller lead of both prompts",
        }
        parts = tuple((label, percent(getattr(evaluated.ties, name))) for name, label in labels.items())
        ties = "Parts of the score of Ties, as RewardBench 2 defines it (arXiv 2506.01937)."
        found.append(Table("ties", ties, ("figure", "share of prompts"), "lr", parts, is_detail=True))
    return found
