"""Batch -> what its provider tells of it; what a provider is, and the way there."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from psychocounsel.config.models import BatchConfig
from psychocounsel.errors import IncompleteError
from psychocounsel.llm.chat import ChatRequest

log = logging.getLogger(__name__)

FULL_QUEUE = "token_limit_exceeded"

_OVER = frozenset({"completed", "failed", "expired", "cancelled"})
_GIVEN_UP = frozenset({"failed", "cancelling", "cancelled"})


@dataclass(frozen=True)
class Batch:
    """What a provider tells of a batch; times in Unix seconds, `codes` and `faults` of its failure.

    `input_file` and `files`, of its output and its errors, are ids; an unknown one is left out.
    """

    id: str
    status: str
    created_at: int = 0
    answered: int = 0
    input_file: str = ""
    files: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    codes: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status in _OVER

    @property
    def is_given_up(self) -> bool:
        """Whether it ends, or has ended, before its work is done."""
        return self.status in _GIVEN_UP

    def carries(self, metadata: Mapping[str, str]) -> bool:
        """Whether all of this stands in its metadata."""
        return metadata.items() <= self.metadata.items()


class AwayError(IncompleteError):
    """The provider did not answer, however often it was asked, or not as a provider of batches does."""


class LostAnswerError(Exception):
    """A batch may have been made, or not: no answer came."""


class UnknownBatchError(Exception):
    """The provider knows no such batch, or no such file."""


class Provider(Protocol):
    """Where batches are done; errors as those of `OpenAIBatches`."""

    base_url: str

    async def require_batches(self) -> None:
        """Return if there is a batch endpoint that takes our key."""
        ...

    async def newest(self, since: float) -> list[Batch]:
        """Return the batches that were made after a time in Unix seconds."""
        ...

    async def upload(self, name: str, content: bytes) -> str:
        """Hand in a file of requests, which costs nothing yet; return its id."""
        ...

    async def uploads(self, name: str) -> list[str]:
        """Return the ids of lately uploaded files of this name."""
        ...

    async def delete(self, file_id: str) -> None:
        """Delete a file; one that is not there is deleted already."""
        ...

    async def create(self, file_id: str, metadata: Mapping[str, str]) -> Batch:
        """Make a batch of a file."""
        ...

    async def state(self, batch_id: str) -> Batch:
        """Return how far a batch is."""
        ...

    async def cancel(self, batch_id: str) -> None:
        """Ask the provider to do no more of a batch."""
        ...

    async def content(self, file_id: str) -> bytes:
        """Return what a file holds."""
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...


@dataclass(frozen=True)
class BatchRoad:
    """How requests reach a provider in batches.

    Args:
        connect: opens the provider; called within the event loop that uses it.
        body: what a live request would send.
        check: raises what is wrong with the model, before anything is submitted.
        is_known: whether it is known how the server is asked; if not, one request goes live and finds out.
        limits: of files, queue and polling.
        tell: is told how far the batches are, now and then.
    """

    connect: Callable[[], Provider]
    body: Callable[[ChatRequest], bytes]
    check: Callable[[], Awaitable[None]]
    is_known: Callable[[], bool]
    limits: BatchConfig
    tell: Callable[[str], None] = log.info
