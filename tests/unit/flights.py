"""Flights that tell how many have joined one, so that a test need not guess how long that takes."""

from __future__ import annotations

import time
from typing import Any

from ragopt.cache.flight import Flights


class Watched(Flights[Any]):
    """Counts those who lead or wait, over all keys."""

    def __init__(self) -> None:
        super().__init__()
        self.joined: list[bytes] = []

    def _join(self, key: bytes, caller: object) -> Any:
        found = super()._join(key, caller)
        self.joined.append(key)  # whoever has joined gets the result, however late he looks
        return found

    def until_joined(self, number: int) -> None:
        until = time.monotonic() + 20
        while len(self.joined) < number:
            assert time.monotonic() < until
            time.sleep(0.001)
