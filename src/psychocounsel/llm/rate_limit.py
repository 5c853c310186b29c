"""Replies and their headers -> when the next request may go, and how many may be in flight.

All requests to one endpoint share a pace. Budgets per minute, ours and those that the server's headers
tell, are spent evenly, so that none is exceeded in a burst. The number in flight starts small and grows with
every reply, fourfold by the round, and from the first reply on by the clock: where replies take seconds it is
soon there, and requests sent evenly come back evenly. Once the server asks for less it halves, and grows by a
few with every round. It also shrinks when this process falls behind: a reply that waits unread is paid but
not yet safe.
"""

import asyncio
import hashlib
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_MINUTE_SECONDS = 60.0
_FIRST_WINDOW = 64.0
_GROWTH_BEFORE_PUSH_BACK = 3.0
_GROWTH_PER_LOOK = 8.0
_GROWTH_PER_ROUND = 8.0
_SHRINK_EVERY_SECONDS = 1.0
_LOOK_EVERY_SECONDS = 0.02
_LONGEST_LAG_SECONDS = 0.03
_LAG_SHRINK = 0.9
_CHARS_PER_TOKEN = 4
_MOST_DIGITS = 15
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class RateLimiter:
    """The common pace of one endpoint in one event loop.

    Args:
        concurrency: requests in flight at most.
        requests_per_minute: our own budget; None leaves it to the server's headers.
        tokens_per_minute: likewise, prompt and reply together.
    """

    def __init__(
        self, concurrency: int, requests_per_minute: int | None = None, tokens_per_minute: int | None = None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._most = float(concurrency)
        self._window = min(_FIRST_WINDOW, self._most)
        self._in_flight = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._own_requests, self._own_tokens = requests_per_minute, tokens_per_minute
        self._request_limit = float(requests_per_minute or 0)
        self._token_limit = float(tokens_per_minute or 0)
        self._tokens_per_request = 0.0
        self._next_at_seconds = 0.0
        self._shrunk_at_seconds = 0.0
        self._was_answered = False
        self._was_pushed_back = False
        self._watch = self._loop.call_later(_LOOK_EVERY_SECONDS, self._look, self._loop.time())

    @property
    def window(self) -> int:
        """How many requests may be in flight at present."""
        return int(self._window)

    def enter_at_once(self) -> bool:
        """Take a place among those in flight if one is free; `leave` gives it back."""
        if self._in_flight >= self.window:
            return False
        self._in_flight += 1
        return True

    async def enter(self) -> None:
        """Wait for a place among those in flight; `leave` gives it back."""
        if self.enter_at_once():
            return
        place = self._loop.create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.leave()
            raise

    def leave(self) -> None:
        """Give a place back; those who wait longest come first."""
        self._in_flight -= 1
        self._admit()

    def turn_at_seconds(self, body_chars: int) -> float:
        """Take the next turn within the budgets, and return when it is by the event loop's clock."""
        interval = 0.0
        if self._request_limit:
            interval = _MINUTE_SECONDS / self._request_limit
        if self._token_limit:
            tokens = self._tokens_per_request or body_chars / _CHARS_PER_TOKEN
            interval = max(interval, tokens * _MINUTE_SECONDS / self._token_limit)
        turn = max(self._loop.time(), self._next_at_seconds)
        self._next_at_seconds = turn + interval
        return turn

    def answered(self, headers: Mapping[str, str], tokens: int) -> None:
        """Learn from a reply what it cost and which limits its headers tell; there is room for one more."""
        before = self._tokens_per_request
        self._tokens_per_request = 0.9 * before + 0.1 * tokens if before else float(tokens)
        self.learn(headers)
        self._was_answered = True
        grown = _GROWTH_PER_ROUND / self._window if self._was_pushed_back else _GROWTH_BEFORE_PUSH_BACK
        self._grow(min(grown, _GROWTH_BEFORE_PUSH_BACK))

    def learn(self, headers: Mapping[str, str]) -> None:
        """Read the rate-limit headers of any answer (lower-case names); ones that cannot be read are none."""
        if told := _whole(headers.get("x-ratelimit-limit-requests")):
            self._request_limit = float(min(told, self._own_requests or told))
        if told := _whole(headers.get("x-ratelimit-limit-tokens")):
            self._token_limit = float(min(told, self._own_tokens or told))
        for name, limit in (("requests", self._request_limit), ("tokens", self._token_limit)):
            if _whole(headers.get(f"x-ratelimit-remaining-{name}")) == 0:
                reset_seconds = duration_seconds(headers.get(f"x-ratelimit-reset-{name}", "")) or 0.0
                # With a known limit the reset is that of the whole budget; one request's share comes sooner.
                wait_seconds = min(reset_seconds, _MINUTE_SECONDS / limit) if limit else reset_seconds
                later = self._loop.time() + min(wait_seconds, _MINUTE_SECONDS)
                self._next_at_seconds = max(self._next_at_seconds, later)

    def pushed_back(self) -> None:
        """Halve what may be in flight: the server asks for less. A burst of refusals counts as one."""
        now = self._loop.time()
        self._was_pushed_back = True
        if now - self._shrunk_at_seconds >= _SHRINK_EVERY_SECONDS:
            self._shrunk_at_seconds = now
            self._window = max(1.0, self._window / 2)

    def close(self) -> None:
        """Stop watching; the event loop is about to end."""
        self._watch.cancel()

    def _grow(self, by: float) -> None:
        if self._window < self._most:
            self._window = min(self._most, self._window + by)
            self._admit()

    def _admit(self) -> None:
        while self._waiting and self._in_flight < self.window:
            place = self._waiting.popleft()
            if not place.done():
                self._in_flight += 1
                place.set_result(None)

    def _look(self, last_at_seconds: float) -> None:
        now = self._loop.time()
        if now - last_at_seconds - _LOOK_EVERY_SECONDS > _LONGEST_LAG_SECONDS:
            # No smaller than it began, unless the server made it so.
            least = min(_FIRST_WINDOW, self._window)
            self._window = max(least, self._window * _LAG_SHRINK)
        elif self._waiting and self._was_answered and not self._was_pushed_back:
            self._grow(_GROWTH_PER_LOOK)
        self._watch = self._loop.call_later(_LOOK_EVERY_SECONDS, self._look, now)


def duration_seconds(told: str) -> float | None:
    """Return the seconds of a duration such as `1m30.5s`, `120ms` or `7`; None for anything else."""
    parts = _DURATION.findall(told)
    if parts and "".join(number + unit for number, unit in parts) == told:
        return sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)
    return float(told) if re.fullmatch(r"\d+(\.\d+)?", told) else None


