"""Connections to one Redis server, handed out without the driver's pool.

The driver's own way from a command to its reply takes 50 µs more than the exchange itself: a
queue with timeouts, a check of the socket, retries, telemetry. What of it matters here is done
more cheaply: a bound on the connections, and one more try where an idle one was closed.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from ragopt._imports import require
from ragopt._runtime import Runtime

Words: TypeAlias = tuple[Any, ...] | bytes
"""A command: its words, or what ``packed`` made of them."""


class RedisConnections:
    """Connections to one server, for one colour and, in async, one event loop.

    Args:
        io: The colour.
        make: Makes a connection, which opens at its first use.
        most: Bound on the connections.
        timeout: Seconds to wait for one when all are busy.
    """

    def __init__(self, io: Runtime, make: Callable[[], Any], *, most: int, timeout: float) -> None:
        self._redis = require("redis", "redis")
        self._make = make
        self._timeout = timeout
        self._most = most
        self._slots = io.slots(most)
        self._idle: deque[Any] = deque()
        self._pid = os.getpid()
        self._closed = False

    async def send(self, io: Runtime, commands: Sequence[Words]) -> list[Any]:
        """Send commands at once and return their replies; what is refused is an error in the list.

        Args:
            io: The colour.
            commands: The words of each, or what ``packed`` made of them.

        Raises:
            RedisError: The connection failed, or none became free in time.
            OSError: Likewise.
        """
        if self._pid != os.getpid():  # those of the parent stay the parent's, in use or not
            self._slots, self._idle, self._pid = io.slots(self._most), deque(), os.getpid()
        slots = self._slots
        if not await io.enter(slots, self._timeout):
            raise self._redis.TimeoutError(f"all {self._most} connections are busy")
        try:
            while True:
                reused = bool(self._idle)
                connection = self._idle.pop() if reused else self._make()
                try:
                    async with io.limit(self._timeout):
                        replies = await self._exchange(io, connection, commands)
                except BaseException as error:
                    # Whatever is still on its way must not be taken for the next reply.
                    await io.call(_close, _aclose, connection)
                    if not (reused and isinstance(error, self._redis.ConnectionError)):
                        raise
                    # The server closed it while it lay idle. Every command may be sent twice.
                else:
                    self._idle.append(connection)
                    if self._closed:
                        await self.close(io)
                    return replies
        finally:
            slots.release()

    async def _exchange(self, io: Runtime, connection: Any, commands: Sequence[Words]) -> list[Any]:
        send, read = connection.send_packed_command, connection.read_response
        data = b"".join([c if isinstance(c, bytes) else packed(c) for c in commands])
        await io.call(send, send, [data], check_health=False)
        replies: list[Any] = []
        for _ in commands:
            try:
                replies.append(await io.call(read, read))
            except self._redis.ResponseError as error:
                replies.append(error)
        return replies

    async def close(self, io: Runtime) -> None:
        """Close the idle connections at once, and those in use when they come back."""
        self._closed = True
        while self._idle:
            await io.call(_close, _aclose, self._idle.pop())


def packed(words: tuple[Any, ...]) -> bytes:
    """Return a command as it is sent (RESP), in half the time of the driver's general way."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        data = word if type(word) is bytes else str(word).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


def _close(connection: Any) -> None:
    connection.disconnect()


async def _aclose(connection: Any) -> None:
    await connection.disconnect(nowait=True)
