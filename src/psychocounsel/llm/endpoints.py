"""Config -> endpoint and journal: what every stage needs that uses a model behind an address."""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime
from typing import Any
from urllib.parse import urlsplit

from psychocounsel.config.components import EndpointConfig
from psychocounsel.errors import ConfigError, EndpointError, InputError
from psychocounsel.llm.cost import Spending
from psychocounsel.llm.journal import Journal
from psychocounsel.llm.runner import run_in_loop
from psychocounsel.llm.structured_output import Capabilities, Endpoint, OutputMode, StructuredOutputModel
from psychocounsel.llm.types import ChatReply, ChatRequest, RequestContext, is_on_this_machine, resolved_base_url
from psychocounsel.store.store import Store

_END_KEYS = ("shutdown_date", "deprecation_date", "expiration_date", "deprecation")
_MOST_NAMES = 8

log = logging.getLogger(__name__)


class PreflightModel:
    """Reads the endpoint's list of models before its first request."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._checking = asyncio.Lock()
        self._is_checked = False

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """The endpoint's fingerprint."""
        return self._endpoint.fingerprint

    @property
    def base_url(self) -> str:
        """The endpoint's address."""
        return self._endpoint.base_url

    async def listed_models(self) -> list[Mapping[str, Any]] | None:
        """Return what the endpoint lists."""
        return await self._endpoint.listed_models()

    def body(self, request: ChatRequest) -> bytes:
        """Return what is sent for a request, live or in a batch."""
        return self._endpoint.body(request)

    async def aclose(self) -> None:
        """Close the connections of the current event loop."""
        await self._endpoint.aclose()
        self._checking = asyncio.Lock()  # the next event loop is a different one

    async def generate(self, request: ChatRequest, context: RequestContext) -> ChatReply:
        """Return the reply of a model that the endpoint lists.

        Raises:
            EndpointError: the endpoint does not list the model, or lists it as shut down.
        """
        await self.check()
        return await self._endpoint.generate(request, context)

    async def check(self) -> None:
        """Read the list once; errors as those of `generate`."""
        if not self._is_checked:
            async with self._checking:
                if not self._is_checked and (end := await end_of_life(self._endpoint)) is not None:
                    log.warning(f"the model {self.fingerprint['model']} will be shut down on {end}; choose a successor")
                self._is_checked = True


async def end_of_life(endpoint: Endpoint, may_be_absent: bool = False) -> date | None:
    """Return the future day on which an endpoint's model is shut down; None if its list names no day.

    Raises:
        EndpointError: the endpoint does not list the model, unless it `may_be_absent`, or lists it as shut down.
    """
    listed = await endpoint.listed_models() or []
    model, base_url = endpoint.fingerprint["model"], endpoint.base_url
    if may_be_absent and not any(each.get("id") == model for each in listed):
        return None
    names = {str(each.get("id")): each for each in listed}
    entry = names.get(model, names.get(f"{model}:latest"))
    if names and entry is None:
        raise EndpointError(
            f"there is no model {model!r} here: unknown, or retired",
            where=base_url,
            remedy=f"set endpoint.model to one of {_some_names(listed)}",
        )
    end = _shutdown_date(entry or {})
    if end is not None and _is_past(end):
        raise EndpointError(
            f"the model {model!r} was shut down on {end}",
            where=base_url,
            remedy=f"set endpoint.model to a successor, one of {_some_names(listed)}",
        )
    return end


def _shutdown_date(entry: Mapping[str, Any]) -> date | None:
    for key in _END_KEYS:
        with suppress(LookupError, TypeError, ValueError):
            return date.fromisoformat(entry[key][:10])
    return None


def _is_past(end: date) -> bool:
    return end <= datetime.now(UTC).date()


def _some_names(listed: Sequence[Mapping[str, Any]]) -> str:
    ends = {str(each.get("id")): _shutdown_date(each) for each in listed}
    names = sorted(name for name, end in ends.items() if end is None or not _is_past(end))
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more or "none"


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
            remedy="de-identify it and set data_class: deidentified, or use the offline judge",
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
        models = [_checked(each, store) for each in endpoints]
        try:
            await asyncio.gather(*(end_of_life(each, is_on_this_machine(each.base_url)) for each in models))
        finally:
            await asyncio.gather(*(model.aclose() for model in models))

    run_in_loop(look())


def open_journal(store: Store) -> Journal:
    """Return the store's journal of replies."""
    return Journal(store.root / JOURNAL_FILE)


def existing_journal(store: Store) -> Journal:
    """Return the store's journal of replies.

    Raises:
        InputError: there is none.
    """
    path = store.root / JOURNAL_FILE
    if not path.is_file():
        remedy = "give the store of a run that used an endpoint"
        raise InputError("there is no journal of replies", where=str(path), remedy=remedy)
    return open_journal(store)


def open_endpoint(endpoint: EndpointConfig, store: Store) -> StructuredOutputModel:
    """Return the model behind an endpoint, with preflight checks and structured output."""
    pinned = None if endpoint.response_format == "auto" else OutputMode(endpoint.response_format)
    if pinned is None and urlsplit(resolved_base_url(endpoint)).hostname == "api.openai.com":
        pinned = OutputMode.JSON_SCHEMA
    return StructuredOutputModel(_checked(endpoint, store), Capabilities(store.root / CAPABILITIES_FILE), pinned)


def _checked(endpoint: EndpointConfig, store: Store) -> PreflightModel:
    from psychocounsel.llm.client import OpenAIChatModel  # the client takes a second to import

    return PreflightModel(OpenAIChatModel(endpoint, store.offline))


def log_spending(spending: Spending | None, whose: str) -> dict[str, Any]:
    """Log what replies cost and return it for `metrics.json`; empty if nothing was spent."""
    if spending is None or not spending.summary:
        return {}
    log.info(f"spent on {whose}: {spending.summary}")
    return {"spend": spending.as_dict()}
