"""What the contract of stores does not cover: a real server, and servers that misbehave."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from threading import Thread
from traceback import format_exception
from urllib.parse import urlsplit

import pytest
import redis
from tests.services import free_port, redis_server

from ragopt.errors import BackendUnavailable, InvalidInput, RagoptError, StorageError
from ragopt.stores.redis import RedisStore

PASSWORD = "s3cret-p4ss"


@pytest.fixture
def prefix() -> bytes:
    return f"test:{secrets.token_hex(8)}:".encode()


@pytest.fixture
def store(redis_url: str) -> Iterator[RedisStore]:
    store = RedisStore(redis_url, timeout=5)
    yield store
    store.close()


@pytest.fixture
def raw(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def hung_port() -> Iterator[int]:
    """A server that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield server.getsockname()[1]


@pytest.fixture(scope="module")
def guarded_url() -> Iterator[str]:
    """A server that wants a password and is full at 4 MB."""
    options = ("--requirepass", PASSWORD, "--maxmemory", "4mb", "--maxmemory-policy", "noeviction")
    with redis_server(*options) as url:
        yield url.replace("redis://", f"redis://:{PASSWORD}@")


def everything_said(error: BaseException) -> str:
    return "".join(format_exception(error))


class TestAServerThatFails:
    def test_a_hung_server_costs_one_timeout(self, hung_port: int) -> None:
        store = RedisStore(f"redis://127.0.0.1:{hung_port}", timeout=0.2)
        begin = time.perf_counter()
        with pytest.raises(BackendUnavailable, match=r"did not answer within 0\.2 s"):
            store.get_many([b"k"])
        assert 0.15 < time.perf_counter() - begin < 0.8
        store.close()

    async def test_a_hung_server_costs_one_timeout_async(self, hung_port: int) -> None:
        store = RedisStore(f"redis://127.0.0.1:{hung_port}", timeout=0.2)
        begin = time.perf_counter()
        with pytest.raises(BackendUnavailable, match=r"did not answer within 0\.2 s"):
            await store.aset_many({b"k": b"v"})
        assert 0.15 < time.perf_counter() - begin < 0.8
        await store.aclose()

    async def test_a_refused_port_fails_at_once_and_names_the_server(self) -> None:
        port = free_port()
        store = RedisStore(f"redis://127.0.0.1:{port}/3")
        begin = time.perf_counter()
        with pytest.raises(BackendUnavailable, match=rf"127\.0\.0\.1:{port}/3 cannot be reached"):
            store.get_many([b"k"])
        with pytest.raises(BackendUnavailable):
            await store.acount(b"k")
        assert time.perf_counter() - begin < 0.5
        await store.aclose()

    def test_it_works_again_after_the_server_came_back(self) -> None:
        with redis_server() as url:
            store = RedisStore(url, timeout=5)
            store.set_many({b"k": b"v"})
        with pytest.raises(BackendUnavailable):
            store.get_many([b"k"])
        with redis_server(port=urlsplit(url).port):
            assert store.get_many([b"k"]) == [None]
        store.close()

    async def test_a_server_that_is_full_refuses_writes_and_still_answers(
        self, guarded_url: str
    ) -> None:
        store = RedisStore(guarded_url, timeout=5)
        with pytest.raises(StorageError, match=r"is full .* Raise its maxmemory"):
            store.set_many({b"%d" % number: b"x" * 100_000 for number in range(100)})
        with pytest.raises(StorageError, match="is full"):
            await store.aset_many({b"one": b"x" * 200_000})
        found = await store.aget_many([b"0", b"99"])
        assert found[0] is not None
        assert found[1] is None
        await store.aclear()
        await store.aset_many({b"one": b"x"})
        await store.aclose()

    async def test_a_refused_command_is_an_error(self, guarded_url: str) -> None:
        with redis.Redis.from_url(guarded_url) as admin:
            admin.execute_command(
                "ACL", "SETUSER", "reader", "on", f">{PASSWORD}", "~*", "+@read", "+@connection"
            )
        store = RedisStore(guarded_url.replace("//:", "//reader:"), timeout=5)
        assert store.get_many([b"absent"]) == [None]
        with pytest.raises(StorageError, match=r"refused a command .*permission"):
            await store.aset_many({b"k": b"v"})
        await store.aclose()


