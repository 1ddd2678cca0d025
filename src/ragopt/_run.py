"""The sync colour: drive a coroutine that never really suspends."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")


def run(operation: Coroutine[Any, Any, T]) -> T:
    """Run an operation whose every ``await`` completes at once, and return its result.

    Operations are written once as ``async def`` over a port (see ``ragopt._runtime``). Over the
    sync port nothing suspends, so one step reaches the end; no event loop is involved.

    Raises:
        RuntimeError: The operation suspended, which means that an async port was passed to a
            sync call: a defect in ragopt, never in the caller.
    """
    try:
        operation.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    operation.close()
    raise RuntimeError(f"{operation!r} suspended in a sync call; it was given an async port")


def iterate(source: AsyncGenerator[T, None]) -> Generator[T, None, None]:
    """Yield what an async generator yields whose every ``await`` completes at once; see ``run``.

    Whoever stops early ends the generator where it stands.
    """
    while True:
        try:
            item = run(source.__anext__())
        except StopAsyncIteration:
            return
        try:
            yield item
        except BaseException:
            run(source.aclose())
            raise
