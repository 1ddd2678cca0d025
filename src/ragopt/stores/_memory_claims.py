"""Claims and change logs of one process."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from ragopt.protocols import ChangeLog
from ragopt.stores.coordinating import KEPT_CHANGES, new_claim


class MemoryClaims:
    """Who computes what, and until when that holds. Not safe to share without a lock."""

    def __init__(self) -> None:
        self._claims: dict[bytes, tuple[bytes, float]] = {}

    def take(self, key: bytes, now: float, seconds: float) -> bytes | None:
        """Claim a key; None if somebody else has it."""
        held = self._claims.get(key)
        if held is not None and held[1] > now:
            return None
        token = new_claim()
        self._claims[key] = token, now + seconds
        return token

    def holds(self, key: bytes, token: bytes, now: float) -> bool:
        """Return whether this claim is still there."""
        held = self._claims.get(key)
        return held is not None and held[0] == token and held[1] > now

    def extend(self, key: bytes, token: bytes, until: float) -> None:
        """Move the end of a claim."""
        self._claims[key] = token, until

    def end(self, keys: Iterable[bytes]) -> None:
        """Drop the claims on keys, if there are any."""
        if self._claims:
            for key in keys:
                self._claims.pop(key, None)

    def end_prefix(self, prefix: bytes) -> None:
        """Drop the claims on keys with a prefix."""
        self.end([key for key in self._claims if key.startswith(prefix)])


class MemoryLog:
    """The log of changes of one space. Not safe to share without a lock."""

    def __init__(self) -> None:
        self._changes: OrderedDict[bytes, int] = OrderedDict()  # the oldest change first
        self.state = ChangeLog(secrets.token_bytes(8), 0, 0)

    def mark(self, tags: Sequence[bytes]) -> ChangeLog:
        """Write down one change."""
        id_, seq, low = self.state
        seq += 1
        for tag in tags:
            self._changes[tag] = seq
            self._changes.move_to_end(tag)
        while len(self._changes) > KEPT_CHANGES:
            low = self._changes.popitem(last=False)[1]
        self.state = ChangeLog(id_, seq, low)
        return self.state

    def last(self, tags: Sequence[bytes]) -> list[int]:
        """Return the number of the last change of each tag; 0 for none."""
        return [self._changes.get(tag, 0) for tag in tags]

    def since(self, seq: int) -> list[bytes]:
        """Return what changed after ``seq``."""
        found = []
        for tag, changed in reversed(self._changes.items()):
            if changed <= seq:
                break
            found.append(tag)
        return found
