"""A pooler of PostgreSQL connections in transaction mode, as pgbouncer is, at its least helpful.

Each transaction of a client goes to another server process than the one before. What a client
leaves in a process (settings, prepared statements, temporary tables) is not there in the next.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from urllib.parse import parse_qs, urlsplit

_PROCESSES = 2  # of each client
_SSL_REQUEST, _CANCEL_REQUEST = 80877103, 80877102
_OWN_PID = 2_000_000_000  # beyond any process


@contextmanager
def transaction_pooler(dsn: str) -> Iterator[str]:
    """Open a port before a server that trusts its clients; yield the DSN to use."""
    parts = urlsplit(dsn)
    folder = parse_qs(parts.query).get("host", [""])[0]
    started, ports = Event(), list[int]()
    loop = asyncio.new_event_loop()
    ending = asyncio.Event()

    async def serve() -> None:
        async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await _serve(reader, writer, folder or (parts.hostname, parts.port or 5432))
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(client, "127.0.0.1", 0)
        ports.append(server.sockets[0].getsockname()[1])
        started.set()
        await ending.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    thread = Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    started.wait(10)
    try:
        yield f"postgresql://{parts.username}@127.0.0.1:{ports[0]}{parts.path}"
    finally:
        loop.call_soon_threadsafe(ending.set)
        thread.join(10)
        loop.run_until_complete(asyncio.sleep(0))  # what was cancelled ends
        loop.close()


async def _serve(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, server: str | tuple[str | None, int]
) -> None:
    startup = await _startup(reader, writer)
    processes = [await _connect(server, startup) for _ in range(_PROCESSES)]
    greeting = processes[0][2]
    writer.write(greeting)
    turn, idle = 0, asyncio.Event()
    idle.set()

    async def answer(source: asyncio.StreamReader) -> None:
        while True:
            kind, message = await _message(source)
            writer.write(message)
            if kind == b"Z" and message[-1:] == b"I":
                idle.set()

    answering = [asyncio.create_task(answer(source)) for source, _, _ in processes]
    try:
        while True:
            kind, message = await _message(reader)
            if kind == b"X":
                return
            if idle.is_set():
                turn = (turn + 1) % _PROCESSES
                idle.clear()
            processes[turn][1].write(message)
    finally:
        for task in answering:
            task.cancel()
        for _, out, _ in processes:
            out.close()


async def _startup(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    while True:
        head = await reader.readexactly(8)
        size, code = struct.unpack("!ii", head)
        rest = await reader.readexactly(size - 8)
        if code == _CANCEL_REQUEST:
            raise ConnectionError("nothing is cancelled here")
        if code != _SSL_REQUEST:
            return head + rest
        writer.write(b"N")


async def _connect(
    server: str | tuple[str | None, int], startup: bytes
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
    """Open a server process; return it, and what a client is told at its start."""
    if isinstance(server, str):
        reader, writer = await asyncio.open_unix_connection(f"{server}/.s.PGSQL.5432")
    else:
        reader, writer = await asyncio.open_connection(*server)
    writer.write(startup)
    told = b""
    while True:
        kind, message = await _message(reader)
        if kind == b"K":
            message = message[:5] + struct.pack("!i", _OWN_PID) + message[9:]
        told += message
        if kind in (b"Z", b"E"):
            return reader, writer, told


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readexactly(5)
    (size,) = struct.unpack("!i", head[1:])
    return head[:1], head + await reader.readexactly(size - 4)
