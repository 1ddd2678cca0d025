"""What a Redis index was made for, as it is written on its server."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["hnsw", "flat"]


@dataclass(frozen=True, slots=True)
class Made:
    """What an index was made for, and a token of its making."""

    dimension: int
    metric: str
    kind: str
    precision: str
    token: str
    text: bool = False

    def dump(self) -> bytes:
        """Write it as it stands in Redis."""
        values = asdict(self)
        if not self.text:  # as it was written before texts could be searched
            del values["text"]
        return json.dumps(values).encode()

    @classmethod
    def load(cls, text: bytes) -> Made:
        """Read what ``dump`` wrote."""
        return cls(**json.loads(text))
