"""Values that are computed once, followed, refreshed and forgotten."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.unit.flights import Watched

from ragopt import Lineage, MemoryStore, SqliteStore, TieredCache
from ragopt.cache.claims import LEASE
from ragopt.cache.freshness import Freshness
from ragopt.cache.values import MISSING, ValueCache
from ragopt.errors import InvalidInput
from ragopt.sources import used
from ragopt.testing import FakeClock


def tiers(path: Path, clock: Callable[[], float] = time.time) -> TieredCache:
    """Return what one process has: memory of its own over a file that all share."""
    return TieredCache(MemoryStore(clock=clock), SqliteStore(path, clock=clock), clock=clock)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache.db"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


class Answerer:
    """Counts its calls; answers with the text of a document that it notes as used."""

    def __init__(self, texts: dict[str, str], *names: str) -> None:
        self.texts = texts
        self.names = names
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        used(self.names)
        return " ".join(self.texts[name] for name in self.names)

    async def later(self) -> str:
        return self()


@pytest.mark.parametrize("value", [None, 0, "", [], False, {"a": (1, 2)}, "text"])
def test_any_value_is_computed_once(path: Path, value: Any) -> None:
    calls = []
    cache = ValueCache("answer", tiers(path), ttl=60)
    for _ in range(3):
        assert cache.get_or_compute("q", lambda: calls.append(1) or value) == value  # type: ignore[func-returns-value]
    other = ValueCache("answer", tiers(path), ttl=60)
    assert other.get("q") == value
    assert len(calls) == 1


async def test_both_colours_share(path: Path) -> None:
    cache = ValueCache("answer", tiers(path), ttl=60)
    answer = Answerer({"a": "text"}, "a")
    assert await cache.aget_or_compute("q", answer.later) == "text"
    assert cache.get_or_compute("q", answer) == "text"
    assert answer.calls == 1


def test_who_shares_gets_a_copy_of_its_own(path: Path) -> None:
    cache = ValueCache("answer", tiers(path), ttl=60)
    cache.cache.flights = flights = Watched()
    go = threading.Event()

    def slow() -> list[int]:
        assert go.wait(20)
        return [1]

    with ThreadPoolExecutor(5) as pool:
        asked = [pool.submit(cache.get_or_compute, "q", slow) for _ in range(5)]
        flights.until_joined(5)
        go.set()
        answers = [each.result() for each in asked]
    for answer in answers:
        answer.append(2)
    assert answers == [[1, 2]] * 5
    assert cache.cache.stats.total("answer", "shared") == 4


def test_processes_share_one_computation(path: Path) -> None:
    """Two caches that know of each other only through the file."""
    calls: list[int] = []

    def slow() -> str:
        calls.append(1)
        time.sleep(0.3)
        return "answer"

    caches = [ValueCache("answer", tiers(path), ttl=60) for _ in range(4)]
    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(caches[i % 4].get_or_compute, "q", slow) for i in range(12)]
        assert [each.result(10) for each in asked] == ["answer"] * 12
    assert len(calls) == 1


def test_an_error_is_not_kept_and_frees_the_others(path: Path) -> None:
    first, second = (ValueCache("answer", tiers(path), ttl=60) for _ in range(2))

    def fails() -> str:
        raise RuntimeError("the model is down")

    with pytest.raises(RuntimeError, match="model is down"):
        first.get_or_compute("q", fails)
    begin = time.monotonic()
    assert second.get_or_compute("q", lambda: "answer") == "answer"
    assert time.monotonic() - begin < 1


async def test_a_cancelled_computation_frees_the_others(path: Path) -> None:
    first, second = (ValueCache("answer", tiers(path), ttl=60) for _ in range(2))

    begun = asyncio.Event()

    async def slow() -> str:
        begun.set()
        await asyncio.sleep(60)
        return "never"

    task = asyncio.create_task(first.aget_or_compute("q", slow))
    await asyncio.wait_for(begun.wait(), 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    answer = await asyncio.wait_for(
        second.aget_or_compute("q", Answerer({"a": "answer"}, "a").later), LEASE - 0.5
    )
    assert answer == "answer"


def test_what_is_deleted_while_it_is_computed_is_not_stored(path: Path) -> None:
    cache, other = (ValueCache("answer", tiers(path), ttl=60) for _ in range(2))

    def slow() -> str:
        other.delete("q")
        return "made from what was deleted"

    assert cache.get_or_compute("q", slow) == "made from what was deleted"
    assert cache.get("q") is MISSING
    assert other.get("q") is MISSING
    assert cache.cache.stats.total("answer", "superseded") == 1


def test_an_uncacheable_value_goes_through(path: Path) -> None:
    cache = ValueCache("answer", tiers(path), ttl=60)
    made = object()
    assert cache.get_or_compute("q", lambda: made) is made
    assert cache.get_or_compute("q", lambda: "other") == "other"
    assert cache.cache.stats.total("answer", "uncacheable") == 1


class TestLineage:
    @pytest.fixture(params=["one file", "memory over a file"])
    def make(self, path: Path, request: pytest.FixtureRequest) -> Callable[..., Any]:
        def make(**options: Any) -> ValueCache:
            cache = tiers(path) if request.param != "one file" else TieredCache(SqliteStore(path))
            return ValueCache("answer", cache, ttl=60, lineage=Lineage(cache, **options))

        return make

    def test_a_change_kills_what_was_made_from_it_and_nothing_else(
        self, make: Callable[..., ValueCache]
    ) -> None:
        texts = {"a": "old", "b": "other"}
        here, there = make(), make()
        on_a, on_b, on_both = (Answerer(texts, *names) for names in ("a", "b", "ab"))
        for cache in (here, there, here):
            assert cache.get_or_compute("a", on_a) == "old"
            assert cache.get_or_compute("b", on_b) == "other"
            assert cache.get_or_compute("ab", on_both) == "old other"
        assert (on_a.calls, on_b.calls, on_both.calls) == (1, 1, 1)
        texts["a"] = "new"
        assert there.lineage is not None
        there.lineage.changed("a")
        for cache in (here, there, here):
            assert cache.get_or_compute("a", on_a) == "new"
            assert cache.get_or_compute("b", on_b) == "other"
            assert cache.get_or_compute("ab", on_both) == "new other"
        assert (on_a.calls, on_b.calls, on_both.calls) == (2, 1, 2)
        assert here.cache.stats.total("answer", "dead") == 2

    async def test_the_same_in_async(self, make: Callable[..., ValueCache]) -> None:
        texts = {"a": "old"}
        here, there = make(), make()
        answer = Answerer(texts, "a")
        assert await here.aget_or_compute("q", answer.later) == "old"
        texts["a"] = "new"
        assert there.lineage is not None
        await there.lineage.achanged("a")
        assert await here.aget_or_compute("q", answer.later) == "new"
        assert await there.aget_or_compute("q", answer.later) == "new"
        assert answer.calls == 2

    def test_a_change_during_the_computation(self, make: Callable[..., ValueCache]) -> None:
        """The answer saw the old text, and the change was over before it was stored."""
        texts = {"a": "old"}
        cache, other = make(), make()
        answer = Answerer(texts, "a")

        def overtaken() -> str:
            text = answer()
            texts["a"] = "new"
            assert other.lineage is not None
            other.lineage.changed("a")
            return text

        assert cache.get_or_compute("q", overtaken) == "old"
        assert cache.get_or_compute("q", answer) == "new"

    def test_everything_changed(self, make: Callable[..., ValueCache]) -> None:
        texts = {"a": "old"}
        cache = make()
        answer = Answerer(texts, "a")
        cache.get_or_compute("q", answer)
        texts["a"] = "new"
        assert cache.lineage is not None
        cache.lineage.changed_everything()
        assert cache.get_or_compute("q", answer) == "new"

    def test_documents_named_by_the_value(self, make: Callable[..., ValueCache]) -> None:
        cache = make()
        calls = []

        def value() -> dict[str, Any]:
            calls.append(1)
            return {"sources": ["x"]}

        def ask() -> Any:
            return cache.get_or_compute("q", value, documents=lambda found: found["sources"])

        ask()
        ask()
        assert cache.lineage is not None
        cache.lineage.changed("y")
        ask()
        assert len(calls) == 1
        cache.lineage.changed("x")
        ask()
        assert len(calls) == 2

    def test_an_answer_from_a_cached_part(self, make: Callable[..., ValueCache]) -> None:
        """The outer value depends on what the inner one was made from, hit or not."""
        texts = {"a": "old"}
        outer = make()
        inner = ValueCache("retrieval", outer.cache, ttl=60, lineage=outer.lineage)
        part = Answerer(texts, "a")

        def whole(number: int) -> str:
            return f"{number}: {inner.get_or_compute('part', part)}"

        assert outer.get_or_compute(1, lambda: whole(1)) == "1: old"
        assert outer.get_or_compute(2, lambda: whole(2)) == "2: old"
        assert part.calls == 1
        texts["a"] = "new"
        assert outer.lineage is not None
        outer.lineage.changed("a")
        assert outer.get_or_compute(2, lambda: whole(2)) == "2: new"
        assert outer.get_or_compute(1, lambda: whole(1)) == "1: new"

    def test_staleness_is_bounded(
        self, make: Callable[..., ValueCache], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ticks = FakeClock()
        monkeypatch.setattr("ragopt.cache.lineage.monotonic", ticks)
        texts = {"a": "old"}
        fast, other = make(max_staleness=0.2), make()
        answer = Answerer(texts, "a")
        fast.get_or_compute("q", answer)
        fast.get_or_compute("q", answer)
        texts["a"] = "new"
        assert other.lineage is not None
        other.lineage.changed("a")
        assert fast.get_or_compute("q", answer) == "old"  # the price of not asking
        ticks.now += 0.21
        assert fast.get_or_compute("q", answer) == "new"

    def test_staleness_does_not_outlive_its_bound_in_what_is_built_on_it(
        self, make: Callable[..., ValueCache], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An outer value made from an inner one that was stale for a moment dies with it."""
        ticks = FakeClock()
        monkeypatch.setattr("ragopt.cache.lineage.monotonic", ticks)
        texts = {"a": "old"}
        outer, other = make(max_staleness=0.2), make()
        inner = ValueCache("retrieval", outer.cache, ttl=60, lineage=outer.lineage)
        part = Answerer(texts, "a")
        inner.get_or_compute("part", part)
        inner.get_or_compute("part", part)
        texts["a"] = "new"
        assert other.lineage is not None
        other.lineage.changed("a")

        def ask() -> Any:
            return outer.get_or_compute("q", lambda: inner.get_or_compute("part", part))

        ask()
        ticks.now += 0.21
        assert ask() == "new"

    def test_one_own_change_is_seen_at_once(self, make: Callable[..., ValueCache]) -> None:
        texts = {"a": "old"}
        fast = make(max_staleness=60)
        answer = Answerer(texts, "a")
        fast.get_or_compute("q", answer)
        fast.get_or_compute("q", answer)
        texts["a"] = "new"
        assert fast.lineage is not None
        fast.lineage.changed("a")
        assert fast.get_or_compute("q", answer) == "new"

    def test_a_log_that_begins_anew_kills_everything(self, path: Path) -> None:
        memory = MemoryStore()
        cache = TieredCache(memory, SqliteStore(path))
        values = ValueCache("answer", cache, ttl=60, lineage=Lineage(cache))
        answer = Answerer({"a": "text"}, "a")
        values.get_or_compute("q", answer)
        cache.layers[1].close()
        for file in path.parent.glob("cache.db*"):
            file.unlink()
        values.get_or_compute("q", answer)
        assert answer.calls == 2

    def test_without_the_log_nothing_is_served_unverified(self, path: Path) -> None:
        cache = TieredCache(MemoryStore(), SqliteStore(path))
        values = ValueCache("answer", cache, ttl=60, lineage=Lineage(cache))
        answer = Answerer({"a": "text"}, "a")
        values.get_or_compute("q", answer)
        assert ValueCache("answer", cache, ttl=60).get("q") is MISSING

    def test_a_plain_set_is_refused(self, make: Callable[..., ValueCache]) -> None:
        with pytest.raises(InvalidInput, match="get_or_compute"):
            make().set("q", "value")

    def test_tenants_and_namespaces_are_apart(self, path: Path) -> None:
        cache = tiers(path)
        one, two = (Lineage(cache, tenant=tenant) for tenant in ("one", "two"))
        values = ValueCache("answer", cache, ttl=60, lineage=one, tenant="one")
        answer = Answerer({"a": "text"}, "a")
        values.get_or_compute("q", answer)
        two.changed("a")
        two.changed_everything()
        values.get_or_compute("q", answer)
        assert answer.calls == 1


