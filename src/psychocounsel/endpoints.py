"""Config -> endpoint, journal, bill: what every stage needs that asks a model at an address."""

import asyncio
import logging
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from psychocounsel.config.models import EndpointConfig
from psychocounsel.errors import ConfigError, InputError
from psychocounsel.llm.addresses import (
    UnconnectedModel,
    endpoint_identity,
    is_on_this_machine,
    require_reachable,
    resolved_base_url,
)
from psychocounsel.llm.capabilities import Capabilities, FittedModel, Replies, enforces_schemas
from psychocounsel.llm.event_loop import run_to_end
from psychocounsel.llm.journal import Journal
from psychocounsel.llm.preflight import CheckedModel, end_of_life
from psychocounsel.llm.spending import Spending
from psychocounsel.store.store import Store

log = logging.getLogger(__name__)

JOURNAL_FILE = "journal/replies.sqlite"
CAPABILITIES_FILE = "journal/capabilities.json"


def planned_identity(endpoint: EndpointConfig, store: Store) -> dict[str, Any]:
    """Return what shapes an endpoint's replies: the address is the one that is really asked."""
    base_url = resolved_base_url(endpoint)
    require_reachable(base_url, store.offline)
    return {**endpoint.identity(), "base_url": base_url}


def keep_restricted_text_here(
    endpoints: Iterable[EndpointConfig | None], data_classes: Mapping[str, str]
) -> None:
    """Refuse to show restricted client text to a model that is not on this machine.

    Args:
        endpoints: whoever would read the text; None for one that needs no endpoint.
        data_classes: by source of speeches, what it is declared to be.

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
            remedy="de-identify it and set data_class: deidentified, or use the offline judge",
        )


def require_usable(endpoints: Mapping[str, EndpointConfig | None], store: Store) -> None:
    """Check key and address of every endpoint before anything long or paid begins.

    Args:
        endpoints: by whose they are; None is always usable.
        store: says whether the run is offline.

    Raises:
        ConfigError: a key is missing, or an address cannot be used; every fault of every endpoint.
    """
    faults: list[str] = []
    for whose, endpoint in endpoints.items():
        try:
            if endpoint is not None:
                open_endpoint(endpoint, store)
        except ConfigError as fault:
            faults.append(f"{whose}: {fault}")
    if faults:
        raise ConfigError("\n".join(faults))


def require_listed(endpoints: Iterable[EndpointConfig | None], store: Store) -> None:
    """Look for models in what their servers list, where others are asked and paid before them.

    A server that lists nothing, or is not there yet, is asked when its turn comes; one on this machine may
    load the model until then.

    Raises:
        EndpointError: a server does not list the model, or lists it as shut down.
    """

    async def look() -> None:
        models = [_checked(each, store) for each in endpoints if each is not None]
        try:
            await asyncio.gather(*(end_of_life(each, _may_load(each)) for each in models))
        finally:
            await asyncio.gather(*(model.aclose() for model in models))

    run_to_end(look())


def _may_load(model: CheckedModel) -> bool:
    return is_on_this_machine(model.identity["base_url"])


def planned_model(endpoint: EndpointConfig) -> UnconnectedModel:
    """Return the model behind an endpoint, known by name only."""
    return UnconnectedModel(endpoint_identity(endpoint))


@contextmanager
def planned_journal(store: Store) -> Generator[Journal]:
    """Yield the store's journal to read in; where there is none yet, an empty one that leaves no trace."""
    with TemporaryDirectory() as nowhere:
        path = store.root / JOURNAL_FILE
        with Journal(path if path.exists() else Path(nowhere) / path.name) as journal:
            yield journal


def open_journal(store: Store) -> Journal:
    """Return the journal of paid replies, one per store."""
    return Journal(store.root / JOURNAL_FILE)


def existing_journal(store: Store) -> Journal:
    """Return the journal of a store in which something was asked.

    Raises:
        InputError: nothing was.
    """
    path = store.root / JOURNAL_FILE
    if not path.is_file():
        raise InputError(
            "no reply was ever kept here",
            where=str(path),
            remedy="name the store of a run that asked an endpoint",
        )
    return Journal(path)


def open_endpoint(endpoint: EndpointConfig, store: Store) -> FittedModel:
    """Return the model behind an endpoint: checked before its first call, held to a schema as it can be."""
    pinned = None if endpoint.replies == "auto" else Replies(endpoint.replies)
    if pinned is None and enforces_schemas(resolved_base_url(endpoint)):
        pinned = Replies.JSON_SCHEMA
    return FittedModel(_checked(endpoint, store), Capabilities(store.root / CAPABILITIES_FILE), pinned)


def _checked(endpoint: EndpointConfig, store: Store) -> CheckedModel:
    from psychocounsel.llm.openai_client import OpenAIChatModel  # the client takes a second to import

    return CheckedModel(OpenAIChatModel(endpoint, store.offline))


def tell_spending(spending: Spending | None, whose: str) -> dict[str, Any]:
    """Tell what replies cost and return it for `metrics.json`; empty where nobody counted."""
    if spending is None or not spending.told:
        return {}
    log.info(f"spent on {whose}: {spending.told}")
    return {"spend": spending.as_dict()}
