"""When a request may be sent, and sent again: limits per minute, requests in flight, retries.

`ON_STATUS` says what each HTTP status means. Calls about batches only tell retried from refused statuses: they have no
requests in flight to slow down.
"""

import asyncio
import hashlib
import re
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum, auto

_MINUTE_SECONDS = 60.0
_FIRST_WINDOW = 64.0
_GROWTH_BEFORE_SLOWDOWN = 3.0
_GROWTH_PER_TICK = 8.0
_GROWTH_PER_ROUND = 8.0
_SHRINK_EVERY_SECONDS = 1.0
_TICK_SECONDS = 0.02
_MAX_LAG_SECONDS = 0.03
_LAG_SHRINK = 0.9
_STOPPED_SECONDS = 1.0
_CHARS_PER_TOKEN = 4
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class OnStatus(Enum):
    """What the client does about an HTTP error status."""

    RETRY = auto()
    """Send this request again after its own back-off."""
    RETRY_LOST = auto()
    """As RETRY; a gateway stopped waiting for the server, which may have answered, and billed, all the same."""
    SLOW_DOWN = auto()
    """As RETRY; all requests to the endpoint wait as well, and half as many are in flight."""
    SLOW_DOWN_FREE = auto()
    """As SLOW_DOWN, and not counted as one of the request's tries: the server has not looked at it."""
    REFUSE_REQUEST = auto()
    """The endpoint does not accept this request; it may accept others."""
    REFUSE_ALL = auto()
    """The endpoint would refuse every request: end the run."""


ON_STATUS = {
    400: OnStatus.REFUSE_REQUEST,
    401: OnStatus.REFUSE_ALL,  # the key is not accepted
    402: OnStatus.REFUSE_ALL,  # the quota is used up
    403: OnStatus.REFUSE_ALL,  # the key may not use the model
    404: OnStatus.REFUSE_ALL,  # no such model, or no such path
    408: OnStatus.RETRY,
    409: OnStatus.RETRY,
    413: OnStatus.REFUSE_REQUEST,
    422: OnStatus.REFUSE_REQUEST,
    425: OnStatus.RETRY,
    429: OnStatus.SLOW_DOWN_FREE,
    501: OnStatus.REFUSE_ALL,  # there is no such API
    503: OnStatus.SLOW_DOWN,
    504: OnStatus.RETRY_LOST,
    524: OnStatus.RETRY_LOST,  # Cloudflare's 504
    529: OnStatus.SLOW_DOWN,  # "overloaded", as some providers say
}
"""Others are retried from 500 on (520 to 523 are Cloudflare's). Below, nothing says that asking again would help."""
RETRIED = (OnStatus.RETRY, OnStatus.RETRY_LOST, OnStatus.SLOW_DOWN, OnStatus.SLOW_DOWN_FREE)
_QUOTA_CODES = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})


def quota_is_used_up(status: int, codes: Set[str]) -> bool:
    """Whether the key has used up what it may spend, by the HTTP status and the server's names for the error."""
    return status == 402 or not codes.isdisjoint(_QUOTA_CODES)


def on_status(status: int, codes: Set[str]) -> OnStatus:
    """Return what to do about an HTTP error; arguments as those of `quota_is_used_up`."""
    if quota_is_used_up(status, codes):
        return OnStatus.REFUSE_ALL
    return ON_STATUS.get(status, OnStatus.RETRY if status >= 500 else OnStatus.REFUSE_ALL)


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how long a request is tried again.

    `max_tries` includes the first; the wait after it doubles with every further one. All tries and waits of a live
    request together take at most `deadline_factor` times the time limit of one try.

    Two loops follow it, for they answer for different things. A live request (`llm/client.py`) shares slots and pauses
    with all others, may be sent again after a response that was lost, which is charged, and ends as a failed reply. A
    call about batches (`llm/batch/client.py`) is alone, must never be repeated where a batch may have been created, and
    ends the run.
    """

    max_tries: int = 5
    first_wait_seconds: float = 0.5
    longest_wait_seconds: float = 30.0
    deadline_factor: float = 3.0

    def wait_seconds(self, tries: int, key: str) -> float:
        """Return the back-off after so many failed tries; the hash of the request's `key` shortens it by up to half."""
        longest = min(self.first_wait_seconds * 2 ** (tries - 1), self.longest_wait_seconds)
        return longest * (0.5 + 0.5 * _jitter(f"{key}/{tries}"))

    def spread_seconds(self, key: str) -> float:
        """Return up to `first_wait_seconds` by which a request waits longer than others after a common pause."""
        return self.first_wait_seconds * _jitter(key)


