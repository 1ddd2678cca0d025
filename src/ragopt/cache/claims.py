"""Who computes a value, when several processes miss it at the same time."""

from __future__ import annotations

import os
from threading import Event, Lock, Thread
from time import monotonic
from typing import TYPE_CHECKING

from ragopt._forks import fork_safe
from ragopt._runtime import Runtime
from ragopt.codecs import stamp_of
from ragopt.protocols import Coordinator, Entry

if TYPE_CHECKING:
    from ragopt.cache.tiers import Failed, TieredCache

LEASE = 5.0
"""Seconds after which the claim of a process that died is free."""

_FIRST_PAUSE = 0.005  # seconds between two looks at what another process computes
_LONGEST_PAUSE = 0.05
_MOST_LOST = 1000


class Claims:
    """Claims on the last layer of a cache, kept alive while their values are computed.

    A claim lasts ``LEASE`` seconds and is renewed at a third of that, by one thread for all. So
    a computation may take as long as it likes, and one whose process was killed is free soon.

    Args:
        cache: The cache.
        patience: Seconds to wait for another process before computing without a claim.
    """

    def __init__(self, cache: TieredCache, *, patience: float = 60.0) -> None:
        self._cache = cache
        self._patience = patience
        self._lock = fork_safe(Lock())
        self._held: dict[bytes, bytes] = {}
        self._lost: dict[bytes, bytes] = {}  # what could not be ended, token under key
        self._keeper: Thread | None = None
        self._pid = os.getpid()
        self._wake = Event()

    async def take(self, io: Runtime, store: Coordinator, key: bytes) -> bytes | None:
        """Try once to claim a key; return the token, or None if it is taken or out of reach."""
        token = await self._claim(io, store, key, None)
        return token if isinstance(token, bytes) else None

    async def wait_or_take(
        self, io: Runtime, store: Coordinator, key: bytes, known: bytes | None
    ) -> Entry | bytes | None:
        """Claim a key, or wait for the value that another process computes.

        Args:
            io: The colour.
            store: The last layer.
            key: The key.
            known: The value under it that is no good; None if there is none.

        Returns:
            A token; or an entry that another process stored meanwhile; or None if neither can be
            had, because the layer does not answer or nothing came in time.
        """
        until = monotonic() + self._patience
        pause = 0.0
        over: bytes | None = None
        while monotonic() < until:
            if pause or known is not None:
                await io.sleep(pause)
                found = await self._cache.attempt(io, store.get_many, store.aget_many, [key])
                if not isinstance(found, list):
                    return None
                (entry,) = found
                if entry is not None and entry.value != known:
                    return entry
                over = None if entry is None else stamp_of(entry)
            token = await self._claim(io, store, key, over)
            if token is not None:
                return token if isinstance(token, bytes) else None
            pause = min(max(_FIRST_PAUSE, 1.5 * pause), _LONGEST_PAUSE)
        return None

    async def give_up(self, io: Runtime, store: Coordinator, key: bytes, token: bytes) -> None:
        """End a claim without a value."""
        self.let_go(token)
        done = await self._cache.attempt(io, store.release, store.arelease, key, token)
        if not isinstance(done, bool):  # it failed
            # It may stand there until it ends by itself. This process need not wait for that.
            if len(self._lost) >= _MOST_LOST:
                self._lost.clear()
            self._lost[key] = token

    def let_go(self, token: bytes) -> None:
        """Renew a claim no longer."""
        if self._pid != os.getpid():  # it is the parent's, which renews it
            return
        with self._lock:
            self._held.pop(token, None)
            if not self._held:
                self._wake.set()

    async def _claim(
        self, io: Runtime, store: Coordinator, key: bytes, over: bytes | None
    ) -> bytes | Failed | None:
        """Try once to claim a key, in the place of a claim of this process that was lost, too."""
        claim, aclaim = store.claim, store.aclaim
        token = await self._cache.attempt(io, claim, aclaim, key, seconds=LEASE, over=over)
        if token is None and (lost := self._lost.pop(key, None)) is not None:
            token = await self._cache.attempt(io, claim, aclaim, key, seconds=LEASE, over=lost)
        if isinstance(token, bytes):
            self._hold(key, token)
        return token

    def _hold(self, key: bytes, token: bytes) -> None:
        with self._lock:
            if self._pid != os.getpid():  # what the parent holds is the parent's
                self._held, self._keeper, self._pid = {}, None, os.getpid()
            self._held[token] = key
            if self._keeper is None:
                self._wake = Event()
                self._keeper = Thread(target=self._keep, name="ragopt-claims", daemon=True)
                self._keeper.start()

    def _keep(self) -> None:
        while True:
            woken = self._wake.wait(LEASE / 3)
            with self._lock:
                held = list(self._held.items())
                if not held:
                    self._keeper = None
                    return
                self._wake.clear()
            if woken:  # there were none a moment ago, so these have just begun
                continue
            store = self._cache.coordinator
            for token, key in held:
                try:
                    if store is None or not store.extend(key, token, seconds=LEASE):
                        self.let_go(token)  # deleted, or taken over: the late value is dropped
                except Exception:  # noqa: BLE001 - out of reach: try again before it ends
                    self._cache.stats.count(self._cache.layers[-1].name, "error")
