"""What clients talk about: taxonomies of topics, and their assignment by cue words or by a chat model.

A model is shown the taxonomy and one speech at a time. A reply that names no topic of the taxonomy leaves the speech
unassigned, with the reason, and is requested again on the next run. Valid replies are kept in the journal.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from string import Template
from typing import Annotated, NamedTuple, TypeAlias

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from psychocounsel.config.base import OneOrMore, Several
from psychocounsel.config.components import Settings
from psychocounsel.config.corpus import TopicsConfig
from psychocounsel.config.loading import load_config
from psychocounsel.corpus.text import plain_words
from psychocounsel.errors import ConfigError
from psychocounsel.llm.items import (
    UnreadableReplyError,
    between_markers,
    checked_reasons,
    exactly,
    read_object,
    strict_object,
)
from psychocounsel.llm.runner import RunPolicy
from psychocounsel.llm.session import PLACEHOLDER, ModelClient, Session
from psychocounsel.llm.types import JSON, ChatReply, ChatRequest, Message
from psychocounsel.store.files import digest_of
from psychocounsel.types import ReplyStatus, Speech, content_id

NO_CUE = "no_cue"
"""The reason for which the offline assigner leaves a speech without a topic: it contains no cue."""

Progress = Callable[[int], None]
"""Called with the number of speeches completed since the last call."""


class Topic(NamedTuple):
    """Ids of a fine topic and of the coarse one that contains it."""

    coarse: str
    fine: str


class Unassigned(NamedTuple):
    """Why a speech has no topic: `no_cue`, or how the request ended (a `ReplyStatus`), with details of a reply."""

    reason: str
    detail: str = ""

    @property
    def is_failure(self) -> bool:
        """Whether another request might give a topic: true of a model's failed reply, not of a missing cue."""
        return self.reason != NO_CUE


Assigned: TypeAlias = Topic | Unassigned


def unassigned_by_reason(results: Sequence[Assigned]) -> dict[str, int]:
    """Count the speeches without a topic by reason, sorted by it."""
    counts = Counter(result.reason for result in results if isinstance(result, Unassigned))
    return dict(sorted(counts.items()))


# --- Taxonomies --------------------

_BUNDLED = Path(__file__).resolve().parent / "taxonomies"
MIN_STEM_CHARS = 3


def _one_spelling(cue: str) -> str:
    """Return a cue in plain words, each with a `*` for any ending or without; ValueError for other stars or no word."""
    words: list[str] = []
    for written in cue.split():
        stem = written.removesuffix("*")
        plain = plain_words(stem)
        if not plain or "*" in stem:
            raise ValueError(f"the cue {cue!r} is not words; a star may only end a word")
        if stem != written and len(plain[-1]) < MIN_STEM_CHARS:
            raise ValueError(f"the stem in {cue!r} is too short; give at least {MIN_STEM_CHARS} letters")
        words += [*plain[:-1], plain[-1] + ("*" if stem != written else "")]
    if not words:
        raise ValueError("a cue is empty; write a word or take it out")
    return " ".join(words)


Id = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=64)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Cue = Annotated[str, AfterValidator(_one_spelling)]


class FineTopic(Settings):
    """One topic. The offline assigner finds it by its `cues`, and by `hints`, which count less."""

    id: Id
    name: Text
    description: Text
    cues: OneOrMore[Cue]
    hints: Several[Cue] = ()


class CoarseTopic(Settings):
    """A group of fine topics."""

    id: Id
    name: Text
    fine: OneOrMore[FineTopic]


class Taxonomy(Settings):
    """Fine topics in coarse ones; ids and cues are unique."""

    version: Text
    language: Text
    topics: OneOrMore[CoarseTopic]

    @model_validator(mode="after")
    def _nothing_twice(self) -> "Taxonomy":
        ids = [coarse.id for coarse in self.topics] + [fine.id for fine in self.fine_topics]
        _refuse_repeats("topic id", ids, "give each topic its own id")
        cues = [cue for fine in self.fine_topics for cue in (*fine.cues, *fine.hints)]
        _refuse_repeats("cue", cues, "leave each to the one topic that it speaks for most")
        return self

    @cached_property
    def fine_topics(self) -> tuple[FineTopic, ...]:
        """All fine topics in the order of the file."""
        return tuple(fine for coarse in self.topics for fine in coarse.fine)

    @cached_property
    def coarse_of(self) -> dict[str, str]:
        """The id of the coarse topic by that of the fine one."""
        return {fine.id: coarse.id for coarse in self.topics for fine in coarse.fine}

    @property
    def digest_of_words(self) -> str:
        """SHA-256 over what a model is shown: ids, names, descriptions, grouping and order."""
        groups = [(each, [[fine.id, fine.name, fine.description] for fine in each.fine]) for each in self.topics]
        return digest_of([self.version, self.language, [[each.id, each.name, fine] for each, fine in groups]])

    @property
    def digest_of_cues(self) -> str:
        """SHA-256 over what the offline assigner uses: ids, cues, hints, grouping and order."""
        groups = [
            [each.id, [[fine.id, sorted(fine.cues), sorted(fine.hints)] for fine in each.fine]] for each in self.topics
        ]
        return digest_of([self.version, groups])


