"""What a server lists -> a refusal before the first paid call, if the model is unknown or was shut down."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

from psychocounsel.errors import EndpointError
from psychocounsel.llm.capabilities import Endpoint
from psychocounsel.llm.chat import ChatReply, ChatRequest

_END_KEYS = ("shutdown_date", "deprecation_date", "expiration_date", "deprecation")
_MOST_NAMES = 8

log = logging.getLogger(__name__)


class CheckedModel:
    """An endpoint whose list of models is read before it is asked for the first time."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._turn = asyncio.Lock()
        self._is_checked = False

    @property
    def identity(self) -> Mapping[str, str]:
        """The identity of the endpoint."""
        return self._endpoint.identity

    async def listed_models(self) -> list[Mapping[str, Any]] | None:
        """Return what the endpoint lists."""
        return await self._endpoint.listed_models()

    def body(self, request: ChatRequest) -> bytes:
        """Return what is sent for a request."""
        return self._endpoint.body(request)

    async def aclose(self) -> None:
        """Close the connections of the present event loop."""
        await self._endpoint.aclose()
        self._turn = asyncio.Lock()  # the next event loop is another one

    async def ask(self, request: ChatRequest) -> ChatReply:
        """Ask, once it is known that the model is there.

        Raises:
            EndpointError: the endpoint does not list the model, or lists it as shut down.
        """
        await self.check()
        return await self._endpoint.ask(request)

    async def check(self) -> None:
        """Read the list once; errors as those of `ask`."""
        if not self._is_checked:
            async with self._turn:
                if not self._is_checked:
                    await self._check()

    async def _check(self) -> None:
        end = await end_of_life(self._endpoint)
        if end is not None:
            log.warning(
                f"the model {self.identity['model']} will be shut down on {end}; choose a successor before"
            )
        self._is_checked = True


async def end_of_life(endpoint: Endpoint, may_be_absent: bool = False) -> date | None:
    """Return the day to come on which an endpoint's model ends; None where its list names no day.

    Args:
        endpoint: a model behind an address.
        may_be_absent: whether the model may come to be listed before it is asked.

    Raises:
        EndpointError: the endpoint does not list the model, or lists it as shut down.
    """
    listed = await endpoint.listed_models() or []
    model, base_url = endpoint.identity["model"], endpoint.identity["base_url"]
    if may_be_absent and not any(each.get("id") == model for each in listed):
        return None
    end = shutdown_of(model, listed, base_url)
    if end is not None and _is_past(end):
        raise EndpointError(
            f"the model {model!r} was shut down on {end}",
            where=base_url,
            remedy=f"put a successor into endpoint.model; here are {_some_names(listed)}",
        )
    return end


def shutdown_of(model: str, listed: Sequence[Mapping[str, Any]], base_url: str) -> date | None:
    """Return the day on which a list of models ends one of them; None where it names no day.

    Raises:
        EndpointError: the list does not name the model; an empty list names none and refuses none.
    """
    names = {str(each.get("id")): each for each in listed}
    entry = names.get(model, names.get(f"{model}:latest"))
    if names and entry is None:
        raise EndpointError(
            f"there is no model {model!r} here: unknown, or retired",
            where=base_url,
            remedy=f"put one that is there into endpoint.model: {_some_names(listed)}",
        )
    return _end_told(entry or {})


def _end_told(entry: Mapping[str, Any]) -> date | None:
    ends = (_day(entry.get(key)) for key in _END_KEYS)
    return next((end for end in ends if end is not None), None)


def _is_past(end: date) -> bool:
    return end <= datetime.now(UTC).date()


def _day(value: object) -> date | None:
    try:
        return date.fromisoformat(value[:10]) if isinstance(value, str) else None
    except ValueError:
        return None


def _some_names(listed: Sequence[Mapping[str, Any]]) -> str:
    ends = {str(each.get("id")): _end_told(each) for each in listed}
    names = sorted(name for name, end in ends.items() if end is None or not _is_past(end))
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more or "none"
