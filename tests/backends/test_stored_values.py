"""What stands on a server or in a file: signatures, compression, bytes that somebody else put."""

from __future__ import annotations

import pickle
import secrets
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import redis

from ragopt import codecs
from ragopt.errors import InvalidInput, MissingDependency
from ragopt.stores._redis_stats import RedisServerStats
from ragopt.stores.redis import RedisStore
from ragopt.stores.sqlite import SqliteStore

OLD, NEW = secrets.token_bytes(16), secrets.token_bytes(100)
TEXT = b"passage " * 500
Open = Callable[..., Any]


@pytest.fixture
def prefix() -> bytes:
    return f"test:{secrets.token_hex(8)}:".encode()


@pytest.fixture
def raw(redis_url: str) -> Iterator[Any]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture(params=["redis", "sqlite"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Open stores on the same data."""
    stores: list[Any] = []

    def make(**options: Any) -> Any:
        if request.param == "redis":
            store: Any = RedisStore(request.getfixturevalue("redis_url"), timeout=5, **options)
        else:
            store = SqliteStore(tmp_path / "cache.db", **options)
        stores.append(store)
        return store

    yield make
    for store in stores:
        store.close()


def values(store: Any, *keys: bytes) -> list[bytes | None]:
    return [entry and entry.value for entry in store.get_many(keys)]


class TestSecrets:
    async def test_signed_and_unsigned_stores_do_not_read_each_other(
        self, open_store: Open, prefix: bytes
    ) -> None:
        plain, signed, other = open_store(), open_store(secret=OLD), open_store(secret=NEW)
        plain.set_many({prefix + b"plain": b"1"})
        await signed.aset_many({prefix + b"signed": b"2"}, ttl=60)
        keys = prefix + b"plain", prefix + b"signed"
        assert values(plain, *keys) == [b"1", None]
        assert values(signed, *keys) == [None, b"2"]
        assert values(other, *keys) == [None, None]
        assert [store.corrupt_entries for store in (plain, signed, other)] == [1, 1, 2]
        signed.delete_many(keys)
        await signed.aclose()

    def test_a_secret_is_replaced_step_by_step(self, open_store: Open, prefix: bytes) -> None:
        steps = [OLD, [OLD, NEW], [NEW, OLD], NEW]
        for before, after in pairwise(steps):
            one, two = open_store(secret=before), open_store(secret=after)
            one.set_many({prefix: b"one"})
            assert values(two, prefix) == values(one, prefix) == [b"one"]
            two.set_many({prefix: b"two"})
            assert values(two, prefix) == values(one, prefix) == [b"two"]
        assert values(open_store(secret=OLD), prefix) == [None]

    @pytest.mark.parametrize("secret", [b"short", [], "a string of 16 characters"])
    def test_a_bad_secret_is_refused_and_not_shown(self, open_store: Open, secret: Any) -> None:
        with pytest.raises(InvalidInput, match="16 bytes") as caught:
            open_store(secret=secret)
        assert "short" not in str(caught.value).replace("shorter", "")

    def test_no_secret_is_shown(self, open_store: Open) -> None:
        store = open_store(secret=b"0123456789abcdef")
        assert "0123456789" not in repr(store)


def test_what_was_changed_in_the_file_is_absent(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "cache.db", secret=OLD)
    store.set_many({b"k": b"mine"})
    forged = codecs.seal(b"k", b"theirs", None)
    store.close()
    with closing(sqlite3.connect(tmp_path / "cache.db")) as file:
        file.execute("UPDATE entry SET value = ?", (forged,))
        file.commit()
    assert values(store, b"k") == [None]
    assert store.corrupt_entries == 1
    store.close()


class TestCompression:
    async def test_long_values_are_smaller_and_anybody_reads_them(
        self, redis_url: str, raw: Any, prefix: bytes
    ) -> None:
        small = RedisStore(redis_url, timeout=5, compress_above=100)
        plain = RedisStore(redis_url, timeout=5)
        noise = secrets.token_bytes(2000)
        items = {prefix + b"a": TEXT, prefix + b"b": b"x" * 100, prefix + b"c": noise}
        small.set_many(items, ttl=60)
        sizes = [raw.strlen(key) - codecs.STAMP_SIZE for key in items]
        assert sizes[0] < 100
        assert sizes[1:] == [100, 2000]  # too short; does not get smaller
        for store in (small, plain):
            assert values(store, *items) == list(items.values())
            assert store.get_many(list(items)) == await store.aget_many(list(items))
            assert store.count(prefix) == 3
        plain.clear(prefix)
        await small.aclose()
        await plain.aclose()

    def test_without_zstandard_a_compressed_entry_is_absent(
        self, redis_url: str, prefix: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with RedisStore(redis_url, timeout=5, compress_above=0) as small:
            small.set_many({prefix: TEXT, prefix + b"2": b"2"})
        monkeypatch.setitem(sys.modules, "zstandard", None)
        codecs._zstd.cache_clear()
        with RedisStore(redis_url, timeout=5) as store:
            assert values(store, prefix, prefix + b"2") == [None, b"2"]
            assert store.corrupt_entries == 1
            store.clear(prefix)
        with pytest.raises(MissingDependency, match=r'pip install "ragopt\[zstd\]"'):
            RedisStore(redis_url, compress_above=0)

    def test_a_bound_is_not_below_zero(self) -> None:
        with pytest.raises(InvalidInput, match=r"compress_above=-1"):
            RedisStore("redis://", compress_above=-1)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


async def test_a_pickle_does_nothing(
    redis_url: str, raw: Any, prefix: bytes, tmp_path: Path
) -> None:
    bomb = pickle.dumps(Bomb(tmp_path / "ran"))
    damage = [bomb, b"RO\x01" + bomb, codecs.seal(prefix, b"", None)[:20] + bomb]
    for secret in (None, OLD):
        async with RedisStore(redis_url, timeout=5, secret=secret) as store:
            for blob in damage:
                raw.set(prefix, blob)
                assert store.get_many([prefix]) == await store.aget_many([prefix]) == [None]
            assert store.corrupt_entries == 6
    raw.delete(prefix)
    assert not (tmp_path / "ran").exists()
    pickle.loads(bomb).close()  # the control
    assert (tmp_path / "ran").exists()


async def test_server_stats(redis_url: str, raw: Any, prefix: bytes) -> None:
    async with RedisStore(redis_url, timeout=5) as store:
        before = store.server_stats()
        store.set_many({prefix: b"v"})
        store.get_many([prefix, prefix + b"absent"])
        store.delete_many([prefix])
        after = await store.aserver_stats()
    info = raw.info()
    assert after.version == info.get("valkey_version", info["redis_version"])
    assert after.servers == 1
    assert after.connected_clients >= 1
    assert after.commands_processed >= before.commands_processed + 4
    assert after.commands_per_second >= 0
    assert after.keyspace_hits > before.keyspace_hits
    assert after.keyspace_misses > before.keyspace_misses
    assert 0 < after.hit_rate < 1
    assert after.used_memory > 100_000
    assert after.max_memory == info["maxmemory"]
    assert after.memory_policy == info["maxmemory_policy"]
    assert (after.evicted_keys, after.expired_keys) == (
        info["evicted_keys"],
        info["expired_keys"],
    )


def test_figures_of_several_servers_are_added_up() -> None:
    def info(figures: dict[str, Any]) -> bytes:
        lines = [f"{name}:{value}" for name, value in figures.items()]
        return "\r\n".join(["# Memory", *lines]).encode()

    one = {"redis_version": "7.4.1", "maxmemory": 100, "maxmemory_policy": "allkeys-lru"}
    two = {**one, "redis_version": "8.0.0", "keyspace_hits": 3, "keyspace_misses": 1}
    stats = RedisServerStats.from_info([info(one), info(two)])
    assert (stats.version, stats.servers, stats.max_memory) == ("7.4.1, 8.0.0", 2, 200)
    assert (stats.keyspace_hits, stats.hit_rate) == (3, 0.75)
    unbound = RedisServerStats.from_info([info(one), info({"maxmemory": 0})])
    assert (unbound.max_memory, unbound.hit_rate) == (0, 0.0)  # one of them has no bound
