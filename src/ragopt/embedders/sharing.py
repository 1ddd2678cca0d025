"""Models that are loaded once in a process and shared by all who ask for the same."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from threading import TIMEOUT_MAX, Lock, Thread
from time import monotonic
from traceback import clear_frames
from types import TracebackType
from typing import Any, Generic, TypeVar
from weakref import finalize

from ragopt._forks import fork_safe
from ragopt._run import run
from ragopt._runtime import SYNC, Runtime

T = TypeVar("T")

logger = logging.getLogger("ragopt.embedders")

# The keys whose load the caller is a part of; it would wait for itself.
_loading: ContextVar[frozenset[Hashable]] = ContextVar("ragopt_loading", default=frozenset())


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory.

    Args:
        key: What it was asked for by.
        users: How many hold it.
        seconds: How long it took to load.
    """

    key: Hashable
    users: int
    seconds: float


class _Entry(Generic[T]):
    value: T  # from the end of the load until nobody holds it

    def __init__(self, key: Hashable, unload: Callable[[], None] | None) -> None:
        self.key = key
        self.unload = unload
        self.users = 1  # the load itself, so that nothing is dropped before it is there
        self.seconds: float | None = None  # None while it is not loaded
        self.ended: Future[None] = Future()


class Shared(Generic[T]):
    """A hold on a model, which stays loaded as long as somebody has one.

    It is released when it is collected as garbage, too.
    """

    def __init__(self, entry: _Entry[T], give_back: Callable[[_Entry[Any]], None]) -> None:
        self._entry: _Entry[T] | None = entry
        self._give_back = finalize(self, give_back, entry)
        self._give_back.atexit = False  # the memory goes with the process

    @property
    def value(self) -> T:
        """The model.

        Raises:
            RuntimeError: It was released.
        """
        entry = self._entry
        if entry is None:
            raise RuntimeError("The model was released. Acquire it again.")
        return entry.value

    def release(self) -> None:
        """Let go of the model; a second call does nothing.

        With the last one who lets go, its memory is given back.
        """
        self._entry = None
        self._give_back()


