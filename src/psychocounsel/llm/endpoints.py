"""Config -> endpoint and journal: what every stage needs that uses a model behind an address."""

import asyncio
import logging
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from psychocounsel.config.components import EndpointConfig
from psychocounsel.errors import ConfigError, InputError
from psychocounsel.llm.cost import Spending
from psychocounsel.llm.journal import Journal
from psychocounsel.llm.runner import run_in_loop
from psychocounsel.llm.structured_output import Capabilities, OutputMode, StructuredOutputModel, end_of_life
from psychocounsel.llm.types import is_on_this_machine, resolved_base_url
from psychocounsel.store.store import Store

if TYPE_CHECKING:
    from psychocounsel.llm.client import OpenAIChatModel

log = logging.getLogger(__name__)


JOURNAL_FILE = "journal/replies.sqlite"
CAPABILITIES_FILE = "journal/capabilities.json"


def keep_restricted_text_here(endpoints: Iterable[EndpointConfig | None], data_classes: Mapping[str, str]) -> None:
    """Refuse to send restricted client text (by source: its `data_class`) to a model that is not on this machine.

    Raises:
        ConfigError: naming the source, the address and the remedy.
    """
    addresses = [resolved_base_url(each) for each in endpoints if each is not None]
    remote = [address for address in addresses if not is_on_this_machine(address)]
    restricted = [source for source, data_class in data_classes.items() if data_class == "restricted"]
    if remote and restricted:
        raise ConfigError(
            f"restricted client text must not be sent to {remote[0]}",
            where=restricted[0],
            remedy="de-identify it and set data_class: deidentified, or use a model on this machine",
        )


def require_usable(
    endpoints: Mapping[str, EndpointConfig | None], store: Store, later: Mapping[str, EndpointConfig] | None = None
) -> None:
    """Check key and address of every endpoint, by owner, before anything long or paid begins.

    Those that are asked `later` than others, such as a judge, must list their models before the others are paid.

    Raises:
        ConfigError: a key is missing, or an address cannot be used; lists every fault.
        EndpointError: a server does not list the model that is needed later, or lists it as shut down.
    """
    faults: list[str] = []
    for whose, endpoint in {**endpoints, **(later or {})}.items():
        try:
            if endpoint is not None:
                open_endpoint(endpoint, store)
        except ConfigError as fault:
            faults.append(f"{whose}: {fault}")
    if faults:
        raise ConfigError("\n".join(faults))
    if endpoints and later:
        _require_listed(later.values(), store)


def _require_listed(endpoints: Iterable[EndpointConfig], store: Store) -> None:
    """A server that lists nothing or does not answer yet passes, and one on this machine may load the model later."""

    async def look() -> None:
        models = [_client(each, store) for each in endpoints]
        try:
            await asyncio.gather(*(end_of_life(each, is_on_this_machine(each.base_url)) for each in models))
        finally:
            await asyncio.gather(*(model.aclose() for model in models))

    run_in_loop(look())


def open_journal(store: Store) -> Journal:
    """Return the store's journal of replies."""
    return Journal(store.root / JOURNAL_FILE)


def existing_journal(store: Store) -> Journal:
    """Return the store's journal of replies, to read it; the store may be read-only.

    Raises:
        InputError: there is none.
    """
    path = store.root / JOURNAL_FILE
    if not path.is_file():
        remedy = "give the store of a run that used an endpoint"
        raise InputError("there is no journal of replies", where=str(path), remedy=remedy)
    return Journal(path, reads_only=not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)))


def open_endpoint(endpoint: EndpointConfig, store: Store) -> StructuredOutputModel:
    """Return the model behind an endpoint."""
    pinned = None if endpoint.response_format == "auto" else OutputMode(endpoint.response_format)
    if pinned is None and urlsplit(resolved_base_url(endpoint)).hostname == "api.openai.com":
        pinned = OutputMode.JSON_SCHEMA
    return StructuredOutputModel(_client(endpoint, store), Capabilities(store.root / CAPABILITIES_FILE), pinned)


def _client(endpoint: EndpointConfig, store: Store) -> "OpenAIChatModel":
    from psychocounsel.llm.client import OpenAIChatModel  # the client takes a second to import

    return OpenAIChatModel(endpoint, store.offline)


def log_spending(spending: Spending | None, whose: str) -> dict[str, Any]:
    """Log what replies cost and return it for `metrics.json`; empty if nothing was spent."""
    if spending is None or not spending.summary:
        return {}
    log.info(f"spent on {whose}: {spending.summary}")
    return {"spend": spending.as_dict()}
