"""What waits when a run halts gives up at once; what does not wait is left alone."""

import asyncio
import time

import pytest

from psychocounsel.llm.cancel import CancelScope, RunCancelledError, present_halt


def never() -> bool:
    return False


async def wait_for_ever() -> None:
    await asyncio.Event().wait()


def test_all_who_wait_give_up_and_clean_up_when_the_run_halts() -> None:
    cleaned: list[int] = []

    async def waiter(halt: CancelScope, number: int) -> None:
        async with halt.ending_waits():
            try:
                await wait_for_ever()
            finally:
                cleaned.append(number)

    async def work() -> list[BaseException | None]:
        halt = CancelScope(never)
        tasks = [asyncio.create_task(waiter(halt, number)) for number in range(20)]
        await asyncio.sleep(0)
        halt.call()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        with pytest.raises(RunCancelledError):
            async with halt.ending_waits():
                cleaned.append(-1)
        return outcomes

    assert {type(outcome) for outcome in asyncio.run(work())} == {RunCancelledError}
    assert sorted(cleaned) == list(range(20))


def test_a_wait_that_ended_before_and_what_comes_after_it_are_left_alone() -> None:
    async def waiter(halt: CancelScope) -> str:
        async with halt.ending_waits():
            await asyncio.sleep(0)
        await asyncio.sleep(0.02)  # in flight: paid for, and awaited
        return "answered"

    async def work() -> str:
        halt = CancelScope(never)
        task = asyncio.create_task(waiter(halt))
        await asyncio.sleep(0.005)
        halt.call()
        return await task

    assert asyncio.run(work()) == "answered"


def test_the_wish_is_looked_for_while_everybody_waits() -> None:
    start = time.monotonic()

    async def work() -> None:
        with CancelScope(lambda: time.monotonic() - start > 0.1).watched():
            # A task of its own, some layers below.
            await asyncio.create_task(below())

    async def below() -> None:
        async with present_halt().ending_waits():
            await wait_for_ever()

    with pytest.raises(RunCancelledError):
        asyncio.run(work())
    assert 0.1 <= time.monotonic() - start < 2


def test_a_time_limit_and_a_cancellation_within_keep_their_meaning() -> None:
    async def limited(halt: CancelScope) -> None:
        async with halt.ending_waits(), asyncio.timeout(0):
            await wait_for_ever()

    async def cancelled(halt: CancelScope) -> None:
        async with halt.ending_waits():
            await wait_for_ever()

    async def work() -> None:
        halt = CancelScope(never)
        with pytest.raises(TimeoutError):
            await limited(halt)
        task = asyncio.create_task(cancelled(halt))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()

    asyncio.run(work())


def test_where_no_run_asks_nothing_halts() -> None:
    async def work() -> None:
        async with present_halt().ending_waits():
            await asyncio.sleep(0)
        present_halt().require_going()

    asyncio.run(work())
