"""One body, two colours."""

import asyncio
import threading
from collections.abc import AsyncGenerator

import pytest

from ragopt._run import iterate, run
from ragopt._runtime import ASYNC, SYNC, Runtime


async def double(io: Runtime, value: int) -> int:
    async def later(value: int) -> int:
        await asyncio.sleep(0)
        return 2 * value

    return await io.call(lambda value: 2 * value, later, value)


async def test_one_body_in_both_colours() -> None:
    assert run(double(SYNC, 2)) == 4
    assert await double(ASYNC, 2) == 4


def test_an_operation_that_suspends_in_a_sync_call_is_a_defect() -> None:
    with pytest.raises(RuntimeError, match="async port"):
        run(double(ASYNC, 2))


async def doubles(io: Runtime, ended: list[int]) -> AsyncGenerator[int, None]:
    try:
        for value in range(3):
            yield await double(io, value)
    finally:
        ended.append(await double(io, 10))


async def test_one_generator_in_both_colours() -> None:
    ended: list[int] = []
    assert list(iterate(doubles(SYNC, ended))) == [0, 2, 4]
    assert [value async for value in doubles(ASYNC, ended)] == [0, 2, 4]
    assert ended == [20, 20]


def test_a_generator_that_is_left_early_ends_where_it_stands() -> None:
    ended: list[int] = []
    for value in (values := iterate(doubles(SYNC, ended))):
        assert value == 0
        break
    assert ended == []
    values.close()
    assert ended == [20]


def test_a_generator_that_suspends_in_a_sync_call_is_a_defect() -> None:
    async def suspends() -> AsyncGenerator[int, None]:
        yield await double(ASYNC, 1)

    with pytest.raises(RuntimeError, match="async port"):
        next(iterate(suspends()))


async def test_errors_pass_through() -> None:
    async def fails(io: Runtime) -> None:
        await io.cpu(int, "x")

    with pytest.raises(ValueError, match="invalid literal"):
        run(fails(SYNC))
    with pytest.raises(ValueError, match="invalid literal"):
        await fails(ASYNC)


async def test_work_leaves_the_event_loop_alone() -> None:
    async def where(io: Runtime) -> int:
        return await io.cpu(threading.get_ident)

    assert run(where(SYNC)) == threading.get_ident()
    assert await where(ASYNC) != threading.get_ident()


async def test_gather_keeps_the_order() -> None:
    async def many(io: Runtime) -> list[int]:
        return await io.gather(double(io, i) for i in range(5))

    assert run(many(SYNC)) == await many(ASYNC) == [0, 2, 4, 6, 8]
