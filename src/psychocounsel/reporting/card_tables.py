"""DatasetFacts -> tables of its card: every figure in cells, each table with the artifacts it was read from.

What an artifact's metrics do not tell gives no table.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, cast

from psychocounsel.reporting.card_facts import DatasetFacts, conditions_of, strictest_first
from psychocounsel.reporting.tables import (
    NOTHING,
    ArtifactFacts,
    Table,
    card_table,
    in_order,
    most_first,
    reason_words,
    share,
    words,
)

_FUNNEL_HEADER = ("step", "rows in", "rows out", "changed", "dropped, by reason")


class Source(NamedTuple):
    """A source of client speeches; `speeches` is None where nobody counted them."""

    name: str
    licence: str
    data_class: str
    speeches: int | None = None


def sources(facts: DatasetFacts) -> list[Source]:
    """Return the sources of the speeches, as the corpus counted them, else as its settings name them."""
    if facts.speeches is None:
        return []
    named = facts.speeches.sequence("sources") or facts.speeches.settings.get("speeches", ())
    return [
        Source(
            str(each.get("name") or _place(each.get("path"))),
            each.get("licence", NOTHING),
            each.get("data_class", NOTHING),
            each.get("speeches", each.get("rows")),
        )
        for each in cast(Iterable[Mapping[str, Any]], named)
    ]


def _place(path: object) -> str:
    if not isinstance(path, Mapping):
        return str(path or NOTHING)
    place = cast(Mapping[str, Any], path)
    return f"hub:{place['hub']}" if "hub" in place else f"file with SHA-256 {str(place.get('sha256'))[:12]}"


def source_table(facts: DatasetFacts) -> Table | None:
    """Return every source with its licence and class."""
    found = sources(facts)
    if facts.speeches is None or not found:
        return None
    rows = [
        (each.name, each.licence, each.data_class, NOTHING if each.speeches is None else str(each.speeches))
        for each in found
    ]
    return card_table("", ("source", "licence", "class", "speeches kept"), "lllr", rows, facts.speeches)


def licence_table(facts: DatasetFacts) -> Table | None:
    """Return what each licence asks for, the strictest first."""
    rows: list[tuple[str, ...]] = []
    for licence in strictest_first([*facts.licences, *(each.licence for each in sources(facts))]):
        asked = conditions_of(licence)
        told = "terms of its own: read them" if asked is None else "; ".join(asked) or "nothing"
        rows.append((licence, told))
    return card_table("", ("licence", "asks for"), "ll", rows) if rows else None


def funnel_tables(facts: DatasetFacts) -> list[Table]:
    """Return the way from raw rows to judged responses, step by step."""
    corpora = [] if facts.speeches is None else [facts.speeches]
    tables = [_funnel(f"Client speeches, {each.ref}", each) for each in corpora if each.table("funnel")]
    for each in facts.candidates:
        title = f"Responses, {each.ref}"
        if each.table("funnel"):
            tables.append(_funnel(title, each))
        elif each.value("kept") is not None:
            tables.append(_asked(title, each))
    return tables


def _funnel(title: str, artifact: ArtifactFacts) -> Table:
    steps = cast(Iterable[Mapping[str, Any]], artifact.sequence("funnel", "steps"))
    rows = [_step(each["step"], each["rows_in"], each["rows_out"], each) for each in steps]
    whole = artifact.table("funnel")
    rows.append(_step("together", whole.get("rows_in", 0), whole.get("kept", 0), whole))
    return card_table(title, _FUNNEL_HEADER, "lrrrl", rows, artifact)


def _step(name: str, rows_in: int, rows_out: int, step: Mapping[str, Any]) -> tuple[str, ...]:
    changed = step.get("changed", NOTHING)
    return (words(name), str(rows_in), str(rows_out), str(changed), reason_words(dict(step["dropped"])))


def _asked(title: str, artifact: ArtifactFacts) -> Table:
    kept = int(artifact.number("kept") or 0)
    dropped = {"repeated_text": int(artifact.number("repeated_text") or 0)}
    for by_status in cast(Mapping[str, Mapping[str, int]], artifact.table("failed")).values():
        for status, count in by_status.items():
            dropped[status] = dropped.get(status, 0) + count
    rows_in = kept + sum(dropped.values())
    row = _step("answers asked of the pool", rows_in, kept, {"dropped": dropped})
    return card_table(title, _FUNNEL_HEADER, "lrrrl", [row], artifact)


def deidentification_table(facts: DatasetFacts) -> Table | None:
    """Return what was replaced by kind, and how well the marked identifiers of the evaluation set were found."""
    if facts.speeches is None:
        return None
    in_speeches = _replaced(facts.speeches)
    in_responses = sum((_replaced(each) for each in facts.candidates), Counter[str]())
    planted = cast(Mapping[str, Mapping[str, int]], facts.speeches.table("deidentification", "pii_evaluation"))
    names = sorted({*in_speeches, *in_responses, *planted})
    if not names:
        return None
    rows = [
        (name, str(in_speeches[name]), str(in_responses[name]), *_on_planted(planted.get(name, {}))) for name in names
    ]
    together = cast(Mapping[str, int], facts.speeches.table("deidentification", "pii_evaluation_overall"))
    replaced = (str(in_speeches.total()), str(in_responses.total()))
    rows.append(("together", *replaced, *_on_planted(together)))
    header = ("identifier", "in speeches", "in responses", "marked", "recall", "precision")
    return card_table("", header, "lrrrrr", rows, facts.speeches, *facts.candidates)


def _replaced(artifact: ArtifactFacts) -> Counter[str]:
    return Counter(cast(Mapping[str, int], artifact.table("deidentification", "found")))


def _on_planted(counts: Mapping[str, int]) -> tuple[str, str, str]:
    """Return how many were planted, how many of these were found, how many of all finds are true."""
    found, false = counts.get("found", 0), counts.get("false", 0)
    finds = counts.get("finds", found + false)
    planted = counts.get("marked", 0)
    return (str(planted or NOTHING), share(found, planted), share(finds - false, finds))


def topic_table(facts: DatasetFacts) -> Table | None:
    """Return the speeches by topic."""
    return _counted(facts.speeches, "topics", "topic")


def fine_topic_table(facts: DatasetFacts) -> Table | None:
    """Return the speeches by part of a topic."""
    return _counted(facts.speeches, "fine_topics", "fine topic")


def topics_are_by_cues(facts: DatasetFacts) -> bool:
    """Whether words of the taxonomy gave the speeches their topics, and no model did."""
    topics = None if facts.speeches is None else facts.speeches.settings.get("topics")
    return topics is not None and topics.get("backend") == "offline"


def _counted(speeches: ArtifactFacts | None, key: str, title: str) -> Table | None:
    if speeches is None or not speeches.table(key):
        return None
    counts = cast(Mapping[str, int], speeches.table(key))
    if not any(counts):
        return None  # no speech has a name there
    whole = sum(counts.values())
    rows = [(name or "none", str(count), share(count, whole)) for name, count in most_first(counts).items()]
    return card_table("", (title, "speeches", "share"), "lrr", rows, speeches)


def split_table(facts: DatasetFacts) -> Table:
    """Return speeches and pairs of every split."""
    speeches = {} if facts.speeches is None else in_order(facts.speeches.table("splits"))
    names = [name for name in ("train", "dev", "test") if name in facts.rows or name in speeches]
    rows = [(name, str(speeches.get(name, NOTHING)), str(facts.rows.get(name, 0))) for name in names]
    total = str(sum(speeches.values())) if speeches else NOTHING
    rows.append(("together", total, str(sum(facts.rows.values()))))
    read = [each for each in (facts.speeches, facts.dataset) if each is not None]
    return card_table("", ("split", "speeches", "pairs"), "lrr", rows, *read)


def flaw_table(facts: DatasetFacts) -> Table | None:
    """Return the known flaws of an imported dataset, by split."""
    return None if facts.dataset is None else flaws_of(facts.dataset)


def flaws_of(dataset: ArtifactFacts, caption: str = "") -> Table | None:
    """Return how many rows of an imported dataset have each flaw, by split; None for one made here."""
    by_split = cast(Mapping[str, Mapping[str, float | None]], in_order(dataset.table("flaws")))
    flaws = dict.fromkeys(flaw for counts in by_split.values() for flaw in counts)
    rows = [(words(flaw), *(_number(counts.get(flaw)) for counts in by_split.values())) for flaw in flaws]
    header = ("of the rows", *by_split)
    return card_table(caption, header, "l" + "r" * len(by_split), rows, dataset) if rows else None


def _number(value: float | None) -> str:
    if value is None:
        return "not counted"
    return str(value) if isinstance(value, int) else f"{value:.1f}"


def word_table(facts: DatasetFacts) -> Table | None:
    """Return the length of both sides, by split."""
    if facts.dataset is None or not facts.words:
        return None
    rows = [
        (split, side, *_spread(counts))
        for split, sides in in_order(facts.words).items()
        for side, counts in sides.items()
    ]
    header = ("split", "side", "mean words", "median", "95 % have at most")
    return card_table("", header, "llrrr", rows, facts.dataset)


def _spread(counts: Mapping[int, int]) -> tuple[str, str, str]:
    mean = sum(length * count for length, count in counts.items()) / sum(counts.values())
    return (f"{mean:.1f}", str(_quantile(counts, 50)), str(_quantile(counts, 95)))


def _quantile(counts: Mapping[int, int], percentage: int) -> int:
    """Return the smallest length that so many percent of the texts do not pass."""
    whole, seen = sum(counts.values()), 0
    for length in sorted(counts):
        seen += counts[length]
        if 100 * seen >= percentage * whole:
            return length
    raise ValueError("no text was counted")


def lineage_table(facts: DatasetFacts) -> Table | None:
    """Return the dataset and everything it came from, with full ids."""
    if not facts.artifacts:
        return None
    rows = [
        (each.kind, each.ref, f"{each.stage} {each.version}", _row_counts(each), each.id) for each in facts.artifacts
    ]
    return card_table("", ("kind", "artifact", "stage and version", "rows", "id (SHA-256)"), "lllll", rows)


def _row_counts(artifact: ArtifactFacts) -> str:
    """Return the rows of each table by its name, that of a split without its number."""
    tables = {name.rpartition("/")[2].partition(".")[0]: count for name, count in artifact.rows.items()}
    return ", ".join(f"{count} {name.partition('-')[0]}" for name, count in tables.items())


def rubric_table(facts: DatasetFacts) -> Table | None:
    """Return the principles by id and name."""
    if facts.rubric is None:
        return None
    return card_table("", ("column", "principle"), "ll", list(facts.rubric.names.items()))


def judge_table(facts: DatasetFacts) -> Table | None:
    """Return who judged, by the name that the replies gave."""
    if facts.judgements is None or not facts.judges:
        return None
    rows = [(name, str(count)) for name, count in most_first(facts.judges).items()]
    return card_table("", ("judge, as its replies named it", "judgements"), "lr", rows, facts.judgements)


def missing_table(facts: DatasetFacts) -> Table | None:
    """Return the share of judgements that failed, whole and by topic, where any did."""
    if facts.judgements is None or not facts.judgements.table("status"):
        return None
    status = cast(Mapping[str, int], facts.judgements.table("status"))
    judged = int(facts.judgements.number("judged") or 0)
    failed = {name: count for name, count in status.items() if name != "valid" and count}
    rows = [_missing("all", judged, sum(failed.values()), reason_words(failed))]
    by_topic = cast(Mapping[str, Mapping[str, int]], facts.judgements.table("missing_by_topic"))
    for topic, counts in by_topic.items():
        if counts["missing"]:
            rows.append(_missing(topic or "without a topic", counts["total"], counts["missing"], NOTHING))
    header = ("topic", "judged", "missing", "share", "reasons")
    return card_table("", header, "lrrrl", rows, facts.judgements)


def _missing(topic: str, judged: int, missing: int, reasons: str) -> tuple[str, ...]:
    return (topic, str(judged), str(missing), share(missing, judged), reasons)


def rating_table(facts: DatasetFacts) -> Table | None:
    """Return how often each rating was given, by principle."""
    counts = ratings_by_principle(facts)
    ratings = scale(facts)
    if facts.judgements is None or not counts or not ratings:
        return None
    rows = [(name, *(str(by.get(rating, 0)) for rating in ratings)) for name, by in counts.items()]
    return card_table("", ("principle", *ratings), "l" + "r" * len(ratings), rows, facts.judgements)


def ratings_by_principle(facts: DatasetFacts) -> dict[str, Mapping[str, int]]:
    """Return how often each rating was given, the principles in the order of the columns."""
    if facts.judgements is None:
        return {}
    counts = cast(Mapping[str, Mapping[str, int]], facts.judgements.table("histograms"))
    known = [name for name in facts.principles if name in counts]
    return {name: counts[name] for name in dict.fromkeys([*known, *counts])}


def scale(facts: DatasetFacts) -> list[str]:
    """Return every rating there is, the lowest first; without a rubric, every one that was given."""
    given = {rating for by in ratings_by_principle(facts).values() for rating in by}
    if facts.rubric is not None:
        given |= {str(rating) for rating in range(facts.rubric.minimum, facts.rubric.maximum + 1)}
    return sorted(given, key=int)


def author_table(facts: DatasetFacts) -> Table | None:
    """Return the rated responses of every author, most responses first."""
    if facts.judgements is None or not facts.scores_by_author:
        return None
    rows = [(each.author, str(each.responses), f"{each.mean:.2f}") for each in facts.scores_by_author]
    header = ("author", "rated responses", "mean rating")
    return card_table("", header, "lrr", rows, *facts.candidates, facts.judgements)


def pairing_table(facts: DatasetFacts) -> Table | None:
    """Return what became of every combination of two responses."""
    if facts.dataset is None or not facts.dataset.table("pairing"):
        return None
    rows = [
        (split, str(by["combinations"]), str(by["kept"]), reason_words(dict(by["dropped"])))
        for split, by in in_order(facts.dataset.table("pairing")).items()
    ]
    header = ("split", "combinations", "pairs", "dropped, by reason")
    return card_table("", header, "lrrl", rows, facts.dataset)
