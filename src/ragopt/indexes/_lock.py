"""Many readers or one writer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, Lock, local

from ragopt.errors import InvalidInput


class ReadWriteLock:
    """A lock that readers share. A waiting writer goes before readers who come later."""

    def __init__(self) -> None:
        self._mutex = Lock()
        self._condition = Condition(self._mutex)
        self._readers = 0
        self._writers_waiting = 0
        self._writing = False
        self._reading = _Reading(self)

    def read(self) -> _Reading:
        """Return a context in which the lock is held together with other readers."""
        return self._reading

    @contextmanager
    def write(self) -> Iterator[None]:
        """Hold the lock alone.

        Raises:
            InvalidInput: The thread reads: it would wait for itself.
        """
        if self._reading.held:
            raise InvalidInput(
                "A function that is a filter tried to change the index that it filters.",
                fix="Change the index after the search.",
            )
        with self._condition:
            self._writers_waiting += 1
            try:
                self._condition.wait_for(lambda: not self._writing and not self._readers)
            finally:
                self._writers_waiting -= 1
            self._writing = True
        try:
            yield
        finally:
            with self._condition:
                self._writing = False
                self._condition.notify_all()


class _Reading:
    """The readers' side; a class, since entering a generator costs more than the lock itself."""

    def __init__(self, lock: ReadWriteLock) -> None:
        self._lock = lock
        self._mine = local()

    @property
    def held(self) -> int:
        """How often this thread holds it."""
        return getattr(self._mine, "held", 0)

    def __enter__(self) -> None:
        lock, mine, held = self._lock, self._mine, self.held
        if not held:  # a filter may be a function, which reads again: a writer waits for it already
            with lock._mutex:  # entered in C, unlike the condition over it
                while lock._writing or lock._writers_waiting:
                    lock._condition.wait()
                lock._readers += 1
        mine.held = held + 1

    def __exit__(self, *_: object) -> None:
        lock, mine = self._lock, self._mine
        mine.held -= 1
        if mine.held:
            return
        with lock._mutex:
            lock._readers -= 1
            if not lock._readers and lock._writers_waiting:
                lock._condition.notify_all()
