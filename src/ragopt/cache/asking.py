"""What adapters need around ``ValueCache.once``: whether it was a hit, and answers in pieces.

A stream is driven by whoever consumes it: between two pieces nothing runs. So the look-up, the
computation and the storing are one coroutine, which hands out a piece where it would wait
otherwise, in both colours.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextvars import copy_context
from functools import partial
from threading import get_ident
from typing import Any, TypeAlias

from ragopt._runtime import Runtime
from ragopt.cache.keeping import Documents
from ragopt.cache.values import ValueCache

Emit: TypeAlias = Callable[[Any], Awaitable[None]]
"""Hands a piece to whoever consumes the stream."""

Body: TypeAlias = Callable[[Emit], Coroutine[Any, Any, object]]
"""An operation that emits pieces; what it returns is dropped."""


async def asked(
    io: Runtime,
    values: ValueCache,
    payload: object,
    compute: Callable[[], Awaitable[Any]],
    documents: Documents | None = None,
) -> tuple[Any, bool]:
    """Do ``values.once``; also return whether this call was spared the computation."""
    made: list[Any] = []

    async def noted() -> Any:
        value = await compute()
        made.append(value)
        return value

    value = await values.once(io, payload, noted, documents)
    # By identity: a refresh in the background computes as well, and its value is another one.
    return value, not any(value is each for each in made)


async def pour(source: Any, take: Emit) -> None:
    """Hand every item of a sync or async iterator to ``take``, and close it whatever happens."""
    try:
        if hasattr(source, "__aiter__"):
            async for item in source:
                await take(item)
        else:
            for item in source:
                await take(item)
    finally:
        if hasattr(source, "aclose"):
            await source.aclose()
        elif hasattr(source, "close"):
            source.close()


def stream(body: Body) -> Generator[Any, None, None]:
    """Yield what the body emits. Its port must be the sync one.

    Whoever stops early ends the body where it stands, as a cancelled task ends.
    """
    flow = _Flow(body)
    while True:
        try:
            waits = flow.step()
        except StopIteration:
            return
        if not isinstance(waits, _Piece):
            flow.close()
            raise RuntimeError("A stream suspended in a sync call; it was given an async port")
        try:
            yield waits.item
        except BaseException:  # closed early, or the consumer's own error: the body ends first
            flow.stop()
            _drain(flow)
            raise


async def astream(body: Body) -> AsyncIterator[Any]:
    """Yield what the body emits; see ``stream``. Its port must be the async one."""
    flow = _Flow(body)
    while True:
        try:
            waits = flow.step()
        except StopIteration:
            return
        if not isinstance(waits, _Piece):
            await _forward(flow, waits)
            continue
        try:
            yield waits.item
        except BaseException:  # closed early, or the consumer's own error: the body ends first
            flow.stop()
            await _adrain(flow)
            raise


class _Stopped(BaseException):
    """Nobody wants the rest. Not GeneratorExit, after which a coroutine may not wait any more."""


class _Piece:
    """What a body waits on until its consumer has taken a piece."""

    __slots__ = ("item",)

    def __init__(self, item: object) -> None:
        self.item = item

    def __await__(self) -> Generator[Any, Any, Any]:
        yield self


class _Passed:
    """What somebody else waits on, passed to the event loop as it is."""

    __slots__ = ("waits",)

    def __init__(self, waits: object) -> None:
        self.waits = waits

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield self.waits)


class _Flow:
    """A body, step by step.

    Its steps share a context of their own. In the consumer's, which runs between the steps, it
    would leave its marks; and two streams that are consumed in turns would mix theirs up.
    """

    def __init__(self, body: Body) -> None:
        self._context = copy_context()
        self._stepping: int | None = None
        self._operation = body(self._emit)
        self._next: Callable[[], Any] = partial(self._operation.send, None)

    async def _emit(self, item: object) -> None:
        # A refresh in the background runs the same computation, for nobody who listens.
        if self._stepping == get_ident():
            await _Piece(item)

    def step(self) -> Any:
        """Go on, and return what the body waits on. StopIteration: it is done."""
        resume, self._next = self._next, partial(self._operation.send, None)
        self._stepping = get_ident()
        try:
            return self._context.run(resume)
        finally:
            self._stepping = None

    def stop(self) -> None:
        """Make the next step one that ends the body."""
        self.fail(_Stopped())

    def fail(self, error: BaseException) -> None:
        """Make the next step one that raises within the body."""
        self._next = partial(self._operation.throw, error)

    def close(self) -> None:
        """End the body without waiting for anything."""
        self._operation.close()


def _drain(flow: _Flow) -> None:
    try:
        flow.step()
    except (_Stopped, StopIteration):
        return
    flow.close()


async def _adrain(flow: _Flow) -> None:
    try:
        while True:
            waits = flow.step()
            if not isinstance(waits, _Piece):
                await _forward(flow, waits)
    except (_Stopped, StopIteration):
        return


async def _forward(flow: _Flow, waits: object) -> None:
    """Wait on behalf of the body; an error, or a cancellation, is the body's."""
    try:
        await _Passed(waits)
    except GeneratorExit:  # the loop itself goes away, and nothing can be waited on any more
        flow.close()
        raise
    except BaseException as error:  # noqa: BLE001 - raised within the body, by the next step
        flow.fail(error)