def _refuse_repeats(kind: str, values: Iterable[str], remedy: str) -> None:
    if repeated := [value for value, count in Counter(values).items() if count > 1]:
        raise ValueError(f"{kind} used twice: {', '.join(repeated)}; {remedy}")


def load_taxonomy(name_or_path: str) -> Taxonomy:
    """Load a bundled taxonomy by its name, or any YAML file by its path.

    Raises ConfigError if there is none, or a faulty one; it names every fault with its file and line.
    """
    bundled = {path.stem: path for path in sorted(_BUNDLED.glob("*.yaml"))}
    path = bundled.get(name_or_path, Path(name_or_path))
    if not path.is_file():
        raise ConfigError(
            "there is no such taxonomy",
            where=name_or_path,
            remedy=f"name a bundled taxonomy ({', '.join(bundled)}) or the path of a UTF-8 YAML file",
        )
    return load_config(Taxonomy, path)


# --- Assignment by cues --------------------

VERSION = 1
"""Raised whenever the same cues may give another topic than before."""

CUE_WEIGHT = 3
HINT_WEIGHT = 1


class FoundCue(NamedTuple):
    """A cue found in a text, the fine topic that it stands for, and its weight."""

    fine: str
    cue: str
    weight: int


class OfflineTopicAssigner:
    """Adds up the distinct cues of each topic; a text without any stays unassigned.

    The heaviest coarse topic wins, then the heaviest fine one in it; of equals the first of the taxonomy.
    """

    def __init__(self, taxonomy: Taxonomy) -> None:
        self._taxonomy = taxonomy
        self.fingerprint: Mapping[str, JSON] = {
            "backend": "offline",
            "version": VERSION,
            "taxonomy": taxonomy.digest_of_cues,
        }
        cues = [
            FoundCue(fine.id, cue, weight)
            for fine in taxonomy.fine_topics
            for some, weight in ((fine.cues, CUE_WEIGHT), (fine.hints, HINT_WEIGHT))
            for cue in some
        ]
        # Of "panic*" and "panic attack" the second says more. Grouped by their first letters, `re` finds them faster.
        self._cues = sorted(cues, key=lambda each: (each.cue[0], -each.cue.count(" "), -len(each.cue)))
        alternatives = (
            f"{initial}(?:{'|'.join(_rest_of(each.cue) for each in some)})"
            for initial, some in groupby(self._cues, key=lambda each: each.cue[0])
        )
        self._any_cue = re.compile(rf"(?<!\w)(?:{'|'.join(alternatives)})(?!\w)")

    def assign(self, speeches: Sequence[Speech], progress: Progress) -> list[Assigned]:
        """Return the topic of each speech, or that it contains no cue."""
        results: list[Assigned] = []
        for speech in speeches:
            results.append(self._assigned(speech.text))
            progress(1)
        return results

    def _assigned(self, text: str) -> Assigned:
        weights = Counter[str]()
        for cue in self.find_cues(text):
            weights[cue.fine] += cue.weight
        if not weights:
            return Unassigned(NO_CUE)
        # Of equals, `max` returns the first.
        coarse = max(self._taxonomy.topics, key=lambda each: sum(weights[fine.id] for fine in each.fine))
        return Topic(coarse.id, max((fine.id for fine in coarse.fine), key=lambda fine: weights[fine]))

    def find_cues(self, text: str) -> list[FoundCue]:
        """Return the distinct cues of a text from left to right, at each place the longest; a word has one cue."""
        found = self._any_cue.finditer(" ".join(plain_words(text)))
        return list(dict.fromkeys(self._cues[(match.lastindex or 0) - 1] for match in found))


def _rest_of(cue: str) -> str:
    """Return a pattern of a cue without its first letter, and an empty group, whose number says which cue it is."""
    return re.escape(cue[1:]).replace(r"\*", r"\w*+") + "()"


# --- Assignment by a model --------------------

PARSER_VERSION = 2
"""Raised whenever a reply may be read differently than before."""

TEMPERATURE = 0.0
TOP_P = 1.0
MAX_TOKENS = 300

