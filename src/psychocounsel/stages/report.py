"""Artifacts -> report: one HTML page about what they and all their ancestors are."""

from collections.abc import Mapping, Sequence

from psychocounsel.config.schema import ReportConfig
from psychocounsel.evaluation.winrate import BothOrders
from psychocounsel.reporting.tables import (
    REPORT_FILE,
    ArtifactFacts,
    Example,
    ExampleSet,
    ReportData,
)
from psychocounsel.store.artifacts import Artifact, ArtifactSpec, ArtifactWriter, Parent
from psychocounsel.store.files import write_bytes
from psychocounsel.store.references import ancestors, resolve
from psychocounsel.store.schemas import read_candidates, read_comparisons, read_speeches
from psychocounsel.store.store import Store
from psychocounsel.types import OVERALL, Candidate, ReplyStatus, Speech

VERSION = 2
STAGE = "report"


def specs(config: ReportConfig, store: Store) -> ArtifactSpec:
    """Return what a config means, without making it."""
    parents = _in_distinct_roles([resolve(store, ref) for ref in config.artifacts])
    return ArtifactSpec("reports", config.name, STAGE, VERSION, {"examples": config.examples}, parents)


def _in_distinct_roles(shown: Sequence[Artifact | ArtifactSpec]) -> tuple[Parent, ...]:
    """Return each once as `kind name`; two of one name are told apart by their short id."""
    distinct = {each.id: each for each in shown}.values()
    names = [(each.kind, each.name) for each in distinct]
    return tuple(
        each.as_parent(f"{each.kind} {each.name if names.count((each.kind, each.name)) == 1 else each.ref}")
        for each in distinct
    )


def make_report(config: ReportConfig, store: Store) -> Artifact:
    """Write the report of a config, or return it if it exists.

    Raises:
        ConfigError: a reference answers to nothing.
        StoreError: an ancestor is not in the store.
    """
    return store.make(specs(config, store), lambda writer: _build(config, store, writer))


def _build(config: ReportConfig, store: Store, writer: ArtifactWriter) -> None:
    from psychocounsel.reporting.html import headline_numbers, render_report  # matplotlib: only to draw

    shown = _with_ancestors(store, [store.open(parent) for parent in writer.spec.parents])
    examples = [_examples(store, each, config.examples) for each in shown if each.kind == "comparisons"]
    facts = tuple(map(ArtifactFacts.of, shown))
    data = ReportData(config.name, facts, tuple(group for group in examples if group.examples))
    write_bytes(writer.file(REPORT_FILE), render_report(data).encode("utf-8"))
    writer.write_metrics(headline_numbers(data))


def _with_ancestors(store: Store, named: Sequence[Artifact]) -> list[Artifact]:
    """Return the artifacts and all they came from, parents before children."""
    found = {each.artifact.id: each.artifact for artifact in named for each in ancestors(store, artifact)}
    depths: dict[str, int] = {}
    for each in found.values():
        _note_depth(each, found, depths)
    return sorted(found.values(), key=lambda each: (depths[each.id], each.kind, each.name, each.id))


def _note_depth(artifact: Artifact, found: Mapping[str, Artifact], depths: dict[str, int]) -> int:
    """Note and return the length of the longest way from an artifact back to one without parents."""
    if artifact.id not in depths:
        ways = [_note_depth(found[parent.id], found, depths) for parent in artifact.parents]
        depths[artifact.id] = 1 + max(ways, default=-1)
    return depths[artifact.id]


def _examples(store: Store, verdicts: Artifact, count: int) -> ExampleSet:
    """Return the first speeches by content hash that both sides answered: drawn, not chosen."""
    policy = _answers(store, verdicts, "policy answers")
    reference = _answers(store, verdicts, "reference answers")
    speeches = {each.speech.id: each.speech for each in read_speeches(_opened(store, verdicts, "speeches"))}
    both = _both_orders(verdicts)
    drawn = sorted(set(both) & set(policy) & set(reference) & set(speeches))[:count]
    examples = tuple(_example(speeches[each], policy[each], reference[each], both[each]) for each in drawn)
    authors = [next((each.author for each in side.values()), "") for side in (policy, reference)]
    return ExampleSet(verdicts.ref, authors[0], authors[1], examples)


def _answers(store: Store, verdicts: Artifact, role: str) -> dict[str, Candidate]:
    return {each.speech_id: each for each in read_candidates(_opened(store, verdicts, role))}


def _opened(store: Store, artifact: Artifact, role: str) -> Artifact:
    return store.open(next(parent for parent in artifact.parents if parent.role == role))


def _both_orders(verdicts: Artifact) -> dict[str, BothOrders]:
    rows = read_comparisons(verdicts)
    backward = {each.comparison.speech_id: each.comparison for each in rows if each.order == "backward"}
    return {
        each.comparison.speech_id: BothOrders(each.comparison, backward[each.comparison.speech_id])
        for each in rows
        if each.order == "forward" and each.comparison.speech_id in backward
    }


def _example(speech: Speech, policy: Candidate, reference: Candidate, both: BothOrders) -> Example:
    criteria = [OVERALL]
    if both.forward.status is ReplyStatus.VALID:
        criteria += [name for name in both.forward.winners if name != OVERALL]
    outcomes = {name: both.outcome(name).value for name in criteria}
    return Example(speech, policy.text, reference.text, outcomes)
