"""Limits per minute are spent evenly, the window follows the server, and retries back off."""

import asyncio
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from functools import wraps
from typing import Any, ParamSpec

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.llm.rate_limit import RateLimiter, RetryPolicy, duration_seconds, retry_after_seconds

P = ParamSpec("P")
NO_HEADERS: dict[str, str] = {}


class StoppedClock(asyncio.SelectorEventLoop):
    """An event loop whose time goes on only when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def time(self) -> float:
        return self.now


def clock() -> StoppedClock:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, StoppedClock)
    return loop


def in_stopped_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test in an event loop with a stopped clock."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=StoppedClock) as runner:
            runner.run(test(*args, **kwargs))

    return run


def slots(limiter: RateLimiter, count: int, body_chars: int = 400) -> list[float]:
    start = limiter.next_slot(body_chars)
    return [0.0] + [round(limiter.next_slot(body_chars) - start, 6) for _ in range(count - 1)]


@in_stopped_time
async def test_requests_per_minute_are_spread_evenly_and_time_that_passed_is_not_saved_up() -> None:
    limiter = RateLimiter(8, requests_per_minute=600)
    assert slots(limiter, 4) == [0.0, 0.1, 0.2, 0.3]
    clock().now += 60.0
    assert [limiter.next_slot(9) - clock().now for _ in range(2)] == pytest.approx([0.0, 0.1])


@in_stopped_time
async def test_tokens_per_minute_are_guessed_by_length_then_learned_from_replies() -> None:
    limiter = RateLimiter(8, tokens_per_minute=6_000)
    assert slots(limiter, 3) == [0.0, 1.0, 2.0]  # 400 characters are about 100 tokens, of 100 a second
    clock().now += 60.0
    limiter.on_reply(NO_HEADERS, 200)
    # The first reply is the best guess that there is.
    assert slots(limiter, 3) == [0.0, 2.0, 4.0]
    clock().now += 60.0
    limiter.on_reply(NO_HEADERS, 300)
    assert slots(limiter, 2) == [0.0, 2.1]  # 0.9 * 200 + 0.1 * 300 = 210
    tightest = RateLimiter(8, requests_per_minute=600, tokens_per_minute=6_000)
    assert slots(tightest, 2) == [0.0, 1.0]
    clock().now += 60.0
    assert slots(tightest, 2, body_chars=4) == [0.0, 0.1]


LIMITS_IN_HEADERS = [
    ({"x-ratelimit-limit-requests": "1200"}, {}, 0.05),
    ({"x-ratelimit-limit-requests": "1200"}, {"requests_per_minute": 600}, 0.1),
    ({"x-ratelimit-limit-requests": "300"}, {"requests_per_minute": 600}, 0.2),
    ({"x-ratelimit-limit-tokens": "60000"}, {}, 0.1),
    ({"x-ratelimit-limit-tokens": "60000"}, {"tokens_per_minute": 6000}, 1.0),
    ({"x-ratelimit-limit-requests": "many"}, {}, 0.0),
    ({"x-ratelimit-limit-requests": "-5"}, {"requests_per_minute": 600}, 0.1),
    *(({"x-ratelimit-limit-requests": "9" * n}, {"requests_per_minute": 600}, 0.1) for n in (16, 400, 5_000)),
    ({}, {}, 0.0),
]


@pytest.mark.parametrize(("headers", "own", "interval"), LIMITS_IN_HEADERS)
@in_stopped_time
async def test_limits_are_learned_from_headers_and_our_own_are_never_passed(
    headers: dict[str, str], own: dict[str, int], interval: float
) -> None:
    limiter = RateLimiter(8, **own)
    limiter.read_headers(headers)
    assert slots(limiter, 3) == pytest.approx([0.0, interval, 2 * interval])


EMPTY = [
    # Without a known limit the reset is all there is; with one, a request's share of the minute.
    ({"remaining-requests": "0", "reset-requests": "1m30.5s"}, 60.0),
    ({"remaining-requests": "0", "reset-requests": "120ms"}, 0.12),
    ({"limit-requests": "600", "remaining-requests": "0", "reset-requests": "50s"}, 0.1),
    ({"remaining-tokens": "0", "reset-tokens": "2s"}, 2.0),
    ({"remaining-requests": "0", "reset-requests": "soon"}, 0.0),
    ({"remaining-requests": "0"}, 0.0),
    ({"remaining-requests": "1", "reset-requests": "50s"}, 0.0),
    ({"remaining-requests": "9" * 5_000, "reset-requests": "50s"}, 0.0),
]


@pytest.mark.parametrize(("headers", "wait"), EMPTY)
@in_stopped_time
async def test_where_nothing_is_left_the_next_request_waits(headers: dict[str, str], wait: float) -> None:
    limiter = RateLimiter(8)
    limiter.read_headers({f"x-ratelimit-{name}": value for name, value in headers.items()})
    assert limiter.next_slot(4) - clock().now == pytest.approx(wait)


DURATIONS = {"7": 7.0, "0.5": 0.5, "6m0s": 360.0, "1d2h": 93600.0}
UNIT_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
MILLIS = st.integers(0, 10**9)
PARTS = st.lists(st.tuples(MILLIS, st.sampled_from([*UNIT_SECONDS])), min_size=1, max_size=5)
NO_DURATIONS = dict.fromkeys(["", "soon", "1m and a bit", "-1s", "1.s", "5 s", "nan", "inf"])


@pytest.mark.parametrize(("reported", "seconds"), {**DURATIONS, **NO_DURATIONS}.items())
def test_durations(reported: str, seconds: float | None) -> None:
    assert duration_seconds(reported) == pytest.approx(seconds)


@given(PARTS, st.text())
def test_a_duration_is_the_sum_of_its_parts_and_no_text_breaks_the_reader(parts, text):
    written = "".join(f"{number / 1000}{unit}" for number, unit in parts)
    seconds = sum(number / 1000 * UNIT_SECONDS[unit] for number, unit in parts)
    assert duration_seconds(written) == pytest.approx(seconds)
    assert duration_seconds(f"{written} {text}") is None
    assert (duration_seconds(text) or 0.0) >= 0.0


@in_stopped_time
async def test_the_window_opens_fourfold_with_each_round_and_no_further_than_allowed() -> None:
    limiter, narrow = RateLimiter(400), RateLimiter(3)
    seen = [limiter.window]
    for replies in (1, 63, 1, 1_000):
        for _ in range(replies):
            limiter.on_reply(NO_HEADERS, 5)
            narrow.on_reply(NO_HEADERS, 5)
        seen.append(limiter.window)
    assert seen == [64, 67, 256, 259, 400]
    assert narrow.window == 3


@in_stopped_time
async def test_once_pushed_back_the_window_opens_by_a_few_with_each_round() -> None:
    limiter = RateLimiter(400)
    for _ in range(200):
        limiter.on_reply(NO_HEADERS, 5)
    clock().now += 5.0
    limiter.slow_down()
    assert limiter.window == 200
    for _ in range(200):
        limiter.on_reply(NO_HEADERS, 5)
    assert 205 <= limiter.window <= 208


@in_stopped_time
async def test_a_burst_of_refusals_halves_the_window_once_and_never_shuts_it() -> None:
    limiter = RateLimiter(8)
    seen: list[int] = []
    for seconds in (0.0, 0.5, 0.4, 0.2, 1.0, 1.0, 1.0):
        clock().now += seconds
        limiter.slow_down()
        seen.append(limiter.window)
    assert seen == [4, 4, 4, 2, 1, 1, 1]
    for _ in range(5):
        clock().now += 0.5  # the process falls behind
        await settle()
        assert limiter.window == 1


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


@in_stopped_time
async def test_waiting_tasks_enter_in_their_order_as_slots_come_free() -> None:
    limiter, entered = RateLimiter(2), list[int]()

    async def one(number: int) -> None:
        await limiter.acquire()
        entered.append(number)

    tasks = [asyncio.create_task(one(number)) for number in range(5)]
    await settle()
    assert entered == [0, 1]
    limiter.release()
    await settle()
    assert entered == [0, 1, 2]
    limiter.release()
    limiter.release()
    await settle()
    assert entered == [0, 1, 2, 3, 4]
    await asyncio.gather(*tasks)


@in_stopped_time
async def test_from_the_first_reply_on_the_window_opens_by_the_clock_while_a_request_waits() -> None:
    limiter = RateLimiter(90)
    for _ in range(64):
        await limiter.acquire()

    async def looks(count: int) -> int:
        for _ in range(count):
            clock().now += 0.021
            await settle()
        return limiter.window

    waiting = [asyncio.create_task(limiter.acquire()) for _ in range(10)]
    await settle()
    assert await looks(5) == 64  # no reply yet
    limiter.on_reply(NO_HEADERS, 5)
    assert await looks(1) == 75
    await asyncio.gather(*waiting)
    assert await looks(5) == 75  # no request waits
    waiting = [asyncio.create_task(limiter.acquire()) for _ in range(30)]
    await settle()
    assert await looks(5) == 90  # and no further than allowed
    clock().now += 0.06
    await settle()
    assert limiter.window == 81  # this process fell behind
    limiter.slow_down()
    assert await looks(5) == 40
    for task in waiting:
        task.cancel()


@pytest.mark.parametrize("is_admitted", [False, True])
@in_stopped_time
async def test_a_slot_is_not_lost_with_a_task_that_gives_up(is_admitted: bool) -> None:
    limiter = RateLimiter(1)
    await limiter.acquire()
    impatient, patient = (asyncio.create_task(limiter.acquire()) for _ in range(2))
    await settle()
    if is_admitted:
        limiter.release()  # its place is granted, but it did not run yet
    impatient.cancel()
    if not is_admitted:
        limiter.release()
    await settle()
    assert impatient.cancelled()
    assert patient.done()


@in_stopped_time
async def test_a_process_that_falls_behind_takes_less_on() -> None:
    limiter = RateLimiter(100)
    for _ in range(92):
        limiter.on_reply(NO_HEADERS, 5)
    assert limiter.window == 100
    for seconds, window in ((0.02, 100), (0.049, 100), (0.06, 90), (0.5, 81), (0.021, 81)):
        clock().now += seconds
        await settle()
        assert limiter.window == window
    for _ in range(40):
        clock().now += 1.0
        await settle()
    assert limiter.window == 64  # as small as it began, and no smaller


@in_stopped_time
async def test_time_in_which_the_process_was_stopped_counts_towards_no_limit() -> None:
    limiter, reply = RateLimiter(1), asyncio.get_running_loop().create_future()

    async def ask() -> bool:
        async with limiter.time_limit(10.0):
            return await reply

    first = asyncio.create_task(ask())
    await settle()
    clock().now += 60.0
    await settle()
    assert not first.done()
    for _ in range(12):
        clock().now += 0.9
        await settle()
    assert isinstance(first.exception(), TimeoutError), "a server that does not answer is not waited for any longer"


NOW = datetime(2025, 3, 1, 12, 0, 0, tzinfo=UTC)


@given(st.integers(1, 12), st.text(st.characters(codec="utf-8")))
def test_a_wait_lies_between_half_and_the_whole_of_the_back_off(tries, key):
    policy = RetryPolicy(first_wait_seconds=0.5, longest_wait_seconds=30.0)
    whole = min(0.5 * 2 ** (tries - 1), 30.0)
    assert whole / 2 <= policy.wait_seconds(tries, key) <= whole
    assert 0 <= policy.spread_seconds(key) <= 0.5
    assert policy.wait_seconds(tries, key) == policy.wait_seconds(tries, key)


def test_different_requests_spread_out():
    waits = {RetryPolicy().wait_seconds(3, f"request {number}") for number in range(50)}
    assert len(waits) > 25
    assert max(waits) - min(waits) > 0.5


WAITS = {
    "7": 7.0,
    "0.25": 0.25,
    "Sat, 01 Mar 2025 12:00:30 GMT": 30.0,
    "Sat, 01 Mar 2025 12:00:30 -0000": 30.0,
    "Sat, 01 Mar 2025 11:00:00 GMT": 0.0,
    **dict.fromkeys(["soon", "-3", "inf", "nan", "Sat, 01 Mar 99999999999999999999 12:00:30 GMT"]),
    "Sat, 01 Mar 2025 12:00:30 +99999999999999999999": None,
}


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({}, None), ({"retry-after": "9", "retry-after-ms": "250"}, 0.25)]
    + [({"retry-after": text}, seconds) for text, seconds in WAITS.items()],
)
def test_what_the_server_asks_for(headers, seconds):
    assert retry_after_seconds(headers, NOW) == seconds
