"""What differs between a sync and an async call, and nothing else.

An operation takes a ``Runtime`` as its first argument and says through it how to reach the
world: ``call`` picks the sync or the async face of a collaborator, ``cpu`` runs blocking work in
place or in a thread, ``gather`` runs several operations in turn or at once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Generic, ParamSpec, Protocol, TypeVar
from weakref import WeakKeyDictionary

P = ParamSpec("P")
T = TypeVar("T")


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

    async def gather(self, operations: Iterable[Coroutine[Any, Any, T]], /) -> list[T]:
        """Run operations and return their results in order; the first error is raised."""
        ...


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

    async def gather(self, operations: Iterable[Coroutine[Any, Any, T]], /) -> list[T]:
        return [await operation for operation in operations]


class _Async:
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

    async def gather(self, operations: Iterable[Coroutine[Any, Any, T]], /) -> list[T]:
        import asyncio

        return await asyncio.gather(*operations)


SYNC: Runtime = _Sync()
ASYNC: Runtime = _Async()


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
