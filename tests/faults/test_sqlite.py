import multiprocessing
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ragopt import HashingEmbedder, MemoryStore, SqliteStore, TieredCache
from ragopt.cache.embeddings import CachedEmbedder
from ragopt.errors import BackendUnavailable, CorruptData, StorageError

Open = Callable[..., SqliteStore]


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Open]:
    opened: list[SqliteStore] = []

    def make(path: Path = tmp_path / "cache.db", **options: float) -> SqliteStore:
        opened.append(SqliteStore(path, **options))  # type: ignore[arg-type]
        return opened[-1]

    yield make
    for store in opened:
        store.close()


def test_nothing_is_touched_before_the_first_use(tmp_path: Path) -> None:
    SqliteStore(tmp_path / "folder" / "cache.db")
    assert not (tmp_path / "folder").exists()


def test_it_is_kept_over_restarts(open_store: Open) -> None:
    open_store().set_many({b"a": b"1"})
    found = open_store().get_many([b"a"])
    assert [entry and entry.value for entry in found] == [b"1"]


def test_only_the_owner_may_read(open_store: Open, tmp_path: Path) -> None:
    path = tmp_path / "new" / "cache.db"
    open_store(path).set_many({b"a": b"1"})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "content", [b"no database at all" * 99, b"SQLite format 3\0" + b"\xff" * 999]
)
def test_what_is_no_database_is_left_alone(
    open_store: Open, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "cache.db"
    path.write_bytes(content)
    with pytest.raises(CorruptData, match=r"cache\.db is damaged.*Delete it"):
        open_store(path).get_many([b"a"])
    assert path.read_bytes() == content


def test_another_programs_database_is_left_alone(open_store: Open, tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    with sqlite3.connect(path) as theirs:
        theirs.execute("CREATE TABLE entry (key, value)")
    theirs.close()
    before = path.read_bytes()
    with pytest.raises(StorageError, match=r"another program's data.*Name another path"):
        open_store(path).set_many({b"a": b"1"})
    assert path.read_bytes() == before


def test_a_folder_instead_of_a_file(open_store: Open, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be used"):
        open_store(tmp_path).get_many([b"a"])
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot be used"):
        open_store(tmp_path / "file" / "cache.db").get_many([b"a"])


@pytest.mark.parametrize("damage", ["flip", "cut", "swap", "garbage"])
def test_a_damaged_entry_is_absent(open_store: Open, tmp_path: Path, damage: str) -> None:
    store = open_store()
    store.set_many({b"a": b"value of a", b"b": b"value of b"})
    raw = sqlite3.connect(tmp_path / "cache.db")
    (blob,) = raw.execute("SELECT value FROM entry WHERE key = ?", (b"a",)).fetchone()
    changed = {
        "flip": blob[:-3] + bytes([blob[-3] ^ 4]) + blob[-2:],
        "cut": blob[:-1],
        "swap": raw.execute("SELECT value FROM entry WHERE key = ?", (b"b",)).fetchone()[0],
        "garbage": b"\x80\x04\x95garbage",
    }[damage]
    raw.execute("UPDATE entry SET value = ? WHERE key = ?", (changed, b"a"))
    raw.commit()
    raw.close()
    a, b = store.get_many([b"a", b"b"])
    assert a is None
    assert b is not None
    assert store.corrupt_entries == 1


def test_an_expiry_cannot_be_moved(open_store: Open, tmp_path: Path) -> None:
    store = open_store(clock=lambda: 1000.0)
    store.set_many({b"a": b"1"}, ttl=10)
    raw = sqlite3.connect(tmp_path / "cache.db")
    raw.execute("UPDATE entry SET expires_at = 1e12")
    raw.commit()
    raw.close()
    late = open_store(clock=lambda: 2000.0)
    assert late.get_many([b"a"]) == [None]


def test_a_full_disk(open_store: Open, small_disk: Path) -> None:
    store = open_store(small_disk / "cache.db")
    store.set_many({b"first": b"kept"})
    (small_disk / "something else").write_bytes(b"x" * 1_500_000)
    with pytest.raises(StorageError, match=r"disk of the cache file .* is full\. Free some space"):
        store.set_many({b"large": os.urandom(1_000_000)})
    assert store.get_many([b"first"])[0] is not None
    (small_disk / "something else").unlink()
    store.set_many({b"again": b"works"})
    assert store.get_many([b"again"])[0] is not None


def test_a_full_disk_does_not_break_the_chain(open_store: Open, small_disk: Path) -> None:
    cache = TieredCache(MemoryStore(), open_store(small_disk / "cache.db"))
    embedder = CachedEmbedder(HashingEmbedder(4096), cache, batch_size=10)
    texts = [f"text {i}" for i in range(300)]
    first = embedder.embed(texts).dense
    again = embedder.embed(texts).dense
    assert first is not None
    assert again is not None
    assert (first == again).all()
    assert cache.stats.total("sqlite", "error") > 0


def test_it_stays_within_its_bound(open_store: Open, tmp_path: Path) -> None:
    store = open_store(max_bytes=500_000)
    for i in range(200):
        store.set_many({b"%d" % i: os.urandom(10_000)})
    assert store.get_many([b"199"])[0] is not None
    assert store.get_many([b"0"]) == [None]
    assert 20 <= store.count() <= 50
    assert (tmp_path / "cache.db").stat().st_size < 1_000_000


def test_expired_rows_go_first(open_store: Open) -> None:
    now = [1000.0]
    store = open_store(max_bytes=500_000, clock=lambda: now[0])
    store.set_many({b"old but good": b"x"})
    for i in range(30):
        store.set_many({b"%d" % i: os.urandom(10_000)}, ttl=1)
    now[0] += 2
    store.set_many({b"new %d" % i: os.urandom(10_000) for i in range(30)})
    assert store.get_many([b"old but good"])[0] is not None
    assert store.count() == 31


def test_a_lock_that_another_holds(open_store: Open, tmp_path: Path) -> None:
    store = open_store(timeout=0.2)
    store.set_many({b"a": b"1"})
    other = sqlite3.connect(tmp_path / "cache.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    start = time.monotonic()
    with pytest.raises(BackendUnavailable, match=r"locked for 0\.2 s"):
        store.set_many({b"b": b"2"})
    assert time.monotonic() - start < 2
    assert store.get_many([b"a"])[0] is not None  # readers do not wait
    other.execute("ROLLBACK")
    other.close()
    store.set_many({b"b": b"2"})


def _write(path: Path, number: int) -> None:
    store = SqliteStore(path, timeout=30)
    for i in range(100):
        store.set_many({b"%d-%d" % (number, i): b"x" * 1000})
    store.close()


def test_many_processes(open_store: Open, tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    workers = [
        multiprocessing.get_context("spawn").Process(target=_write, args=(path, number))
        for number in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert open_store(path).count() == 300


def test_many_that_make_the_file_at_once(tmp_path: Path) -> None:
    for turn in range(20):
        stores = [SqliteStore(tmp_path / f"{turn}.db", timeout=30) for _ in range(8)]
        together = threading.Barrier(len(stores))

        def use(number: int, stores: Any = stores, together: Any = together) -> None:
            together.wait()
            stores[number].set_many({b"%d" % number: b"1"})

        with ThreadPoolExecutor(len(stores)) as pool:
            list(pool.map(use, range(len(stores))))
        assert stores[0].count() == len(stores)
        for store in stores:
            store.close()


def test_a_forked_child_has_its_own_connection(open_store: Open) -> None:
    store = open_store()
    store.set_many({b"parent": b"1"})
    child = os.fork()
    if child == 0:
        try:
            seen = store.get_many([b"parent"])[0] is not None
            store.set_many({b"child": b"2"})
            os._exit(0 if seen else 1)
        except BaseException:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert store.get_many([b"child"])[0] is not None


def test_a_killed_writer_leaves_a_sound_file(open_store: Open, tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    script = (
        "import sys, itertools; from ragopt import SqliteStore; s = SqliteStore(sys.argv[1])\n"
        "for i in itertools.count():\n"
        "    s.set_many({b'%d-%d' % (i, j): b'x' * 5000 for j in range(20)})\n"
        "    print(i, flush=True)"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    done = 0
    while done < 10:
        done = int(writer.stdout.readline())
    writer.send_signal(signal.SIGKILL)
    rest = writer.stdout.read().split()
    writer.stdout.close()
    writer.wait()
    done = int(rest[-1]) if rest else done
    store = open_store(path)
    keys = [b"%d-%d" % (i, j) for i in range(done + 1) for j in range(20)]
    assert None not in store.get_many(keys)
    assert store.count() % 20 == 0  # a batch is stored whole or not at all
