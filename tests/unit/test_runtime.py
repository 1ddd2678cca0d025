"""One body, two colours."""

import asyncio
import threading
from collections.abc import AsyncGenerator

import pytest

from ragopt._run import iterate, run
from ragopt._runtime import ASYNC, SYNC, Runtime, Turns


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


class Crowd:
    """Counts how many work at the same time, and holds them until it is opened."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.now = self.most = self.done = 0
        self._lock = threading.Lock()

    def work(self) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        assert self.open.wait(10)
        with self._lock:
            self.now -= 1
            self.done += 1

    async def inside(self, number: int) -> None:
        async with asyncio.timeout(10):
            while self.now < number:
                await asyncio.sleep(0.001)


@pytest.fixture
def crowd(monkeypatch: pytest.MonkeyPatch) -> Crowd:
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # and five threads in a loop's pool
    return Crowd()


async def test_brief_work_runs_on_two_threads_more_than_there_are_cores(crowd: Crowd) -> None:
    turns = Turns()
    asked = [asyncio.create_task(ASYNC.brief(turns, crowd.work)) for _ in range(20)]
    await crowd.inside(3)
    await asyncio.sleep(0.02)
    crowd.open.set()
    await asyncio.gather(*asked)
    assert (crowd.most, crowd.done) == (3, 20)


async def test_control_other_work_takes_every_thread(crowd: Crowd) -> None:
    asked = [asyncio.create_task(ASYNC.cpu(crowd.work)) for _ in range(20)]
    await crowd.inside(4)
    crowd.open.set()
    await asyncio.gather(*asked)


async def test_one_owner_of_brief_work_holds_up_no_other(crowd: Crowd) -> None:
    held = [asyncio.create_task(ASYNC.brief(mine, crowd.work)) for mine in [Turns()] * 5]
    await crowd.inside(3)
    async with asyncio.timeout(5):
        assert await ASYNC.brief(Turns(), int, "7") == 7
    crowd.open.set()
    await asyncio.gather(*held)


async def test_brief_work_that_is_cancelled(crowd: Crowd) -> None:
    turns = Turns()
    asked = [asyncio.create_task(ASYNC.brief(turns, crowd.work)) for _ in range(5)]
    await crowd.inside(3)
    for task in asked[2:]:  # one that runs and two that wait
        task.cancel()
    await asyncio.sleep(0.01)
    assert [task.done() for task in asked] == [False, False, True, True, True]
    later = asyncio.create_task(ASYNC.brief(turns, crowd.work))
    await asyncio.sleep(0.02)
    assert crowd.now == 3  # the thread of the cancelled one goes on, and has its turn still
    crowd.open.set()
    await asyncio.gather(*asked[:2], later)
    assert (crowd.most, crowd.done) == (3, 4)


def test_brief_work_on_several_loops_and_without_one() -> None:
    turns = Turns()
    for _ in range(2):
        assert asyncio.run(ASYNC.brief(turns, divmod, 7, 2)) == (3, 1)
    assert run(SYNC.brief(turns, threading.get_ident)) == threading.get_ident()


async def test_brief_work_that_fails_gives_its_turn_back(crowd: Crowd) -> None:
    turns = Turns()
    for _ in range(5):
        with pytest.raises(ValueError, match="invalid literal"):
            await ASYNC.brief(turns, int, "x")
    crowd.open.set()
    await asyncio.gather(*(ASYNC.brief(turns, crowd.work) for _ in range(5)))


async def test_gather_keeps_the_order() -> None:
    async def many(io: Runtime) -> list[int]:
        return await io.gather(double(io, i) for i in range(5))

    assert run(many(SYNC)) == await many(ASYNC) == [0, 2, 4, 6, 8]


async def test_gather_leaves_nothing_running_after_an_error() -> None:
    ended = []

    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)  # as one that gives a connection back
            ended.append("slow")

    async def fails() -> None:
        await asyncio.sleep(0)
        raise OSError("the first error")

    with pytest.raises(OSError, match="the first error"):
        await ASYNC.gather(each() for each in (slow, fails, slow))
    assert ended == ["slow", "slow"]
    gathered = asyncio.create_task(ASYNC.gather(each() for each in (slow, slow)))
    await asyncio.sleep(0.01)
    gathered.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gathered
    assert ended == ["slow"] * 4
