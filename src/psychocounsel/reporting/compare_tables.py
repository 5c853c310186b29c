"""Several comparisons side by side: policies by speech and ranked, judges by their verdicts, slices, and settings."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from itertools import combinations
from typing import Any, cast

from psychocounsel.errors import StoreError
from psychocounsel.evaluation import agreement
from psychocounsel.evaluation.agreement import nominal_kappa
from psychocounsel.evaluation.length_control import LengthComparison, length_controlled_rates
from psychocounsel.evaluation.ranking import ELO, Game, bradley_terry, paired_difference
from psychocounsel.evaluation.statistics import MIN_SLICE
from psychocounsel.evaluation.winrate import POINTS, BothOrders, in_both_orders, length_comparisons
from psychocounsel.reporting.artifact_tables import key_metric
from psychocounsel.reporting.comparison_tables import shortest_first
from psychocounsel.reporting.tables import NONE, Row, Table, coefficient, percent, with_interval
from psychocounsel.store.artifacts import Artifact
from psychocounsel.store.evaluation_metrics import AnchorMetrics
from psychocounsel.store.files import digest_of
from psychocounsel.store.metrics import ComparisonMetrics, metrics_of
from psychocounsel.store.references import settings_of
from psychocounsel.store.schemas import read_candidates, read_comparisons, read_speeches
from psychocounsel.store.store import Store, artifact_keys
from psychocounsel.types import Rate, Spread

_ANSWERS = ("policy answers", "reference answers")
_PARENT = "parent "
_MADE = re.compile(r"last round|previous policy|pairs|initial probe|probe \d+|reference")
"""Roles of parents that a run made itself."""
_OUTCOMES = {"weights_of_round", "stop"}


class _Compared:
    """A comparison: its metrics, the answers of both sides, and the points that the policy won."""

    def __init__(self, artifact: Artifact, store: Store, anchors: Sequence[Artifact] = ()) -> None:
        self.artifact, self._store = artifact, store
        self.metrics = cast("ComparisonMetrics", metrics_of(artifact))
        self.anchor = next((each for each in reversed(anchors) if each.parent("comparisons").id == artifact.id), None)
        answers = [store.open(artifact.parent(role)) for role in _ANSWERS]
        self.policy, self.reference = map(_player, answers)
        self.answers = answers
        self.authors = [str(each.manifest["settings"]["responder"]["author"]) for each in answers]
        self.judge = digest_of(artifact.manifest["settings"]["judge"])
        self.confidence = float(artifact.manifest["settings"]["confidence"])

    @cached_property
    def points(self) -> dict[tuple[str, int], float]:
        """What the policy won, by speech and draw; missing comparisons are left out."""
        found = {at: POINTS[both.outcome()] for at, both in self._verdicts.items()}
        return {at: each for at, each in found.items() if each is not None}

    @cached_property
    def by_answers(self) -> dict[tuple[str, str, str], float]:
        """The same by speech and the ids of both answers."""
        shown = {at: self._verdicts[at].forward for at in self.points}
        return {(at[0], each.first_id, each.second_id): self.points[at] for at, each in shown.items()}

    @cached_property
    def by_speech(self) -> dict[str, list[float]]:
        """The same by speech alone."""
        grouped: dict[str, list[float]] = {}
        for (speech, _), each in self.points.items():
            grouped.setdefault(speech, []).append(each)
        return grouped

    @cached_property
    def crisis_by_speech(self) -> dict[str, list[float]]:
        """The same of the speeches about crisis."""
        speeches = [row.speech for row in read_speeches(self._store.open(self.artifact.parent("speeches")))]
        return {each.id: self.by_speech[each.id] for each in speeches if each.crisis and each.id in self.by_speech}

    @property
    def lengths(self) -> list[LengthComparison]:
        """What length control needs to know."""
        answers = [each for side in self.answers for each in read_candidates(side)]
        return length_comparisons(self._verdicts.values(), answers)

    @cached_property
    def _verdicts(self) -> dict[tuple[str, int], BothOrders]:
        return in_both_orders(read_comparisons(self.artifact))


def _player(answers: Artifact) -> str:
    """Return what identifies an author of answers in any comparison: its settings and its model."""
    model = [parent.id for parent in answers.parents if parent.role != "speeches"]
    return digest_of([answers.manifest["settings"]["responder"], model])


def compare_tables(comparisons: Sequence[Artifact], store: Store, anchors: Sequence[Artifact] = ()) -> list[Table]:
    """Return the tables across comparisons, the most important first; those without rows are left out.

    Policies are compared with each other where they met one reference, before one judge; judges where they saw the
    same two sides. Strengths are fitted for each judge who saw more than two players. `anchors` correct the win rates
    of those comparisons that they are about, of several the last.

    Raises:
        StoreError: the table or the metrics of a comparison cannot be read.
    """
    compared = [_Compared(each, store, anchors) for each in comparisons]
    names = _names(compared)
    found = [
        _policy_table(compared, names),
        _corrected_table(compared, names),
        _difference_table(compared, names),
        *_ranking_tables(compared, names),
        _judge_table(compared, names),
        _slice_table(compared),
        settings_table(comparisons, store),
    ]
    return [table for table in found if table.rows]


def _names(compared: Sequence[_Compared]) -> dict[str, str]:
    """Return the name of each player: its author, with a number where several have one author."""
    names: dict[str, str] = {}
    for each in compared:
        for player, author in zip((each.policy, each.reference), each.authors, strict=True):
            if player not in names:
                namesakes = sum(name.partition(" #")[0] == author for name in names.values())
                names[player] = f"{author} #{namesakes + 1}" if namesakes else author
    return names


def _at_equal_length(compared: Sequence[_Compared]) -> dict[str, Rate | None]:
    """Return the win rate at equal length by the comparison's id; one judge and reference have one effect of length."""
    groups: dict[tuple[str, str], list[_Compared]] = {}
    for each in compared:
        groups.setdefault((each.judge, each.reference), []).append(each)
    found: dict[str, Rate | None] = {}
    for group in groups.values():
        rates = length_controlled_rates([each.lengths for each in group], group[0].confidence)
        found |= {each.artifact.id: of.rate for each, of in zip(group, rates, strict=True)}
    return found


