"""``ragopt cache``: what it shows, what it removes, and that it removes nothing else."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from tests.demo import command
from tests.services import free_port, redis_server

from ragopt import (
    Lineage,
    MemoryStore,
    RedisStore,
    SqliteStore,
    TieredCache,
    ValueCache,
)
from ragopt.protocols import KVStore

AWKWARD = "a:b-ü %2D/*"


@dataclass
class Done:
    code: int
    out: str
    err: str


def ragopt(*arguments: object, typed: str = "") -> Done:
    """Run ``ragopt cache`` in this process."""
    done = command.here("cache", *arguments, typed=typed)
    return Done(done.returncode, done.stdout, done.stderr)


@dataclass
class Place:
    """A store, and how the command line names it."""

    option: Sequence[str]
    open: Callable[[], KVStore]
    namespace: str

    def cache(self, kind: str = "answer", **names: Any) -> ValueCache:
        return ValueCache(kind, self.open(), ttl=600, namespace=self.namespace, **names)

    def fill(self) -> None:
        for kind in ("answer", "retrieval"):
            for tenant in (None, "-", AWKWARD):
                self.cache(kind, tenant=tenant).set("q", 1)
        self.cache().set("another", 1)

    def counts(self) -> dict[tuple[str | None, str], int]:
        """Return what is there, asked through the library rather than the command."""
        return {
            (tenant, kind): number
            for kind in ("answer", "retrieval")
            for tenant in (None, "-", AWKWARD)
            if (number := self.cache(kind, tenant=tenant).count())
        }

    def run(self, name: str, *arguments: object, typed: str = "") -> Done:
        return ragopt(name, *arguments, *self.option, typed=typed)


FULL = {
    (None, "answer"): 2,
    ("-", "answer"): 1,
    (AWKWARD, "answer"): 1,
    (None, "retrieval"): 1,
    ("-", "retrieval"): 1,
    (AWKWARD, "retrieval"): 1,
}


@pytest.fixture(params=["sqlite", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    namespace = f"{AWKWARD}{uuid4().hex}"
    opened: list[KVStore] = []

    def keep(store: KVStore) -> KVStore:
        opened.append(store)
        return store

    if request.param == "sqlite":
        path = tmp_path / "cache.db"
        yield Place(["--sqlite", str(path)], lambda: keep(SqliteStore(path)), namespace)
    else:
        url = request.getfixturevalue("redis_url")
        yield Place(["--redis", url], lambda: keep(RedisStore(url)), namespace)
    for store in opened:
        store.close()


# -- stats -----------------------------------------------------------------------------------


def test_stats_counts_by_namespace_tenant_and_kind(place: Place) -> None:
    place.fill()
    done = place.run("stats", "--json", "--namespace", place.namespace)
    assert done.code == 0, done
    said = json.loads(done.out)
    assert {(each["tenant"], each["kind"]): each["entries"] for each in said["groups"]} == FULL
    assert {each["namespace"] for each in said["groups"]} == {place.namespace}
    assert said["entries"] == 7
    assert ("bytes" in said) == (place.option[0] == "--sqlite")
    assert ("server" in said) == (place.option[0] == "--redis")


def test_stats_of_a_part(place: Place) -> None:
    place.fill()

    def number(*options: str) -> int:
        named = "--namespace", place.namespace, "--json"
        return int(json.loads(place.run("stats", *named, *options).out)["entries"])

    assert number("--tenant", AWKWARD) == 2
    assert number("--no-tenant") == 3
    assert number("--kind", "answer") == 4
    assert number("--no-tenant", "--kind", "answer") == 2
    assert number("--tenant", "nobody") == 0


def test_stats_as_a_table(place: Place) -> None:
    place.fill()
    done = place.run("stats")
    assert done.code == 0
    assert place.namespace in done.out
    rows = [line.split("│")[1:-1] for line in done.out.splitlines() if line.startswith("│")]
    mine = [[cell.strip() for cell in row] for row in rows if place.namespace in row[0]]
    assert [place.namespace, "none", "answer", "2"] in mine
    assert [place.namespace, "-", "answer", "1"] in mine
    assert len(mine) == len(FULL)
    assert ("Keyspace hits" in done.out) == (place.option[0] == "--redis")


def test_stats_of_redis_are_the_servers_own(redis_url: str) -> None:
    import redis

    said = json.loads(ragopt("stats", "--redis", redis_url, "--json").out)
    with redis.Redis.from_url(redis_url) as client:
        info: Any = client.info()
    assert said["server"]["version"] in (info.get("valkey_version"), info["redis_version"])
    assert 0 < said["server"]["commands_processed"] <= info["total_commands_processed"]
    assert said["server"]["keyspace_hits"] <= info["keyspace_hits"]
    assert 0 <= said["server"]["hit_rate"] <= 1
    assert said["where"] == redis_url.removeprefix("redis://")


def test_stats_of_sqlite_name_the_bytes_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    with SqliteStore(path) as store:
        store.set_many({b"somebody's": bytes(100_000)})
    said = json.loads(ragopt("stats", "--sqlite", path, "--json").out)
    assert (said["entries"], said["others"], said["groups"]) == (1, 1, [])
    assert said["bytes"] == path.stat().st_size > 100_000
    assert "under keys of other programs" in ragopt("stats", "--sqlite", path).out


def test_a_name_cannot_steer_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    with SqliteStore(path) as store:
        ValueCache("answer", store, ttl=60, namespace="\x1b[2J[bold]", tenant="a\nb").set("q", 1)
    out = ragopt("stats", "--sqlite", path).out
    assert "\x1b" not in out
    assert "'\\x1b[2J[bold]'" in out
    assert "'a\\nb'" in out


# -- clear -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "gone"),
    [
        ([], set(FULL)),
        (["--tenant", AWKWARD], {(AWKWARD, "answer"), (AWKWARD, "retrieval")}),
        (["--no-tenant"], {(None, "answer"), (None, "retrieval")}),
        (["--tenant", "-"], {("-", "answer"), ("-", "retrieval")}),
        (["--kind", "answer"], {(None, "answer"), ("-", "answer"), (AWKWARD, "answer")}),
        (["--kind", "answer", "--tenant", "-"], {("-", "answer")}),
        (["--kind", "answer", "--no-tenant"], {(None, "answer")}),
        (["--tenant", "a"], set()),
        (["--kind", "chunk"], set()),
    ],
    ids=lambda each: " ".join(each) or "namespace" if isinstance(each, list) else "",
)
def test_clear_removes_what_is_named_and_nothing_else(
    place: Place, options: list[str], gone: set[tuple[str | None, str]]
) -> None:
    place.fill()
    near = Place(place.option, place.open, f"{place.namespace}2")
    near.fill()
    done = place.run("clear", "--namespace", place.namespace, *options, "--yes")
    assert done.code == 0, done
    number = sum(FULL[each] for each in gone)
    assert done.out.startswith(f"Removed {number} {'entry' if number == 1 else 'entries'} of ")
    assert place.counts() == {each: n for each, n in FULL.items() if each not in gone}
    assert near.counts() == FULL


def test_clear_leaves_what_no_store_of_ragopt_wrote(redis_url: str) -> None:
    import redis

    namespace = uuid4().hex
    key = f"ragopt:{namespace}:-:answer:mine".encode()
    with redis.Redis.from_url(redis_url) as client, RedisStore(redis_url) as store:
        client.set(key, b"another program's", ex=600)
        ValueCache("answer", store, ttl=60, namespace=namespace).set("q", 1)
        done = ragopt("clear", "--redis", redis_url, "--namespace", namespace, "--yes")
        assert done.out == f"Removed 1 entry of namespace '{namespace}'.\n"
        assert client.get(key) == b"another program's"
        client.delete(key)


def test_clear_all(tmp_path: Path, redis_url: str) -> None:
    path, url = tmp_path / "cache.db", f"{redis_url.rpartition('/')[0]}/9"
    for store, option in ((SqliteStore(path), path), (RedisStore(url), url)):
        with store:
            store.set_many({b"k": b"1", b"ragopt:a:-:answer:d": b"2"})
            done = ragopt("clear", f"--{store.name}", option, "--all", "--yes")
            assert done.out == "Removed 2 entries of all namespaces.\n"
            assert store.count() == 0


def test_clear_asks(place: Place) -> None:
    place.fill()
    named = "--namespace", place.namespace
    asked = f"Remove 7 entries (answer 4, retrieval 3) of namespace {place.namespace!r}? [y/N] "
    for typed in ("n\n", "\n", "nonsense\n"):
        done = place.run("clear", *named, typed=typed)
        assert (done.code, done.out) == (1, "")
        assert done.err == f"{asked}Nothing was removed.\n"
    done = place.run("clear", *named)
    assert done.err == f"{asked}\nNothing was removed. Pass --yes where nobody can be asked.\n"
    assert place.counts() == FULL
    assert place.run("clear", *named, typed="y\n").code == 0
    assert place.counts() == {}


def test_a_kind_that_is_not_there_is_named(place: Place) -> None:
    place.fill()
    done = place.run("clear", "--namespace", place.namespace, "--kind", "anwser", "--yes")
    assert done.code == 1
    assert done.err.startswith("There is no kind 'anwser' there. There is: ")
    assert "answer" in done.err
    assert place.counts() == FULL


@pytest.mark.parametrize("staleness", [0, None], ids=["follows", "control"])
def test_the_memory_of_a_running_process_hears_of_it(place: Place, staleness: float | None) -> None:
    cache = TieredCache(MemoryStore(), place.open(), max_staleness=staleness)
    values = ValueCache("answer", cache, ttl=600, namespace=place.namespace)
    others = ValueCache("retrieval", cache, ttl=600, namespace=place.namespace)
    values.set("q", "old")
    others.set("q", "kept")
    assert (values.get("q"), others.get("q")) == ("old", "kept")
    done = place.run("clear", "--namespace", place.namespace, "--kind", "answer", "--yes")
    assert done.code == 0
    assert (values.get("q") == "old") == (staleness is None)  # the control never asks
    assert others.get("q") == "kept"
    assert cache.layers[0].count() == (1 if staleness == 0 else 2)


# -- invalidate ------------------------------------------------------------------------------


class Process:
    """Answers with their lineage, as one process has them."""

    def __init__(self, place: Place, tenant: str | None = None) -> None:
        cache = TieredCache(MemoryStore(), place.open())
        lineage = Lineage(cache, namespace=place.namespace, tenant=tenant)
        self.answers = ValueCache(
            "answer", cache, ttl=600, lineage=lineage, namespace=place.namespace, tenant=tenant
        )

    def ask(self, document: str, text: str) -> object:
        return self.answers.get_or_compute(
            document, lambda: text, documents=lambda _: [document, "shared.md"]
        )


def test_invalidate_ends_the_answers_built_on_a_document(place: Place) -> None:
    here, there, other = Process(place), Process(place), Process(place, tenant="other")
    for process in (here, there, other):
        assert process.ask("a.md", "old") == "old"
        assert process.ask("b.md", "old") == "old"
    named = "--namespace", place.namespace
    done = place.run("invalidate", "a.md", *named)
    words = f"(namespace {place.namespace!r}, no tenant) is no longer served.\n"
    assert (done.code, done.out) == (0, f"What was built on 1 document {words}")
    for process in (here, there):
        assert process.ask("a.md", "new") == "new"
        assert process.ask("b.md", "new") == "old"
    assert other.ask("a.md", "new") == "old"
    place.run("invalidate", "nothing.md", *named)  # the control
    assert here.ask("b.md", "new") == "old"
    done = place.run("invalidate", "--everything", *named, "--tenant", "other")
    assert done.out.startswith("Everything (namespace ")
    assert other.ask("b.md", "new") == "new"
    assert here.ask("b.md", "new") == "old"
    place.run("invalidate", "c.md", "shared.md", *named)
    assert there.ask("b.md", "new") == "new"


# -- what goes wrong -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stats", "clear", "invalidate"])
def test_one_store_must_be_named(name: str, tmp_path: Path) -> None:
    more = {"stats": [], "clear": ["--all"], "invalidate": ["a.md"]}[name]
    path = tmp_path / "cache.db"
    for both in ([], ["--redis", "redis://localhost", "--sqlite", path]):
        done = ragopt(name, *more, *both)
        assert done.code == 2
        assert "Invalid value for '--redis' / '--sqlite': Pass one of the two." in done.err
    assert not path.exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["clear"], "Name a namespace, or pass --all and nothing else."),
        (["clear", "--kind", "answer"], "Name a namespace, or pass --all"),
        (["clear", "--tenant", "a"], "Name a namespace, or pass --all"),
        (["clear", "--all", "--namespace", "a"], "Name a namespace, or pass --all"),
        (["clear", "--all", "--kind", "answer"], "Name a namespace, or pass --all"),
        (["clear", "--namespace", "a", "--tenant", "b", "--no-tenant"], "Pass one of the two."),
        (["invalidate"], "Name documents, or pass --everything."),
        (["invalidate", "a.md", "--everything"], "Name documents, or pass --everything."),
        (["stats", "--nonsense"], "No such option: --nonsense"),
        (["nonsense"], "No such command 'nonsense'"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_wrong_options(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    with SqliteStore(path) as store:
        store.set_many({b"ragopt:a:-:answer:d": b"1"})
        done = ragopt(*arguments, "--sqlite", path)
        assert done.code == 2
        assert sentence in done.err
        assert store.count() == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["stats", "--namespace", ""], "The namespace of a cache is empty."),
        (["stats", "--tenant", ""], "The tenant of a cache is empty."),
        (["clear", "--namespace", "", "--yes"], "The namespace of a cache is empty."),
        (["clear", "--namespace", "a", "--tenant", "", "--yes"], "The tenant of a cache is empty."),
        (["clear", "--namespace", "a", "--kind", "", "--yes"], "The kind of a cache is empty."),
        (["invalidate", "x", "--namespace", ""], "The namespace of a cache is empty."),
        (["invalidate", "x", "--tenant", ""], "The tenant of a cache is empty."),
        (["invalidate", "x", ""], "The name of a document is empty."),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_empty_names(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    with SqliteStore(path) as store:
        store.set_many({b"ragopt:a:-:answer:d": b"1"})
        done = ragopt(*arguments, "--sqlite", path)
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith(sentence)
        assert store.count() == 1


def test_files_that_are_no_cache(tmp_path: Path) -> None:
    import sqlite3

    absent, empty, text, other = (tmp_path / name for name in ("absent", "empty", "text", "other"))
    empty.touch()
    text.write_text("Not a cache at all.")
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE precious (a)")
    connection.close()
    before = other.read_bytes()
    for path, sentence in (
        (absent, f"There is no cache file {absent}."),
        (tmp_path, f"{tmp_path} is no file."),
        (empty, f"{empty} is no cache file."),
        (text, f"{text} is no cache file."),
        (text / "below", f"There is no cache file {text}/below."),
        (other, f"{other} holds another program's data"),
    ):
        for name, *more in (["stats"], ["clear", "--all", "--yes"], ["invalidate", "a"]):
            done = ragopt(name, *more, "--sqlite", path)
            assert (done.code, done.out) == (1, "")
            assert sentence in done.err
            assert "Delete it" not in done.err
    assert not absent.exists()
    assert empty.read_bytes() == b""
    assert text.read_text() == "Not a cache at all."
    assert other.read_bytes() == before


def test_servers_that_are_none() -> None:
    port = free_port()
    for url, sentence in (
        (f"redis://user:sesame@127.0.0.1:{port}/0", f"127.0.0.1:{port}/0 cannot be reached"),
        ("redis://user:sesame@host:port/0", "The Redis URL cannot be read."),
        ("http://user:sesame@host/", "The Redis URL cannot be read."),
        ("", "The Redis URL cannot be read."),
    ):
        for name, *more in (["stats"], ["clear", "--all", "--yes"], ["invalidate", "a"]):
            done = ragopt(name, *more, "--redis", url)
            assert (done.code, done.out) == (1, ""), url
            assert sentence in done.err
            assert "sesame" not in done.err


def test_a_password_is_never_printed() -> None:
    with redis_server("--requirepass", "sesame") as url:
        port = urlsplit(url).port
        right, wrong = (f"redis://:{word}@127.0.0.1:{port}/0" for word in ("sesame", "abracadabra"))
        for name, *more in (
            ["stats"],
            ["stats", "--json"],
            ["clear", "--all", "--yes"],
            ["invalidate", "a"],
        ):
            done = ragopt(name, *more, "--redis", right)
            assert done.code == 0, done
            assert "sesame" not in done.out + done.err
            done = ragopt(name, *more, "--redis", wrong)
            assert done.code == 1
            assert "refused the user name or password" in done.err
            assert "abracadabra" not in done.out + done.err


def test_control_other_errors_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise LookupError("a fault of ours")

    monkeypatch.setattr("ragopt.cli_cache._open", broken)
    with pytest.raises(LookupError):
        ragopt("stats")


# -- as a process ----------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with SqliteStore(tmp_path / "cache.db") as store:
        store.set_many({f"ragopt:{n}:-:answer:d".encode(): b"1" for n in range(3000)})
    return tmp_path / "cache.db"


def start(*arguments: object, temporary: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", command.MAIN, "cache", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=command.environment(temporary),
    )


def test_a_real_process(tmp_path: Path, path: Path) -> None:
    done = command.ragopt("cache", "stats", "--sqlite", path, "--json", temporary=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["entries"] == 3000
    words = "clear", "--sqlite", path, "--namespace", "7", "--yes"
    done = command.ragopt("cache", *words, temporary=tmp_path)
    assert done.stdout == "Removed 1 entry of namespace '7'.\n"
    done = command.ragopt("cache", "clear", "--sqlite", path, temporary=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["table", "json"])
def test_a_reader_that_goes_away_is_no_error(
    tmp_path: Path, path: Path, options: list[str]
) -> None:
    with start("stats", "--sqlite", path, *options, temporary=tmp_path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        process.wait(60)


def test_ctrl_c_is_quiet(tmp_path: Path, path: Path) -> None:
    words = "clear", "--sqlite", path, "--all"
    with start(*words, temporary=tmp_path) as process:
        assert process.stderr is not None
        question = "Remove 3,000 entries (answer 3,000) of all namespaces? [y/N] "
        assert process.stderr.read(len(question)) == question
        process.send_signal(signal.SIGINT)
        assert process.stderr.read().strip() == "Interrupted."
        assert process.wait(60) == 130
    with SqliteStore(path) as store:
        assert store.count() == 3000
