"""Tenants of one application never meet."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ragopt import (
    CachedEmbedder,
    HashingEmbedder,
    Lineage,
    MemoryStore,
    SqliteStore,
    TieredCache,
    ValueCache,
    cached,
)
from ragopt.cache.named import NamedStore
from ragopt.cache.values import MISSING
from ragopt.errors import InvalidInput

AWKWARD = ["a", "b", "a:b", "a:", ":", "-", "%2D", "a-b", "é", "a/b", "*", " ", "None"]


@pytest.fixture
def cache(tmp_path: Path) -> TieredCache:
    layers = MemoryStore(), SqliteStore(tmp_path / "cache.db")
    return TieredCache(*layers, require_tenant=True)


@pytest.mark.parametrize("one", AWKWARD)
def test_one_cannot_read_count_or_clear_another(one: str, cache: TieredCache) -> None:
    caches = {name: ValueCache("answer", cache, ttl=60, tenant=name) for name in AWKWARD}
    for name, each in caches.items():
        each.set("q", f"of {name}")
    assert {name: each.get("q") for name, each in caches.items()} == {
        name: f"of {name}" for name in AWKWARD
    }
    assert [each.count() for each in caches.values()] == [1] * len(AWKWARD)
    caches[one].clear()
    left = {name for name, each in caches.items() if each.get("q") is not MISSING}
    assert left == set(AWKWARD) - {one}
    caches[one].set("q", "again")
    assert caches[one].delete("q")
    assert sum(each.count() for each in caches.values()) == len(AWKWARD) - 1


def test_one_cannot_read_the_embeddings_or_names_of_another(cache: TieredCache) -> None:
    one, two = (CachedEmbedder(HashingEmbedder(8), cache, tenant=name) for name in ("1", "2"))
    one.embed(["text"])
    two.embed(["text"])
    assert cache.stats.total("embedding", "hit") == 0
    first, second = (NamedStore("bytes", cache, tenant=name) for name in ("1", "2"))
    first.set_many({"name": b"value"})
    assert second.get_many(["name"]) == [None]
    assert second.names() == []


def test_invalidation_is_of_one_tenant(cache: TieredCache) -> None:
    caches = {
        name: ValueCache("answer", cache, ttl=60, tenant=name, lineage=Lineage(cache, tenant=name))
        for name in ("1", "2")
    }
    for each in caches.values():
        each.get_or_compute("q", lambda: "answer", documents=lambda _: ["handbook"])
    assert caches["1"].lineage is not None
    caches["1"].lineage.changed("handbook")
    assert caches["1"].get("q") is MISSING
    assert caches["2"].get("q") == "answer"


OPENED: list[Callable[[TieredCache, Any], object]] = [
    lambda cache, tenant: ValueCache("answer", cache, ttl=60, tenant=tenant),
    lambda cache, tenant: CachedEmbedder(HashingEmbedder(8), cache, tenant=tenant).embed(["a"]),
    lambda cache, tenant: NamedStore("bytes", cache, tenant=tenant),
    lambda cache, tenant: Lineage(cache, tenant=tenant),
    lambda cache, tenant: cached(cache, tenant=tenant)(test_invalidation_is_of_one_tenant),
]


@pytest.mark.parametrize("opened", OPENED)
@pytest.mark.parametrize("tenant", [None, ""])
def test_a_missing_or_empty_tenant_is_refused(
    opened: Callable[[TieredCache, Any], object], tenant: str | None, cache: TieredCache
) -> None:
    with pytest.raises(InvalidInput, match="tenant"):
        opened(cache, tenant)
    opened(cache, "acme")


@pytest.mark.parametrize("opened", OPENED)
def test_where_tenants_are_not_required_none_is_one_and_empty_is_refused(
    opened: Callable[[TieredCache, Any], object],
) -> None:
    opened(TieredCache(), None)
    with pytest.raises(InvalidInput, match="tenant"):
        opened(TieredCache(), "")