class SharedModels:
    """The models of this process, each in memory once and as long as somebody holds it.

    The first who asks for a key has it loaded, in a thread of its own, and all who ask meanwhile
    wait for that one load, threads and tasks alike. So no thread of a pool is taken up by waiting,
    and whoever stops waiting, or is cancelled, disturbs nobody. A load that fails is the error of
    all who wait for it, and the next one who asks tries again.

    A forked process has the models that its parent had loaded, and loads those anew that its parent
    was loading.
    """

    def __init__(self) -> None:
        self._lock = fork_safe(Lock())
        self._entries: dict[Hashable, _Entry[Any]] = {}
        self._given_back: deque[_Entry[Any]] = deque()
        self._pid = os.getpid()

    def acquire(
        self, key: Hashable, load: Callable[[], T], *, unload: Callable[[], None] | None = None
    ) -> Shared[T]:
        """Return a hold on the model of this key, loading it if nobody has.

        Args:
            key: All that the model depends on: name, revision, precision, and the device with its
                number, since which one is the current one may differ between threads.
            load: Makes the model. It may acquire others, but not the one that it makes.
            unload: Called when the model was dropped, to give back what its memory was taken from,
                such as ``torch.cuda.empty_cache``. That of the one who has it loaded counts.

        Raises:
            RuntimeError: ``load`` asks for what it makes.
            Exception: Whatever ``load`` raises.
        """
        return run(self.acquire_in(SYNC, key, load, unload=unload))

    async def acquire_in(
        self,
        io: Runtime,
        key: Hashable,
        load: Callable[[], T],
        *,
        unload: Callable[[], None] | None = None,
    ) -> Shared[T]:
        """Return a hold on the model of this key, in the caller's colour; see ``acquire``."""
        if key in _loading.get():
            raise RuntimeError(f"The model {key!r} is asked for while it is loaded, by its load.")
        with self._lock:
            self._forget_loads_of_parent()
            entry = self._entries.get(key)
            leads = entry is None
            if entry is None:
                entry = self._entries[key] = _Entry(key, unload)
            entry.users += 1
            shared: Shared[T] = Shared(entry, self._give_back)
            loaded = entry.seconds is not None
        self._settle()
        if loaded:  # without a look at the future, whose lock may be held for ever after a fork
            return shared
        try:
            if leads:
                self._start(entry, load)
            await io.wait(entry.ended, TIMEOUT_MAX)
        except BaseException as error:
            shared.release()
            if entry.ended.done() and error is entry.ended.exception():
                # One error for all who waited: its traceback must not grow with each of them.
                error.__traceback__ = _where_it_began(error)
            raise
        return shared

    def unload(self, key: Hashable) -> bool:
        """Forget the model of this key, so that the next who asks has it loaded anew.

        Whoever holds it keeps it; its memory is given back with the last of them.

        Returns:
            Whether there was one.
        """
        with self._lock:
            self._forget_loads_of_parent()
            found = self._entries.pop(key, None)
        self._settle()
        return found is not None

    def clear(self) -> int:
        """Forget every model, as ``unload`` does one, and return how many there were."""
        return sum(self.unload(key) for key in list(self._entries))

    def loaded(self) -> list[LoadedModel]:
        """Return what is in memory, the oldest first."""
        self._settle()
        with self._lock:
            self._forget_loads_of_parent()
            found = [
                LoadedModel(entry.key, entry.users, entry.seconds)
                for entry in self._entries.values()
                if entry.seconds is not None
            ]
        self._settle()
        return found

    # -- loading -----------------------------------------------------------------------------

    def _start(self, entry: _Entry[T], load: Callable[[], T]) -> None:
        thread = Thread(
            target=copy_context().run,
            args=(self._load, entry, load),
            name="ragopt-load",
            daemon=True,  # an exit waits for no model that nobody waits for
        )
        try:
            thread.start()
        except Exception as error:  # the system has no thread left
            self._end(entry, error)
            raise

    def _load(self, entry: _Entry[T], load: Callable[[], T]) -> None:
        _loading.set(_loading.get() | {entry.key})
        begin = monotonic()
        try:
            value = load()
        except BaseException as error:  # noqa: BLE001 - it belongs to those who wait
            _let_go(error)
            self._end(entry, error)
            return
        with self._lock:
            entry.value, entry.seconds = value, monotonic() - begin
        del value  # or it would outlive its last user
        self._end(entry, None)

    def _end(self, entry: _Entry[Any], error: BaseException | None) -> None:
        if error is not None:
            with self._lock:
                if self._entries.get(entry.key) is entry:
                    del self._entries[entry.key]  # before the others wake, who may ask again
        self._give_back(entry)  # before they wake, who may count
        if error is None:
            entry.ended.set_result(None)
        else:
            entry.ended.set_exception(error)

    def _forget_loads_of_parent(self) -> None:
        if self._pid != os.getpid():  # the threads that load them are not in this process
            self._entries = {k: e for k, e in self._entries.items() if e.seconds is not None}
            self._pid = os.getpid()

    # -- letting go --------------------------------------------------------------------------

    def _give_back(self, entry: _Entry[Any]) -> None:
        """Count one user less. It never waits, since garbage may be collected anywhere.

        The thread in which that happens may hold this lock just now, or another one for which the
        holder of this lock waits. Whoever holds it counts when it lets go.
        """
        self._given_back.append(entry)
        self._settle()

    def _settle(self) -> None:
        while self._given_back and self._lock.acquire(blocking=False):
            unused: list[_Entry[Any]] = []
            try:
                while self._given_back:
                    entry = self._given_back.popleft()
                    entry.users -= 1
                    if not entry.users:
                        unused.append(entry)
                        if self._entries.get(entry.key) is entry:
                            del self._entries[entry.key]
            finally:
                self._lock.release()
            for entry in unused:
                _drop(entry)


def _drop(entry: _Entry[Any]) -> None:
    if entry.seconds is None:
        return
    del entry.value
    try:
        if entry.unload is not None:
            entry.unload()
    except Exception:  # whoever lets go last, perhaps the garbage collector, cannot help it
        logger.warning("After dropping the model %r, its unload failed.", entry.key, exc_info=True)


def _let_go(error: BaseException) -> None:
    """Free what a load that failed has in its variables; half a model may be among them."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__  # type: ignore[assignment]


def _where_it_began(error: BaseException) -> TracebackType | None:
    """Return the part of a traceback that is of the load, without those who waited for it."""
    step = error.__traceback__
    while step is not None and step.tb_frame.f_code is not SharedModels._load.__code__:
        step = step.tb_next
    return step or error.__traceback__


MODELS = SharedModels()
"""The models of this process."""
