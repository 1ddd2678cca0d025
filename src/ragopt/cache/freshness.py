"""How long a cached value is good, and what happens around its end."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TypeAlias

from ragopt.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Freshness:
    """How long a value is fresh, and what is done with it when it is no more.

    Args:
        ttl: Seconds that a value is fresh; None until it is evicted.
        jitter: Share of the time by which it is shortened at most, at random: values written
            together then do not end together.
        stale: Seconds after that in which the old value is still served, at once, while one
            caller's hit starts a new computation in the background.
        early: 1 (or more, for earlier) to start that computation before the value ends, at
            random, the sooner the longer it takes; 0 for never.
        sliding: Every hit starts the time again. A value that is asked for often is then never
            computed anew, so only for what cannot change.

    Raises:
        InvalidInput: A number is out of range.

    References:
        ``stale``: RFC 5861, stale-while-revalidate. ``early``: Vattani, Chierichetti and
        Lowenstein, "Optimal Probabilistic Cache Stampede Prevention", VLDB 2015 (XFetch).
    """

    ttl: float | None = 3_600.0
    jitter: float = 0.0
    stale: float = 0.0
    early: float = 0.0
    sliding: bool = False

    def __post_init__(self) -> None:
        if self.ttl is not None and not self.ttl > 0:
            raise InvalidInput(
                f"A time to live of {self.ttl} seconds was given.",
                fix="Pass seconds above 0, or None to keep the value until it is evicted.",
            )
        if not (0 <= self.jitter < 1 and self.stale >= 0 and self.early >= 0):
            raise InvalidInput(
                f"A freshness has jitter={self.jitter}, stale={self.stale}, early={self.early}.",
                fix="Give a jitter from 0 to below 1, and the others from 0 on.",
            )

    @classmethod
    def of(cls, ttl: TimeToLive) -> Freshness:
        """Return seconds, or None, as a freshness."""
        return ttl if isinstance(ttl, Freshness) else cls(ttl)

    def span(self) -> float:
        """Return the seconds that one value is fresh, jitter taken off; infinity for ever."""
        if self.ttl is None:
            return math.inf
        return self.ttl * (1 - self.jitter * random.random()) if self.jitter else self.ttl

    def kept(self, span: float) -> float | None:
        """Return the seconds that a value is kept which is fresh for ``span``."""
        return None if span == math.inf else span + self.stale

    def wants_refresh(self, left: float, cost: float) -> bool:
        """Return whether to compute anew now.

        Args:
            left: Seconds until the value ends; below 0 if it is stale.
            cost: Seconds that its computation took.
        """
        if left <= 0:
            return True
        # 1 - random() lies in (0, 1], so the logarithm is finite.
        return bool(self.early) and -cost * self.early * math.log(1 - random.random()) >= left


TimeToLive: TypeAlias = float | Freshness | None
"""Seconds, None for no end, or a ``Freshness``."""
