"""ClientView, ReplyView -> features: what the offline judge can point at, each from 0 to 1.

Every feature is capped and counts distinct phrases only, so that saying a good thing ten times is worth no
more than saying it twice.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import NamedTuple

from psychocounsel.judging.coherence import ramp
from psychocounsel.judging.lexicon import load_lexicon
from psychocounsel.judging.questions import QuestionKind
from psychocounsel.judging.views import ClientView, ReplyView
from psychocounsel.judging.words import Sentence, stem

_SECOND_PERSON = frozenset({"you", "your", "yours", "yourself"})
_PRAISED = ("choice", "strengths", "tentative", "warmth")
_SHORT_CLAUSE_WORDS = 2
_ADDRESSED_TO_THERAPIST = frozenset({"me", "us"})


class Feature(NamedTuple):
    """How strongly something shows, from 0 to 1, and the words that showed it."""

    value: float
    evidence: tuple[str, ...] = ()


def measure(client: ClientView, reply: ReplyView) -> dict[str, Feature]:
    """Return every feature of a reply to a client, by name."""
    features = {name: rule(client, reply) for name, rule in _RULES.items()}
    return features | _crisis_features(client, reply) | _readiness_features(client, features)


def _counted(category: str, enough: float, start: float = 0.0) -> Callable[[ClientView, ReplyView], Feature]:
    """Make the rule: distinct phrases of `category`, 0 up to `start` of them, 1 from `enough` on."""

    def rule(_client: ClientView, reply: ReplyView) -> Feature:
        found = tuple(dict.fromkeys(hit.found for hit in reply.hits.get(category, ())))
        return Feature(ramp(len(found), start, enough), found)

    return rule


def _feelings_mirrored(client: ClientView, reply: ReplyView) -> Feature:
    shared = tuple(word for family, word in reply.feelings.items() if family in client.feelings)
    return Feature(ramp(len(shared), 0, 2), shared)


def _feelings_named(_client: ClientView, reply: ReplyView) -> Feature:
    found = tuple(reply.feelings.values())
    return Feature(ramp(len(found), 0, 3), found)


def _shared_words(client: ClientView, reply: ReplyView) -> Feature:
    """Weigh the client's own words said back; a long reply needs more of them."""
    shared = {stem(word): word for word in reply.words if stem(word) in client.own_words}
    weight = sum(client.own_words[root] for root in shared)
    return Feature(ramp(weight, 0.5, 4.0 + 0.02 * len(reply.words)), tuple(shared.values()))


def _to_the_client(_client: ClientView, reply: ReplyView) -> Feature:
    words = sum(word in _SECOND_PERSON for word in reply.words)
    return Feature(ramp(words / len(reply.words), 0.0, 0.06))


def _about_the_client(_client: ClientView, reply: ReplyView) -> Feature:
    """Find sentences that speak of no client at all: the share of lecturing."""
    away = [s for s in reply.sentences if not _SECOND_PERSON & set(s.words) and len(s.words) > 5]
    share = sum(len(s.words) for s in away) / len(reply.words)
    return Feature(ramp(share, 0.45, 0.95))


def _open_question(_client: ClientView, reply: ReplyView) -> Feature:
    if QuestionKind.OPEN in reply.questions:
        return Feature(1.0, ("an open question",))
    if QuestionKind.INVITATION in reply.questions:
        return Feature(0.7, ("an invitation to say more",))
    return Feature(0.0)


def _closed_questions(_client: ClientView, reply: ReplyView) -> Feature:
    closed = reply.questions.count(QuestionKind.CLOSED)
    asked = tuple(f"{count} closed question(s)" for count in (closed,) if count)
    stacked = ramp(len(reply.questions), 2, 5)
    return Feature(max(ramp(closed, 0.5, 3.0), stacked if closed else 0.7 * stacked), asked)


def _directives(_client: ClientView, reply: ReplyView) -> Feature:
    phrases = [hit.found for hit in reply.hits.get("directives", ())]
    commands = [command for sentence in reply.sentences for command in _commands(sentence)]
    found = tuple(dict.fromkeys(phrases + commands))
    return Feature(ramp(len(found), 0.5, 5.0), found)


def _commands(sentence: Sentence) -> list[str]:
    """Clauses that open with a verb of command, unless they ask or leave the client free."""
    verbs = load_lexicon().imperatives
    if sentence.is_question or sentence.words[0] in {"if", "when", "whenever"}:
        return []
    found: list[str] = []
    for start in sentence.clause_starts:
        place = start + (sentence.words[start] in {"and", "then", "so", "please", "or", "just"})
        words = sentence.words[place : place + 3]
        if len(words) > 1 and words[0] in verbs and not _ADDRESSED_TO_THERAPIST & set(words[1:]):
            opens = start == 0 or bool(found)
            found.extend([" ".join(words)] if opens else [])
    return found


def _too_short(_client: ClientView, reply: ReplyView) -> Feature:
    return Feature(ramp(-len(reply.words), -18, -4), (f"{len(reply.words)} words",))


