"""What a key belongs to is read from its first bytes."""

from hypothesis import example, given
from hypothesis import strategies as st

from ragopt import MemoryStore
from ragopt.cache import contents
from ragopt.cache.contents import ALL, Choice, Group, group_of, groups_of
from ragopt.cache.named import NamedStore
from ragopt.keys import KeySpace

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@given(names, st.none() | names, names, st.text(max_size=5))
@example("a:b", "-", "%2D", "x")
@example("a", None, "k", ":")
def test_a_key_says_what_it_belongs_to(
    namespace: str, tenant: str | None, kind: str, payload: str
) -> None:
    space = KeySpace(kind, namespace=namespace, tenant=tenant)
    group = Group(namespace, tenant, kind)
    assert group_of(space.key(payload)) == group
    assert group.prefix == space.prefix


def test_other_keys_belong_to_nothing() -> None:
    for key in (
        *(b"", b"ragopt", b"ragopt:a:b:c", b"other:a:-:answer:d", b"ragopt::-:answer:d"),
        *(b"ragopt:a::answer:d", b"ragopt:a:-::d", b"ragopt:a b:-:answer:d"),
        *(b"ragopt:%ff:-:answer:d", b"ragopt:a:x-y:answer:d", b"ragopt:\xff:-:answer:d"),
    ):
        assert group_of(key) is None, key
    assert group_of(b"ragopt:a:-:answer:d") == Group("a", None, "answer")  # the control


@given(st.lists(st.binary(max_size=6) | st.just(b"ragopt:a:-:k:") | st.just(b"ragopt:a:-:k:x:y")))
def test_every_key_is_counted_once(keys: list[bytes]) -> None:
    counted = groups_of(keys)
    assert counted.total() == len(keys)
    assert all(counted[group] == sum(group_of(key) == group for key in keys) for group in counted)


@given(
    st.none() | st.sampled_from("ab"),
    st.none() | st.sampled_from(["a", "a-"]),
    st.booleans(),
    st.none() | st.sampled_from("kl"),
)
def test_a_choice_clears_what_it_holds(
    namespace: str | None, tenant: str | None, no_tenant: bool, kind: str | None
) -> None:
    choice = Choice(namespace, tenant, no_tenant and tenant is None, kind)
    store = MemoryStore()
    groups = [Group(n, t, k) for n in ("a", "b") for t in (None, "a", "a-") for k in ("k", "l")]
    store.set_many({group.prefix + b"x": b"1" for group in groups})
    chosen = [group for group in groups if group in choice]
    assert contents.contents(store, choice) == dict.fromkeys(chosen, 1)
    assert all(group.prefix.startswith(choice.prefix) for group in chosen)
    assert contents.clear(store, choice) == len(chosen)
    assert set(contents.contents(store)) == set(groups) - set(chosen)


def test_all_is_more_than_every_group() -> None:
    store = MemoryStore()
    store.set_many({b"other": b"1", b"ragopt:a:-:k:x": b"1"})
    assert contents.contents(store) == {None: 1, Group("a", None, "k"): 1}
    assert contents.contents(store, Choice("a")) == {Group("a", None, "k"): 1}
    assert contents.clear(store, ALL) == 2


def test_names_of_ones_own_are_counted_as_well() -> None:
    store = MemoryStore()
    NamedStore("kv", store, ttl=None, group="a:b").set_many({"c:d": b"1"})
    assert contents.contents(store) == {Group("default", None, "kv"): 1}
