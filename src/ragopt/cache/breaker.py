"""Leave a layer that fails alone until it answers again."""

from __future__ import annotations

import os
from collections.abc import Callable
from threading import Event, Lock, Thread
from time import monotonic
from typing import Literal, TypeAlias

from ragopt._forks import fork_safe

Operation: TypeAlias = Literal["read", "write"]

_FIRST_PAUSE = 0.1  # seconds between a failure and the first look whether it is over
_LONGEST_PAUSE = 5.0


class Breaker:
    """Closed while a layer works, open from its first failure until it works again.

    Reads are tried again in the background, so a caller pays for a layer that hangs once and
    then nothing. Writes that fail while reads work (a full server, say) are tried again by one
    caller after a pause; that costs a refusal, which is quick.

    Args:
        probe: Reads something from the layer; raises while it is broken.

    References:
        Nygard, "Release It!", 2007, chapter 5.
    """

    def __init__(self, probe: Callable[[], object]) -> None:
        self._probe = probe
        self._lock = fork_safe(Lock())
        self._stop = Event()
        self._prober: Thread | None = None
        self._pid = 0
        self._no_writes_before = 0.0
        self._pause = 0.0
        self.closed = True
        """Whether the layer may be asked."""
        self.trips = 0
        """How often it opened."""

    def admits(self, operation: Operation) -> bool:
        """Return whether this may be tried now."""
        if not self.closed:
            if self._pid != os.getpid():
                self._watch()  # the thread that looked after it stayed with the parent
            return False
        return operation == "read" or not self._pause or self._admits_write()

    def _admits_write(self) -> bool:
        with self._lock:
            now = monotonic()
            if now < self._no_writes_before:
                return False
            # One tries, the others wait for it. The pause doubles here and not where a failure
            # is noted, since many writes that were under way together fail together.
            self._no_writes_before = now + self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            return True

    def failed(self, operation: Operation, *, unreachable: bool) -> None:
        """Take note of a failure; ``unreachable`` means that reads would fail as well."""
        with self._lock:
            self.trips += 1
            if operation == "write" and not unreachable:
                if not self._pause:
                    self._pause = _FIRST_PAUSE
                    self._no_writes_before = monotonic() + _FIRST_PAUSE
                return
            self.closed = False
        self._watch()

    def wrote(self) -> None:
        """Take note of a write that went well."""
        self._pause = 0.0

    def stop(self) -> None:
        """End the look-out; the breaker stays as it is."""
        if self._pid == os.getpid():  # the parent's thread may have held the event's lock
            self._stop.set()

    def _watch(self) -> None:
        with self._lock:
            mine = self._pid == os.getpid()
            if mine and self._prober is not None and self._prober.is_alive():
                return
            self._pid = os.getpid()
            self._stop = Event()
            self._prober = Thread(target=self._look, name="ragopt-breaker", daemon=True)
            self._prober.start()

    def _look(self) -> None:
        pause = _FIRST_PAUSE
        while not self._stop.wait(pause):
            try:
                self._probe()
            except Exception:  # noqa: BLE001 - whatever it is, the layer is still broken
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                with self._lock:
                    self.closed = True
                    self._prober = None
                return
