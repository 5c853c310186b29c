"""Speech -> Topic by a chat model that is shown the taxonomy and one speech at a time.

Every reply that was paid for is in the journal before it is used. A reply that names no topic of the
taxonomy leaves the speech unassigned, with the reason; on the next run it is asked again, while a valid one
never is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from psychocounsel.domain import ReplyStatus, Speech
from psychocounsel.llm.chat import JSON, ChatModel, ChatReply, ChatRequest
from psychocounsel.llm.engine import AskPolicy, ask_all, never_stop, owed_places
from psychocounsel.llm.journal import Journal
from psychocounsel.llm.spending import Budget
from psychocounsel.speeches.taxonomy import Taxonomy
from psychocounsel.speeches.topic_prompting import (
    PARSER_VERSION,
    TopicAsking,
    TopicPrompt,
    TopicRequest,
    Unreadable,
    parse_topic,
    prompt_digest,
)
from psychocounsel.speeches.topics import Assigned, Progress, Topic, Unassigned


@dataclass(frozen=True)
class ChatTopicSettings:
    """How the model is asked; only `asking` shapes what it answers.

    Args:
        asking: temperature and token limit of a reply.
        max_attempts: requests per speech in one run.
        concurrency: requests in flight.
        stop: asked before each request; once true, nothing new is asked.
        budget: counts what the replies cost, and sets their limit.
    """

    asking: TopicAsking = field(default_factory=TopicAsking)
    max_attempts: int = 3
    concurrency: int = 8
    stop: Callable[[], bool] = never_stop
    budget: Budget | None = None


class ChatTopicAssigner:
    """Asks for each speech in a request of its own."""

    def __init__(
        self,
        model: ChatModel,
        taxonomy: Taxonomy,
        journal: Journal,
        settings: ChatTopicSettings | None = None,
    ) -> None:
        self._model = model
        self._taxonomy = taxonomy
        self._journal = journal
        self._settings = settings or ChatTopicSettings()
        self._prompt = TopicPrompt(taxonomy, self._settings.asking)

    @property
    def identity(self) -> Mapping[str, JSON]:
        """What shapes the topics: model, address, taxonomy, prompt, sampling, parser."""
        asking = self._settings.asking
        return {
            "backend": "endpoint",
            **self._model.identity,
            "taxonomy": self._taxonomy.digest_of_words,
            "prompt": prompt_digest(),
            "temperature": asking.temperature,
            "top_p": asking.top_p,
            "max_tokens": asking.max_tokens,
            "parser": PARSER_VERSION,
        }

    def assign(self, speeches: Sequence[Speech], progress: Progress) -> list[Assigned]:
        """Return the topic of each speech, or how its request ended.

        Raises:
            EndpointError: the endpoint refuses for a reason that a retry does not mend.
            Preempted: `settings.stop` turned true; what was answered is kept.
        """
        asked = self._asked(speeches)
        settings = self._settings
        policy = AskPolicy(
            self._acceptance(asked),
            settings.max_attempts,
            settings.concurrency,
            settings.stop,
            progress,
            budget=settings.budget,
        )
        replies = ask_all(self._model, [item.request for item in asked], self._journal, policy)
        return [self._assigned(item, reply) for item, reply in zip(asked, replies, strict=True)]

    def owed(self, speeches: Sequence[Speech]) -> list[ChatRequest]:
        """Return what `assign` would have to ask at least once; nothing is asked."""
        asked = self._asked(speeches)
        requests = [item.request for item in asked]
        places = owed_places(requests, self._model.identity, self._journal, self._acceptance(asked))
        return [requests[place] for place in places]

    def _asked(self, speeches: Sequence[Speech]) -> list[TopicRequest]:
        return [self._prompt.request(speech) for speech in speeches]

    def _acceptance(self, asked: Sequence[TopicRequest]) -> Callable[[int, ChatReply], bool]:
        """Return what ends an item: a finished reply that names a topic."""
        return lambda index, reply: isinstance(self._assigned(asked[index], reply), Topic)

    def _assigned(self, asked: TopicRequest, reply: ChatReply) -> Assigned:
        if reply.status is not ReplyStatus.VALID:
            return Unassigned(reply.status.value, reply.reason)
        fine = parse_topic(reply.text, self._taxonomy, asked.item_id)
        if isinstance(fine, Unreadable):
            return Unassigned(ReplyStatus.INVALID.value, fine.reason)
        return Topic(self._taxonomy.coarse_of[fine], fine)
