"""Locks that a forked process finds free, and what they guard whole.

A child has only the thread that forked: a lock that another one held at that moment would stay
held for ever. So a fork waits until it holds them all, as that of the standard library's logging
does for its own. To make them anew in the child would free them as well, but the other thread may
have been in the middle of a change.
"""

from __future__ import annotations

import os
from threading import RLock
from typing import Protocol, TypeVar
from weakref import WeakSet

_PATIENCE = 1.0  # seconds; somebody may hold a lock for longer while a disk does not answer


class _Lock(Protocol):
    def acquire(self, blocking: bool = ..., timeout: float = ...) -> bool: ...

    def release(self) -> None: ...


L = TypeVar("L", bound=_Lock)


class _Locks:
    """All locks that a fork waits for. None of them is asked for while another one is held."""

    def __init__(self) -> None:
        self._guard = RLock()
        self._known: WeakSet[_Lock] = WeakSet()
        self._taken: list[_Lock] = []
        self._missed: list[_Lock] = []

    def add(self, lock: _Lock) -> None:
        with self._guard:
            self._known.add(lock)

    def before(self) -> None:
        self._guard.acquire()
        for lock in list(self._known):
            (self._taken if lock.acquire(timeout=_PATIENCE) else self._missed).append(lock)

    def after(self) -> None:
        for lock in self._taken:
            lock.release()
        self._taken, self._missed = [], []
        self._guard.release()

    def after_in_child(self) -> None:
        for lock in self._missed:  # better a free lock than a child that hangs
            lock._at_fork_reinit()  # type: ignore[attr-defined]
        self.after()


_locks = _Locks()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_locks.before,
        after_in_parent=_locks.after,
        after_in_child=_locks.after_in_child,
    )


def fork_safe(lock: L) -> L:
    """Return this lock, which nobody holds in a forked child when the child begins.

    It must not be held while another such lock is asked for.
    """
    _locks.add(lock)
    return lock
