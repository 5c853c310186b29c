"""Fault -> seconds to wait: exponential back-off with jitter, and what a server asks for.

The jitter is a hash of the request and the try, so that equal runs wait alike and no random state is
needed; different requests still spread out.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

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
