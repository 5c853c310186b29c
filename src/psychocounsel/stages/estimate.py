"""The corpus of a dry run: the real one where its data are here, else placeholders as many as are expected."""

from collections.abc import Iterator

from psychocounsel.config.corpus import CorpusConfig
from psychocounsel.corpus.build import corpus_specs, make_corpus
from psychocounsel.corpus.topics import TopicAssigner
from psychocounsel.llm.session import Session
from psychocounsel.store.artifacts import Artifact, ArtifactWriter
from psychocounsel.store.hub import fetched_dataset
from psychocounsel.store.references import HUB
from psychocounsel.store.schemas import SplitSpeech, write_speeches
from psychocounsel.types import Speech

_ESTIMATE = "estimate"
_FILLER = "I have felt low for weeks and do not know what to do. "


def count_corpus(config: CorpusConfig, session: Session, topics: TopicAssigner | None) -> None:
    """Make the corpus in the overlay of a dry run; what is on the Hub and not fetched is estimated.

    Ends the dry run where nothing says how many speeches to expect.
    """
    store, speeches = session.store, corpus_specs(config, topics).speeches
    found = store.find(speeches)
    if found is not None:
        note_estimate(found, session)
        return
    paths = [each.path for each in (*config.speeches, *config.candidates, *config.exclude)]
    absent = [path for path in paths if path.startswith(HUB) and fetched_dataset(path.removeprefix(HUB)) is None]
    if not absent or config.prepared:
        make_corpus(config, store, topics)
        return
    if config.expected_speeches is None or config.candidates:
        session.stop_counting(f"counted once {absent[0]} is on this machine: psychocounsel fetch RECIPE")
    placeholders = list(_placeholders(config, config.expected_speeches))
    chars = len(placeholders[0].speech.text)
    session.estimate = (
        f"{len(placeholders):,} speeches of {chars} characters, until psychocounsel fetch RECIPE has the real ones"
    )

    def write(writer: ArtifactWriter) -> None:
        writer.notes[_ESTIMATE] = session.estimate
        write_speeches(writer, placeholders)

    if topics is not None:
        topics.assign([each.speech for each in placeholders], lambda count: None)
    store.make(speeches, write)


def note_estimate(speeches: Artifact, session: Session) -> None:
    """Have the calls of a dry run say that they are an estimate, if the speeches are placeholders."""
    session.estimate = speeches.manifest["notes"].get(_ESTIMATE, "")


def _placeholders(config: CorpusConfig, count: int) -> Iterator[SplitSpeech]:
    """Yield texts of their own, halfway between the shortest and the longest that cleaning keeps, for all splits."""
    chars = (config.cleaning.min_chars + config.cleaning.max_chars) // 2
    test, dev = (round(share * count) for share in (config.split.test_share, config.split.dev_share))
    filler = _FILLER * (chars // len(_FILLER) + 1)
    for number in range(count):
        split = "test" if number < test else "dev" if number < test + dev else "train"
        yield SplitSpeech(Speech(f"({number}) {filler}"[:chars]), split, f"{number:016x}")
