"""CorpusConfig -> the tables of its speeches and ready responses, with funnels that add up."""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from psychocounsel.config.corpus import CorpusConfig
from psychocounsel.domain import Candidate, ReplyStatus, Speech
from psychocounsel.errors import DataQualityError, IncompleteError, counted
from psychocounsel.speeches.candidate_reading import CandidateReading, SpeechIndex, read_candidates
from psychocounsel.speeches.cells import text_cell
from psychocounsel.speeches.kept import KeptSpeeches
from psychocounsel.speeches.near_duplicates import cluster_ids
from psychocounsel.speeches.reading import LIMIT, SpeechReading, beyond_limit, read_speeches
from psychocounsel.speeches.screens import Screens
from psychocounsel.speeches.splitting import SPLITS, assign_splits
from psychocounsel.speeches.topics import Assigned, Topic, TopicAssigner, Unassigned, unassigned_by_reason
from psychocounsel.store.artifacts import Artifact, Draft
from psychocounsel.store.tables.nouns import SplitSpeech, write_candidates, write_speeches
from psychocounsel.store.tables.readings import RowFate, read_row_fates, write_row_fates
from psychocounsel.store.tables.sources import read_rows, source_name

VERSION = 2

_BATCH = 4096

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Shows how far work with a label and a total is: a context that yields `advance(count)`."""


def no_progress(label: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    """Show nothing."""
    del label, total
    return nullcontext(lambda count: None)


def build_speeches(
    config: CorpusConfig, topics: TopicAssigner | None, draft: Draft, progress: Progress = no_progress
) -> None:
    """Read, clean, de-duplicate and split the speeches of a corpus.

    Raises:
        InputError: a source cannot be read.
        DataQualityError: nothing is left, a split stays empty, or too many speeches got no topic.
    """
    screens = Screens(config)
    with _read(config, screens, draft.work) as reading:
        left_out = beyond_limit(reading, config.cleaning.max_speeches)
        kept = _within_limit(reading, left_out, draft.work)
        assigned = [] if topics is None else _assign(topics, config, kept, progress)
        clusters = cluster_ids(kept.ids, kept.texts, config.split.near_duplicate_similarity)
        splits = assign_splits(clusters, kept.topics, config.split)
        write_speeches(draft, _rows(kept, splits, clusters))
        write_row_fates(draft, _with_limit(reading.fates(), left_out))
        draft.write_metrics(
            {
                "funnel": reading.funnel.as_dict(),
                "sources": _sources(config, kept),
                "topics": _counts(kept.topics),
                "fine_topics": _counts(kept.fine_topics),
                "without_topic": unassigned_by_reason(assigned),
                "splits": {name: splits.count(name) for name in SPLITS},
                "topics_by_split": _by_split(splits, kept.topics),
                "clusters": len(np.unique(clusters)),
                "near_duplicates": len(kept) - len(np.unique(clusters)),
                "crisis": kept.crisis_count,
                "deidentification": screens.found(),
            }
        )


@contextmanager
def _read(config: CorpusConfig, screens: Screens, folder: Path) -> Generator[SpeechReading]:
    sources = (
        (source_name(each.path), each.columns, read_rows(each.path, each.split, each.config))
        for each in config.speeches
    )
    reading = read_speeches(sources, config.cleaning, screens.for_speeches, folder)
    try:
        if not reading.kept:
            raise DataQualityError(
                f"no speech is left of {reading.funnel.rows_in} rows: {counted(reading.funnel.dropped)}",
                where="corpus.speeches",
                remedy="check the columns, or loosen corpus.cleaning",
            )
        yield reading
    finally:
        reading.close()


def _within_limit(reading: SpeechReading, left_out: frozenset[int], folder: Path) -> KeptSpeeches:
    if not left_out:
        return reading.kept
    places = (at for at in range(len(reading.kept)) if at not in left_out)
    return reading.kept.chosen(places, folder / "chosen.texts")


def _with_limit(fates: Iterable[RowFate], left_out: frozenset[int]) -> Iterator[RowFate]:
    """Yield what became of each row, now that it is known which kept speeches the limit leaves out."""
    place = 0
    for fate in fates:
        if fate.reason:
            yield fate
            continue
        beyond = place in left_out
        yield fate._replace(dropped_by=LIMIT, reason="beyond_max_speeches") if beyond else fate
        place += 1


def _assign(
    assigner: TopicAssigner, config: CorpusConfig, kept: KeptSpeeches, progress: Progress
) -> list[Assigned]:
    """Give every speech its topic, where one was found; the others have none, whatever their source said."""
    assigned: list[Assigned] = []
    speeches = iter(kept)
    with progress("naming topics", len(kept)) as advance:
        while batch := list(islice(speeches, _BATCH)):
            assigned += assigner.assign(batch, advance)
    for at, topic in enumerate(assigned):
        kept.name_topic(at, *(topic if isinstance(topic, Topic) else ("", "")))
    _require_few_failed(assigned, config)
    return assigned


def _require_few_failed(assigned: Sequence[Assigned], config: CorpusConfig) -> None:
    failed = Counter(each.reason for each in assigned if isinstance(each, Unassigned) and each.is_failure)
    if lost := failed[ReplyStatus.ERROR.value]:
        raise IncompleteError(
            f"{lost} of {len(assigned)} speeches got no answer from whom names topics",
            where="corpus.topics.endpoint",
            remedy="see to the endpoint, then run the same command again; only what is owed is asked",
        )
    allowed = 0.0 if config.topics is None else config.topics.max_missing_share
    if failed.total() > allowed * len(assigned):
        raise DataQualityError(
            f"{failed.total()} of {len(assigned)} speeches got no topic: {counted(failed)}",
            where="corpus.topics.max_missing_share",
            remedy="run the same command to ask those again",
        )


def _rows(kept: KeptSpeeches, splits: Iterable[str], clusters: NDArray[np.uint64]) -> Iterator[SplitSpeech]:
    for speech, split, cluster in zip(kept, splits, clusters.tolist(), strict=True):
        yield SplitSpeech(speech, split, f"{cluster:016x}")


def _sources(config: CorpusConfig, kept: KeptSpeeches) -> list[dict[str, Any]]:
    """Tell of each source once, though several columns of it may be read."""
    speeches = Counter(kept.sources)
    terms = {source_name(each.path): (each.licence, each.data_class) for each in config.speeches}
    return [
        {"name": name, "licence": licence, "data_class": data_class, "speeches": speeches[name]}
        for name, (licence, data_class) in terms.items()
    ]


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _by_split(splits: Iterable[str], topics: Iterable[str]) -> dict[str, dict[str, int]]:
    counts = Counter(zip(splits, topics, strict=True))
    return {
        split: {topic: counts[at, topic] for at, topic in sorted(counts) if at == split} for split in SPLITS
    }


def build_candidates(config: CorpusConfig, speeches: Artifact, draft: Draft) -> None:
    """Read and clean the ready responses to the speeches of a corpus.

    Raises:
        DataQualityError: no response is left.
    """
    screens = Screens(config)
    reading = _read_candidates(config, SpeechIndex(read_row_fates(speeches)), screens)
    if not reading.candidates:
        raise DataQualityError(
            f"no response is left: {counted(reading.funnel.dropped)}",
            where="corpus.candidates",
            remedy="check that speech_key or speech_text names the column that repeats the speech",
        )
    write_candidates(draft, reading.candidates)
    write_row_fates(draft, reading.fates)
    draft.write_metrics({"funnel": reading.funnel.as_dict(), "deidentification": screens.found()})


def _read_candidates(config: CorpusConfig, index: SpeechIndex, screens: Screens) -> CandidateReading:
    sources = [
        (source_name(each.path), each.columns, list(read_rows(each.path, each.split, each.config)))
        for each in config.candidates
    ]
    authors = {text_cell(row, columns.author) for _, columns, rows in sources for row in rows}
    return read_candidates(sources, index, screens.for_candidates(authors))


class Corpus(NamedTuple):
    """The speeches of a corpus and the ready responses to them, in memory."""

    speeches: list[Speech]
    candidates: list[Candidate]


def read_corpus(config: CorpusConfig) -> Corpus:
    """Read and clean a corpus without making an artifact of it, its topics left as the sources give them."""
    screens = Screens(config)
    with TemporaryDirectory() as folder, _read(config, screens, Path(folder)) as reading:
        left_out = beyond_limit(reading, config.cleaning.max_speeches)
        speeches = list(_within_limit(reading, left_out, Path(folder)))
        index = SpeechIndex(_with_limit(reading.fates(), left_out))
        return Corpus(speeches, _read_candidates(config, index, screens).candidates)
