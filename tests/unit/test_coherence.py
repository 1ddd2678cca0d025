"""What one process deletes, the memory of another forgets."""

from pathlib import Path
from typing import Any

import pytest

from ragopt import MemoryStore, SqliteStore, TieredCache
from ragopt.errors import InvalidInput
from ragopt.stores.base import BaseKVStore
from ragopt.testing import FakeClock


class Process:
    """A cache as one process has it."""

    def __init__(self, path: Path, staleness: float | None = 0.0) -> None:
        self.memory = MemoryStore()
        self.cache = TieredCache(self.memory, SqliteStore(path), max_staleness=staleness)

    def read(self, key: bytes = b"k") -> bytes | None:
        (entry,) = self.cache.get_many([key])
        return None if entry is None else entry.value


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache.db"


def test_a_delete_is_seen_by_the_next_read(path: Path) -> None:
    here, there = Process(path), Process(path)
    here.cache.set_many({b"k": b"1", b"other": b"2"})
    assert there.read() == here.read() == b"1"
    assert there.read(b"other") == b"2"
    here.cache.delete_many([b"k"])
    assert there.read() is None
    assert there.memory.count() == 1  # nothing else was dropped


async def test_the_same_in_async(path: Path) -> None:
    here, there = Process(path), Process(path)
    await here.cache.aset_many({b"k": b"1"})
    assert (await there.cache.aget_many([b"k"]))[0] is not None
    await here.cache.adelete_many([b"k"])
    assert await there.cache.aget_many([b"k"]) == [None]


def test_an_update_is_seen_by_the_next_read(path: Path) -> None:
    here, there = Process(path), Process(path)
    here.cache.set_many({b"k": b"1"})
    assert there.read() == b"1"
    here.cache.set_many({b"k": b"2"})
    assert there.read() == b"2"


def test_a_cleared_prefix_is_seen_by_the_next_read(path: Path) -> None:
    here, there = Process(path), Process(path)
    here.cache.set_many({b"a:1": b"1", b"b:1": b"2"})
    assert (there.read(b"a:1"), there.read(b"b:1")) == (b"1", b"2")
    here.cache.clear(b"a:")
    assert (there.read(b"a:1"), there.read(b"b:1")) == (None, b"2")


def test_without_it_memory_keeps_what_another_deleted(path: Path) -> None:
    """The control: what the guarantee is worth."""
    here, there = Process(path, None), Process(path, None)
    here.cache.set_many({b"k": b"1"})
    assert there.read() == b"1"
    here.cache.delete_many([b"k"])
    assert there.read() == b"1"


def test_staleness_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = FakeClock()
    monkeypatch.setattr("ragopt.cache.coherence.monotonic", ticks)
    here, there = Process(path), Process(path, 0.2)
    here.cache.set_many({b"k": b"1"})
    assert there.read() == b"1"
    here.cache.delete_many([b"k"])
    assert there.read() == b"1"
    ticks.now += 0.21
    assert there.read() is None


def test_a_log_that_begins_anew_empties_the_near_layers(path: Path) -> None:
    here = Process(path)
    here.cache.set_many({b"k": b"1"})
    assert here.read() == b"1"
    here.cache.layers[1].close()
    for file in path.parent.glob("cache.db*"):
        file.unlink()
    assert here.read() is None


def test_a_persistent_near_layer_catches_up_from_the_beginning(tmp_path: Path) -> None:
    near, far = tmp_path / "near.db", tmp_path / "far.db"

    def start() -> TieredCache:
        return TieredCache(SqliteStore(near), SqliteStore(far), max_staleness=0)

    with start() as before:
        before.set_many({b"k": b"1"})
    with TieredCache(SqliteStore(far)) as elsewhere:
        elsewhere.delete_many([b"k"])
    with TieredCache(MemoryStore(), SqliteStore(far), max_staleness=0) as other:
        other.set_many({b"k": b"2"})
    with start() as after:
        (entry,) = after.get_many([b"k"])
    assert entry is not None
    assert entry.value == b"2"


def test_a_read_that_was_overtaken_is_not_filled_in(path: Path) -> None:
    """Between reading the far layer and filling the near one, another process deletes the key."""
    here, there = Process(path), Process(path)
    there.cache.set_many({b"k": b"1"})

    class Overtaken(SqliteStore):
        def get_many(self, keys):  # type: ignore[no-untyped-def]
            found = super().get_many(keys)
            if keys == [b"k"] and found[0] is not None:
                there.cache.delete_many([b"k"])
                cache.get_many([b"unrelated"])  # another thread of this process catches up
            return found

    memory = MemoryStore()
    cache = TieredCache(memory, Overtaken(path), max_staleness=0)
    cache.get_many([b"k"])
    assert memory.get_many([b"k"]) == [None]
    assert here.read() is None


def test_the_last_layer_must_be_able_to_tell() -> None:
    class Plain(BaseKVStore):
        name = "plain"

        async def _nothing(self, *_: Any) -> Any:
            return None

        # Nothing of it is called but the end.
        _get_many = _set_many = _delete_many = _clear = _count = _keys = _close = _nothing  # type: ignore[assignment]

    with pytest.raises(InvalidInput, match="plain, cannot tell"):
        TieredCache(MemoryStore(), Plain(), max_staleness=1)
    TieredCache(MemoryStore(), Plain()).close()
