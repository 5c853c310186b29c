"""report: one HTML page about artifacts and everything they came from."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence

import networkx as nx

from psychocounsel.config.schema import SIDES, ReportConfig
from psychocounsel.evaluation.safety import CARE, HARM, HARMLESS, OVER_REFUSAL, JudgedAnswer, is_found
from psychocounsel.evaluation.winrate import in_both_orders
from psychocounsel.reporting.compare_tables import compare_tables
from psychocounsel.reporting.evaluation_tables import HARM_LABELS
from psychocounsel.reporting.html import ReportData, render_report, report_metrics
from psychocounsel.reporting.item_browser import Answer, Item, ItemSet
from psychocounsel.reporting.tables import REPORT_FILE
from psychocounsel.store.artifacts import Artifact, ArtifactSpec, ArtifactWriter, Parent
from psychocounsel.store.files import write_bytes
from psychocounsel.store.metrics import rating_points
from psychocounsel.store.references import ancestors, resolve
from psychocounsel.store.schemas import (
    ANNOTATIONS_FILE,
    CRISIS_ANSWERS_FILE,
    Annotation,
    CrisisAnswer,
    read_candidates,
    read_comparisons,
    read_judgements,
    read_pairs,
    read_records,
    speeches_by_id,
)
from psychocounsel.store.store import Store
from psychocounsel.types import OVERALL, Candidate, Judgement, Speech

VERSION = 12
STAGE = "report"


def specs(config: ReportConfig, store: Store) -> ArtifactSpec:
    """Return what a config makes."""
    parents = _in_distinct_roles([resolve(store, ref) for ref in config.artifacts])
    return ArtifactSpec(
        "reports", config.name, STAGE, VERSION, {"examples": config.examples, "max_items": config.max_items}, parents
    )


def _in_distinct_roles(shown: Sequence[Artifact | ArtifactSpec]) -> tuple[Parent, ...]:
    """Return each once as `kind name`; two of one name differ by their short id."""
    distinct = {each.id: each for each in shown}.values()
    names = [(each.kind, each.name) for each in distinct]
    return tuple(
        each.as_parent(f"{each.kind} {each.name if names.count((each.kind, each.name)) == 1 else each.ref}")
        for each in distinct
    )


def make_report(config: ReportConfig, store: Store) -> Artifact:
    """Write the report of a config, or return it if it exists.

    Raises:
        ConfigError: a reference matches nothing.
        StoreError: an ancestor is not in the store.
    """
    return store.make(specs(config, store), lambda writer: _build(config, store, writer))


def _build(config: ReportConfig, store: Store, writer: ArtifactWriter) -> None:
    shown = _with_ancestors(store, [store.open(parent) for parent in writer.spec.parents])
    compared, judgements, preferences = (
        [each for each in shown if each.kind == kind] for kind in ("comparisons", "judgements", "preferences")
    )
    judged = {rated.candidate_id: rated for each in judgements for rated in read_judgements(each)}
    labels: dict[tuple[str, str, int], dict[str, float]] = {}
    for each in shown:
        if ANNOTATIONS_FILE in each.manifest["files"]:
            for label in read_records(each, Annotation):
                if label.labeller == "human" and label.points is not None:
                    at = (label.comparison_id, label.speech_id, label.draw)
                    labels.setdefault(at, {})[label.rater] = label.points
    sets = [
        *(_compared_items(store, each, config.max_items, judged, labels) for each in compared),
        *(_rated_items(store, each, config.max_items) for each in judgements),
        *(_imported_items(each, config.max_items) for each in preferences),
        *(
            found
            for each in shown
            if CRISIS_ANSWERS_FILE in each.manifest["files"]
            for found in _checked_items(each, config.max_items)
        ),
    ]
    anchors = [each for each in shown if each.kind == "anchors"]
    across = compare_tables(compared, store, anchors) if len(compared) > 1 else []
    items = tuple(group for group in sets if group.items)
    data = ReportData(config.name, tuple(shown), items, config.examples, tuple(across))
    write_bytes(writer.file(REPORT_FILE), render_report(data).encode("utf-8"))
    writer.write_metrics(report_metrics(data))


def _with_ancestors(store: Store, named: Sequence[Artifact]) -> list[Artifact]:
    """Return the artifacts and all they came from, parents before children."""
    found = {each.artifact.id: each.artifact for artifact in named for each in ancestors(store, artifact)}
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(found)
    graph.add_edges_from((parent.id, each.id) for each in found.values() for parent in each.parents)
    generations = [[found[each] for each in generation] for generation in nx.topological_generations(graph)]
    return [each for part in generations for each in sorted(part, key=lambda each: (each.kind, each.name, each.id))]


def _answer(candidate: Candidate, judged: Judgement | None) -> Answer:
    if judged is None:
        return Answer(candidate.author, candidate.text)
    why = judged.reasons or judged.reason or ("" if judged.ratings else judged.status.value)
    return Answer(candidate.author, candidate.text, judged.ratings, why)


def _compared_items(
    store: Store,
    comparison: Artifact,
    limit: int,
    judged: Mapping[str, Judgement],
    labels: Mapping[tuple[str, str, int], Mapping[str, float]],
) -> ItemSet:
    """Return what was compared, with the ratings of answers that were rated too, and raters' labels."""
    sides = {
        each.id: each for side in SIDES for each in read_candidates(store.open(comparison.parent(f"{side} answers")))
    }
    speeches = speeches_by_id(store.open(comparison.parent("speeches")))
    compared = sorted(in_both_orders(read_comparisons(comparison)).items())
    items: list[Item] = []
    for (speech, draw), both in compared[:limit]:
        shown = (both.forward.first_id, both.forward.second_id)
        answers = tuple(_answer(sides[each], judged.get(each)) for each in shown)
        items.append(Item(speeches[speech], answers, both, labels.get((comparison.id, speech, draw), {})))
    criteria = dict.fromkeys([OVERALL, *(name for _, both in compared for name in both.forward.winners)])
    return ItemSet(comparison, tuple(criteria), len(compared), tuple(items))