class TestThePassword:
    async def test_a_wrong_one_is_reported_and_not_shown(self, guarded_url: str) -> None:
        store = RedisStore(guarded_url.replace(PASSWORD, "wr0ng-p4ss"), timeout=5)
        with pytest.raises(StorageError, match="refused the user name or password") as caught:
            store.get_many([b"k"])
        assert not isinstance(caught.value, BackendUnavailable)
        with pytest.raises(StorageError, match="refused the user name or password") as caught_async:
            await store.aget_many([b"k"])
        said = everything_said(caught.value) + everything_said(caught_async.value) + repr(store)
        assert "p4ss" not in said
        await store.aclose()

    def test_a_missing_one_is_reported(self, guarded_url: str) -> None:
        store = RedisStore(guarded_url.replace(f":{PASSWORD}@", ""), timeout=5)
        with pytest.raises(StorageError, match="refused the user name or password"):
            store.get_many([b"k"])
        store.close()

    @pytest.mark.parametrize(
        "url",
        [
            f"redis://:{PASSWORD}/x@host:6379/0",
            f"http://:{PASSWORD}@host",
            f"redis://:{PASSWORD}@host:port/0",
            f"redis://:{PASSWORD}@host/0?socket_timeout=soon",
            f"redis://:{PASSWORD}@host/0?decode_responses=True",
        ],
    )
    def test_a_url_that_cannot_be_read_is_not_quoted(self, url: str) -> None:
        with pytest.raises(InvalidInput, match="Redis URL cannot be read") as caught:
            RedisStore(url)
        assert "p4ss" not in everything_said(caught.value)

    def test_the_representation_names_the_server_alone(self) -> None:
        store = RedisStore(f"redis://me:{PASSWORD}@example.org:7000/2")
        assert repr(store) == "RedisStore('example.org:7000/2')"


class TestWhatIsStored:
    @pytest.mark.parametrize("damage", [b"", b"RO\x01", b"\x00" * 200, b"not ours"])
    def test_corrupt_bytes_are_a_miss_and_counted(
        self, store: RedisStore, raw: redis.Redis, prefix: bytes, damage: bytes
    ) -> None:
        key = prefix + b"k"
        store.set_many({key: b"value", prefix + b"other": b"fine"})
        raw.set(key, damage)
        bad, good = store.get_many([key, prefix + b"other"])
        assert bad is None
        assert good is not None
        assert good.value == b"fine"
        assert store.corrupt_entries == 1

    def test_a_flipped_bit_or_a_moved_entry_is_a_miss(
        self, store: RedisStore, raw: redis.Redis, prefix: bytes
    ) -> None:
        store.set_many({prefix + b"k": b"value"})
        blob = raw.get(prefix + b"k")
        assert isinstance(blob, bytes)
        raw.set(prefix + b"k", blob[:-1] + bytes([blob[-1] ^ 1]))
        raw.set(prefix + b"moved", blob)
        assert store.get_many([prefix + b"k", prefix + b"moved"]) == [None, None]
        assert store.corrupt_entries == 2

    def test_a_key_of_another_type_is_a_miss(
        self, store: RedisStore, raw: redis.Redis, prefix: bytes
    ) -> None:
        raw.rpush(prefix + b"list", "x")
        assert store.get_many([prefix + b"list"]) == [None]

    def test_the_server_forgets_what_has_expired(
        self, store: RedisStore, raw: redis.Redis, prefix: bytes
    ) -> None:
        store.set_many({prefix + b"k": b"v"}, ttl=100)
        store.set_many({prefix + b"soon": b"v"}, ttl=0.0001)
        store.set_many({prefix + b"ever": b"v"})
        assert 99_000 < raw.pttl(prefix + b"k") <= 100_000
        assert raw.pttl(prefix + b"ever") == -1
        time.sleep(0.05)
        assert raw.exists(prefix + b"soon") == 0
        assert store.count(prefix) == 2

    def test_thousands_of_keys_travel_in_chunks(self, store: RedisStore, prefix: bytes) -> None:
        items = {prefix + b"%d" % number: b"v%d" % number for number in range(2_345)}
        store.set_many(items, ttl=60)
        found = store.get_many(list(items))
        assert [entry and entry.value for entry in found] == list(items.values())
        assert store.count(prefix) == 2_345
        assert store.delete_many(list(items)[:1_200]) == 1_200
        store.clear(prefix)
        assert store.count(prefix) == 0

    @pytest.mark.parametrize("special", [b"*", b"?", b"[a-z]", b"\\", b"a*b", b"[^x]", b"\xff\x00"])
    def test_a_prefix_is_no_pattern(self, store: RedisStore, prefix: bytes, special: bytes) -> None:
        mine, others = prefix + special, prefix + b"z"
        store.set_many({mine + b"1": b"v", others + b"1": b"v", prefix + b"aab": b"v"})
        assert store.count(mine) == 1
        store.clear(mine)
        assert store.count(prefix) == 2

    async def test_other_programs_keys_are_neither_counted_nor_removed(
        self, store: RedisStore, raw: redis.Redis, prefix: bytes
    ) -> None:
        raw.set(prefix + b"theirs", b"text")
        raw.hset(prefix + b"hash", "field", "value")
        store.set_many({prefix + b"ours": b"v"})
        assert store.count(prefix) == 1
        await store.aclear(prefix)
        assert sorted(raw.scan_iter(prefix + b"*")) == [prefix + b"hash", prefix + b"theirs"]
        await store.aclose()


