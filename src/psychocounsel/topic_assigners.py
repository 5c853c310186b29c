"""TopicsConfig -> TopicAssigner: who gives speeches their topics, planned or opened."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from psychocounsel.config.corpus import TopicsConfig
from psychocounsel.config.models import EndpointConfig
from psychocounsel.endpoints import (
    open_endpoint,
    open_journal,
    planned_identity,
    planned_journal,
    planned_model,
)
from psychocounsel.llm.spending import budget_of
from psychocounsel.speeches.taxonomy import load_taxonomy
from psychocounsel.speeches.topic_chat import ChatTopicAssigner, ChatTopicSettings
from psychocounsel.speeches.topic_cues import OfflineTopicAssigner
from psychocounsel.speeches.topics import TopicAssigner
from psychocounsel.store.store import Store


def plan_topics(config: TopicsConfig, store: Store) -> dict[str, Any]:
    """Return what decides the topics of speeches, without connecting to anybody.

    Raises:
        ConfigError: the taxonomy is faulty; or offline, and the endpoint is not on this machine.
    """
    taxonomy = load_taxonomy(config.taxonomy)
    if config.endpoint is None:
        return {**config.identity(), "taxonomy": dict(OfflineTopicAssigner(taxonomy).identity)}
    endpoint = planned_identity(config.endpoint, store)
    with plan_to_name_topics(config, config.endpoint, store) as assigner:
        return {**config.identity(), "endpoint": endpoint, "taxonomy": dict(assigner.identity)}


@contextmanager
def plan_to_name_topics(
    config: TopicsConfig, endpoint: EndpointConfig, store: Store
) -> Generator[ChatTopicAssigner]:
    """Yield who would name topics, unconnected: it tells what it would ask, and asks nothing."""
    with planned_journal(store) as journal:
        yield ChatTopicAssigner(planned_model(endpoint), load_taxonomy(config.taxonomy), journal)


@contextmanager
def open_topics(config: TopicsConfig, store: Store, stop: Callable[[], bool]) -> Generator[TopicAssigner]:
    """Yield who gives speeches their topics; replies are journalled in the store."""
    taxonomy = load_taxonomy(config.taxonomy)
    if config.endpoint is None:
        yield OfflineTopicAssigner(taxonomy)
        return
    endpoint = config.endpoint
    settings = ChatTopicSettings(
        max_attempts=endpoint.max_attempts,
        concurrency=endpoint.concurrency,
        stop=stop,
        budget=budget_of(endpoint),
    )
    with open_journal(store) as journal:
        yield ChatTopicAssigner(open_endpoint(endpoint, store), taxonomy, journal, settings)