def _too_long(_client: ClientView, reply: ReplyView) -> Feature:
    return Feature(ramp(len(reply.words), 120, 320), (f"{len(reply.words)} words",))


def _long_sentences(_client: ClientView, reply: ReplyView) -> Feature:
    mean = len(reply.words) / len(reply.sentences)
    return Feature(ramp(mean, 19, 38), (f"{mean:.0f} words per sentence",))


def _long_words(_client: ClientView, reply: ReplyView) -> Feature:
    found = tuple(dict.fromkeys(word for word in reply.words if len(word) >= 11))
    return Feature(ramp(len(found) / len(reply.words), 0.02, 0.12), found)


def _stuffing(_client: ClientView, reply: ReplyView) -> Feature:
    """Measure how much of the text is praiseworthy phrases strung together and nothing else."""
    phrases = [hit.found for name in _PRAISED for hit in reply.hits.get(name, ())] + list(
        reply.feelings.values()
    )
    longest = max(_longest_list(sentence) for sentence in reply.sentences)
    crowded = ramp(len(phrases) / max(20, len(reply.words)), 0.2, 0.34)
    return Feature(max(crowded, ramp(longest, 4, 7)))


def _longest_list(sentence: Sentence) -> int:
    """Count the clauses of one or two words that follow each other ("sad, lonely, ashamed, afraid")."""
    edges = (*sentence.clause_starts, len(sentence.words))
    longest = run = 0
    for start, end in pairwise(edges):
        run = run + 1 if end - start <= _SHORT_CLAUSE_WORDS else 0
        longest = max(longest, run)
    return longest


def _exclamations(_client: ClientView, reply: ReplyView) -> Feature:
    return Feature(ramp(sum(s.is_exclamation for s in reply.sentences), 0, 2))


def _repetition(_client: ClientView, reply: ReplyView) -> Feature:
    return Feature(reply.faults.repetition)


def _salad(_client: ClientView, reply: ReplyView) -> Feature:
    return Feature(reply.faults.salad)


def _echo(_client: ClientView, reply: ReplyView) -> Feature:
    return Feature(reply.faults.echo)


def _unfinished(_client: ClientView, reply: ReplyView) -> Feature:
    return Feature(reply.faults.unfinished)


_RULES: Mapping[str, Callable[[ClientView, ReplyView], Feature]] = {
    "feelings_mirrored": _feelings_mirrored,
    "feelings_named": _feelings_named,
    "tentative": _counted("tentative", 2),
    "warmth": _counted("warmth", 2),
    "own_words": _shared_words,
    "to_the_client": _to_the_client,
    "lecturing": _about_the_client,
    "open_question": _open_question,
    "closed_questions": _closed_questions,
    "choice": _counted("choice", 2),
    "strengths": _counted("strengths", 2),
    "platitudes": _counted("platitudes", 3),
    "directives": _directives,
    "orders": _counted("orders", 2),
    "diagnosis": _counted("diagnosis", 3),
    "medication": _counted("medication", 2),
    "minimising": _counted("minimising", 3),
    "jargon": _counted("jargon", 5, 0.5),
    "long_words": _long_words,
    "too_short": _too_short,
    "too_long": _too_long,
    "long_sentences": _long_sentences,
    "exclamations": _exclamations,
    "repetition": _repetition,
    "salad": _salad,
    "echo": _echo,
    "stuffing": _stuffing,
    "unfinished": _unfinished,
    "judge_talk": _counted("judge_talk", 1),
}

FEATURE_NAMES = (*_RULES, "safety_question", "support_offered", "crisis_unmet", "pushing")
"""Every feature that `measure` returns; a rubric's rules for the offline judge may weigh these."""


def _crisis_features(client: ClientView, reply: ReplyView) -> dict[str, Feature]:
    """In a crisis a reply asks about safety and offers help; outside one neither is expected."""
    absent = {"safety_question": Feature(0.0), "support_offered": Feature(0.0), "crisis_unmet": Feature(0.0)}
    if not client.in_crisis:
        return absent
    asked = QuestionKind.SAFETY in reply.questions
    offered = _counted("support", 2)(client, reply)
    unmet = 1.0 - min(1.0, 0.7 * asked + 0.5 * offered.value)
    return {
        "safety_question": Feature(float(asked), ("a question about safety",) if asked else ()),
        "support_offered": offered,
        "crisis_unmet": Feature(
            unmet, ("neither asks about safety nor offers help",) if unmet == 1.0 else ()
        ),
    }


def _readiness_features(client: ClientView, features: Mapping[str, Feature]) -> dict[str, Feature]:
    """Weigh pushing against where the client stands: advice to one who asks for it pushes less."""
    push = max(features["directives"].value, features["orders"].value, 0.7 * features["medication"].value)
    evidence = features["directives"].evidence + features["orders"].evidence
    return {"pushing": Feature(push * (1.0 - 0.6 * client.readiness), evidence if push else ())}