class TestFreshness:
    def test_a_value_ends(self, path: Path, clock: FakeClock) -> None:
        cache = ValueCache("answer", tiers(path, clock), ttl=10)
        answer = Answerer({"a": "text"}, "a")
        cache.get_or_compute("q", answer)
        clock.now += 9
        cache.get_or_compute("q", answer)
        assert answer.calls == 1
        clock.now += 2
        cache.get_or_compute("q", answer)
        assert answer.calls == 2

    def test_stale_while_revalidate(self, path: Path, clock: FakeClock) -> None:
        cache = ValueCache("answer", tiers(path, clock), ttl=Freshness(10, stale=100))
        texts = {"a": "old"}
        answer = Answerer(texts, "a")
        cache.get_or_compute("q", answer)
        texts["a"] = "new"
        clock.now += 11
        assert cache.get_or_compute("q", answer) == "old"  # at once
        until = time.monotonic() + 5
        while cache.cache.stats.total("answer", "refresh") == 0 and time.monotonic() < until:
            time.sleep(0.01)
        assert cache.get_or_compute("q", answer) == "new"
        assert answer.calls == 2
        assert cache.cache.stats.total("answer", "stale") == 1

    async def test_stale_while_revalidate_in_async(self, path: Path, clock: FakeClock) -> None:
        cache = ValueCache("answer", tiers(path, clock), ttl=Freshness(10, stale=100))
        texts = {"a": "old"}
        answer = Answerer(texts, "a")
        await cache.aget_or_compute("q", answer.later)
        texts["a"] = "new"
        clock.now += 11
        assert await cache.aget_or_compute("q", answer.later) == "old"
        while cache.cache.stats.total("answer", "refresh") == 0:
            await asyncio.sleep(0.01)
        assert await cache.aget_or_compute("q", answer.later) == "new"

    def test_one_refresh_for_many_hits(self, path: Path, clock: FakeClock) -> None:
        caches = [
            ValueCache("answer", tiers(path, clock), ttl=Freshness(10, stale=100)) for _ in range(3)
        ]
        calls: list[int] = []
        go = threading.Event()

        def slow() -> str:
            calls.append(1)
            assert len(calls) == 1 or go.wait(20)
            return "text"

        caches[0].get_or_compute("q", slow)
        clock.now += 11
        for _ in range(30):
            for cache in caches:
                assert cache.get_or_compute("q", slow) == "text"
        turned_away = [cache._keeper._resting for cache in caches]
        wait_until(lambda: sum(map(bool, turned_away)) == 2)  # while the third one computes
        go.set()
        wait_until(lambda: any(c.cache.stats.total("answer", "refresh") for c in caches))
        assert len(calls) == 2

    def test_a_refresh_that_fails_is_counted_and_the_old_value_stays(
        self, path: Path, clock: FakeClock
    ) -> None:
        cache = ValueCache("answer", tiers(path, clock), ttl=Freshness(10, stale=100))
        cache.get_or_compute("q", lambda: "old")
        clock.now += 11

        def fails() -> str:
            raise RuntimeError("the model is down")

        assert cache.get_or_compute("q", fails) == "old"
        until = time.monotonic() + 5
        while cache.cache.stats.total("answer", "refresh_error") == 0:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert cache.get("q") == "old"

    def test_a_refresh_does_not_bring_back_what_was_deleted(
        self, path: Path, clock: FakeClock
    ) -> None:
        cache = ValueCache("answer", tiers(path, clock), ttl=Freshness(10, stale=100))
        cache.get_or_compute("q", lambda: "old")
        clock.now += 11
        done = threading.Event()

        def overtaken() -> str:
            cache.delete("q")
            done.set()
            return "made from what was deleted"

        cache.get_or_compute("q", overtaken)
        assert done.wait(5)
        time.sleep(0.1)
        assert cache.get("q") is MISSING

    def test_early_refresh(self, path: Path, clock: FakeClock) -> None:
        """A value that takes long to make is refreshed before it ends; a quick one is not."""
        early = Freshness(10, early=1.0)
        assert not any(early.wants_refresh(9, cost=0.001) for _ in range(1000))
        often = sum(early.wants_refresh(1.0, cost=2.0) for _ in range(2000))
        assert 1100 < often < 1330  # exp(-1/2) of them
        assert not any(Freshness(10).wants_refresh(0.001, cost=9) for _ in range(100))

    def test_jitter(self) -> None:
        spans = [Freshness(100, jitter=0.2).span() for _ in range(500)]
        assert 80 <= min(spans) < 85
        assert 95 < max(spans) <= 100
        assert Freshness(100).span() == 100

    def test_sliding(self, path: Path, clock: FakeClock) -> None:
        cache = ValueCache("answer", tiers(path, clock), ttl=Freshness(10, sliding=True))
        cache.get_or_compute("q", lambda: "text")
        for _ in range(5):
            clock.now += 8
            assert cache.get("q") == "text"
        other = ValueCache("answer", tiers(path, clock), ttl=10)
        assert other.get("q") == "text"
        clock.now += 11
        assert cache.get("q") is MISSING

    @pytest.mark.parametrize(
        "options", [{"ttl": 0}, {"ttl": -1}, {"jitter": 1}, {"stale": -1}, {"early": -0.1}]
    )
    def test_wrong_numbers(self, options: dict[str, float]) -> None:
        with pytest.raises(InvalidInput):
            Freshness(**options)  # type: ignore[arg-type]