_PROMPT = (files("psychocounsel.corpus") / "prompts" / "topic.txt").read_text(encoding="utf-8")
_ITEM_LINE = "=== ITEM ===\n"


class TopicPrompt:
    """Creates the requests for one taxonomy."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        fixed, variable = _PROMPT.split(_ITEM_LINE)
        self._item = Template(variable)
        topics = ""
        for coarse in taxonomy.topics:
            fine_lines = (f'"{fine.id}" - {fine.name}. {fine.description}\n' for fine in coarse.fine)
            topics += f"{coarse.name}\n{''.join(fine_lines)}\n"
        self._instructions = Message("system", Template(fixed).substitute(topics=topics))
        text: JSON = {"type": "string"}
        topic: JSON = {"type": "string", "enum": [fine.id for fine in taxonomy.fine_topics]}
        # The reason comes before the topic, so that a model thinks before it decides.
        self._schema = strict_object({"item_id": text, "reason": text, "topic": topic})

    def request(self, speech: Speech) -> ChatRequest:
        """Return the request for the topic of one speech."""
        item = between_markers(self._item, {"item_id": _item_id(speech), "client": speech.text})
        return ChatRequest(
            messages=(self._instructions, Message("user", item)),
            temperature=TEMPERATURE,
            top_p=TOP_P,
            max_tokens=MAX_TOKENS,
            response_schema=self._schema,
            schema_name="topic",
        )


def _item_id(speech: Speech) -> str:
    """Return what a reply has to echo."""
    return content_id("topic", speech.text)


def prompt_digest() -> str:
    """Return the SHA-256 of the prompt's text."""
    return hashlib.sha256(_PROMPT.encode()).hexdigest()


def parse_topic(reply_text: str, taxonomy: Taxonomy, item_id: str) -> str:
    """Return the id of the fine topic that a reply names.

    Raises UnreadableReplyError if it names none, is about another item, or does not fit the schema.
    """
    reply = exactly(read_object(reply_text), ("item_id", "reason", "topic"), "the reply")
    checked_reasons(reply, item_id, "reason")
    if not isinstance(topic := reply["topic"], str) or topic not in taxonomy.coarse_of:
        raise UnreadableReplyError("'topic' is no fine topic of the taxonomy")
    return topic


class ChatTopicAssigner:
    """Sends one request per speech."""

    def __init__(self, client: ModelClient, taxonomy: Taxonomy) -> None:
        self._client, self._taxonomy, self._prompt = client, taxonomy, TopicPrompt(taxonomy)
        self.fingerprint: Mapping[str, JSON] = {
            "backend": "endpoint",
            **client.fingerprint,
            "taxonomy": taxonomy.digest_of_words,
            "prompt": prompt_digest(),
            "temperature": TEMPERATURE,
            "top_p": TOP_P,
            "max_tokens": MAX_TOKENS,
            "parser": PARSER_VERSION,
        }

    def assign(self, speeches: Sequence[Speech], progress: Progress) -> list[Assigned]:
        """Return the topic of each speech, or how its request ended; a dry run finds none.

        Raises EndpointError if the endpoint refuses for good, Preempted if cancelled; completed requests are kept.
        """

        def names_topic(index: int, reply: ChatReply) -> bool:
            return isinstance(self._assigned(speeches[index], reply), Topic)

        requests = list(map(self._prompt.request, speeches))
        replies = self._client.run(requests, RunPolicy(accept=names_topic, progress=progress))
        return list(map(self._assigned, speeches, replies))

    def _assigned(self, speech: Speech, reply: ChatReply) -> Assigned:
        if reply is PLACEHOLDER:
            return Unassigned(NO_CUE)
        if reply.status is not ReplyStatus.VALID:
            return Unassigned(reply.status.value, reply.reason)
        try:
            fine = parse_topic(reply.text, self._taxonomy, _item_id(speech))
        except UnreadableReplyError as fault:
            return Unassigned(ReplyStatus.INVALID.value, str(fault))
        return Topic(self._taxonomy.coarse_of[fine], fine)


TopicAssigner: TypeAlias = OfflineTopicAssigner | ChatTopicAssigner
"""Assigns each speech a topic, or none; never a guess. Its fingerprint is part of ids and caches."""


def open_topics(config: TopicsConfig | None, session: Session) -> TopicAssigner | None:
    """Return the topic assigner of a config; None where speeches keep the topics of their sources."""
    if config is None:
        return None
    taxonomy = load_taxonomy(config.taxonomy)
    if config.endpoint is None:
        return OfflineTopicAssigner(taxonomy)
    return ChatTopicAssigner(session.client(config.endpoint, "naming topics"), taxonomy)
