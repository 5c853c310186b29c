"""A provider's files and batches, through the official client.

Reading is tried again after a fault that may pass. Creating a batch is not: if no response came, it may exist all the
same, and the caller has to look for it.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, NoReturn, TypeVar, cast
from urllib.parse import quote

import aiohttp
import httpx2
import openai
from openai.types.file_create_params import ExpiresAfter

from psychocounsel.config.components import BatchConfig, EndpointConfig
from psychocounsel.errors import EndpointError
from psychocounsel.llm.batch.shards import Batch, LostAnswerError, Outcome, ProviderAwayError, UnknownBatchError
from psychocounsel.llm.client import (
    CONTENT_FILTER_CODES,
    LONGEST_QUOTE_CHARS,
    UnreadableBodyError,
    broken_connection,
    codes_of,
    key_refusal,
    message_in,
    open_client,
    quoted,
    read_completion,
)
from psychocounsel.llm.rate_limit import RETRIED, RetryPolicy, on_status, retry_after_seconds
from psychocounsel.llm.structured_output import loaded, mapping_of
from psychocounsel.llm.types import ChatReply, require_reachable, resolved_base_url
from psychocounsel.types import ReplyStatus

log = logging.getLogger(__name__)

# After these, no batch was created.
_NOT_CREATED = frozenset({400, 409, 425, 429})
# There is no such batch or file, or no such API at all.
_UNKNOWN = frozenset({404, 405, 501})
_PAGE = 100
_TRANSFER_SECONDS = 600.0
_INPUT_KEPT_SECONDS = 7 * 86_400
_OUTPUT_KEPT_SECONDS = 30 * 86_400
"""The longest that providers allow: replies not fetched by then are paid for again."""
_DEFAULT_RETRY = RetryPolicy()
_Got = TypeVar("_Got")


class OpenAIBatches:
    """Batches at an endpoint; created within the event loop that uses it.

    Every method raises `EndpointError` if the provider refuses, and `ProviderAwayError` if it does not answer.

    Raises:
        ConfigError: the key is missing, or the run is `offline` and the endpoint is not on this machine.
    """

    def __init__(self, endpoint: EndpointConfig, offline: bool = False, retry: RetryPolicy = _DEFAULT_RETRY) -> None:
        self.base_url = resolved_base_url(endpoint)
        require_reachable(self.base_url, offline)
        self._endpoint, self._retry = endpoint, retry
        self._has_expiry = True
        self._client = open_client(endpoint)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def require_batches(self) -> None:
        """Return if there is a batch endpoint that accepts our key; raise EndpointError if not."""
        try:
            await self._page(f"/batches?limit={_PAGE}")
        except UnknownBatchError:
            self._raise_no_batches()

    async def newest(self, since: float) -> list[Batch]:
        """Return the batches created after a time in Unix seconds."""
        found: list[Batch] = []
        after = ""
        while True:
            page = await self._page(f"/batches?limit={_PAGE}{after}")
            listed = [_batch(each) for each in _mappings(page.get("data"))]
            # Without times, the list is read to its end.
            recent = [each for each in listed if not each.created_at or each.created_at >= since]
            found += recent
            if not page.get("has_more") or len(recent) < len(listed) or not listed:
                return found
            after = f"&after={quote(listed[-1].id, safe='')}"

    async def upload(self, name: str, content: bytes) -> str:
        """Upload a file of requests, which costs nothing yet; return its id.

        The provider deletes it after a week, if it supports expiry.
        """

        async def send() -> str:
            created = await self._client.files.create(
                file=(name, content, "application/jsonl"),
                purpose="batch",
                expires_after=_expiry(_INPUT_KEPT_SECONDS) if self._has_expiry else openai.omit,
            )
            return created.id

        try:
            return await self._retried(lambda: self._with_expiry(send), _TRANSFER_SECONDS)
        except UnknownBatchError:
            self._raise_no_batches()

    async def uploads(self, name: str) -> list[str]:
        """Return the ids of recently uploaded files of this name."""
        listed = _mappings((await self._page(f"/files?purpose=batch&order=desc&limit={_PAGE}")).get("data"))
        return [str(each["id"]) for each in listed if each.get("filename") == name and each.get("id")]

    async def delete(self, file_id: str) -> None:
        """Delete a file, if it is there; raise UnknownBatchError if files cannot be deleted here."""

        async def send() -> None:
            with suppress(openai.NotFoundError):
                await self._client.files.delete(file_id)

        await self._retried(send)

    async def create(self, file_id: str, metadata: Mapping[str, str]) -> str:
        """Create a batch from a file; return its id.

        Raises:
            LostAnswerError: no response came, so the batch may exist or not.
            EndpointError: the provider refuses it.
            ProviderAwayError: it was not created, for the provider asks for a longer wait than ours.
        """
        order = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}

        async def send() -> str:
            expiry = {"output_expires_after": _expiry(_OUTPUT_KEPT_SECONDS)} if self._has_expiry else {}
            body = {**order, "metadata": dict(metadata), **expiry}
            created = await self._client.post("/batches", body=body, cast_to=httpx2.Response)
            if not (batch_id := _batch(mapping_of(loaded(created.content))).id):
                raise LostAnswerError
            return batch_id

        try:
            return await self._retried(lambda: self._with_expiry(send), creates=True)
        except UnknownBatchError:
            self._raise_no_batches()

    async def state(self, batch_id: str) -> Batch:
        """Return how far a batch is; raise UnknownBatchError if the provider does not know it."""
        batch = _batch(mapping_of(loaded(await self._get(f"/batches/{quote(batch_id, safe='')}"))))
        if not batch.id or not batch.status:
            raise self._away("the response is not a batch")
        return batch

    async def cancel(self, batch_id: str) -> None:
        """Cancel a batch."""
        await self._retried(lambda: self._client.batches.cancel(batch_id))

    async def output(self, file_id: str) -> Iterator[Outcome | None]:
        """Return what `read_output` reads in a file; raise UnknownBatchError if the provider does not have it."""
        response = await self._retried(lambda: self._client.files.content(file_id), _TRANSFER_SECONDS)
        return read_output(response.content, self._endpoint.model)

    async def _page(self, path: str) -> Mapping[str, Any]:
        """Return a page of a list. The typed list calls would read a login page as an empty list."""
        page = mapping_of(loaded(await self._get(path)))
        if not isinstance(page.get("data"), list):
            raise self._away("the response is not a list")
        return page

    async def _get(self, path: str) -> bytes:
        return (await self._retried(lambda: self._client.get(path, cast_to=httpx2.Response))).content

    async def _with_expiry(self, send: Callable[[], Awaitable[_Got]]) -> _Got:
        """Send with a time after which files expire, or without if the provider does not know that."""
        try:
            return await send()
        except (openai.BadRequestError, openai.UnprocessableEntityError) as refusal:
            if not self._has_expiry or "expires_after" not in refusal.message:
                raise
        self._has_expiry = False
        return await send()

    async def _retried(
        self, send: Callable[[], Awaitable[_Got]], limit_seconds: float | None = None, creates: bool = False
    ) -> _Got:
        limit_seconds = limit_seconds or self._endpoint.timeout_seconds
        reason, server_wait_seconds = "", 0.0
        for tries in range(self._retry.max_tries):
            if tries:
                await asyncio.sleep(max(server_wait_seconds, self._retry.wait_seconds(tries, reason)))
            server_wait_seconds, may_be_created = 0.0, creates
            try:
                async with asyncio.timeout(limit_seconds):
                    return await send()
            except TimeoutError:
                reason = f"no answer within {limit_seconds:.3g} s"
            except openai.APIStatusError as error:
                reason = self._retried_status(error)
                server_wait_seconds = retry_after_seconds(error.response.headers) or 0.0
                may_be_created = creates and error.status_code not in _NOT_CREATED
            except (openai.OpenAIError, aiohttp.ClientError) as error:
                reason, is_unreachable = broken_connection(error)
                may_be_created = creates and not is_unreachable
            if may_be_created:
                raise LostAnswerError(reason)
            if server_wait_seconds > self._retry.longest_wait_seconds:
                break
        raise self._away(reason)

    def _retried_status(self, error: openai.APIStatusError) -> str:
        """Return what an HTTP error says if a retry may mend it; raise it if not."""
        status, message = error.status_code, quoted(error, self._endpoint)
        # A file that was just uploaded is not always known at once.
        if on_status(status, codes_of(error)) in RETRIED or (status == 400 and "annot find file" in message):
            return f"HTTP {status}: {message}"
        if status in _UNKNOWN:
            raise UnknownBatchError
        key = self._endpoint.api_key_env
        what, remedy = "the provider refuses the batch", "correct it, or leave --batch out to run live"
        if status == 403:
            what, remedy = "the key may not use batches here", f"use a key in {key} that may, or leave --batch out"
        what, remedy = key_refusal(error, key) or (what, remedy)
        raise EndpointError(f"{what} (HTTP {status}: {message})", where=self.base_url, remedy=remedy) from None

    def _away(self, reason: str) -> ProviderAwayError:
        return ProviderAwayError(
            f"the provider does not answer: {reason}",
            where=self.base_url,
            remedy="run the same command again later; batches continue meanwhile, and none is paid for twice",
        )

    def _raise_no_batches(self) -> NoReturn:
        raise EndpointError(
            "there is no batch API here",
            where=self.base_url,
            remedy="leave --batch out (judge.batch.enabled: false) to run live",
        ) from None


@dataclass(frozen=True)
class BatchTransport:
    """How requests reach a provider in batches.

    `connect` is called within the event loop that uses the provider. `report` receives a line on how far the batches
    are, now and then.
    """

    connect: Callable[[], OpenAIBatches]
    limits: BatchConfig
    report: Callable[[str], None] = log.info


def _expiry(seconds: int) -> ExpiresAfter:
    return {"anchor": "created_at", "seconds": seconds}


def _batch(fields: Mapping[str, Any]) -> Batch:
    counts = mapping_of(fields.get("request_counts"))
    faults = _mappings(mapping_of(fields.get("errors")).get("data"))
    files = (fields.get("output_file_id"), fields.get("error_file_id"))
    return Batch(
        id=str(fields.get("id") or ""),
        status=str(fields.get("status") or ""),
        created_at=_count(fields.get("created_at")),
        completed=_count(counts.get("completed")),
        failed=_count(counts.get("failed")),
        input_file=str(fields.get("input_file_id") or ""),
        files=tuple(each for each in files if isinstance(each, str) and each),
        metadata={str(name): str(value) for name, value in mapping_of(fields.get("metadata")).items()},
        codes=tuple(str(each.get("code")) for each in faults),
        faults=tuple(str(each.get("message"))[:LONGEST_QUOTE_CHARS] for each in faults),
    )


def _mappings(value: object) -> list[Mapping[str, Any]]:
    return [mapping_of(each) for each in cast("list[Any]", value)] if isinstance(value, list) else []


def _count(value: object) -> int:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) else 0


def read_output(content: bytes, model: str) -> Iterator[Outcome | None]:
    """Yield what each line of an output or error file says, in any order; None for a line that cannot be read."""
    for line in content.split(b"\n"):
        if line.strip():
            yield _read_line(line, model)


def _read_line(line: bytes, model: str) -> Outcome | None:
    result = mapping_of(loaded(line))
    digest = result.get("custom_id")
    if not isinstance(digest, str):
        return None
    response = mapping_of(result.get("response"))
    status = response.get("status_code")
    if status == 200:
        # As ASCII, for a lone surrogate in it has no UTF-8; the parser deals with it.
        body = json.dumps(response.get("body")).encode()
        try:
            return Outcome(digest, replace(read_completion(body), batched=True))
        except UnreadableBodyError as fault:
            return Outcome(digest, None, f"unreadable answer: {fault}", is_completed=True)
    error = mapping_of(mapping_of(response.get("body")).get("error")) or mapping_of(result.get("error"))
    codes = {str(error.get("code")), str(error.get("type"))}
    if status == 400 and codes & CONTENT_FILTER_CODES:
        reason = "the provider filtered the prompt"
        return Outcome(digest, ChatReply(ReplyStatus.CONTENT_FILTER, "", model, 0, 0, reason, 0, True))
    message = (message_in(error) or str(error.get("code") or "no reason given"))[:LONGEST_QUOTE_CHARS]
    if not isinstance(status, int) or not status:
        return Outcome(digest, None, message)
    return Outcome(digest, None, f"HTTP {status}: {message}", on_status(status, codes))