def _whole(told: str | None) -> int | None:
    if told is None or not told.isascii() or not told.isdigit():
        return None
    # Python turns only so many digits into a number, and such a limit is none.
    return int(told) if len(told) <= _MOST_DIGITS else None


_MOST_DOUBLINGS = 64


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how long a request is tried again after a fault that may pass.

    Args:
        max_tries: requests sent at most, the first included.
        first_wait_seconds: the wait after the first fault; it doubles with every further one.
        longest_wait_seconds: where the doubling ends.
        deadline_factor: all tries and waits together take at most this multiple of one try's time limit.
    """

    max_tries: int = 5
    first_wait_seconds: float = 0.5
    longest_wait_seconds: float = 30.0
    deadline_factor: float = 3.0

    def wait_seconds(self, tries: int, key: str) -> float:
        """Return between one half and the whole of the back-off after `tries` faults in a row.

        `key` names the request; it decides where in that range the wait falls.
        """
        doublings = min(tries - 1, _MOST_DOUBLINGS)
        whole = min(self.first_wait_seconds * 2**doublings, self.longest_wait_seconds)
        return whole * (0.5 + 0.5 * _draw(f"{key}/{tries}"))

    def spread_seconds(self, key: str) -> float:
        """Return up to `first_wait_seconds` by which a request lets others go first after a common pause."""
        return self.first_wait_seconds * _draw(key)


def retry_after_seconds(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Return how long the server asks us to wait, or None where it does not say (RFC 9110, 10.2.3).

    `headers` has lower-case names. `retry-after-ms` wins over `retry-after`, which holds seconds or a date.
    """
    milliseconds = _number(headers.get("retry-after-ms", ""))
    if milliseconds is not None:
        return milliseconds / 1000
    asked = headers.get("retry-after", "")
    seconds = _number(asked)
    if seconds is not None:
        return seconds
    try:
        moment = parsedate_to_datetime(asked)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())
    except (ValueError, OverflowError, TypeError, LookupError):  # the parser meets odd dates with any of them
        return None


def _draw(key: str) -> float:
    return hashlib.sha256(key.encode()).digest()[0] / 255


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None
