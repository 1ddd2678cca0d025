"""A load of threads or tasks on a cache, every answer checked, and faults of its Redis server.

A fault is a context: it begins on the way in and is over on the way out.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, Self

import redis

from ragopt import TieredCache
from tests.services import Front, RestartableRedis, slow_front

WORKERS = 8
TASKS = 50
COMPUTING = 0.001  # seconds that the stand-in for a model takes

_COMMON = 200  # questions that are asked again and again
_NEW = 0.2  # the part of all questions that nobody asked before
_PAUSE = 0.005  # seconds between two calls of a thread

Compute = Callable[[], str]
Ask = Callable[[str, Compute], object]
AsyncAsk = Callable[[str, Callable[[], Awaitable[str]]], Awaitable[object]]


def truth(question: str) -> str:
    return f"The answer to {question}.".ljust(500, ".")


@dataclass
class Tally:
    """What happened to the calls."""

    added: list[tuple[float, float]] = field(default_factory=list)
    """When each began, and the seconds that it took beyond the computation."""
    wrong: list[object] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)

    def slow(self, seconds: float, since: float = 0.0) -> int:
        """Return how many calls that began since then took longer."""
        return sum(took > seconds for began, took in list(self.added) if began >= since)

    @property
    def worst(self) -> float:
        return max(took for _, took in self.added)


class Load:
    """Threads that ask all the time, from the way in to the way out of this context.

    Args:
        ask: Asks a question; computes the answer if it is not cached.
        right: Whether this is an answer to this question, asked at this time.
    """

    def __init__(
        self,
        ask: Ask,
        right: Callable[[str, object, float], bool] = lambda question, answer, _: (
            answer == truth(question)
        ),
    ) -> None:
        self.tally = Tally()
        self._ask = ask
        self._right = right
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(n,)) for n in range(WORKERS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self._threads), "a call never came back"

    def _work(self, number: int) -> None:
        draw = random.Random(number)
        asked = 0
        while not self._stop.wait(_PAUSE):
            asked += 1
            self._one(_question(draw, f"{number}-{asked}"))

    def _one(self, question: str) -> None:
        spent = [0.0]

        def compute() -> str:
            begin = time.monotonic()
            time.sleep(COMPUTING)
            spent[0] += time.monotonic() - begin
            return truth(question)

        begin = time.monotonic()
        try:
            answer = self._ask(question, compute)
        except BaseException as error:
            self.tally.errors.append(error)
            return
        self.tally.added.append((begin, time.monotonic() - begin - spent[0]))
        if not self._right(question, answer, begin):
            self.tally.wrong.append((question, answer))


class AsyncLoad:
    """Tasks on one loop that ask all the time, beside a heartbeat."""

    def __init__(self, ask: AsyncAsk, tasks: int = TASKS) -> None:
        self.tally = Tally()
        self.gaps: list[float] = []
        """Seconds for which nothing else could run on the loop, each time."""
        self._ask = ask
        self._number = tasks
        self._tasks: list[asyncio.Task[None]] = []
        self._over = False

    async def __aenter__(self) -> Self:
        works = [self._work(number) for number in range(self._number)]
        self._tasks = [asyncio.create_task(work) for work in (self._beat(), *works)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over = True
        await asyncio.wait_for(asyncio.gather(*self._tasks), 60)

    async def _beat(self) -> None:
        while not self._over:
            begin = time.monotonic()
            await asyncio.sleep(0.001)
            self.gaps.append(time.monotonic() - begin - 0.001)

    async def _work(self, number: int) -> None:
        draw = random.Random(number)
        asked = 0
        while not self._over:
            asked += 1
            await asyncio.sleep(10 * _PAUSE)
            await self._one(_question(draw, f"{number}-{asked}"))

    async def _one(self, question: str) -> None:
        spent = [0.0]

        async def compute() -> str:
            begin = time.monotonic()
            await asyncio.sleep(COMPUTING)
            spent[0] += time.monotonic() - begin
            return truth(question)

        begin = time.monotonic()
        try:
            answer = await self._ask(question, compute)
        except Exception as error:
            self.tally.errors.append(error)
            return
        self.tally.added.append((begin, time.monotonic() - begin - spent[0]))
        if answer != truth(question):
            self.tally.wrong.append((question, answer))


def _question(draw: random.Random, name: str) -> str:
    new = draw.random() < _NEW
    return f"new {name}" if new else f"common {draw.randrange(_COMMON)}"


# -- faults ------------------------------------------------------------------------------------


@dataclass
class Rig:
    """A server and a front before it."""

    server: RestartableRedis
    front: Front

    def url(self, fault: str) -> str:
        """Return where a client connects to, to meet this fault."""
        if fault in _BEFORE_THE_FRONT:
            return f"redis://127.0.0.1:{self.front.port}/0"
        return self.server.url

    def raw(self) -> redis.Redis:
        """Return a client that goes round the front."""
        return redis.Redis(port=self.server.port)

    @contextmanager
    def fault(self, name: str) -> Iterator[None]:
        with nullcontext() if name == "none" else FAULTS[name](self):
            yield

    def heal(self) -> None:
        """Empty the server and take back what a failed test left."""
        self.front.delay(0)
        with suppress(ProcessLookupError):
            self.server.thaw()
        with self.raw() as client:
            client.config_set("maxmemory", 0)
            client.flushall()
            client.config_resetstat()


@contextmanager
def rig() -> Iterator[Rig]:
    with RestartableRedis() as server, slow_front(server.port) as front:
        yield Rig(server, front)


@contextmanager
def _killed(rig: Rig) -> Iterator[None]:
    rig.server.kill()
    try:
        yield
    finally:
        rig.server.start()


@contextmanager
def _restarted(rig: Rig) -> Iterator[None]:
    rig.server.kill()
    rig.server.start()
    yield


@contextmanager
def _stopped(rig: Rig) -> Iterator[None]:
    rig.server.freeze()
    try:
        yield
    finally:
        rig.server.thaw()


@contextmanager
def _hung(rig: Rig) -> Iterator[None]:
    rig.front.swallow()
    try:
        yield
    finally:
        rig.front.delay(0)


def _slow(seconds: float) -> Callable[[Rig], Any]:
    @contextmanager
    def slow(rig: Rig) -> Iterator[None]:
        rig.front.delay(seconds)
        try:
            yield
        finally:
            rig.front.delay(0)

    return slow


@contextmanager
def _full(rig: Rig) -> Iterator[None]:
    with rig.raw() as client, _bounded(client, "noeviction", 1):
        yield


@contextmanager
def _evicting(rig: Rig) -> Iterator[None]:
    with rig.raw() as client:
        # Others' keys, so that there is something to evict however little the load has written.
        client.mset({f"other {number}": bytes(1_000) for number in range(300)})
        with _bounded(client, "allkeys-lru", client.info("memory")["used_memory"] - 100_000):
            yield


@contextmanager
def _bounded(client: redis.Redis, policy: str, most: int) -> Iterator[None]:
    client.config_set("maxmemory-policy", policy)
    client.config_set("maxmemory", most)
    try:
        yield
    finally:
        client.config_set("maxmemory", 0)


@contextmanager
def _flushed(rig: Rig) -> Iterator[None]:
    stop = threading.Event()

    def flush() -> None:
        with rig.raw() as client:
            while not stop.wait(0.005):
                client.flushall()

    thread = threading.Thread(target=flush)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


FAULTS: dict[str, Callable[[Rig], Any]] = {
    "killed": _killed,
    "restarted": _restarted,
    "stopped": _stopped,
    "hung": _hung,
    "slow": _slow(0.1),
    "too slow": _slow(0.4),
    "full": _full,
    "evicting": _evicting,
    "flushed": _flushed,
}
"""The server is gone, is started anew and empty, does not answer (its process is stopped, or
the network swallows everything), answers after 100 or 400 ms, has no memory left and refuses
to write, has little and evicts, or is emptied all the time."""

_BEFORE_THE_FRONT = {"hung", "slow", "too slow"}


# -- the story of one fault --------------------------------------------------------------------


@dataclass
class Story:
    """What a load met, before, during and after a fault."""

    tally: Tally
    begun: float
    ended: float
    recovered_after: float | None
    """Seconds from the end of the fault until Redis was read from again."""
    written_after: float | None
    """Seconds from the end of the fault until it was written to again."""
    hits_during: int
    """Hits on the server between begin and end of the fault."""
    failed: int
    """Operations that failed in the layer during the fault: what the callers paid for."""
    evicted: int
    """Keys that the server evicted before the end of the fault."""


def play(
    rig: Rig,
    fault: str,
    cache: TieredCache,
    load: Load,
    *,
    before: float = 0.4,
    during: float = 1.0,
    patience: float = 15.0,
) -> Story:
    """Let a fault come and go under a load, then wait until Redis is used again."""

    with load:
        time.sleep(before)
        story = _watch(rig, fault, cache, load.tally, during, patience)
        time.sleep(0.2)
    return story


async def aplay(
    rig: Rig,
    fault: str,
    cache: TieredCache,
    load: AsyncLoad,
    *,
    before: float = 0.5,
    during: float = 1.0,
    patience: float = 15.0,
) -> Story:
    """Do ``play`` with tasks; the load has the gaps since the fault began."""
    async with load:
        await asyncio.sleep(before)
        load.gaps.clear()
        story = await asyncio.to_thread(_watch, rig, fault, cache, load.tally, during, patience)
        await asyncio.sleep(0.2)
    return story


def _watch(
    rig: Rig, fault: str, cache: TieredCache, tally: Tally, during: float, patience: float
) -> Story:
    def hits() -> int:
        return cache.stats.total("redis", "hit")

    failed_before = cache.stats.total("redis", "error")
    begun = time.monotonic()
    with rig.fault(fault):
        hits_before = hits()
        time.sleep(during)
        hits_during = hits() - hits_before
        failed = cache.stats.total("redis", "error") - failed_before
    ended, hits_at_end = time.monotonic(), hits()
    with rig.raw() as client:
        keys_at_end, evicted = client.dbsize(), client.info("stats")["evicted_keys"]
        recovered = written = None
        while time.monotonic() < ended + patience and None in (recovered, written):
            time.sleep(0.005)
            now = time.monotonic() - ended
            recovered = now if recovered is None and hits() > hits_at_end else recovered
            written = now if written is None and client.dbsize() > keys_at_end else written
    return Story(tally, begun, ended, recovered, written, hits_during, failed, evicted)
