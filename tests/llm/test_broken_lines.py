import asyncio

from psychocounsel.llm.types import hearing_of_broken_lines, line_broke


def test_each_task_hears_of_its_own_lines_however_deep() -> None:
    heard: list[str] = []

    async def ask(name: str, breaks: int) -> None:
        async def listener() -> None:
            await asyncio.sleep(0)
            heard.append(name)

        with hearing_of_broken_lines(listener):
            for _ in range(breaks):
                await asyncio.sleep(0)
                await asyncio.create_task(line_broke())
        await line_broke()  # nobody listens any more

    async def all_at_once() -> None:
        await asyncio.gather(ask("a", 2), ask("b", 0), ask("c", 1))

    asyncio.run(all_at_once())
    assert sorted(heard) == ["a", "a", "c"]


def test_nobody_has_to_listen() -> None:
    asyncio.run(line_broke())
