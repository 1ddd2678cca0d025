"""A port that speaks TLS before a port that does not; see ``tests.services.tls_front``."""

from __future__ import annotations

import asyncio
import ssl
import sys
from contextlib import suppress
from pathlib import Path


async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()
    writer.close()


async def main(front: int, back: int, certificates: Path, *, ask_clients: bool) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    if ask_clients:
        context.load_verify_locations(certificates / "ca.pem")
        context.verify_mode = ssl.CERT_REQUIRED

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back_there = await asyncio.open_connection("127.0.0.1", back)
        await asyncio.gather(pour(reader, back_there), pour(there, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", front, ssl=context)
    await server.serve_forever()


if __name__ == "__main__":
    given = sys.argv[1:]
    asyncio.run(main(int(given[0]), int(given[1]), Path(given[2]), ask_clients=bool(given[3])))
