"""Many readers or one writer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, Lock


class ReadWriteLock:
    """A lock that readers share. A waiting writer goes before readers who come later."""

    def __init__(self) -> None:
        self._mutex = Lock()
        self._condition = Condition(self._mutex)
        self._readers = 0
        self._writers_waiting = 0
        self._writing = False

    @contextmanager
    def read(self) -> Iterator[None]:
        """Hold the lock together with other readers."""
        with self._mutex:  # entered in C, unlike the condition over it
            while self._closed_to_readers():
                self._condition.wait()
            self._readers += 1
        try:
            yield
        finally:
            with self._mutex:
                self._readers -= 1
                if not self._readers and self._writers_waiting:
                    self._condition.notify_all()

    def _closed_to_readers(self) -> bool:
        return self._writing or self._writers_waiting > 0

    @contextmanager
    def write(self) -> Iterator[None]:
        """Hold the lock alone."""
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
