"""The report: one HTML page without remote assets, for a phone, a desk and paper, a light screen and a dark one."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.resources import files
from typing import Any, TypeVar, cast

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from psychocounsel.reporting.artifact_tables import tables, warnings_of
from psychocounsel.reporting.comparison_tables import confidence, no_rate_at_equal_length
from psychocounsel.reporting.item_browser import Item, ItemSet, embedded_items
from psychocounsel.reporting.lineage import draw_lineage
from psychocounsel.reporting.overview import Compared, headlines, length_plot, overview_plots, paper_table
from psychocounsel.reporting.plots import Plot, figures
from psychocounsel.reporting.reward_tables import REWARD_DETAILS
from psychocounsel.reporting.tables import (
    NONE,
    PERCENT,
    Row,
    Table,
    anchor,
    by_split,
    draws_each,
    interval,
    over,
    percent,
    reasons,
)
from psychocounsel.store import metrics as m
from psychocounsel.store.artifacts import Artifact
from psychocounsel.store.metrics import Metrics, metrics_of
from psychocounsel.store.publish import restricted_sources
from psychocounsel.types import OVERALL, Rate

M = TypeVar("M", bound=Metrics)


@dataclass(frozen=True)
class ReportData:
    """A run to be shown: its artifacts, parents before children, and its answers.

    `across` are tables over several comparisons. The first `examples` of each comparison are printed.
    """

    title: str
    artifacts: tuple[Artifact, ...]
    item_sets: tuple[ItemSet, ...] = ()
    examples: int = 6
    across: tuple[Table, ...] = ()

    @cached_property
    def measured(self) -> list[tuple[Artifact, Metrics]]:
        """The artifacts with their metrics."""
        return [(each, metrics_of(each)) for each in self.artifacts]

    def of(self, model: type[M]) -> list[tuple[Artifact, M]]:
        """Return the artifacts whose metrics have this shape, parents before children."""
        return [(each, metrics) for each, metrics in self.measured if isinstance(metrics, model)]

    @cached_property
    def compared(self) -> list[Compared]:
        """The comparisons, with the authors of the two sides as far as these are known."""
        return [
            Compared(each, _sides(self, each) + (", constrained" if metrics.constraint else ""), metrics)
            for each, metrics in self.of(m.ComparisonMetrics)
        ]

    @cached_property
    def anchored(self) -> dict[str, tuple[Artifact, m.AnchorMetrics]]:
        """What people's labels make of comparisons, by the id of the comparison."""
        return {each.parent("comparisons").id: (each, metrics) for each, metrics in self.of(m.AnchorMetrics)}

    @cached_property
    def final_policies(self) -> list[Artifact]:
        """Policies that are not a round of another policy in the report."""
        policies = [each for each, _ in self.of(m.PolicyMetrics)]
        rounds = {each.id for policy in policies for each in self.rounds_of(policy) if each.id != policy.id}
        return [each for each in policies if each.id not in rounds]

    def rounds_of(self, policy: Artifact) -> list[Artifact]:
        """Return the rounds up to `policy`, or all of the online run that ends with it; else the policy alone."""
        chain = [self.parent_of(policy, "last round") or policy]
        while (before := self.parent_of(chain[0], "previous policy")) is not None:
            if before == self.parent_of(chain[0], "initial policy"):
                break
            chain.insert(0, before)
        return chain

    def parent_of(self, artifact: Artifact, role: str) -> Artifact | None:
        """Return the parent with a role; None where it has none or it is not in the report."""
        ids = {parent.id for parent in artifact.parents if parent.role == role}
        return next((each for each in self.artifacts if each.id in ids), None)


class Block:
    """One piece of a section; the macro of its name writes it."""

    @property
    def template(self) -> str:
        """Name of the macro."""
        return type(self).__name__.lower()


@dataclass(frozen=True)
class Paragraph(Block):
    """Plain words."""

    words: str


@dataclass(frozen=True)
class Heading(Block):
    """A title within a section, and the artifacts that it is about."""

    words: str
    sources: tuple[Artifact, ...] = ()


@dataclass(frozen=True)
class Plots(Block):
    """Pictures in columns where there is space."""

    plots: tuple[Plot, ...]


@dataclass(frozen=True)
class Card:
    """A main figure: label, value, its interval in words and a remark."""

    label: str
    value: str
    interval: str
    remark: str
    sources: tuple[Artifact, ...]


@dataclass(frozen=True)
class Cards(Block):
    """Main figures in columns."""

    cards: tuple[Card, ...]


@dataclass(frozen=True)
class Lineage(Block):
    """The picture of where everything came from."""

    svg: Markup
    caption: str