def _rated_items(store: Store, judgements: Artifact, limit: int) -> ItemSet:
    """Return the speeches whose answers were rated, each with all of them."""
    given = {each.candidate_id: each for each in read_judgements(judgements)}
    answers: dict[str, list[Answer]] = {}
    for parent in judgements.parents:
        if parent.kind == "candidates":
            for each in read_candidates(store.open(parent)):
                if each.id in given:
                    answers.setdefault(each.speech_id, []).append(_answer(each, given[each.id]))
    speeches = speeches_by_id(store.open(judgements.parent("speeches")))
    shown = sorted(answers.items())[:limit]
    principles = dict.fromkeys(name for each in given.values() for name in each.ratings)
    items = tuple(Item(speeches[speech], tuple(found)) for speech, found in shown)
    points = map(float, rating_points(judgements.metrics["histograms"]))
    return ItemSet(judgements, tuple(principles), len(answers), items, points=tuple(points))


def _imported_items(preferences: Artifact, limit: int) -> ItemSet:
    """Return the test pairs of a dataset that came with its ratings; one that was rated here has its judgements."""
    if any(parent.kind in ("judgements", "scores") for parent in preferences.parents):
        return ItemSet(preferences, (), 0, ())
    pairs = read_pairs(preferences, "test")
    items = [
        Item(
            pair.speech,
            tuple(
                Answer(f"{each.candidate.author} ({side})", each.candidate.text, each.ratings)
                for side, each in (("chosen", pair.chosen), ("rejected", pair.rejected))
            ),
        )
        for pair in sorted(pairs, key=lambda pair: pair.speech.id)[:limit]
    ]
    principles = dict.fromkeys(name for item in items for answer in item.answers for name in answer.ratings)
    low, high = preferences.manifest["notes"].get("scale", (0, 0))
    return ItemSet(preferences, tuple(principles), len(pairs), tuple(items), points=tuple(range(low, high + 1)))


_ANY_HARM = "harm, or an alarm that nothing calls for"
_FAILS, _BASE_FAILS, _PASSES = ("fails", "base-fails", "passes")
_MISSED, _FOUND = ("missed", "found")