def _policy_table(compared: Sequence[_Compared], names: dict[str, str]) -> Table:
    at_equal_length = _at_equal_length(compared)
    rows = tuple(
        (
            each.artifact.ref,
            names[each.policy],
            names[each.reference],
            each.metrics.judges.evaluation,
            with_interval(each.metrics.win_rate),
            NONE if each.metrics.win_rate_decided is None else percent(each.metrics.win_rate_decided.estimate),
            NONE if (equal := at_equal_length[each.artifact.id]) is None else with_interval(equal),
            str(each.metrics.speeches),
            str(each.metrics.win_rate.n),
            str(each.metrics.win_rate.missing),
            percent(each.metrics.position_inconsistent_rate.estimate),
            NONE if each.metrics.crisis is None else rate_or_counts(each.metrics.crisis),
        )
        for each in sorted(compared, key=lambda each: -each.metrics.win_rate.estimate)
    )
    header = (
        *("comparison", "policy", "reference", "judge", "win rate", "decided"),
        *("equal length, effect pooled", "speeches", "comparisons", "missing", "flips", "crisis"),
    )
    title = (
        "Win rates of the policies over their references, ties half, the highest first. With the effect of length "
        "pooled, policies with one judge and one reference share it, to be compared with each other; the rate at equal "
        "length to quote for one policy is that of its own comparison. Decided: where both orders of the answers agree "
        "on a winner; flips: verdicts that change with the order; crisis: on speeches about crisis."
    )
    return Table("policies", title, header, "llllrrrrrrrl", rows)


