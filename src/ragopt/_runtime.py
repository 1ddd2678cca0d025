"""What differs between a sync and an async call, and nothing else.

An operation takes a ``Runtime`` as its first argument and says through it how to reach the
world: ``call`` picks the sync or the async face of a collaborator, ``cpu`` runs blocking work in
place or in a thread, ``brief`` does that with computations of milliseconds, few at once, ``gather``
runs several operations in turn or at once, ``wait`` and ``sleep`` pass time, ``spawn`` starts what
nobody waits for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, nullcontext
from contextvars import copy_context
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread, get_ident
from typing import Any, Generic, ParamSpec, Protocol, TypeVar
from weakref import WeakKeyDictionary

from ragopt._run import run

P = ParamSpec("P")
T = TypeVar("T")


class Slots(Protocol):
    """What bounds how many do something at the same time."""

    def release(self) -> None:
        """Give a slot back."""
        ...


class Runtime(Protocol):
    """The port that operations are written against."""

    async def call(
        self,
        sync: Callable[P, T],
        asynchronous: Callable[P, Awaitable[T]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Call the face of a collaborator that belongs to this colour."""
        ...

    async def cpu(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking work without blocking an event loop."""
        ...

    async def brief(
        self, turns: Turns, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run work of some milliseconds without blocking an event loop, few of it at once.

        Work that waits for its turn and is cancelled never runs.
        """
        ...

    async def gather(self, operations: Iterable[Coroutine[Any, Any, T]], /) -> list[T]:
        """Run operations and return their results in order; the first error is raised."""
        ...

    async def wait(self, future: Future[T], seconds: float, /) -> T:
        """Return the result of a future that threads and tasks share; TimeoutError if late.

        Whoever stops waiting, or is cancelled, leaves the future as it is.
        """
        ...

    async def sleep(self, seconds: float, /) -> None:
        """Let time pass."""
        ...

    def spawn(self, operation: Callable[[], Coroutine[Any, Any, None]], /) -> None:
        """Start an operation that handles its own errors, and go on without it."""
        ...

    def caller(self) -> object:
        """Return who calls: the thread, or in async the task."""
        ...

    def slots(self, number: int, /) -> Slots:
        """Return a semaphore of this colour; in async, it belongs to the running loop."""
        ...

    async def enter(self, slots: Any, seconds: float, /) -> bool:
        """Take a slot; False if none became free in time."""
        ...

    def limit(self, seconds: float, /) -> AbstractAsyncContextManager[Any]:
        """Return a context that raises TimeoutError after so many seconds, in async.

        Sync calls cannot be broken off: what they wait for has a timeout of its own.
        """
        ...


_NO_LIMIT = nullcontext()


class _ThreadSlots:
    """A semaphore of threads, at a fifth of the time of ``threading.Semaphore``."""

    def __init__(self, number: int) -> None:
        self._free: SimpleQueue[None] = SimpleQueue()
        for _ in range(number):
            self._free.put(None)

    def acquire(self, seconds: float) -> bool:
        try:
            self._free.get(timeout=seconds)
        except Empty:
            return False
        return True

    def release(self) -> None:
        self._free.put(None)


class _Sync:
    async def call(
        self,
        sync: Callable[P, T],
        asynchronous: Callable[P, Awaitable[T]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        return sync(*args, **kwargs)

    async def cpu(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return work(*args, **kwargs)

    async def brief(
        self, turns: Turns, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        return work(*args, **kwargs)

    async def gather(self, operations: Iterable[Coroutine[Any, Any, T]], /) -> list[T]:
        return [await operation for operation in operations]

    async def wait(self, future: Future[T], seconds: float, /) -> T:
        return future.result(seconds)

    async def sleep(self, seconds: float, /) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - the sync colour

    def spawn(self, operation: Callable[[], Coroutine[Any, Any, None]], /) -> None:
        Thread(target=lambda: run(operation()), name="ragopt", daemon=True).start()

    def caller(self) -> object:
        return get_ident()

    def slots(self, number: int, /) -> Slots:
        return _ThreadSlots(number)

    async def enter(self, slots: Any, seconds: float, /) -> bool:
        return bool(slots.acquire(seconds))

    def limit(self, seconds: float, /) -> AbstractAsyncContextManager[Any]:
        return _NO_LIMIT


class _Async:
    def __init__(self) -> None:
        self._tasks: set[Any] = set()

    async def call(
        self,
        sync: Callable[P, T],
        asynchronous: Callable[P, Awaitable[T]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        return await asynchronous(*args, **kwargs)

    async def cpu(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        import asyncio

        return await asyncio.to_thread(work, *args, **kwargs)

    async def brief(
        self, turns: Turns, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        import asyncio

        slots = turns.get()
        await slots.acquire()
        inside = partial(copy_context().run, work, *args, **kwargs)
        running = asyncio.get_running_loop().run_in_executor(None, inside)
        running.add_done_callback(lambda _: slots.release())
        # Shielded, since a thread goes on when its caller is cancelled, and the turn is its own.
        return await asyncio.shield(running)

    async def gather(self, operations: Iterable[Coroutine[Any, Any, T]], /) -> list[T]:
        import asyncio

        tasks = [asyncio.ensure_future(operation) for operation in operations]
        try:
            return await asyncio.gather(*tasks)
        finally:  # after an error nobody waits for the others, and their connections are in use
            if not all(task.done() for task in tasks):
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def wait(self, future: Future[T], seconds: float, /) -> T:
        import asyncio

        # Shielded, since a cancelled wrapper would cancel what the others wait for.
        return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(future)), seconds)

    async def sleep(self, seconds: float, /) -> None:
        import asyncio

        await asyncio.sleep(seconds)

    def spawn(self, operation: Callable[[], Coroutine[Any, Any, None]], /) -> None:
        import asyncio

        task = asyncio.get_running_loop().create_task(operation())
        self._tasks.add(task)  # a loop holds its tasks but weakly
        task.add_done_callback(self._tasks.discard)

    def caller(self) -> object:
        import asyncio

        return asyncio.current_task()

    def slots(self, number: int, /) -> Slots:
        import asyncio

        return asyncio.Semaphore(number)

    async def enter(self, slots: Any, seconds: float, /) -> bool:
        if not slots.locked():  # at once, without the cost of a limit
            return bool(await slots.acquire())
        try:
            async with self.limit(seconds):
                return bool(await slots.acquire())
        except TimeoutError:
            return False

    def limit(self, seconds: float, /) -> AbstractAsyncContextManager[Any]:
        import asyncio

        return asyncio.timeout(seconds)


class PerLoop(Generic[T]):
    """One value for each event loop, since pools and locks belong to the loop that made them.

    Args:
        make: Makes the value, at the first call on a loop.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._values: WeakKeyDictionary[Any, T] = WeakKeyDictionary()

    def get(self) -> T:
        """Return the running loop's value."""
        import asyncio

        loop = asyncio.get_running_loop()
        try:
            return self._values[loop]
        except KeyError:
            self._sweep()
            return self._values.setdefault(loop, self._make())

    def pop(self) -> T | None:
        """Forget the running loop's value and return it; None if there is none."""
        import asyncio

        return self._values.pop(asyncio.get_running_loop(), None)

    def _sweep(self) -> None:
        # A pool holds its loop, so the weak key alone never lets go of a loop that has ended.
        for reference in self._values.keyrefs():
            loop = reference()
            if loop is not None and loop.is_closed():
                self._values.pop(loop, None)


SYNC: Runtime = _Sync()
ASYNC: Runtime = _Async()


class Turns(PerLoop[Any]):
    """Bounds how many short computations of one owner run at once: two more than there are cores.

    Those two keep the cores busy while results are handed over. More threads make nothing faster,
    and a loop that competes with them for a core, and for the lock of the interpreter, waits
    several times as long for its turn. Each owner has a bound of its own, so that one whose work
    waits for a lock holds up no other.
    """

    def __init__(self) -> None:
        super().__init__(lambda: ASYNC.slots((os.cpu_count() or 1) + 2))
