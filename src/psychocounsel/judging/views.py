"""Speech, response -> ClientView, ReplyView: both texts taken apart once, before anything is weighed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from psychocounsel.domain import Speech
from psychocounsel.judging.coherence import FormFaults, form_faults, ramp
from psychocounsel.judging.lexicon import Lexicon, load_lexicon
from psychocounsel.judging.questions import QuestionKind, classify
from psychocounsel.judging.words import Hit, Sentence, split_sentences, split_words, stem


@dataclass(frozen=True)
class ClientView:
    """What a speech says about its client: feelings, own words, danger, readiness to act."""

    words: tuple[str, ...]
    feelings: frozenset[str]
    own_words: Mapping[str, float]
    in_crisis: bool
    readiness: float


@dataclass(frozen=True)
class ReplyView:
    """A response taken apart once, for all features."""

    sentences: tuple[Sentence, ...]
    words: tuple[str, ...]
    hits: Mapping[str, tuple[Hit, ...]]
    feelings: Mapping[str, str]
    questions: tuple[QuestionKind, ...]
    faults: FormFaults


@lru_cache(maxsize=4096)
def view_client(speech: Speech) -> ClientView:
    """Read a speech; `speech.crisis` counts as well as the words for danger."""
    lexicon = load_lexicon()
    words = tuple(split_words(speech.text))
    hits = _by_category(lexicon.phrases.hits(words))
    ambivalent, ready = len(hits.get("ambivalence", ())), len(hits.get("readiness", ()))
    return ClientView(
        words=words,
        feelings=frozenset(hit.category for hit in lexicon.feelings.hits(words)),
        own_words=_own_words(words, lexicon),
        in_crisis=speech.crisis or bool(hits.get("crisis_speech")),
        readiness=ramp(ready - 0.25 * ambivalent, 0.0, 2.0),
    )


def _own_words(words: Iterable[str], lexicon: Lexicon) -> dict[str, float]:
    """Weigh the stems of a client's content words: rare and long ones tell most of a story."""
    weights: dict[str, float] = {}
    for word in words:
        if word not in lexicon.functional and (len(word) > 2 or word.isdigit()):
            root = stem(word)
            weights[root] = 0.25 if root in lexicon.ordinary else 0.8 + 0.05 * min(8, len(word))
    return weights


def _by_category(hits: Iterable[Hit]) -> dict[str, tuple[Hit, ...]]:
    """Group hits by category, dropping what overlaps a longer phrase of its own category."""
    taken: dict[str, set[int]] = {}
    kept: dict[str, list[Hit]] = {}
    for hit in sorted(hits, key=lambda hit: (-hit.found.count(" "), hit.start)):
        places = set(range(hit.start, hit.start + hit.found.count(" ") + 1))
        if not places & taken.setdefault(hit.category, set()):
            taken[hit.category] |= places
            kept.setdefault(hit.category, []).append(hit)
    return {category: tuple(sorted(found, key=lambda hit: hit.start)) for category, found in kept.items()}


def view_reply(text: str, client: ClientView) -> ReplyView | None:
    """Take a response apart; None when it holds no word at all."""
    lexicon = load_lexicon()
    sentences = tuple(split_sentences(text))
    if not sentences:
        return None
    words = tuple(word for sentence in sentences for word in sentence.words)
    feelings = {hit.category: hit.found for hit in lexicon.feelings.hits(words)}
    kinds = (
        classify(sentence, client.in_crisis and _names_danger(sentence, lexicon)) for sentence in sentences
    )
    return ReplyView(
        sentences=sentences,
        words=words,
        hits=_by_category(hit for sentence in sentences for hit in lexicon.phrases.hits(sentence.words)),
        feelings=feelings,
        questions=tuple(kind for kind in kinds if kind),
        faults=form_faults(sentences, client.words),
    )


def _names_danger(sentence: Sentence, lexicon: Lexicon) -> bool:
    return any(hit.category == "risk" for hit in lexicon.phrases.hits(sentence.words))