def _corrections(compared: Sequence[_Compared]) -> Iterator[tuple[_Compared, Artifact, AnchorMetrics]]:
    """Yield the comparisons that people labelled, each with what its labels make of the win rate."""
    for each in compared:
        if each.anchor is not None:
            yield each, each.anchor, cast("AnchorMetrics", metrics_of(each.anchor))


def _corrected_table(compared: Sequence[_Compared], names: dict[str, str]) -> Table:
    rows = tuple(
        (
            each.artifact.ref,
            f"{names[each.policy]} over {names[each.reference]}",
            with_interval(found.judge_only),
            with_interval(found.rate),
            f"{_CORRECTED_BY[found.headline]} {found.labelled} speeches (raters: {', '.join(found.raters)})",
            anchor.ref,
        )
        for each, anchor, found in _corrections(compared)
    )
    title = (
        "Win rates corrected by people's labels, 95 % intervals: the rates to cite. All other tables are by the judge "
        "alone, and labels of one comparison say nothing about the others."
    )
    header = ("comparison", "policy and reference", "judge alone", "corrected", "by", "anchor")
    return Table("corrected", title, header, "llllll", rows)


_CORRECTED_BY = {"anchored": "judge and labels of", "human_only": "labels alone, of"}


def rate_or_counts(rate: Rate) -> str:
    """Return a rate with its interval; of few comparisons only how many points of how many."""
    if rate.n < MIN_SLICE:
        return f"{rate.estimate * rate.n:g} of {rate.n} points"
    return with_interval(rate)


def _paired_differences(compared: Sequence[_Compared]) -> Iterator[tuple[_Compared, _Compared, Spread]]:
    """Yield what can be paired, the higher win rate first: policies that met one reference before one judge."""
    for one, other in combinations(compared, 2):
        if one.reference != other.reference or one.judge != other.judge or one.policy == other.policy:
            continue
        first, second = sorted((one, other), key=lambda each: -each.metrics.win_rate.estimate)
        found = paired_difference(first.by_speech, second.by_speech, first.confidence)
        if found is not None:
            yield first, second, found


def compare_data(comparisons: Sequence[Artifact], store: Store, anchors: Sequence[Artifact] = ()) -> dict[str, Any]:
    """Return comparisons, their paired differences and the settings that differ, ready for JSON.

    Shares and their differences are between 0 and 1. `anchors` and errors are those of `compare_tables`.
    """
    compared = [_Compared(each, store, anchors) for each in comparisons]
    names = _names(compared)
    corrected = {
        each.artifact.id: asdict(found.rate)
        | {"by": found.headline, "labelled": found.labelled, "raters": dict(found.raters), "anchor": anchor.ref}
        for each, anchor, found in _corrections(compared)
    }
    return {
        "comparisons": [
            {
                **{"ref": each.artifact.ref, "id": each.artifact.id, "judge": each.metrics.judges.evaluation},
                **{"policy": names[each.policy], "reference": names[each.reference]},
                "metrics": each.artifact.metrics,
                "corrected": corrected.get(each.artifact.id),
            }
            for each in compared
        ],
        "paired_differences": [
            {"first": first.artifact.ref, "second": second.artifact.ref, **asdict(found)}
            for first, second, found in _paired_differences(compared)
        ],
        "settings": _differing_settings(comparisons, store),
    }


def _difference_table(compared: Sequence[_Compared], names: dict[str, str]) -> Table:
    rows: list[Row] = []
    for first, second, found in _paired_differences(compared):
        label = f"{names[first.policy]} - {names[second.policy]}"
        crisis = paired_difference(first.crisis_by_speech, second.crisis_by_speech, first.confidence)
        in_crisis = NONE if crisis is None else "{} ({}, {} speeches)".format(*_spread_cells(crisis)[:3])
        if crisis is not None and crisis.speeches < MIN_SLICE:
            in_crisis = f"n = {crisis.speeches}"
        judge = first.metrics.judges.evaluation
        rows.append((label, names[first.reference], judge, *_difference_cells(first, second, found), in_crisis))
    header = (
        "policies",
        "over",
        "judge",
        "difference",
        "interval",
        "speeches",
        "reading",
        "speeches about crisis alone",
    )
    title = (
        "Paired differences of win rates in points: speech by speech, over the speeches that both answered, against "
        "the same reference and judge. Each interval is for itself: of twenty pairs of equal policies, one differs."
    )
    return Table("paired_differences", title, header, "lllrlrll", tuple(rows))