class TestLoopsThreadsAndProcesses:
    def test_event_loops_in_turn(self, redis_url: str, prefix: bytes) -> None:
        store = RedisStore(redis_url, timeout=5)

        async def once(number: int) -> bytes | None:
            await store.aset_many({prefix: b"%d" % number})
            (entry,) = await store.aget_many([prefix])
            await store.aclose()
            return entry and entry.value

        assert [asyncio.run(once(number)) for number in range(5)] == [b"0", b"1", b"2", b"3", b"4"]

    def test_event_loops_at_once(self, redis_url: str, prefix: bytes) -> None:
        store = RedisStore(redis_url, timeout=5)
        seen: dict[int, list[bytes | None]] = {}

        async def many(name: int) -> None:
            keys = [prefix + b"%d:%d" % (name, number) for number in range(50)]
            await asyncio.gather(*(store.aset_many({key: key}) for key in keys))
            found = await asyncio.gather(*(store.aget_many([key]) for key in keys))
            seen[name] = [entry and entry.value for (entry,) in found]
            await store.aclose()

        threads = [Thread(target=lambda name=name: asyncio.run(many(name))) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == {
            name: [prefix + b"%d:%d" % (name, number) for number in range(50)] for name in range(4)
        }

    async def test_more_tasks_than_connections_wait_for_one(
        self, redis_url: str, prefix: bytes
    ) -> None:
        store = RedisStore(redis_url, timeout=5, max_connections=3)
        keys = [prefix + b"%d" % number for number in range(100)]
        await asyncio.gather(*(store.aset_many({key: key}) for key in keys))
        found = await asyncio.gather(*(store.aget_many([key]) for key in keys))
        assert [entry and entry.value for (entry,) in found] == keys
        await store.aclose()

    async def test_sync_and_async_calls_see_the_same_entries(
        self, store: RedisStore, prefix: bytes
    ) -> None:
        store.set_many({prefix + b"1": b"sync"})
        await store.aset_many({prefix + b"2": b"async"})
        keys = [prefix + b"1", prefix + b"2"]
        in_a_thread = await asyncio.to_thread(store.get_many, keys)
        assert store.get_many(keys) == await store.aget_many(keys) == in_a_thread
        assert [entry and entry.value for entry in in_a_thread] == [b"sync", b"async"]
        await store.aclose()

    async def test_cancelled_calls_leave_no_reply_behind(
        self, redis_url: str, prefix: bytes
    ) -> None:
        store = RedisStore(redis_url, timeout=5, max_connections=2)
        keys = [prefix + b"%d" % number for number in range(20)]
        await store.aset_many({key: key for key in keys})
        for pause in range(40):
            task = asyncio.create_task(store.aget_many([keys[0]]))
            await asyncio.sleep(pause * 2e-5)
            task.cancel()
            (entry,) = await store.aget_many([keys[pause % 20]])
            assert entry is not None
            assert entry.value == keys[pause % 20]
            await asyncio.gather(task, return_exceptions=True)
        await store.aclose()

    def test_a_forked_child_uses_connections_of_its_own(
        self, store: RedisStore, prefix: bytes
    ) -> None:
        store.set_many({prefix: b"parent"})
        child = os.fork()
        if child == 0:
            try:
                for _ in range(200):
                    store.set_many({prefix + b"child": b"child"})
                    assert store.get_many([prefix])[0].value == b"parent"  # type: ignore[union-attr]
                os._exit(0)
            except BaseException:
                os._exit(1)
        for _ in range(200):
            (entry,) = store.get_many([prefix])
            assert entry is not None
            assert entry.value == b"parent"
        assert os.waitpid(child, 0)[1] == 0

    async def test_it_opens_again_after_a_close(self, store: RedisStore, prefix: bytes) -> None:
        store.set_many({prefix: b"v"})
        for _ in range(2):
            store.close()
            await store.aclose()
        assert store.get_many([prefix]) == await store.aget_many([prefix])
        await store.aclose()


def test_no_error_of_the_driver_gets_out(hung_port: int) -> None:
    store = RedisStore(f"redis://127.0.0.1:{hung_port}", timeout=0.05)
    calls: list[Callable[[], object]] = [
        lambda: store.get_many([b"k"]),
        lambda: store.set_many({b"k": b"v"}),
        lambda: store.delete_many([b"k"]),
        lambda: store.clear(b"k"),
        lambda: store.count(b"k"),
    ]
    for call in calls:
        with pytest.raises(RagoptError):
            call()
    store.close()
