"""One computation for all who ask at the same time."""

import asyncio
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.unit.flights import Watched

from ragopt._run import run
from ragopt._runtime import ASYNC, SYNC
from ragopt.cache.flight import Abandoned, Flights


class Counted:
    """A computation that waits until it is let go, and counts how often it ran."""

    def __init__(self) -> None:
        self.calls = 0
        self.started = threading.Event()
        self.go = threading.Event()

    async def sync(self) -> int:
        self.calls += 1
        self.started.set()
        assert self.go.wait(10)
        return self.calls

    async def task(self) -> int:
        self.calls += 1
        self.started.set()
        while not self.go.is_set():
            await asyncio.sleep(0.001)
        return self.calls


def test_threads_share_one_computation() -> None:
    flights = Watched()
    work = Counted()
    with ThreadPoolExecutor(50) as pool:
        asked = [pool.submit(run, flights.share(SYNC, b"k", work.sync)) for _ in range(50)]
        flights.until_joined(50)
        work.go.set()
        assert [each.result(10) for each in asked] == [1] * 50
    assert work.calls == 1
    assert not flights.under_way(b"k")


async def test_tasks_and_threads_share_one_computation() -> None:
    flights = Watched()
    work = Counted()
    tasks = [asyncio.create_task(flights.share(ASYNC, b"k", work.task)) for _ in range(20)]
    while not work.started.is_set():
        await asyncio.sleep(0.001)
    threads = [
        asyncio.create_task(asyncio.to_thread(run, flights.share(SYNC, b"k", work.sync)))
        for _ in range(4)
    ]
    await asyncio.to_thread(flights.until_joined, 24)
    work.go.set()
    assert await asyncio.gather(*tasks, *threads) == [1] * 24


def test_different_keys_do_not_wait_for_each_other() -> None:
    flights: Flights[int] = Flights()
    work = Counted()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(run, flights.share(SYNC, b"a", work.sync))
        assert work.started.wait(10)

        async def other() -> int:
            return 7

        assert run(flights.share(SYNC, b"b", other)) == 7
        work.go.set()
        assert first.result(10) == 1


def test_an_error_reaches_all_and_is_forgotten() -> None:
    flights = Watched()
    work = Counted()

    async def fails() -> int:
        await work.sync()
        raise RuntimeError("the model is down")

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(run, flights.share(SYNC, b"k", fails)) for _ in range(8)]
        flights.until_joined(8)
        work.go.set()
        for each in asked:
            with pytest.raises(RuntimeError, match="model is down"):
                each.result(10)
    assert work.calls == 1

    async def works() -> int:
        return 3

    assert run(flights.share(SYNC, b"k", works)) == 3


async def test_a_cancelled_waiter_disturbs_nobody() -> None:
    flights: Flights[int] = Flights()
    work = Counted()
    leader, waiter, other = (
        asyncio.create_task(flights.share(ASYNC, b"k", work.task)) for _ in range(3)
    )
    await asyncio.sleep(0.02)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    work.go.set()
    assert [await leader, await other] == [1, 1]


async def test_a_cancelled_leader_hands_over() -> None:
    flights: Flights[int] = Flights()
    work = Counted()
    leader, *waiters = (
        asyncio.create_task(flights.share(ASYNC, b"k", work.task)) for _ in range(5)
    )
    await asyncio.sleep(0.02)
    leader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leader
    await asyncio.sleep(0.02)
    work.go.set()
    assert await asyncio.gather(*waiters) == [2] * 4
    assert work.calls == 2


async def test_a_leader_that_ends_with_its_loop_hands_over_to_threads() -> None:
    flights: Flights[int] = Flights()
    work = Counted()

    def short_lived() -> None:
        async def main() -> None:
            task = asyncio.create_task(flights.share(ASYNC, b"k", work.task))
            await asyncio.sleep(0.1)
            task.cancel()

        asyncio.run(main())

    async def second() -> int:
        return 2

    lived = asyncio.create_task(asyncio.to_thread(short_lived))
    while not work.started.is_set():
        await asyncio.sleep(0.001)
    assert await asyncio.to_thread(run, flights.share(SYNC, b"k", second)) == 2
    await lived


async def test_a_sync_call_on_the_leaders_loop_does_not_wait_for_it() -> None:
    flights: Flights[int] = Flights()
    work = Counted()
    leader = asyncio.create_task(flights.share(ASYNC, b"k", work.task))
    await asyncio.sleep(0.01)
    with pytest.raises(Abandoned):  # control: waiting here would never end
        run(flights.share(SYNC, b"k", work.sync))
    work.go.set()
    assert await leader == 1


async def test_a_task_that_leads_does_not_wait_for_itself() -> None:
    """As one that holds an unfinished stream does, whose look-up goes on in another context."""
    flights: Flights[int] = Flights()
    work = Counted()
    stream = flights.share(ASYNC, b"k", work.task)
    context = contextvars.copy_context()
    context.run(stream.send, None)
    with pytest.raises(Abandoned):
        await flights.share(ASYNC, b"k", work.task)
    context.run(stream.close)


def test_a_computation_that_asks_for_itself() -> None:
    flights: Flights[Any] = Flights()

    async def outer() -> str:
        with pytest.raises(Abandoned):
            run(flights.share(SYNC, b"k", outer))
        return "done"

    assert run(flights.share(SYNC, b"k", outer)) == "done"


def test_patience_ends() -> None:
    flights: Flights[int] = Flights(patience=0.05)
    work = Counted()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(run, flights.share(SYNC, b"k", work.sync))
        assert work.started.wait(10)
        with pytest.raises(Abandoned):
            run(flights.share(SYNC, b"k", work.sync))
        work.go.set()
        assert first.result(10) == 1


def test_the_computations_own_timeout_is_passed_on() -> None:
    flights = Watched()

    async def late() -> int:
        await work.sync()
        raise TimeoutError("the model did not answer")

    work = Counted()
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(run, flights.share(SYNC, b"k", late)) for _ in range(2)]
        flights.until_joined(2)
        work.go.set()
        for each in asked:
            with pytest.raises(TimeoutError, match="model did not answer"):
                each.result(10)
