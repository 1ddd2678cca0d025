"""A port before a Redis server that answers late or never; see ``tests.services.slow_front``.

It reads lines from its standard input and repeats each when it is so: seconds by which answers
are late, or ``swallow``.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress

_delay = 0.0
_swallows = False


async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, late: bool) -> None:
    """Pass on what comes, until either side closes. What is swallowed is gone for good."""
    with suppress(OSError):
        while data := await reader.read(2**16):
            if late and _delay:
                await asyncio.sleep(_delay)
            if not _swallows:
                writer.write(data)
                await writer.drain()
    writer.close()


async def main(front: int, back: int) -> None:
    global _delay, _swallows  # noqa: PLW0603 - a process of its own, and this is its state

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back_there = await asyncio.open_connection("127.0.0.1", back)
        except OSError:
            writer.close()
            return
        await asyncio.gather(pour(reader, back_there, False), pour(there, writer, True))

    await asyncio.start_server(serve, "127.0.0.1", front, backlog=1024)
    print("ready", flush=True)  # noqa: T201
    while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
        _swallows = line == "swallow"
        _delay = 0.0 if _swallows else float(line)
        print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
