"""DatasetFacts -> tables of its card about the labels: rubric, judge, ratings, authors, pairs."""

from collections.abc import Mapping
from typing import cast

from psychocounsel.reporting.blocks import Table, reason_words
from psychocounsel.reporting.card_facts import DatasetFacts
from psychocounsel.reporting.card_shapes import NOTHING, card_table, most_first, share
from psychocounsel.reporting.report_data import in_order


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
