"""Redis behind TLS, users, sockets, Sentinels and clusters, and what is said when one fails."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from traceback import format_exception
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from redis.crc import key_slot
from tests.services import (
    free_port,
    make_certificates,
    redis_cluster,
    redis_sentinel,
    redis_server,
    tls_front,
)

from ragopt import Lineage, MemoryStore, TieredCache, ValueCache
from ragopt.errors import BackendUnavailable, InvalidInput, RagoptError, StorageError
from ragopt.stores.redis import RedisStore

PASSWORD = "s3cret-p4ss"
KEYS = [b"key-%d" % number for number in range(300)]


def opened(url: str, timeout: float = 5, **options: Any) -> RedisStore:
    return RedisStore(url, timeout=timeout, **options)


async def works(url: str, **options: Any) -> None:
    """Write in one colour, read in the other, and leave nothing behind."""
    async with opened(url, **options) as store:
        store.set_many({key: key for key in KEYS})
        found = await store.aget_many(KEYS)
        assert [entry and entry.value for entry in found] == KEYS
        assert await store.acount(b"key-1") == 111
        assert (await store.aserver_stats()).servers == store.server_stats().servers
        assert await store.adelete_many(KEYS) == 300


async def refusals(url: str, **options: Any) -> list[str]:
    """Return what is said in either colour when a look-up fails."""
    async with opened(url, **options) as store:
        with pytest.raises(StorageError) as sync:
            store.get_many([b"k"])
        with pytest.raises(StorageError) as other:
            await store.aget_many([b"k"])
    for caught in (sync, other):
        assert PASSWORD not in "".join(format_exception(caught.value)) + repr(store)
    return [str(sync.value), str(other.value)]


def login(url: str, user: str = "", password: str = PASSWORD) -> str:
    return url.replace("://", f"://{user}:{password}@")


# -- one server ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("redis")
    make_certificates(folder)
    return folder


@pytest.fixture(scope="module")
def guarded_url(folder: Path) -> Iterator[str]:
    """A server with a password, and a user that may do no more than a store does."""
    options = "--requirepass", PASSWORD, "--unixsocket", str(folder / "socket")
    with redis_server(*options) as url, redis.Redis.from_url(login(url)) as admin:
        commands = "+mget +set +unlink +scan +getrange +info"
        rights = f"on >{PASSWORD} ~key-* -@all {commands}"
        admin.execute_command("ACL", "SETUSER", "cache", *rights.split())
        rights = f"on >{PASSWORD} ~ragopt* -@all {commands} {CLAIMS} {LOGS}"
        admin.execute_command("ACL", "SETUSER", "sharing", *rights.split())
        yield url


# As in the documentation: what claims need, and what a lineage needs besides.
CLAIMS = "+eval +pexpire +del"
LOGS = "+zadd +zcard +zincrby +zrange +zrangebyscore +zremrangebyscore +zscore"


def test_the_rights_that_claims_and_lineage_need(guarded_url: str) -> None:
    with RedisStore(login(guarded_url, "sharing")) as store:
        cache = TieredCache(MemoryStore(), store, strict=True, max_staleness=0)
        lineage = Lineage(cache)
        values = ValueCache("answer", cache, ttl=60, lineage=lineage)
        texts = ["old", "never asked for", "new"]

        def ask() -> str:
            answer: str = values.get_or_compute(
                "q", lambda: texts.pop(0), documents=lambda _: ["handbook"]
            )
            return answer

        assert (ask(), ask()) == ("old", "old")
        texts.pop(0)
        lineage.changed("handbook")
        assert ask() == "new"
        assert values.delete("q")
        values.clear()


async def test_a_password_and_a_user(guarded_url: str) -> None:
    await works(login(guarded_url))
    await works(login(guarded_url, "cache"))
    for said in await refusals(login(guarded_url, "cache", PASSWORD[:-1])):
        assert "refused the user name or password" in said
    async with opened(login(guarded_url, "cache")) as store:
        with pytest.raises(StorageError, match=r"refused a command .*permissions of the user"):
            store.set_many({b"others": b"v"})


async def test_what_a_server_says_no_to() -> None:
    with redis_server("--busy-reply-threshold", "10") as url, redis.Redis.from_url(url) as client:
        for said in await refusals(url.replace("/0", "/99")):
            assert "DB index is out of range). The number that the URL ends in" in said
        endless = threading.Thread(target=_runs, args=(url, "while true do end"))
        endless.start()
        async with opened(url) as store:
            until = time.monotonic() + 10
            said = ""
            while not said:
                assert time.monotonic() < until
                try:
                    store.get_many([b"k"])
                except BackendUnavailable as error:
                    said = str(error)
            assert "is busy with a script" in said
            assert "Try again" in said
            client.script_kill()
            endless.join()
            assert store.get_many([b"k"]) == [None]
            client.replicaof("127.0.0.1", free_port())
            with pytest.raises(StorageError, match=r"read only.* Name the master"):
                store.set_many({b"k": b"v"})


def _runs(url: str, script: str) -> None:
    with redis.Redis.from_url(url) as client, suppress(redis.ResponseError):  # it was killed
        client.eval(script, 0)


async def test_a_unix_socket(guarded_url: str, folder: Path) -> None:
    await works(f"unix://{folder}/socket?username=cache&password={PASSWORD}")
    async with opened(f"unix://{folder}/nothing?password={PASSWORD}") as store:
        assert repr(store) == f"RedisStore('unix://{folder}/nothing?db=0')"
        with pytest.raises(BackendUnavailable, match="cannot be reached"):
            store.get_many([b"k"])


@pytest.fixture(scope="module")
def port(guarded_url: str, folder: Path) -> Iterator[int]:
    with tls_front(urlsplit(guarded_url).port or 0, folder, ask_clients=True) as port:
        yield port


class TestTLS:
    def url(self, port: int, folder: Path, ca: str = "ca.pem", client: str = "client") -> str:
        files = f"ssl_ca_certs={folder}/{ca}"
        if client:
            files += f"&ssl_certfile={folder}/{client}.pem&ssl_keyfile={folder}/{client}.key"
        return login(f"rediss://127.0.0.1:{port}/0?{files}")

    async def test_certificates_of_both_sides(self, port: int, folder: Path) -> None:
        await works(self.url(port, folder))

    @pytest.mark.parametrize(
        ("ca", "client", "reason"),
        [
            ("client.pem", "client", "CERTIFICATE_VERIFY_FAILED"),
            ("missing.pem", "client", "No such file"),
            ("ca.pem", "", "(?i)closed|reset|required"),
        ],
    )
    async def test_a_wrong_certificate(
        self, port: int, folder: Path, ca: str, client: str, reason: str
    ) -> None:
        for said in await refusals(self.url(port, folder, ca, client)):
            assert "cannot be reached" in said
            assert "ssl_ca_certs must name the file" in said
            assert re.search(reason, said), said

    async def test_a_server_without_tls(self, guarded_url: str) -> None:
        url = login(guarded_url.replace("redis:", "rediss:"))
        for said in await refusals(url, timeout=0.3):
            assert "did not answer within 0.3 s. Check that it is running, speaks TLS" in said

    async def test_a_cluster(self, folder: Path) -> None:
        with redis_cluster(servers=1) as url:
            port = urlsplit(url).port or 0
            with tls_front(port, folder) as front, redis.Redis(port=port) as admin:
                admin.config_set("cluster-announce-port", front)
                await works(f"rediss://127.0.0.1:{front}?ssl_ca_certs={folder}/ca.pem&cluster=true")


# -- Sentinel -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url(guarded_url: str) -> Iterator[str]:
    with redis_sentinel(guarded_url, extra=f"sentinel auth-pass master0 {PASSWORD}") as url:
        yield url


class TestSentinel:
    async def test_a_sentinel_that_takes_no_password(self, url: str) -> None:
        await works(login(url))
        await works(login(url, "cache"))

    async def test_a_sentinel_with_the_same_password(self, guarded_url: str) -> None:
        extra = f"sentinel auth-pass master0 {PASSWORD}\nrequirepass {PASSWORD}"
        with redis_sentinel(guarded_url, extra=extra) as url:
            await works(login(url))
            for said in await refusals(login(url, password="wr0ng")):
                assert "refused" in said

    async def test_one_sentinel_that_answers_is_enough(self, url: str) -> None:
        gone = f"127.0.0.1:{free_port()}"
        await works(login(url.replace("://", f"://{gone},")))

    async def test_no_sentinel(self) -> None:
        gone = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        async with opened(login(f"redis+sentinel://{','.join(gone)}/my/3")) as store:
            assert repr(store) == f"RedisStore('{','.join(gone)}/my/3')"
        for said in await refusals(login(f"redis+sentinel://{','.join(gone)}/my/3")):
            assert f"{gone[1]} cannot be reached" in said

    async def test_an_unknown_master(self, url: str) -> None:
        for said in await refusals(login(url.replace("master0", "other"))):
            assert "knows no master called 'other'. Check the name after the hosts" in said

    async def test_no_sentinel_at_all(self, guarded_url: str) -> None:
        plain = guarded_url.replace("redis:", "redis+sentinel:").replace("/0", "/master0")
        for said in await refusals(login(plain)):
            assert "is no Sentinel. Name the Sentinels" in said

    async def test_a_master_that_is_gone(self) -> None:
        with redis_server() as gone:
            pass
        with redis_sentinel(gone) as url:
            for said in await refusals(url):
                assert f"127.0.0.1:{urlsplit(gone).port} cannot be reached" in said

    async def test_a_master_that_became_a_replica(self) -> None:
        with redis_server() as url, redis_sentinel(url) as sentinel:
            async with opened(sentinel) as store:
                store.set_many({b"k": b"v"})
                with redis.Redis.from_url(url) as master:
                    master.replicaof("127.0.0.1", str(free_port()))
                with pytest.raises(BackendUnavailable, match="is no longer the master"):
                    store.set_many({b"k": b"v"})
                with pytest.raises(BackendUnavailable, match="is no longer the master"):
                    await store.aset_many({b"k": b"v"})

    async def test_the_new_master_is_found(self) -> None:
        with redis_server("--repl-diskless-sync-delay", "0") as old:
            replica = "--replicaof", "127.0.0.1", str(urlsplit(old).port)
            with redis_server(*replica) as new, redis_sentinel(old) as url:
                async with opened(url, timeout=1) as store:
                    store.set_many({b"k": b"v"})
                    await store.aset_many({b"k": b"v"})
                    await synced(url, new)
                    with redis.Redis.from_url(old) as client:
                        client.shutdown(nosave=True)
                    await eventually(lambda: store.aset_many({b"k": b"async"}))
                    await eventually(lambda: asyncio.to_thread(store.set_many, {b"k": b"sync"}))
                    (entry,) = await store.aget_many([b"k"])
                    assert entry is not None
                    assert entry.value == b"sync"
                    assert len(store._servers._known) == 1  # none is kept to the old one


async def eventually(work: Callable[[], Awaitable[object]]) -> None:
    until = time.monotonic() + 20
    while True:
        try:
            await work()
            return
        except BackendUnavailable:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(0.05)


async def synced(sentinel_url: str, replica_url: str) -> None:
    """Wait until the replica has everything and the Sentinel knows it."""
    until = time.monotonic() + 20
    port = urlsplit(sentinel_url).port or 0
    replica: Any
    sentinel: Any
    with redis.Redis.from_url(replica_url) as replica, redis.Redis(port=port) as sentinel:
        while True:
            state = replica.info("replication")["master_link_status"]
            if state == "up" and sentinel.execute_command("SENTINEL", "REPLICAS", "master0"):
                return
            assert time.monotonic() < until
            await asyncio.sleep(0.05)


# -- cluster ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster_url() -> Iterator[str]:
    with redis_cluster() as url:
        yield url


def nodes(url: str) -> list[Any]:
    hosts = url.removeprefix("redis://").partition("?")[0].split(",")
    return [redis.Redis.from_url(f"redis://{host}") for host in hosts]


@pytest.fixture
def servers(cluster_url: str) -> Iterator[list[Any]]:
    clients = nodes(cluster_url)
    for client in clients:
        client.flushdb()
    yield clients
    for client in clients:
        client.close()


def owner(servers: list[Any], key: bytes) -> int:
    return key_slot(key) * 3 // 16384


def identity(server: Any) -> str:
    return str(server.execute_command("CLUSTER MYID"), "ascii")


class TestCluster:
    async def test_one_host_is_enough(self, cluster_url: str) -> None:
        await works(cluster_url)
        one = cluster_url.partition(",")[0] + "?cluster=true"
        await works(one)
        await works(one.replace("127.0.0.1", f"127.0.0.1:{free_port()},127.0.0.1"))

    async def test_keys_are_spread(self, cluster_url: str, servers: list[Any]) -> None:
        async with opened(cluster_url) as store:
            store.set_many({key: key for key in KEYS})
            sizes = [server.dbsize() for server in servers]
            assert min(sizes) > 50
            assert sum(sizes) == 300
            stats = store.server_stats()
            assert stats.servers == 3
            assert stats.commands_processed > 300
            assert (await store.aserver_stats()).servers == 3

    async def test_more_tasks_than_connections_wait_for_one(self, cluster_url: str) -> None:
        async with opened(cluster_url, max_connections=2) as store:
            await asyncio.gather(*(store.aset_many({key: key}) for key in KEYS))
            found = await asyncio.gather(*(store.aget_many([key]) for key in KEYS))
            assert [entry and entry.value for (entry,) in found] == KEYS

    async def test_a_key_of_another_type_is_absent(
        self, cluster_url: str, servers: list[Any]
    ) -> None:
        servers[owner(servers, b"list")].rpush("list", "x")
        async with opened(cluster_url) as store:
            store.set_many({b"k": b"v"})
            found = store.get_many([b"list", b"k"])
            assert [entry and entry.value for entry in found] == [None, b"v"]

    async def test_slots_that_move(self, cluster_url: str, servers: list[Any]) -> None:
        key = b"moving"
        source = servers[owner(servers, key)]
        target = servers[(owner(servers, key) + 1) % 3]
        slot, here, there = key_slot(key), identity(source), identity(target)
        among = [*KEYS[:100], key, *KEYS[100:]]
        async with opened(cluster_url) as store:
            store.set_many({each: each for each in KEYS})
            target.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", here)
            source.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", there)
            store.set_many(dict.fromkeys(among, b"new"))  # ASK
            assert source.dbsize() + target.dbsize() < 301
            assert target.execute_command("CLUSTER", "COUNTKEYSINSLOT", slot) == 1
            assert [entry and entry.value for entry in store.get_many(among)] == [b"new"] * 301
            for server in (target, source, *servers):
                server.execute_command("CLUSTER", "SETSLOT", slot, "NODE", there)
            found = await store.aget_many(among)  # MOVED
            assert [entry and entry.value for entry in found] == [b"new"] * 301
            assert await store.adelete_many([key]) == 1  # asked at the right place at once
            for server in (source, target, *servers):
                server.execute_command("CLUSTER", "SETSLOT", slot, "NODE", here)
            store.set_many({key: b"back"})
            assert store.count(key) == 1

    async def test_a_server_that_hangs_costs_one_timeout(
        self, cluster_url: str, servers: list[Any]
    ) -> None:
        async with opened(cluster_url, timeout=0.3) as store:
            store.set_many({key: key for key in KEYS})
            await store.aget_many(KEYS)
            pid = servers[1].info("server")["process_id"]
            os.kill(pid, signal.SIGSTOP)
            calls: list[Callable[[], Awaitable[object]]] = [
                lambda: asyncio.to_thread(store.get_many, KEYS),
                lambda: asyncio.to_thread(store.set_many, {key: key for key in KEYS}),
                lambda: store.aget_many(KEYS),
            ]
            try:
                for call in calls:
                    begin = time.perf_counter()
                    with pytest.raises(BackendUnavailable, match=r"did not answer within 0\.3 s"):
                        await call()
                    assert time.perf_counter() - begin < 1
            finally:
                os.kill(pid, signal.SIGCONT)
            await eventually(lambda: store.aget_many(KEYS))

    async def test_a_server_that_is_gone(self) -> None:
        with redis_cluster("--cluster-node-timeout", "500") as url, opened(url) as store:
            store.set_many({key: key for key in KEYS})
            await store.aget_many(KEYS)
            clients: list[Any] = nodes(url)
            port = clients[2].connection_pool.connection_kwargs["port"]
            clients[2].shutdown(nosave=True)
            calls: list[Callable[[], object]] = [
                lambda: store.get_many(KEYS),
                lambda: store.set_many({key: key for key in KEYS}),
                store.count,
                store.clear,
                store.server_stats,
            ]
            for call in calls:
                with pytest.raises(BackendUnavailable, match=rf"{port} cannot be reached|is down"):
                    call()
            with pytest.raises(BackendUnavailable):
                await store.aget_many(KEYS)
            until = time.monotonic() + 20
            while clients[0].execute_command("CLUSTER INFO")["cluster_state"] == "ok":
                assert time.monotonic() < until
                await asyncio.sleep(0.05)
            there = next(key for key in KEYS if owner(clients, key) == 0)
            with pytest.raises(BackendUnavailable, match=r"is down for some .* Bring the missing"):
                store.get_many([there])
            await store.aclose()
            for client in clients:
                client.close()

    async def test_a_server_without_slots_is_missed(self) -> None:
        with redis_server("--cluster-enabled", "yes", "--cluster-port", str(free_port())) as url:
            for said in await refusals(url.replace("/0", "?cluster=true")):
                assert "has slot" in said
                assert "Bring the missing server back" in said
            async with opened(url.replace("/0", "?cluster=true")) as store:
                with pytest.raises(BackendUnavailable, match="has slot 0 of the keys"):
                    store.count()

    async def test_the_wrong_kind_of_url(self, cluster_url: str, redis_url: str) -> None:
        plain = cluster_url.partition(",")[0]
        async with opened(plain) as store:
            with pytest.raises(StorageError, match=r"is one of a cluster .* Add \?cluster=true"):
                store.get_many([next(key for key in KEYS if owner([], key) == 1)])
        for said in await refusals(redis_url.replace("/0", "?cluster=true")):
            assert "is in no cluster. Take cluster=true out" in said


# -- URLs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://", "localhost:6379/0"),
        ("redis://u:p4ss@host", "host:6379/0"),
        ("redis://:p4,ss@[::1]:7000/2", "[::1]:7000/2"),
        ("rediss://u:p4ss@host?db=3", "host:6379/3"),
        ("unix://u@/run/r.sock?password=p4ss&db=2", "unix:///run/r.sock?db=2"),
        ("redis://u:p4ss@h1:7000,h2,[::1]", "h1:7000,h2:6379,[::1]:6379?cluster=true"),
        ("rediss://u:p4ss@h1/0?cluster=True", "h1:6379?cluster=true"),
        ("redis+sentinel://u:p4ss@h1,h2:1", "h1:26379,h2:1/mymaster/0"),
        ("rediss+sentinel://u:p4ss@h1/a%20b/4", "h1:26379/a b/4"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert repr(RedisStore(url)) == f"RedisStore({shown!r})"


@pytest.mark.parametrize(
    "url",
    [
        "redis://:12#p4ss@host",
        "redis://:12/p4ss@host:6379/0",
        "redis://:p4ss@host/zero",
        "redis://:p4ss@host?unknown=1",
        "redis://:p4ss@host?retry=3",
        "redis://:p4ss@h1,h2:port",
        "redis://:p4ss@h1,h2/1",
        "redis://:p4ss@h1?cluster=true&db=1",
        "redis+cluster://:p4ss@h1",
        "redis+sentinel://:p4ss@h1/a/b",
        "redis+sentinel://:p4ss@h1/a/0/1",
        "unix+sentinel://:p4ss@h1/a",
        "unix:///run/r.sock?password=p4ss&cluster=true",
        "rediss://:p4ss@host?ssl_cert_reqs=some",
        "p4ss",
    ],
)
def test_a_url_that_cannot_be_read_is_not_quoted(url: str) -> None:
    with pytest.raises(InvalidInput, match="cannot be read") as caught:
        RedisStore(url)
    assert "p4ss" not in "".join(format_exception(caught.value))


@pytest.mark.parametrize("form", ["redis://{}", "redis://{}?cluster=true", "redis+sentinel://{}/m"])
async def test_a_hung_server_costs_one_timeout_and_no_error_of_the_driver(form: str) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        store = RedisStore(form.format(f"127.0.0.1:{server.getsockname()[1]}"), timeout=0.1)
        calls: list[Callable[[], object]] = [
            lambda: store.get_many([b"k"]),
            lambda: store.set_many({b"k": b"v"}),
            lambda: store.delete_many([b"k"]),
            lambda: store.clear(b"k"),
            lambda: store.count(b"k"),
            lambda: store.keys(b"k"),
            store.server_stats,
        ]
        for call in calls:
            begin = time.perf_counter()
            with pytest.raises(RagoptError):
                call()
            assert time.perf_counter() - begin < 0.5
        with pytest.raises(BackendUnavailable, match=r"did not answer within 0\.1 s"):
            await store.aget_many([b"k"])
