"""One event-loop thread for sync calls into drivers that are async only."""

from __future__ import annotations

import asyncio
import atexit
import os
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from threading import Lock, Thread, current_thread
from typing import Any, ParamSpec, TypeVar

from ragopt.errors import RagoptError

P = ParamSpec("P")
T = TypeVar("T")


class Portal:
    """A thread with an event loop, to which other threads hand coroutines and wait."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._lock = Lock()
        self._closed = False
        self._ending = asyncio.Event()
        # With a factory, the runner does not make its loop the one of the calling thread.
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = self._runner.get_loop()
        self._thread = Thread(target=self._serve, name="ragopt-portal", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    @property
    def usable(self) -> bool:
        """Whether it is open and belongs to this process."""
        return not self._closed and self._pid == os.getpid()

    def call(
        self, operation: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run an operation on the portal's loop and wait for its result.

        When the wait is interrupted (``KeyboardInterrupt``), the operation is cancelled.

        Raises:
            RagoptError: The call came from the portal's own thread, which would wait for itself
                for ever, or the portal is closed or belongs to the parent of this process.
        """
        if current_thread() is self._thread:
            raise RagoptError(
                "A sync call was made from the event-loop thread that carries it out.",
                fix="Await the async method of the same name there.",
            )
        future = self._submit(operation, *args, **kwargs)
        try:
            return future.result()
        except CancelledError as error:
            raise RagoptError(
                "A call was given up: the event-loop thread that ran it was closed.",
                fix="Let running calls end before the program does.",
            ) from error
        finally:
            future.cancel()  # of no effect on one that is done

    def _submit(
        self, operation: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]:
        # Under the lock, so that nothing is handed to a loop which has begun to end.
        with self._lock:
            if not self.usable:
                raise RagoptError(
                    "The event-loop thread for sync calls is closed, or stayed in the process "
                    "that this one was forked from.",
                    fix="Call ragopt._portal.portal() again instead of keeping what it returned.",
                )
            return asyncio.run_coroutine_threadsafe(operation(*args, **kwargs), self._loop)

    def close(self) -> None:
        """Cancel what still runs and end the thread. Closing twice is no error."""
        with self._lock:
            if not self.usable:
                return
            self._closed = True
            self._loop.call_soon_threadsafe(self._ending.set)
        atexit.unregister(self.close)
        if current_thread() is not self._thread:
            self._thread.join()

    def _serve(self) -> None:
        try:
            with self._runner as runner:  # on the way out it cancels what still runs
                runner.run(self._ending.wait())
        finally:  # perhaps because an operation raised what ends a program
            self._closed = True


class _Process:
    """The portal of this process, and those of the processes that it was forked from."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.portal: Portal | None = None
        self.inherited: list[Portal] = []

    def forked(self) -> None:
        self.lock = Lock()  # another thread may have held it
        if self.portal is not None:
            # Kept, for ever: to collect its loop would be to unregister the parent's sockets.
            self.inherited.append(self.portal)
            self.portal = None


_process = _Process()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_process.forked)


def portal() -> Portal:
    """Return this process's portal, made at the first call and again after a fork."""
    with _process.lock:
        if _process.portal is None or not _process.portal.usable:
            _process.portal = Portal()
        return _process.portal
