"""What a store must do through which processes agree."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ragopt.codecs import stamp_of
from ragopt.protocols import Coordinator
from ragopt.testing.kv import FakeClock, KVStoreContract


class CoordinatorContract(KVStoreContract):
    """The contract of a ``KVStore``, and that of claims and change logs on top."""

    def test_is_a_coordinator(self, raw: Coordinator) -> None:
        assert isinstance(raw, Coordinator)

    def test_a_claim_is_no_entry(self, store: Any) -> None:
        assert store.claim(b"k", seconds=self.ttl)
        assert store.get_many([b"k"]) == [None]
        assert store.count() == 0
        assert store.keys() == []

    def test_one_has_a_claim(self, store: Any) -> None:
        token = store.claim(b"k", seconds=self.ttl)
        assert store.claim(b"k", seconds=self.ttl) is None
        assert store.claim(b"other", seconds=self.ttl) not in (None, token)

    def test_of_many_threads_one_has_a_claim(self, raw: Coordinator) -> None:
        with ThreadPoolExecutor(8) as pool:
            tokens = list(pool.map(lambda _: raw.claim(b"k", seconds=self.ttl), range(40)))
        assert len([token for token in tokens if token]) == 1

    def test_an_entry_is_not_claimed(self, store: Any) -> None:
        store.set_many({b"k": b"value"})
        assert store.claim(b"k", seconds=self.ttl) is None

    def test_an_entry_is_claimed_by_its_stamp(self, store: Any) -> None:
        store.set_many({b"k": b"old"})
        (entry,) = store.get_many([b"k"])
        token = store.claim(b"k", seconds=self.ttl, over=stamp_of(entry))
        assert token
        assert store.get_many([b"k"]) == [None]
        assert store.claim(b"k", seconds=self.ttl, over=stamp_of(entry)) is None
        assert store.commit(b"k", token, b"new")
        assert store.get_many([b"k"])[0].value == b"new"

    def test_a_stamp_of_an_older_entry_claims_nothing(self, store: Any) -> None:
        store.set_many({b"k": b"old"})
        (entry,) = store.get_many([b"k"])
        store.set_many({b"k": b"new"})
        assert store.claim(b"k", seconds=self.ttl, over=stamp_of(entry)) is None
        assert not store.commit(b"k", stamp_of(entry), b"late")
        assert not store.release(b"k", stamp_of(entry))
        assert store.get_many([b"k"])[0].value == b"new"

    def test_commit_replaces_the_claim(self, store: Any, clock: FakeClock) -> None:
        token = store.claim(b"k", seconds=self.ttl)
        assert store.commit(b"k", token, b"value", ttl=10 * self.ttl)
        self.advance(clock, 1.5 * self.ttl)  # the claim's own end means nothing any more
        (entry,) = store.get_many([b"k"])
        assert entry.value == b"value"
        assert entry.expires_at is not None
        assert not store.commit(b"k", token, b"again")

    def test_commit_replaces_an_entry_by_its_stamp(self, store: Any) -> None:
        store.set_many({b"k": b"1"})
        (first,) = store.get_many([b"k"])
        assert store.commit(b"k", stamp_of(first), b"2")
        assert not store.commit(b"k", stamp_of(first), b"3")
        (second,) = store.get_many([b"k"])
        assert (second.value, second.expires_at) == (b"2", None)

    def test_a_delete_ends_a_claim(self, store: Any) -> None:
        token = store.claim(b"k", seconds=self.ttl)
        store.delete_many([b"k"])
        assert not store.commit(b"k", token, b"made from what was deleted")
        assert store.get_many([b"k"]) == [None]

    def test_clear_ends_a_claim(self, store: Any) -> None:
        token = store.claim(b"app:k", seconds=self.ttl)
        store.clear(b"app:")
        assert not store.commit(b"app:k", token, b"made from what was deleted")

    def test_a_write_ends_a_claim(self, store: Any) -> None:
        token = store.claim(b"k", seconds=self.ttl)
        store.set_many({b"k": b"newer"})
        assert not store.commit(b"k", token, b"late")
        assert not store.extend(b"k", token, seconds=self.ttl)
        assert not store.release(b"k", token)
        assert store.get_many([b"k"])[0].value == b"newer"

    def test_release(self, store: Any) -> None:
        token = store.claim(b"k", seconds=self.ttl)
        assert store.release(b"k", token)
        assert not store.release(b"k", token)
        assert store.claim(b"k", seconds=self.ttl)

    def test_a_claim_ends_by_itself(self, store: Any, clock: FakeClock) -> None:
        token = store.claim(b"k", seconds=self.ttl)
        self.advance(clock, 1.1 * self.ttl)
        second = store.claim(b"k", seconds=self.ttl)
        assert second
        assert not store.commit(b"k", token, b"late")
        assert store.commit(b"k", second, b"value")

    def test_a_claim_is_extended(self, store: Any, clock: FakeClock) -> None:
        token = store.claim(b"k", seconds=self.ttl)
        for _ in range(3):
            self.advance(clock, 0.6 * self.ttl)
            assert store.extend(b"k", token, seconds=self.ttl)
        assert store.claim(b"k", seconds=self.ttl) is None
        assert store.commit(b"k", token, b"value")

    def test_a_log_begins_empty(self, store: Any) -> None:
        log, changes = store.last_changes(b"space", [b"a", b"b"])
        assert (log.seq, log.low, changes) == (0, 0, [0, 0])
        assert len(log.id) == 8
        assert store.last_changes(b"space", []) == (log, [])
        assert store.last_changes(b"other", [])[0].id != log.id

    def test_changes_are_numbered(self, store: Any) -> None:
        assert store.mark(b"space", [b"a", b"b"]).seq == 1
        assert store.mark(b"space", [b"b"]).seq == 2
        log, changes = store.last_changes(b"space", [b"b", b"a", b"c"])
        assert (log.seq, changes) == (2, [2, 1, 0])
        assert store.last_changes(b"other", [b"a"])[1] == [0]

    def test_what_changed_since(self, store: Any) -> None:
        for tag in (b"a", b"b", b"c", b"a"):
            store.mark(b"space", [tag])
        for seq, tags in ((0, {b"a", b"b", b"c"}), (2, {b"c", b"a"}), (3, {b"a"}), (4, set())):
            log, found = store.changes_since(b"space", seq)
            assert log.seq == 4
            assert set(found) == tags

    @pytest.mark.parametrize("tag", [b"\x00", b"\x01", b"\x02", b"\xff", bytes(12), b"*?[]"])
    def test_any_bytes_are_a_tag(self, store: Any, tag: bytes) -> None:
        store.mark(tag, [tag, b"other"])
        log, changes = store.last_changes(tag, [tag])
        assert (log.seq, changes) == (1, [1])
        assert set(store.changes_since(tag, 0)[1]) == {tag, b"other"}

    def test_threads_number_every_change(self, raw: Coordinator) -> None:
        def work(number: int) -> list[int]:
            return [raw.mark(b"space", [b"%d" % number]).seq for _ in range(20)]

        with ThreadPoolExecutor(8) as pool:
            numbers = [seq for found in pool.map(work, range(8)) for seq in found]
        assert sorted(numbers) == list(range(1, 161))

    def test_clearing_entries_leaves_the_log(self, store: Any) -> None:
        store.mark(b"space", [b"a"])
        store.clear()
        assert store.last_changes(b"space", [b"a"])[1] == [1]