@dataclass(frozen=True)
class Answers(Block):
    """One client speech with the answers of both sides and the outcome."""

    item: Item
    outcome: str


@dataclass(frozen=True)
class Browser(Block):
    """Every answer, to be filtered and searched; the script of the page reads the `data`."""

    data: Markup


@dataclass(frozen=True)
class Artifacts(Block):
    """Every artifact with its parents, settings, files and versions."""

    artifacts: tuple[Artifact, ...]


def render_report(data: ReportData) -> str:
    """Return the page; equal data give an equal page."""
    warnings = page_warnings(data)
    shown = headlines(data.compared, warnings, {key: metrics for key, (_, metrics) in data.anchored.items()})
    under_a_headline = {warning for headline in shown for warning in headline.warnings}
    return render_page(
        "report.html.j2",
        "report.css",
        "browser.js" if data.item_sets else None,
        data=data,
        warnings=[warning for warning in warnings if warning not in under_a_headline],
        headlines=shown,
        sections=_sections(data),
    )


def render_page(template: str, style: str, script: str | None, **values: Any) -> str:
    """Return the page of a template: texts are escaped, only our style sheet and script work, nothing is fetched."""
    folder = files("psychocounsel.reporting") / "templates"
    sheet, code = (Markup((folder / name).read_text("utf-8") if name else "") for name in (style, script))  # noqa: S704
    environment = Environment(
        loader=PackageLoader("psychocounsel.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = cast(dict[str, Any], environment.filters)
    filters.update(
        anchor=anchor, percent=percent, json=partial(json.dumps, indent=1, ensure_ascii=False, sort_keys=True)
    )
    policy = _content_security_policy(sheet, code)
    return environment.get_template(template).render(policy=policy, style=sheet, script=code, **values)


def _content_security_policy(style: str, script: str) -> str:
    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    scripts = f"script-src {digest(script)}; " if script else ""
    # Pictures place and colour their parts by attributes.
    styles = f"style-src-elem {digest(style)}; style-src-attr 'unsafe-inline'"
    return f"default-src 'none'; {scripts}{styles}; img-src data:; base-uri 'none'; form-action 'none'"


def page_warnings(data: ReportData) -> list[str]:
    """Return what stands first on the page: the warnings of every artifact, then those that its metrics give."""
    inherited = [warning for artifact in data.artifacts for warning in artifact.warnings]
    if restricted := [each.ref for each in data.artifacts if restricted_sources(each)]:
        words = f"This page holds restricted text (from {', '.join(restricted)}): keep it on this machine."
        inherited.insert(0, words)
    return list(dict.fromkeys([*inherited, *(each for artifact in data.artifacts for each in warnings_of(artifact))]))


def report_metrics(data: ReportData) -> dict[str, Any]:
    """Return the main figures by artifact, for the report's own `metrics.json`."""
    return {
        "win_rates": {each.ref: {"win_rate": found.win_rate} for each, found in data.of(m.ComparisonMetrics)},
        "reward_models": {each.ref: {"accuracy": found.test.accuracy} for each, found in data.of(m.RewardModelMetrics)},
        "pairs": {
            each.ref: {split: by.kept for split, by in found.pairing.items()}
            for each, found in data.of(m.PreferenceMetrics)
        },
    }


def _sections(data: ReportData) -> list[tuple[str, str, Sequence[Block | Table]]]:
    """Return title, anchor and blocks of each section that has any."""
    audits: list[Block | Table] = []
    for each, _ in data.of(m.AuditMetrics):
        audits += [Heading(each.name, (each,)), *_picked(each, "audit", "retest")]
    rewards: list[Block | Table] = []
    for each, model in data.of(m.RewardModelMetrics):
        rewards += [Heading(each.name, (each,)), *_picked(each, "reward", "pair_sources"), *_plots(each)]
        rewards += [*_picked(each, *REWARD_DETAILS, "lengths"), _duration(model.training)]
    for each, _ in (*data.of(m.PairEvaluationMetrics), *data.of(m.BestOfKMetrics)):
        rewards += [Heading(each.name, (each,)), *_picked(each, "reward", "best_of_k", "ties"), *_plots(each)]
        rewards += _picked(each, *REWARD_DETAILS)
    rates: list[Block | Table] = []
    quality: list[Block | Table] = []
    answers = {group.source.id: group for group in data.item_sets}
    for each, sides, _ in data.compared:
        heading = Heading(sides, (each,))
        plots = [*figures(each), *(length_plot(answers[each.id]) if each.id in answers else [])]
        rates += [heading, *_picked(each, "rates", "unanswered", "missing_by_topic"), *_shown(plots)]
        quality += [heading, *_picked(each, "text_quality")]
    side_by_side = "Policies side by side" if len(data.compared) > 1 else "By principle"
    others = [each for each in data.artifacts if each.kind not in _IN_SECTIONS]
    sections = [
        ("Main figures", "main-figures", _cards(data)),
        (side_by_side, "side-by-side", [*data.across, *_shown(overview_plots(data.compared))]),
        ("Win rate", "win-rate", [*rates, *paper_table(data.compared)]),
        ("Text quality", "text-quality", quality),
        ("Other evaluations", "evaluations", [block for each in others for block in _whole(each)]),
        ("Examples", "examples", _examples(data)),
        ("All answers", "answers", [Browser(embedded_items(data.item_sets))] if data.item_sets else []),
        ("Reward model", "reward", rewards),
        ("Policy", "policy", _policies(data)),
        ("Judge audit", "judge", audits),
        ("Ratings by principle", "ratings", [plot for each, _ in data.of(m.JudgementMetrics) for plot in _plots(each)]),
        ("From raw rows to pairs", "funnel", _funnel(data)),
        ("Where it came from", "lineage", _lineage(data)),
        ("All artifacts", "artifacts", [Artifacts(data.artifacts)]),
    ]
    return [section for section in sections if section[2]]


_IN_SECTIONS = (
    *("speeches", "candidates", "judgements", "audits", "preferences", "base-models", "reward-models"),
    *("reward-evaluations", "scores", "reference-logps", "policies", "probes", "comparisons", "reports"),
)
"""The kinds that the other sections show or lead to; of any other kind the report shows every table."""


def _plots(artifact: Artifact, rounds: Sequence[Artifact] = ()) -> list[Block]:
    return _shown(figures(artifact, rounds))


def _shown(plots: Sequence[Plot]) -> list[Block]:
    return [Plots(tuple(plots))] if plots else []


def _whole(artifact: Artifact) -> list[Block | Table]:
    return [Heading(f"{artifact.kind}: {artifact.name}", (artifact,)), *tables(artifact), *_plots(artifact)]


def _picked(artifact: Artifact, *keys: str) -> list[Table]:
    return [table for table in tables(artifact) if table.key in keys]


def _cards(data: ReportData) -> list[Block]:
    cards: list[Card] = []
    for each, against, compared in data.compared:
        if each.id in data.anchored:
            source, anchored = data.anchored[each.id]
            by = "by" if anchored.headline == "human_only" else "by the judge as corrected by"
            remark = f"{by} people's labels of {anchored.labelled} speeches: the rate to cite"
            cards.append(_rate_card(f"Win rate by people, {against}", anchored.rate, remark, source))
        rate = compared.win_rate
        flipped = f"; position-inconsistent: {percent(compared.position_inconsistent_rate.estimate)}"
        speeches = f"{compared.speeches} speeches{draws_each(compared.draws)}, {rate.missing} comparisons missing"
        by_judge = " by the judge" if each.id in data.anchored else ""
        cards.append(_rate_card(f"Win rate{by_judge}, {against}", rate, speeches + flipped, each))
        if controlled := compared.length_controlled.rate:
            cards.append(_rate_card(f"At equal length, {against}", controlled, "length-controlled win rate", each))
        else:
            cards.append(Card(f"At equal length, {against}", NONE, no_rate_at_equal_length(compared), "", (each,)))
    for each, crisis in data.of(m.CrisisMetrics):
        harm = f"harm in at most {percent(crisis.policy.harm.high)} of the items (one-sided, 95{PERCENT})"
        cards.append(Card("Ready for release", crisis.release_ready, harm, "; ".join(crisis.reasons), (each,)))
    for each, model in data.of(m.RewardModelMetrics):
        cards.append(_rate_card("Reward accuracy on test", model.test.accuracy, over(model.test.accuracy), each))
    for each, dataset in data.of(m.PreferenceMetrics):
        pairing = {split: dataset.pairing[split] for split in by_split(dataset.pairing)}
        kept = ", ".join(f"{by.kept} {split}" for split, by in pairing.items())
        remark = f"of {', '.join(f'{by.combinations} {split}' for split, by in pairing.items())} combinations"
        cards.append(Card("Preference pairs", str(sum(by.kept for by in pairing.values())), kept, remark, (each,)))
    return [Cards(tuple(cards))] if cards else []


def _rate_card(label: str, rate: Rate, remark: str, source: Artifact) -> Card:
    return Card(label, percent(rate.estimate), f"{confidence(source)} CI {interval(rate)}", remark, (source,))


def _sides(data: ReportData, comparison: Artifact) -> str:
    """Return `policy against reference` by the authors of the answers, where these are known."""
    names: list[str] = []
    for role in ("policy", "reference"):
        answers = data.parent_of(comparison, f"{role} answers")
        responder: dict[str, Any] = answers.manifest["settings"].get("responder", {}) if answers else {}
        names.append(str(responder.get("author", role)))
    return " against ".join(names)


def _lineage(data: ReportData) -> list[Block]:
    caption = (
        "Each box is an artifact: kind, name, short id and rows; rounds of an online run share a box, and a dashed "
        "line leads to the next round. Connections that a longer path implies are left out; the table at the end "
        "lists every parent."
    )
    return [Lineage(draw_lineage(data.artifacts), caption)] if data.artifacts else []


def _funnel(data: ReportData) -> list[Block | Table]:
    sources = [*data.of(m.SpeechMetrics), *data.of(m.ReadyCandidateMetrics), *data.of(m.PoolCandidateMetrics)]
    shown = [table for each, _ in sources for table in _picked(each, "funnel", "splits")]
    for each, _ in data.of(m.JudgementMetrics):
        shown += _picked(each, "funnel", "junk", "missing_by_topic", "samples")
    for each, _ in data.of(m.PreferenceMetrics):
        shown += _picked(each, "pairing", "flaws", "words")
    intro = Paragraph("In each line, kept and dropped together are all that came in; none is left out silently.")
    return [intro, *shown] if shown else []


def _duration(training: m.Training) -> Paragraph:
    return Paragraph(f"{training.steps} steps in {training.seconds:.0f} s.")


def _policies(data: ReportData) -> list[Block | Table]:
    blocks: list[Block | Table] = []
    for policy in data.final_policies:
        rounds = data.rounds_of(policy)
        metrics = cast(m.PolicyMetrics, metrics_of(policy))
        blocks += [Heading(policy.name, (policy,)), *_plots(policy, rounds), *_picked(policy, "rounds", "probes")]
        if metrics.rounds or len(rounds) > 1:
            # The earliest rounds may not be in the report.
            first = len(metrics.rounds or rounds) - len(rounds) + 1
            blocks.append(_sampling_table(data, dict(enumerate(rounds, start=first))))
        else:
            blocks += _picked(policy, "lengths")
        blocks.append(_duration(metrics.training))
    return blocks


def _sampling_table(data: ReportData, rounds: Mapping[int, Artifact]) -> Table:
    """Return what each round sampled and why answers gave no pair, as far as its artifacts are in the report."""
    rows: list[Row] = []
    for number, policy in rounds.items():
        pairs = data.parent_of(policy, "pairs")
        sampled = data.parent_of(pairs, "candidates") if pairs else None
        paired, answers = pairs and metrics_of(pairs), sampled and metrics_of(sampled)
        speeches = str(answers.speeches) if isinstance(answers, m.RoundCandidateMetrics) else NONE
        dropped: dict[str, int] = {}
        if isinstance(paired, m.RoundPairMetrics):
            left_out = {f"{reason} answers": count for reason, count in paired.left_out.items()}
            dropped = {**paired.pairing.dropped, **left_out}
        lengths = cast(m.PolicyMetrics, metrics_of(policy)).training.lengths
        not_trained_on = {why: count for why, count in lengths.items() if why != "kept"}
        rows.append((f"round {number}", speeches, reasons(dropped), reasons(not_trained_on)))
    header = ("", "speeches", "no pair or left out", "pairs not trained on")
    title = "Rounds: speeches sampled. A pair that does not fit max_length_tokens is dropped, never cut."
    return Table("sampling", title, header, "lrll", tuple(rows), tuple(rounds.values()))


_OUTCOMES = {
    "win": "The policy's answer is preferred in both orders.",
    "loss": "The reference's answer is preferred in both orders.",
    "tie": "A tie in both orders.",
    "position-inconsistent": "The verdict flipped with the order, which counts as a tie.",
    "missing": "No result: at least one order failed.",
}


def _examples(data: ReportData) -> list[Block]:
    """Return the first draws of the first speeches of each comparison."""
    blocks: list[Block] = []
    for group in data.item_sets:
        first_draws = list({each.speech.id: each for each in reversed(group.items)}.values())[::-1]
        if not group.compares or not data.examples or not first_draws:
            continue
        blocks.append(Heading(group.authors, (group.source,)))
        if len(first_draws) < len(group.items):
            blocks.append(Paragraph("The first draw for each speech."))
        for item in first_draws[: data.examples]:
            details = [f"{name}: {item.outcome(name)}" for name in group.criteria if name != OVERALL]
            outcome = _OUTCOMES[item.outcome(OVERALL)]
            outcome += f" By principle, for the policy: {', '.join(details)}." if details else ""
            blocks.append(Answers(item, outcome))
    intro = Paragraph("Selected by the hash of the speech. Speeches about crisis are folded away.")
    return [intro, *blocks] if blocks else []
