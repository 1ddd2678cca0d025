"""One computation for all who ask for the same at the same time."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from threading import Lock, get_ident
from time import monotonic
from typing import Generic, TypeVar

from ragopt._forks import fork_safe
from ragopt._runtime import SYNC, Runtime

T = TypeVar("T")

# The keys whose computation the caller is a part of. Tasks and LangChain's threads inherit it.
_leading: ContextVar[frozenset[bytes]] = ContextVar("ragopt_leading", default=frozenset())


class Abandoned(Exception):
    """The leader ended without an outcome that the others could use."""


class _Flight(Generic[T]):
    def __init__(self, leader: object) -> None:
        self.leader = leader
        self.thread = get_ident()
        self.future: Future[T] = Future()

    def waits_for(self, io: Runtime) -> bool:
        """Return whether it could not end while the caller waits for it.

        It is the caller's own, in the middle of a stream say, or that of a task on the loop
        which this call would block.
        """
        return (self.thread if io is SYNC else self.leader) == io.caller()


class Flights(Generic[T]):
    """Computations under way in this process, shared by threads and tasks.

    The first who asks for a key leads; the others wait for what the leader finds, its error
    included. A leader that is cancelled hands over to one of those who wait; one of those who
    is cancelled disturbs nobody. Nothing is kept after the last has its answer.

    Args:
        patience: Seconds that a waiter waits before it computes for itself.

    References:
        Go's ``golang.org/x/sync/singleflight``, which does this for goroutines.
    """

    def __init__(self, *, patience: float = 60.0) -> None:
        self._patience = patience
        self._lock = fork_safe(Lock())
        self._flights: dict[bytes, _Flight[T]] = {}
        self._pid = os.getpid()

    async def share(self, io: Runtime, key: bytes, compute: Callable[[], Awaitable[T]]) -> T:
        """Return what ``compute`` returns, computed by the first of all who ask now.

        Raises:
            Abandoned: The leader raised it, or nobody answered in time: compute for yourself.
            Exception: Whatever the leader's computation raised.
        """
        if key in _leading.get():  # the computation asks for its own result: never wait for that
            raise Abandoned
        while True:
            flight, leads = self._join(key, io.caller())
            if leads:
                return await self._lead(key, flight, compute)
            if flight.waits_for(io):
                raise Abandoned
            try:
                return await io.wait(flight.future, self._patience)
            except _HandedOver:
                continue
            except TimeoutError:
                if flight.future.done():  # it was the computation's own
                    raise
                raise Abandoned from None

    def take(
        self, io: Runtime, keys: Sequence[bytes]
    ) -> tuple[list[bytes], dict[bytes, Future[T]]]:
        """Begin to compute many keys: return those that the caller leads, and the others' futures.

        The caller computes what it leads, calls ``end``, and only then waits for the others: so
        two who have the same keys in another order do not wait for each other. A future ends
        without a result that matters; what came of it stands in the cache, or does not. A key
        that the caller itself computes already is in neither.
        """
        led: list[bytes] = []
        others: dict[bytes, Future[T]] = {}
        for key in keys:
            flight, leads = self._join(key, io.caller())
            if leads:
                led.append(key)
            elif not flight.waits_for(io):
                others[key] = flight.future
        return led, others

    def end(self, keys: Iterable[bytes]) -> None:
        """Let those who wait for these keys look for themselves."""
        for key in keys:
            with self._lock:
                flight = self._flights.pop(key, None)
            if flight is not None:
                flight.future.set_exception(Abandoned())

    async def wait(self, io: Runtime, futures: Iterable[Future[T]]) -> None:
        """Wait until all have ended, however they did, or patience has."""
        until = monotonic() + self._patience
        for future in futures:
            try:
                await io.wait(future, max(0.0, until - monotonic()))
            except (Abandoned, TimeoutError):
                continue

    def under_way(self, key: bytes) -> bool:
        """Return whether somebody in this process computes this just now."""
        return key in self._flights and self._pid == os.getpid()

    def _join(self, key: bytes, caller: object) -> tuple[_Flight[T], bool]:
        with self._lock:
            if self._pid != os.getpid():  # the parent's leaders do not live in this process
                self._flights, self._pid = {}, os.getpid()
            flight = self._flights.get(key)
            if flight is not None:
                return flight, False
            flight = self._flights[key] = _Flight(caller)
            return flight, True

    async def _lead(self, key: bytes, flight: _Flight[T], compute: Callable[[], Awaitable[T]]) -> T:
        token = _leading.set(_leading.get() | {key})
        outcome: BaseException | None = None
        try:
            result = await compute()
        except Exception as error:
            outcome = error
            raise
        except BaseException:  # cancelled, or interrupted: no outcome, somebody else must try
            outcome = _HandedOver()
            raise
        else:
            return result
        finally:
            _leading.reset(token)
            with self._lock:
                if self._flights.get(key) is flight:
                    del self._flights[key]  # before the others wake, or they would find it again
            if outcome is None:
                flight.future.set_result(result)
            else:
                flight.future.set_exception(outcome)


class _HandedOver(Exception):
    """Whoever waits starts again."""
