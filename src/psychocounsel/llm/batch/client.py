"""Shard -> batch -> output: the provider's files and batches, through the official client.

What only reads is tried again after a fault that may pass. Making a batch is not: where no answer came, it
may have been made all the same, and the caller has to look.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar, cast
from urllib.parse import quote

import aiohttp
import httpx2
import openai
from openai.types.file_create_params import ExpiresAfter

from psychocounsel.config.components import BatchConfig, EndpointConfig
from psychocounsel.errors import EndpointError
from psychocounsel.llm.batch.provider import (
    ENDPOINT,
    AwayError,
    Batch,
    BatchTransport,
    LostAnswerError,
    UnknownBatchError,
)
from psychocounsel.llm.client import Worded, broken_by, may_pass, quoted, refusal_of_key
from psychocounsel.llm.rate_limit import RetryPolicy, retry_after_seconds
from psychocounsel.llm.replies import mapping_of
from psychocounsel.llm.structured_output import StructuredOutputModel
from psychocounsel.llm.types import api_key, is_on_this_machine, require_reachable, resolved_base_url

_NOT_MADE = frozenset({409, 425, 429})
_NO_SUCH_THING = frozenset({404, 405, 501})
_PAGE = 100
_DAY_SECONDS = 86_400
_INPUT_KEPT_SECONDS = 7 * _DAY_SECONDS
_OUTPUT_KEPT_SECONDS = 30 * _DAY_SECONDS
"""The longest that may be asked for: replies that nobody fetched by then are paid for again."""
_LONGEST_QUOTE_CHARS = 200
_DEFAULT_RETRY = RetryPolicy()
_Got = TypeVar("_Got")


class OpenAIBatches:
    """Batches at an endpoint; made within the event loop that uses it.

    Raises:
        ConfigError: the key is missing, or `offline` is set and the endpoint is not on this machine.
    """

    def __init__(
        self,
        endpoint: EndpointConfig,
        limits: BatchConfig,
        offline: bool = False,
        retry: RetryPolicy = _DEFAULT_RETRY,
    ) -> None:
        self.base_url = resolved_base_url(endpoint)
        require_reachable(self.base_url, offline)
        self._endpoint, self._limits, self._retry = endpoint, limits, retry
        self._takes_expiry = True
        http = openai.DefaultAioHttpClient(
            timeout=None, trust_env=not is_on_this_machine(self.base_url), follow_redirects=False
        )
        self._client = openai.AsyncOpenAI(
            api_key=api_key(endpoint),
            base_url=self.base_url,
            max_retries=0,
            timeout=None,
            http_client=http,
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def require_batches(self) -> None:
        """Return if there is a batch endpoint that takes our key.

        Raises:
            EndpointError: there is none, or it does not.
        """
        try:
            await self._page(f"/batches?limit={_PAGE}")
        except UnknownBatchError:
            raise self._without_batches() from None

    async def newest(self, since: float) -> list[Batch]:
        """Return the batches that were made after a time in Unix seconds."""
        found: list[Batch] = []
        after = ""
        while True:
            page = await self._page(f"/batches?limit={_PAGE}{after}")
            listed = [_batch(each) for each in _mappings(page.get("data"))]
            # A server that tells no time is read to the end of its list.
            recent = [each for each in listed if not each.created_at or each.created_at >= since]
            found += recent
            if not page.get("has_more") or len(recent) < len(listed) or not listed:
                return found
            after = f"&after={quote(listed[-1].id, safe='')}"

    async def upload(self, name: str, content: bytes) -> str:
        """Hand in a file of requests, which costs nothing yet; return its id.

        Where nobody deletes it, the provider does after a week, if it knows how.
        """

        async def send() -> str:
            made = await self._client.files.create(
                file=(name, content, "application/jsonl"),
                purpose="batch",
                expires_after=_after(_INPUT_KEPT_SECONDS) if self._takes_expiry else openai.omit,
            )
            return made.id

        try:
            return await self._tried(partial(self._expiring, send), self._limits.transfer_timeout_seconds)
        except UnknownBatchError:
            raise self._without_batches() from None

    async def uploads(self, name: str) -> list[str]:
        """Return the ids of lately uploaded files of this name."""
        listed = _mappings((await self._page(f"/files?purpose=batch&order=desc&limit={_PAGE}")).get("data"))
        return [str(each["id"]) for each in listed if each.get("filename") == name and each.get("id")]

    async def delete(self, file_id: str) -> None:
        """Delete a file; one that is not there is deleted already.

        Raises:
            UnknownBatchError: files are not deleted here.
        """

        async def send() -> None:
            with suppress(openai.NotFoundError):
                await self._client.delete(f"/files/{quote(file_id, safe='')}", cast_to=httpx2.Response)

        await self._tried(send, self._endpoint.timeout_seconds)

    async def create(self, file_id: str, metadata: Mapping[str, str]) -> Batch:
        """Make a batch of a file.

        Raises:
            LostAnswerError: nobody can tell whether it was made.
            EndpointError: it was not, and would not be the next time.
            AwayError: it was not, for the provider asks to wait for longer than we do.
        """
        order = {
            "input_file_id": file_id,
            "endpoint": ENDPOINT,
            "completion_window": "24h",
            "metadata": dict(metadata),
        }

        async def send() -> Batch:
            expiry = {"output_expires_after": _after(_OUTPUT_KEPT_SECONDS)} if self._takes_expiry else {}
            made = await self._client.post("/batches", body={**order, **expiry}, cast_to=httpx2.Response)
            batch = _batch(_loaded(made.content))
            if not batch.id:
                raise LostAnswerError
            return batch

        try:
            limit_seconds = self._endpoint.timeout_seconds
            return await self._tried(partial(self._expiring, send), limit_seconds, makes_something=True)
        except UnknownBatchError:
            raise self._without_batches() from None

    async def state(self, batch_id: str) -> Batch:
        """Return how far a batch is.

        Raises:
            UnknownBatchError: the provider knows none of this name.
            AwayError: it does not answer, or something else answers in its place.
        """
        batch = _batch(_loaded(await self._get(f"/batches/{quote(batch_id, safe='')}")))
        if not batch.id or not batch.status:
            raise self._away("something that is no batch was answered")
        return batch

    async def cancel(self, batch_id: str) -> None:
        """Ask the provider to do no more of a batch."""

        async def send() -> None:
            await self._client.post(f"/batches/{quote(batch_id, safe='')}/cancel", cast_to=httpx2.Response)

        await self._tried(send, self._endpoint.timeout_seconds)

    async def content(self, file_id: str) -> bytes:
        """Return what a file holds.

        Raises:
            UnknownBatchError: the provider has no such file.
        """
        path = f"/files/{quote(file_id, safe='')}/content"
        return await self._get(path, self._limits.transfer_timeout_seconds)

    async def _page(self, path: str) -> Mapping[str, Any]:
        """Return a page of a list; whatever else is answered must not pass for an empty one."""
        page = _loaded(await self._get(path))
        if not isinstance(page.get("data"), list):
            raise self._away("something that is no list was answered")
        return page

    async def _expiring(self, send: Callable[[], Awaitable[_Got]]) -> _Got:
        """Send with a time after which files expire, or without where the provider knows of none."""
        try:
            return await send()
        except (openai.BadRequestError, openai.UnprocessableEntityError) as refusal:
            if not self._takes_expiry or "expires_after" not in refusal.message:
                raise
        self._takes_expiry = False
        return await send()

    async def _get(self, path: str, limit_seconds: float | None = None) -> bytes:
        async def send() -> bytes:
            return (await self._client.get(path, cast_to=httpx2.Response)).content

        return await self._tried(send, limit_seconds or self._endpoint.timeout_seconds)

    async def _tried(
        self, send: Callable[[], Awaitable[_Got]], limit_seconds: float, makes_something: bool = False
    ) -> _Got:
        reason, asked_wait_seconds = "", 0.0
        for tries in range(self._retry.max_tries):
            if tries:
                await asyncio.sleep(max(asked_wait_seconds, self._retry.wait_seconds(tries, reason)))
            asked_wait_seconds, is_open = 0.0, makes_something
            try:
                async with asyncio.timeout(limit_seconds):
                    return await send()
            except TimeoutError:
                reason = f"no answer within {limit_seconds:.3g} s"
            except openai.APIStatusError as error:
                reason = self._passing(error)
                asked_wait_seconds = retry_after_seconds(error.response.headers) or 0.0
                is_open = makes_something and error.status_code not in _NOT_MADE | {400}
            except (openai.OpenAIError, aiohttp.ClientError) as error:
                reason, nobody_listens = broken_by(error)
                is_open = makes_something and not nobody_listens
            if is_open:
                raise LostAnswerError(reason)
            if asked_wait_seconds > self._retry.longest_wait_seconds:
                break
        raise self._away(reason)

    def _away(self, reason: str) -> AwayError:
        return AwayError(
            f"the provider does not answer: {reason}",
            where=self.base_url,
            remedy="run the same command again later; batches go on meanwhile, and none is paid twice",
        )

    def _passing(self, error: openai.APIStatusError) -> str:
        """Return what a fault is that may pass; raise one that does not."""
        said = quoted(error, api_key(self._endpoint))
        # A file just handed in is not always known at once.
        if may_pass(error) or (error.status_code == 400 and "annot find file" in said):
            return f"HTTP {error.status_code}: {said}"
        if error.status_code in _NO_SUCH_THING:
            raise UnknownBatchError
        refusal = refusal_of_key(error, self._endpoint.api_key_env) or self._refusal(error)
        raise EndpointError(
            f"{refusal.what} (HTTP {error.status_code}: {said})", where=self.base_url, remedy=refusal.remedy
        ) from None

    def _refusal(self, error: openai.APIStatusError) -> Worded:
        if error.status_code == 403:
            remedy = f"use a key in {self._endpoint.api_key_env} that may, or leave --batch out"
            return Worded("the key may not use batches here", remedy)
        return Worded("the provider refuses the batch", "mend it, or leave --batch out to ask live")

    def _without_batches(self) -> EndpointError:
        return EndpointError(
            "there is no batch API here",
            where=self.base_url,
            remedy="leave --batch out (judge.batch.enabled: false) to ask live",
        )


def batch_transport(
    model: StructuredOutputModel, endpoint: EndpointConfig, limits: BatchConfig, offline: bool = False
) -> BatchTransport:
    """Return the way in batches to a model, which asks as the model itself would."""
    return BatchTransport(
        connect=lambda: OpenAIBatches(endpoint, limits, offline),
        body=model.body,
        check=model.check,
        is_known=lambda: model.is_known,
        limits=limits,
    )


def _after(seconds: int) -> ExpiresAfter:
    return {"anchor": "created_at", "seconds": seconds}


def _batch(told: Mapping[str, Any]) -> Batch:
    counts = mapping_of(told.get("request_counts"))
    faults = _mappings(mapping_of(told.get("errors")).get("data"))
    files = (told.get("output_file_id"), told.get("error_file_id"))
    return Batch(
        id=str(told.get("id") or ""),
        status=str(told.get("status") or ""),
        created_at=_count(told.get("created_at")),
        answered=_count(counts.get("completed")) + _count(counts.get("failed")),
        input_file=str(told.get("input_file_id") or ""),
        files=tuple(each for each in files if isinstance(each, str) and each),
        metadata={str(name): str(value) for name, value in mapping_of(told.get("metadata")).items()},
        codes=tuple(str(each.get("code")) for each in faults),
        faults=tuple(str(each.get("message"))[:_LONGEST_QUOTE_CHARS] for each in faults),
    )


def _loaded(body: bytes) -> Mapping[str, Any]:
    try:
        return mapping_of(json.loads(body))
    except (ValueError, RecursionError):
        return {}


def _mappings(value: object) -> list[Mapping[str, Any]]:
    return [mapping_of(each) for each in cast("list[Any]", value)] if isinstance(value, list) else []


def _count(value: object) -> int:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0