def sweep_table(points: Sequence[tuple[str, Sequence[Artifact]]], store: Store) -> Table:
    """Return the points of a sweep, each with its label and artifacts in the order of the recipe, side by side.

    Rows are the comparisons that are not the same for all points, each against that of the first point; without any,
    the key metrics of whatever differs.
    """
    ids = [{each.id for each in made} for _, made in points]
    shared = set[str].intersection(*ids)
    own = [(label, [each for each in made if each.id not in shared]) for label, made in points]
    compared = [[each for each in made if each.kind == "comparisons"] for _, made in own]
    if not any(compared):
        rows = tuple(
            (label, f"{each.kind} {each.ref}", key_metric(each))
            for label, made in own
            for each in made
            if each.kind != "reports"
        )
        return Table("sweep", "Points of the sweep.", ("point", "artifact", "key metric"), "lll", rows)
    found: list[Row] = []
    for at in range(max(map(len, compared))):
        present = [
            (label, _Compared(made[at], store))
            for (label, _), made in zip(own, compared, strict=True)
            if len(made) > at
        ]
        for label, each in present:
            first = present[0][1]
            is_comparable = each is not first and (each.reference, each.judge) == (first.reference, first.judge)
            spread = paired_difference(each.by_speech, first.by_speech, each.confidence) if is_comparable else None
            difference = (NONE,) * 4 if spread is None else _difference_cells(each, first, spread)
            unfinished = percent(each.metrics.policy_text_quality.unfinished_rate.estimate)
            round_number = _round_of(each.answers[0], store)
            rate = with_interval(each.metrics.win_rate)
            policy = each.authors[0]
            found.append((label, policy, rate, *difference, round_number, unfinished, each.artifact.ref))
    header = ("point", "policy", "win rate", *("difference", "interval", "speeches", "reading"))
    header += ("round", "unfinished", "comparison")
    title = (
        "Points of the sweep: win rates, and paired differences in points to the first point, speech by speech, where "
        "reference and judge are the same. The round is the one whose weights answered."
    )
    return Table("sweep", title, header, "lllrlrlrrl", tuple(found))


def _round_of(answers: Artifact, store: Store) -> str:
    """Return the online round whose weights gave some answers."""
    for parent in answers.parents:
        if parent.kind == "policies":
            settings = store.open(parent).manifest["settings"]
            return str(settings.get("round", settings.get("weights_of_round", NONE)))
    return NONE


def _difference_cells(first: _Compared, second: _Compared, found: Spread) -> Row:
    """Return the cells of a paired difference; a judge who fails by outcome makes policies differ that do not.

    A difference that would not be one if the speeches that failed in one of the two were lost by the better policy, or
    won by the other, is marked. Where nothing failed, a speech that only one of the two has was not asked of the other.
    """
    *cells, reading = _spread_cells(found)
    ours, theirs = ([0.0], [1.0]) if found.estimate > 0 else ([1.0], [0.0])
    at_worst = paired_difference(
        _filled(first, second.by_speech, ours), _filled(second, first.by_speech, theirs), first.confidence
    )
    if found.is_distinct and at_worst and not (at_worst.low > 0 if found.estimate > 0 else at_worst.high < 0):
        reading = f"{reading}, unless for what is missing"
    return (*cells, reading)


def _filled(compared: _Compared, speeches: Iterable[str], points: list[float]) -> dict[str, list[float]]:
    return {**(dict.fromkeys(speeches, points) if compared.metrics.missing else {}), **compared.by_speech}


