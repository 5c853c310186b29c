"""ReportData -> one HTML page: no script, no remote asset; light, dark and on paper."""

from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined

from psychocounsel.reporting.lineage import draw_lineage
from psychocounsel.reporting.sections import (
    Sides,
    confidence_words,
    data_section,
    examples_section,
    health_section,
    judge_section,
    obedience_warning,
    ratings_section,
    sides_of,
    winrate_section,
)
from psychocounsel.reporting.tables import (
    BASELINES,
    ArtifactFacts,
    Card,
    Cards,
    Ledger,
    Lineage,
    ReportData,
    Section,
    count_words,
    in_order,
    interval_words,
    percent,
)
from psychocounsel.reporting.training_sections import policy_section, reward_section
from psychocounsel.types import Rate

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
)


def render_report(data: ReportData) -> str:
    """Return the page; equal data give an equal page."""
    environment = Environment(
        loader=PackageLoader("psychocounsel.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections = [section for section in _sections(data) if section.blocks]
    return environment.get_template("report.html.j2").render(
        data=data, policy=CONTENT_SECURITY_POLICY, notices=notices(data), sections=sections
    )


def notices(data: ReportData) -> list[str]:
    """Return what must head the page: notices of every artifact, then warnings about who judged."""
    inherited = [notice for artifact in data.artifacts for notice in artifact.notices]
    verdicts = data.of_kind("comparisons")
    warned = [_family_warning(each) for each in verdicts if each.value("judges", "same_family")]
    own = [_own_family_warning(each, sides_of(data, each)) for each in verdicts]
    obeying = [obedience_warning(each) for each in data.of_kind("audits")]
    warnings = [*warned, *(warning for warning in (*own, *obeying) if warning)]
    return list(dict.fromkeys([*inherited, *warnings]))


def _family_warning(verdicts: ArtifactFacts) -> str:
    labels = ", ".join(str(each) for each in verdicts.sequence("judges", "labels"))
    return (
        f"The judge of the labels ({labels}) and the judge of the win rate "
        f"({verdicts.value('judges', 'evaluation')}) are of one family: the win rate says how well the "
        "policy learned that judge's taste, and is no independent evidence of quality."
    )


def _own_family_warning(verdicts: ArtifactFacts, sides: Sides) -> str:
    """Say that a judge compares answers of its own make; nothing where it does not."""
    own = [str(side) for side in verdicts.sequence("judges", "own_family")]
    if not own:
        return ""
    return (
        f"The judge of the win rate ({verdicts.value('judges', 'evaluation')}) is of one make with "
        f"{' and '.join(_author_and_models(verdicts, sides, side) for side in own)}, whose answers it "
        "compares: models tend to favour their own (arXiv 2404.13076)."
    )


def _author_and_models(verdicts: ArtifactFacts, sides: Sides, side: str) -> str:
    models = ", ".join(map(str, verdicts.sequence("judges", "judged", side)))
    return f"{sides._asdict()[side]} ({models})"


def headline_numbers(data: ReportData) -> dict[str, object]:
    """Return the headline figures by artifact, the shape of the report's own `metrics.json`."""
    return {
        "win_rates": {
            each.ref: {
                "win_rate": each.value("win_rate"),
                "length_controlled": each.value("length_controlled", "rate"),
                "position_inconsistent_rate": each.value("position_inconsistent_rate"),
            }
            for each in data.of_kind("comparisons")
        },
        "reward_models": {
            each.ref: {"accuracy": each.value("test", "accuracy"), "baselines": each.value("baselines")}
            for each in data.of_kind("reward-models")
        },
        "pairs": {
            each.ref: {split: counts["kept"] for split, counts in in_order(each.table("pairing")).items()}
            for each in data.datasets
        },
        **_audit_numbers(data),
    }


def _audit_numbers(data: ReportData) -> dict[str, object]:
    shown = {
        each.ref: {
            "equal": each.value("retest", "equal"),
            "kappa": each.value("retest", "kappa"),
            "halo": each.value("halo"),
            "gain": each.value("canaries", "gain"),
            "resists": each.value("canaries", "resists"),
        }
        for each in data.of_kind("audits")
    }
    return {"audits": shown} if shown else {}


def _sections(data: ReportData) -> list[Section]:
    return [
        _headline_section(data),
        _lineage_section(data),
        data_section(data),
        ratings_section(data),
        judge_section(data),
        reward_section(data),
        policy_section(data),
        winrate_section(data),
        health_section(data),
        examples_section(data),
        Section("All artifacts", "artifacts", (Ledger(data.artifacts),)),
    ]


def _headline_section(data: ReportData) -> Section:
    cards = [card for each in data.of_kind("comparisons") for card in _winrate_cards(data, each)]
    cards += [card for each in data.of_kind("reward-models") for card in _reward_cards(each)]
    cards += [_pairs_card(each) for each in data.datasets if each.table("pairing")]
    return Section("Headline figures", "headline", (Cards(tuple(cards)),) if cards else ())


def _winrate_cards(data: ReportData, verdicts: ArtifactFacts) -> list[Card]:
    sides = sides_of(data, verdicts)
    against = f"{sides.policy} against {sides.reference}"
    confidence = confidence_words(verdicts)
    raw, controlled = verdicts.rate("win_rate"), verdicts.rate("length_controlled", "rate")
    flips = verdicts.rate("position_inconsistent_rate")
    flip_words = f"; the two orders disagree on {percent(flips.estimate)}" if flips else ""
    cards: list[Card] = []
    if raw is not None:
        remark = f"{count_words(raw)}{flip_words}"
        cards.append(_rate_card(f"Win rate, {against}", raw, confidence, remark, [verdicts]))
    if controlled is not None:
        remark = "length-controlled win rate"
        cards.append(_rate_card(f"At equal length, {against}", controlled, confidence, remark, [verdicts]))
    return cards


def _reward_cards(model: ArtifactFacts) -> list[Card]:
    accuracy = model.rate("test", "accuracy")
    if accuracy is None:
        return []
    rates = {words.short: model.rate("baselines", name) for name, words in BASELINES.items()}
    beside = ", ".join(
        f"{words} {percent(rate.estimate)}" if rate else f"{words}: no such pair" for words, rate in rates.items()
    )
    remark = f"{count_words(accuracy)}. Beside it: {beside}"
    return [_rate_card("Reward accuracy on test", accuracy, "95 %", remark, [model])]


def _rate_card(label: str, rate: Rate, confidence: str, remark: str, sources: Sequence[ArtifactFacts]) -> Card:
    interval = f"{confidence} CI {interval_words(rate)}"
    return Card(label, percent(rate.estimate), interval, remark, tuple(sources))


def _pairs_card(dataset: ArtifactFacts) -> Card:
    kept = {split: int(counts["kept"]) for split, counts in in_order(dataset.table("pairing")).items()}
    by_split = ", ".join(f"{count} {split}" for split, count in kept.items())
    looked_at = sum(int(counts["combinations"]) for counts in dataset.table("pairing").values())
    return Card("Preference pairs", str(sum(kept.values())), by_split, f"of {looked_at} combinations", (dataset,))


def _lineage_section(data: ReportData) -> Section:
    caption = (
        "Each box is an artifact: kind, name, short id and rows; rounds of an online run share a box, and a "
        "dashed line leads to the next round. Connections that a longer way implies are left out; the table "
        "at the end lists every parent."
    )
    wide, tall = (draw_lineage(data.artifacts, tall=tall) for tall in (False, True))
    return Section("Where it came from", "lineage", (Lineage(wide, tall, caption),) if data.artifacts else ())
