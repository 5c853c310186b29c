"""What stands for data in a dry run: a corpus as large as expected, and the answers that probes will compare."""

from collections.abc import Mapping

from psychocounsel.config.corpus import CorpusConfig
from psychocounsel.corpus.build import corpus_specs, make_corpus
from psychocounsel.corpus.topics import TopicAssigner
from psychocounsel.errors import StoreError
from psychocounsel.judging.judge import compare_in_both_orders
from psychocounsel.llm.session import NUMBERS, Session
from psychocounsel.stages.online import OnlineDpo
from psychocounsel.stages.probe import Probe
from psychocounsel.stages.respond import placeholder
from psychocounsel.store.artifacts import Artifact, ArtifactSpec, ArtifactWriter, parent_in
from psychocounsel.store.hub import fetched_dataset
from psychocounsel.store.references import HUB
from psychocounsel.store.schemas import RewardScore, SplitSpeech, write_speeches
from psychocounsel.types import Candidate, SampledAnswer, Speech

_ESTIMATE = "estimate"
PAPERS_CHARS = 550
"""Halfway between the lengths that the paper keeps."""
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
    if not absent:
        make_corpus(config, store, topics)
        return
    if config.expected_speeches is None or config.candidates:
        session.stop_counting(f"counted once {absent[0]} is on this machine: psychocounsel fetch RECIPE")
    shares = {"test": config.split.test_share, "dev": config.split.dev_share}
    splits = {split: round(share * config.expected_speeches) for split, share in shares.items()}
    splits["train"] = config.expected_speeches - sum(splits.values())
    chars = (config.cleaning.min_chars + config.cleaning.max_chars) // 2
    placeholders = make_placeholders(speeches, splits, session, chars)
    if topics is not None:
        topics.assign(placeholders, lambda count: None)


def make_placeholders(spec: ArtifactSpec, splits: Mapping[str, int], session: Session, chars: int) -> list[Speech]:
    """Make the speeches of a spec in the overlay of a dry run: so many in each split, with texts of their own."""
    filler = _FILLER * (chars // len(_FILLER) + 1)
    names = [split for split, count in splits.items() for _ in range(count)]
    rows = [
        SplitSpeech(Speech(f"({next(NUMBERS):08}) {filler}"[:chars]), split, f"{number:016x}")
        for number, split in enumerate(names)
    ]
    session.estimate = f"{len(rows):,} speeches of {chars} characters, until `psychocounsel fetch` has the real ones"

    def write(writer: ArtifactWriter) -> None:
        writer.notes[_ESTIMATE] = session.estimate
        write_speeches(writer, rows)

    session.store.make(spec, write)
    return [row.speech for row in rows]


def count_probes(run: OnlineDpo) -> None:
    """Have the judge of an online run's probes compare placeholders, as often as if no limit ended the rounds.

    Ends the dry run where the speeches do not exist yet.
    """
    plan, probe, session, store = run.plan, run.online.probe, run.session, run.store
    is_made = store.find(plan.expected(store, run.online.stop_when)[1]) is not None
    if is_made or probe.judge is None or not probe.judge.endpoints:
        return
    speeches = parent_in(plan.outcome.parents, "speeches", plan.outcome.ref)
    try:
        corpus = store.open(speeches)
    except StoreError:
        session.stop_counting(f"counted once {speeches.ref} exists; run the recipe until the step that makes it")
    note_estimate(corpus, session)

    def answer(speech: Speech, number: int, draw: int) -> Candidate:
        return placeholder(session, speech, f"round {number}", draw, run.online.sampling.max_new_tokens)

    judge, asked = run.open_judge(probe.judge), run.probe_speeches(corpus)
    for number, spec in enumerate((plan.initial_probe, *(each.probe for each in plan.rounds))):
        if store.find(spec) is None:
            initial, own = (
                [answer(each, of, draw) for each in asked for draw in range(probe.draws)] for of in (0, number)
            )
            sampled = [SampledAnswer(each, None) for each in own]
            scores = [RewardScore(each.id, each.draw, each.draw, 0) for each in own]  # none are equal
            against, ranked = Probe(asked, sampled, scores).compared(initial if number else [])
            compare_in_both_orders(judge, [*against, *ranked], lambda count: None)


def note_estimate(speeches: Artifact, session: Session) -> None:
    """Have the calls of a dry run say that they are an estimate, if the speeches are placeholders."""
    session.estimate = speeches.manifest["notes"].get(_ESTIMATE, "")