def _spread_cells(found: Spread) -> Row:
    low, high = (f"{100 * end:+.1f}" for end in (found.low, found.high))
    reading = "differs" if found.is_distinct else "not distinguishable"
    return (f"{100 * found.estimate:+.1f}", f"{low} to {high}", str(found.speeches), reading)


def _ranking_tables(compared: Sequence[_Compared], names: dict[str, str]) -> list[Table]:
    found: list[Table] = []
    for judge in dict.fromkeys(each.judge for each in compared):
        seen = [each for each in compared if each.judge == judge]
        players = {player for each in seen for player in (each.policy, each.reference)}
        references = [each.reference for each in seen]
        anchor = max(references, key=references.count)
        games = [
            Game(speech, each.policy, each.reference, points)
            for each in seen
            for (speech, _), points in each.points.items()
        ]
        ranked = bradley_terry(games, anchor, seen[0].confidence) if len(players) > 2 else None
        if ranked is None:
            continue
        rows = tuple(
            (
                names[each.player],
                NONE if each.estimate is None else f"{ELO * each.estimate:+.0f}",
                "fixed" if each.player == anchor else f"{ELO * each.low:+.0f} to {ELO * each.high:+.0f}",
                str(each.games),
            )
            for each in ranked
        )
        has_limit = all(each.estimate is not None for each in ranked)
        unbounded = "" if has_limit else " No figure where a player won, or lost, without exception."
        title = (
            f"Ranking by Bradley and Terry, judge {seen[0].metrics.judges.evaluation}: Elo points above "
            f"{names[anchor]}; 400 points are odds of ten to one, and a tie is half a win.{unbounded}"
        )
        found.append(Table(f"ranking {judge[:8]}", title, ("player", "Elo", "interval", "comparisons"), "lrlr", rows))
    return found


def _judge_table(compared: Sequence[_Compared], names: dict[str, str]) -> Table:
    rows: list[Row] = []
    for one, other in combinations(compared, 2):
        if (one.policy, one.reference) != (other.policy, other.reference) or one.judge == other.judge:
            continue
        common = sorted(one.by_answers.keys() & other.by_answers.keys())
        verdicts = [(one.by_answers[at], other.by_answers[at]) for at in common]
        difference = paired_difference(one.by_speech, other.by_speech, one.confidence)
        if not verdicts or difference is None:
            continue
        kappa = agreement.coefficient(nominal_kappa, verdicts, [speech for speech, _, _ in common])
        rows.append(
            (
                f"{one.metrics.judges.evaluation}, {other.metrics.judges.evaluation}",
                f"{names[one.policy]} over {names[one.reference]}",
                *(percent(each.metrics.win_rate.estimate) for each in (one, other)),
                " ".join(map(str, _spread_cells(difference)[:2])),
                str(len(verdicts)),
                percent(sum(first == second for first, second in verdicts) / len(verdicts)),
                coefficient(kappa),
            )
        )
    header = ("judges", "of", "first", "second", "difference", "comparisons", "same outcome", "Cohen's kappa")
    title = "Judges of the same answers: their win rates, and how often they agree on win, tie or loss."
    return Table("judges", title, header, "llrrlrrl", tuple(rows))


def _slice_table(compared: Sequence[_Compared]) -> Table:
    """Return one row per principle, topic and length of the speech, crisis apart, and one column per comparison."""
    parts: list[dict[str, Rate | None]] = []
    for each in compared:
        metrics = each.metrics
        parts.append(
            {
                "speeches about crisis": metrics.crisis,
                **{f"principle: {name}": rate for name, rate in metrics.by_criterion.items()},
                **{f"topic: {name or '(none)'}": rate for name, rate in metrics.by_topic.items()},
                **{f"speech of {name} words": rate for name, rate in shortest_first(metrics.by_speech_length).items()},
            }
        )
    labels = dict.fromkeys(label for part in parts for label in part)
    rows = tuple(
        (label, *(NONE if (rate := part.get(label)) is None else rate_or_counts(rate) for part in parts))
        for label in labels
    )
    header = ("slice", *(each.artifact.ref for each in compared))
    title = f"Win rates by slice; of fewer than {MIN_SLICE} comparisons, the points won, one in each."
    return Table("slices", title, header, "l" * len(header), rows, is_detail=True)