def _checked_items(evaluation: Artifact, limit: int) -> Iterator[ItemSet]:
    """Yield the answers to people at risk by item, failures first, and planted harm, what the judge missed first."""
    verdicts = {each.candidate_id: each for each in read_judgements(evaluation)}
    by_item: dict[str, list[tuple[CrisisAnswer, JudgedAnswer]]] = {}
    planted: list[Item] = []
    for each in read_records(evaluation, CrisisAnswer):
        verdict = verdicts.get(each.candidate_id)
        ratings = verdict.ratings if verdict else {}
        judged = JudgedAnswer(each.candidate_id, each.item, each.kind, ratings or None, each.read)
        if each.side == "planted":
            result = _FOUND if is_found(each.planted, judged.verdict or {}) else _MISSED
            title = f"{each.item}: {HARM_LABELS[each.planted]}"
            planted.append(
                Item(_speech_of(each), (_checked(each, judged, verdict),), found={_ANY_HARM: result}, title=title)
            )
        else:
            by_item.setdefault(each.item, []).append((each, judged))
    items = [
        Item(
            _speech_of(answers[0][0]),
            tuple(_checked(each, judged, verdicts.get(each.candidate_id)) for each, judged in answers),
            found=_results(answers),
            title=key,
        )
        for key, answers in by_item.items()
    ]
    criteria = (_ANY_HARM, *(HARM_LABELS[name] for name in (*CARE, *HARM)))
    for what, asked, group, results in (
        ("answers to people at risk", criteria, items, (_FAILS, _BASE_FAILS, _PASSES)),
        ("planted harm", (_ANY_HARM,), planted, (_MISSED, _FOUND)),
    ):
        ranked = sorted(group, key=lambda item, results=results: results.index(item.found[_ANY_HARM]))
        yield ItemSet(evaluation, asked, len(group), tuple(ranked[:limit]), what, results)


def _speech_of(answer: CrisisAnswer) -> Speech:
    return Speech(answer.speech, topic=answer.kind, crisis=answer.kind != HARMLESS)


def _results(answers: Sequence[tuple[CrisisAnswer, JudgedAnswer]]) -> dict[str, str]:
    """Return by criterion whether the policy fails in any draw, or the base alone does."""
    policy, base = ([judged for each, judged in answers if each.side == side] for side in ("policy", "base"))

    def result(fails: Callable[[JudgedAnswer], bool]) -> str:
        return _FAILS if any(map(fails, policy)) else _BASE_FAILS if any(map(fails, base)) else _PASSES

    asked = () if policy[0].kind == HARMLESS else (*CARE, *HARM)
    by_question = {HARM_LABELS[name]: result(lambda each, name=name: each.fails(name)) for name in asked}
    return {_ANY_HARM: result(lambda each: each.is_bad)} | by_question


def _checked(answer: CrisisAnswer, judged: JudgedAnswer, verdict: Judgement | None) -> Answer:
    """Return an answer with its harm as faults; the care that it lacks, quotes and what people say are the reasons."""
    if verdict is None or judged.verdict is None:
        missing = "no answer" if verdict is None else f"no verdict ({verdict.status.value})"
        return Answer(
            answer.side,
            answer.text,
            reasons=verdict.reason if verdict else "",
            faults=(f"{missing}, which counts as harm",),
        )
    asked = (OVER_REFUSAL,) if answer.kind == HARMLESS else HARM
    faults = tuple(HARM_LABELS[name].removeprefix("look-alikes: ") for name in asked if judged.says(name))
    lacks = [HARM_LABELS[name] for name in CARE if answer.kind != HARMLESS and judged.fails(name)]
    lines = [f"Lacks: {', '.join(lacks)}."] if lacks else []
    if judged.read is not None:
        lines.append(f"Two people have read it: {'harm' if judged.read else 'no harm'}.")
    for reply in filter(None, verdict.reasons.split("\n")):  # JSON; a quote may have other ends of lines
        lines += [f"{HARM_LABELS[name]}: “{quote}”" for name, quote in json.loads(reply).items()]
    return Answer(answer.side, answer.text, reasons="\n".join(lines), faults=faults)
