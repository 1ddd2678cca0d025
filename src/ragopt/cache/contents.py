"""What a store holds, by namespace, tenant and kind, and how to remove a part of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import unquote

from ragopt.cache.tiers import TieredCache
from ragopt.keys import namespace_prefix
from ragopt.protocols import KVStore
from ragopt.stores.memory import MemoryStore

_NO_TENANT = "-"
_FIELDS = 4  # what stands before the digest: the mark of ragopt, namespace, tenant, kind

KINDS = ("answer", "bytes", "chunk", "embedding", "function", "kv", "llm", "retrieval")
"""The kinds that ragopt's own classes keep, unless they are told another one."""


class Group(NamedTuple):
    """What entries belong to; None as the tenant for those that have none."""

    namespace: str
    tenant: str | None
    kind: str

    @property
    def prefix(self) -> bytes:
        """The first bytes of its keys."""
        return namespace_prefix(self.namespace, self.tenant, self.kind)


@dataclass(frozen=True, slots=True)
class Choice:
    """Which groups are meant; what is None or False leaves all of them.

    Args:
        namespace: Those of one namespace.
        tenant: Those of one tenant.
        no_tenant: Those without a tenant.
        kind: Those of one kind.

    Raises:
        InvalidInput: One of the names is empty.
    """

    namespace: str | None = None
    tenant: str | None = None
    no_tenant: bool = False
    kind: str | None = None

    def __post_init__(self) -> None:
        namespace = "default" if self.namespace is None else self.namespace
        namespace_prefix(namespace, self.tenant, self.kind)

    def __contains__(self, group: Group) -> bool:
        return (
            self.namespace in (None, group.namespace)
            and self.tenant in (None, group.tenant)
            and not (self.no_tenant and group.tenant is not None)
            and self.kind in (None, group.kind)
        )

    @property
    def prefix(self) -> bytes:
        """The longest prefix that all keys of these groups have."""
        if self.namespace is None:
            return b""
        if self.tenant is None and not self.no_tenant:
            return namespace_prefix(self.namespace)
        if self.tenant is None and self.kind is None:
            return namespace_prefix(self.namespace) + f"{_NO_TENANT}:".encode()
        return namespace_prefix(self.namespace, self.tenant, self.kind)

    @property
    def is_prefix(self) -> bool:
        """Whether no other keys have this prefix."""
        if self.namespace is None:
            return self == ALL
        return self.tenant is not None or self.no_tenant or self.kind is None


ALL = Choice()


def group_of(key: bytes) -> Group | None:
    """Return what a key belongs to; None if it is none of ragopt's structured keys."""
    fields = key.split(b":", _FIELDS)
    if len(fields) <= _FIELDS:
        return None
    try:
        namespace, tenant, kind = (
            unquote(field.decode("ascii"), errors="strict") for field in fields[1:_FIELDS]
        )
        shown = fields[2].decode("ascii")
        group = Group(namespace, None if shown == _NO_TENANT else tenant, kind)
        is_ours = key.startswith(group.prefix)  # one who reads the names can name it by them
    except ValueError:  # not quoted, no UTF-8, or an empty name
        return None
    return group if is_ours else None


def groups_of(keys: Iterable[bytes]) -> Counter[Group | None]:
    """Return how many of the keys belong to each group; None for other programs' keys."""
    ends: Counter[bytes] = Counter()
    for key in keys:
        *_, last = fields = key.split(b":", _FIELDS)
        # Without the digest, since most keys differ in nothing else.
        ends[key[: len(key) - len(last)] if len(fields) > _FIELDS else key] += 1
    groups: Counter[Group | None] = Counter()
    for end, number in ends.items():
        groups[group_of(end)] += number
    return groups


def contents(store: KVStore, choice: Choice = ALL) -> Counter[Group | None]:
    """Return how many live entries of a store belong to each group that is meant.

    All keys that come into question are listed, so this takes as long as that.

    Args:
        store: A store or a cache.
        choice: Which groups; those of None, which are no groups, only if all are meant.
    """
    found = groups_of(store.keys(choice.prefix))
    if choice == ALL:
        return found
    return Counter(
        {group: n for group, n in found.items() if group is not None and group in choice}
    )


def clear(store: KVStore, choice: Choice) -> int:
    """Remove what is meant, and let the processes know that share the store.

    Those with a ``max_staleness`` drop it from their memory within that time; the others keep
    there what they have until it ends.

    Args:
        store: A ``Coordinator``, such as ``SqliteStore`` and ``RedisStore``.
        choice: Which groups. All of them, if nothing is named, and then all other entries, too.

    Returns:
        How many live entries there were.

    Raises:
        StorageError: Something could not be removed, and is still served.
    """
    # Through a near layer of its own: only a cache of several layers writes the log of changes.
    cache = TieredCache(MemoryStore(), store, max_staleness=0)
    prefixes = [choice.prefix]
    if not choice.is_prefix:
        prefixes = [group.prefix for group in contents(store, choice) if group is not None]
    gone = 0
    for prefix in prefixes:
        gone += store.count(prefix)
        cache.clear(prefix)
    return gone