def retry_after_seconds(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Return how long the server asks us to wait, or None where it does not say (RFC 9110, 10.2.3).

    `headers` has lower-case names. `retry-after-ms` wins over `retry-after`, which holds seconds or a date.
    """
    if (milliseconds := _number(headers.get("retry-after-ms", ""))) is not None:
        return milliseconds / 1000
    value = headers.get("retry-after", "")
    if (seconds := _number(value)) is not None:
        return seconds
    try:
        moment = parsedate_to_datetime(value)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())
    except (ValueError, OverflowError, TypeError, LookupError):  # the parser meets odd dates with any of them
        return None


def duration_seconds(text: str) -> float | None:
    """Return the seconds of a duration such as `1m30.5s`, `120ms` or `7`; None for anything else."""
    parts = _DURATION.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)
    return _number(text)


class RateLimiter:
    """Shared by all requests to one endpoint in one event loop.

    Limits per minute, ours and those in the server's headers, are spent evenly, never in a burst. The window,
    which is the number of requests in flight, starts small and grows with every reply, fourfold by the round,
    and from the first reply on by the clock. When the server asks for less the window halves, and then grows
    by a few with every round. It also shrinks when this process falls behind: a reply that waits unread is
    paid for but not yet safe. A limit per minute of None is left to the server's headers; tokens are those of
    prompt and reply together.
    """

    def __init__(
        self, concurrency: int, requests_per_minute: int | None = None, tokens_per_minute: int | None = None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._concurrency = float(concurrency)
        self._window = min(_FIRST_WINDOW, self._concurrency)
        self._in_flight = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._own_requests, self._own_tokens = requests_per_minute, tokens_per_minute
        self._request_limit = float(requests_per_minute or 0)
        self._token_limit = float(tokens_per_minute or 0)
        self._tokens_per_request = 0.0
        self._next_slot = 0.0
        self._shrunk_at = 0.0
        self._had_reply = False
        self._was_slowed = False
        self._time_limits: set[asyncio.Timeout] = set()
        self._timer = self._loop.call_later(_TICK_SECONDS, self._tick, self._loop.time())

    @property
    def window(self) -> int:
        """How many requests may be in flight at present."""
        return int(self._window)

    def acquire_at_once(self) -> bool:
        """Join the requests in flight if there is room now; `release` leaves them again."""
        if self._in_flight >= self.window:
            return False
        self._in_flight += 1
        return True

    async def acquire(self) -> None:
        """Wait until there is room among the requests in flight; `release` makes room again."""
        if self.acquire_at_once():
            return
        room = self._loop.create_future()
        self._waiting.append(room)
        try:
            await room
        except asyncio.CancelledError:
            if room.done() and not room.cancelled():
                self.release()
            raise

    def release(self) -> None:
        """Make room for another request; those that wait longest come first."""
        self._in_flight -= 1
        self._admit()

    def next_slot(self, body_chars: int) -> float:
        """Take the next moment within the limits per minute, and return it by the event loop's clock."""
        interval = _MINUTE_SECONDS / self._request_limit if self._request_limit else 0.0
        if self._token_limit:
            tokens = self._tokens_per_request or body_chars / _CHARS_PER_TOKEN
            interval = max(interval, tokens * _MINUTE_SECONDS / self._token_limit)
        slot = max(self._loop.time(), self._next_slot)
        self._next_slot = slot + interval
        return slot

    def on_reply(self, headers: Mapping[str, str], tokens: int) -> None:
        """Learn from a reply how many tokens a request takes and which limits there are; widen the window."""
        before = self._tokens_per_request
        self._tokens_per_request = 0.9 * before + 0.1 * tokens if before else float(tokens)
        self.read_headers(headers)
        self._had_reply = True
        growth = _GROWTH_PER_ROUND / self._window if self._was_slowed else _GROWTH_BEFORE_SLOWDOWN
        self._grow(min(growth, _GROWTH_BEFORE_SLOWDOWN))

    def read_headers(self, headers: Mapping[str, str]) -> None:
        """Read the rate-limit headers of any response (lower-case names); what cannot be read is left out."""
        if limit := _number(headers.get("x-ratelimit-limit-requests", "")):
            self._request_limit = min(limit, self._own_requests or limit)
        if limit := _number(headers.get("x-ratelimit-limit-tokens", "")):
            self._token_limit = min(limit, self._own_tokens or limit)
        for name, limit in (("requests", self._request_limit), ("tokens", self._token_limit)):
            if _number(headers.get(f"x-ratelimit-remaining-{name}", "")) == 0:
                reset_seconds = duration_seconds(headers.get(f"x-ratelimit-reset-{name}", "")) or 0.0
                # With a known limit the reset is that of the whole minute; one request's share comes sooner.
                wait_seconds = min(reset_seconds, _MINUTE_SECONDS / limit) if limit else reset_seconds
                self._next_slot = max(self._next_slot, self._loop.time() + min(wait_seconds, _MINUTE_SECONDS))

    @asynccontextmanager
    async def time_limit(self, seconds: float) -> AsyncGenerator[None]:
        """Raise TimeoutError if the block takes longer, without the time in which this process was stopped.

        What the server sent meanwhile waits to be read, and is paid for.
        """
        async with asyncio.timeout(seconds) as limit:
            self._time_limits.add(limit)
            try:
                yield
            finally:
                self._time_limits.discard(limit)

    def slow_down(self) -> None:
        """Halve the window: the server asks for less. A burst of refusals counts as one."""
        self._was_slowed = True
        if self._loop.time() - self._shrunk_at >= _SHRINK_EVERY_SECONDS:
            self._shrunk_at = self._loop.time()
            self._window = max(1.0, self._window / 2)

    def close(self) -> None:
        """Stop the timer; the event loop is about to end."""
        self._timer.cancel()

    def _grow(self, by: float) -> None:
        if self._window < self._concurrency:
            self._window = min(self._concurrency, self._window + by)
            self._admit()

    def _admit(self) -> None:
        while self._waiting and self._in_flight < self.window:
            room = self._waiting.popleft()
            if not room.done():
                self._in_flight += 1
                room.set_result(None)

    def _tick(self, last_tick: float) -> None:
        now = self._loop.time()
        lag_seconds = now - last_tick - _TICK_SECONDS
        if lag_seconds > _STOPPED_SECONDS:
            for limit in self._time_limits:
                if (end := limit.when()) is not None and not limit.expired():
                    limit.reschedule(end + lag_seconds)
        if lag_seconds > _MAX_LAG_SECONDS:
            # No smaller than it began, unless the server made it so.
            self._window = max(min(_FIRST_WINDOW, self._window), self._window * _LAG_SHRINK)
        elif self._waiting and self._had_reply and not self._was_slowed:
            self._grow(_GROWTH_PER_TICK)
        self._timer = self._loop.call_later(_TICK_SECONDS, self._tick, now)


def _jitter(key: str) -> float:
    """Return a number from 0 to 1 that depends on the key alone."""
    return hashlib.sha256(key.encode()).digest()[0] / 255


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None
