import asyncio
import gc
import sys

import pytest

from psychocounsel.llm.runner import run_in_loop


async def loop_name() -> str:
    return type(asyncio.get_running_loop()).__module__


def test_work_runs_in_the_fastest_loop_there_is() -> None:
    pytest.importorskip("uvloop")
    assert run_in_loop(loop_name()).startswith("uvloop")


def test_without_it_pythons_own_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert run_in_loop(loop_name()).startswith("asyncio")


def test_each_piece_of_work_has_a_loop_of_its_own_that_ends_with_it() -> None:
    async def mine() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    first, second = run_in_loop(mine()), run_in_loop(mine())
    assert first is not second
    assert first.is_closed()
    assert second.is_closed()


def test_an_error_comes_out_as_it_is_and_what_still_ran_is_ended() -> None:
    ended: list[str] = []

    async def lasting() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("lasting")

    async def failing() -> None:
        task = asyncio.create_task(lasting())
        await asyncio.sleep(0)
        assert not task.done()
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run_in_loop(failing())
    assert ended == ["lasting"]


def test_what_there_was_before_is_not_collected_meanwhile() -> None:
    async def frozen() -> int:
        return gc.get_freeze_count()

    async def failing() -> None:
        raise KeyError("mine")

    assert run_in_loop(frozen()) > 1000
    with pytest.raises(KeyError):
        run_in_loop(failing())
    assert gc.get_freeze_count() == 0


def test_work_in_threads_is_waited_for() -> None:
    done: list[int] = []

    async def leaving() -> None:
        asyncio.get_running_loop().run_in_executor(None, done.append, 1)

    run_in_loop(leaving())
    assert done == [1]