def settings_table(artifacts: Sequence[Artifact], store: Store) -> Table:
    """Return the settings, parents and versions that differ between artifacts, by dotted keys.

    Of comparisons, those of the answers, models and data as well that they come from; of an online round, those of its
    pairs, and of the result of an online run, those of its last round.
    """
    rows = tuple(
        (name, *(_shown(own[each.ref]) if each.ref in own else "(absent)" for each in artifacts))
        for name, own in _differing_settings(artifacts, store).items()
    )
    header = ("setting", *(each.ref for each in artifacts))
    return Table("settings", "Settings that differ.", header, "l" * len(header), rows)


def _shown(value: object) -> str:
    """Return a value as a cell; of a digest the first 12 digits."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1", repr(value))


def _differing_settings(artifacts: Sequence[Artifact], store: Store) -> dict[str, dict[str, Any]]:
    """Return each setting that differs, by the reference of every artifact that has it."""
    by_ref = {each.ref: each for each in artifacts}
    is_explained = all(each.kind == "comparisons" for each in artifacts)
    found = _explained(by_ref, store, set()) if is_explained else _differing(by_ref, store)
    return dict(sorted(found.items()))


def _differing(by_ref: Mapping[str, Artifact], store: Store) -> dict[str, dict[str, Any]]:
    keys = {ref: _settings(each, store) for ref, each in by_ref.items()}
    names = {name for own in keys.values() for name in own}
    found = {name: {ref: own[name] for ref, own in keys.items() if name in own} for name in names}
    return {name: own for name, own in found.items() if len(own) < len(keys) or len(set(map(repr, own.values()))) > 1}


def _explained(by_ref: Mapping[str, Artifact], store: Store, seen: set[tuple[str, ...]]) -> dict[str, dict[str, Any]]:
    """Return what differs, with what differs in the parents in place of a parent.

    What a run made itself, such as rounds and probes, differs where its settings or other parents do: it is followed
    only where these do not.
    """
    found = _differing(by_ref, store)
    roles = sorted(name.removeprefix(_PARENT) for name in found if name.startswith(_PARENT))
    parents = {role: _side_by_side(by_ref, role, store) for role in roles}
    made = [role for role in roles if _MADE.fullmatch(role)]
    if len(made) < len(found.keys() - _OUTCOMES):
        for role in made:
            del found[_PARENT + role], parents[role]
    for role, own in parents.items():
        if own is None:
            continue
        del found[_PARENT + role]
        ids = tuple(each.id for each in own.values())
        if ids in seen:
            continue
        seen.add(ids)
        if len({_settings(each, store).get("mode") for each in own.values()}) > 1:  # each has parents of its own
            below = {name: each for name, each in _differing(own, store).items() if not name.startswith(_PARENT)}
        else:
            below = _explained(own, store, seen)
        found |= {f"{role}: {name}": values for name, values in below.items()}
    return found


def _side_by_side(by_ref: Mapping[str, Artifact], role: str, store: Store) -> dict[str, Artifact] | None:
    """Return the parents of a role, or None if one has none, is not in the store, or is of another kind."""
    try:
        found = {ref: store.open(each.parent(role)) for ref, each in by_ref.items() if _has(each, role)}
    except StoreError:
        return None
    return found if len(found) == len(by_ref) and len({each.kind for each in found.values()}) == 1 else None


def _has(artifact: Artifact, role: str) -> bool:
    return any(parent.role == role for parent in artifact.parents)


def _settings(artifact: Artifact, store: Store) -> dict[str, Any]:
    return artifact_keys(artifact) | settings_of(store, artifact)
