"""What a Redis index was made for, as it is written on its server."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from ragopt.errors import CorruptData, DimensionMismatch, InvalidInput

Kind: TypeAlias = Literal["hnsw", "flat"]
Ask: TypeAlias = Callable[..., Awaitable[list[Any]]]
"""Sends commands, and returns their replies."""


@dataclass(frozen=True, slots=True)
class Made:
    """What an index was made for, and a token of its making."""

    dimension: int
    metric: str
    kind: str
    precision: str
    token: str
    text: bool = False
    shards: int = 1

    def dump(self) -> bytes:
        """Write it as it stands in Redis."""
        values = asdict(self)
        if not self.text:  # as it was written before texts could be searched
            del values["text"]
        if self.shards == 1:  # and before there were shards
            del values["shards"]
        return json.dumps(values).encode()

    @classmethod
    def load(cls, text: bytes, name: str) -> Made:
        """Read what ``dump`` wrote about the index with a name."""
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise CorruptData(
                f"What is stored about the Redis index {name!r} cannot be read.",
                fix="It may come from a later version of ragopt. Give another name or prefix.",
            ) from error


async def name_model(ask: Ask, key: bytes, model: str | None, replace: bool) -> str | None:
    """Keep the name of the model in a hash, if there is none or to replace it; return the name.

    Without a model the name is forgotten.
    """
    if model is None:
        await ask(("HDEL", key, "model"))
        return None
    name = model.encode("utf-8", "surrogatepass")
    words = "HSET" if replace else "HSETNX", key, "model", name
    _, known = await ask(words, ("HGET", key, "model"))
    return model_name(known)


def model_name(name: bytes | None) -> str | None:
    """Return the name of a model as ``name_model`` was told it."""
    return None if name is None else str(name, "utf-8", "surrogatepass")


class Wanted(NamedTuple):
    """What an index is expected to be.

    Args:
        metric: How vectors are compared.
        kind: ``"hnsw"`` or ``"flat"``.
        precision: The numbers that are stored.
    """

    metric: str
    kind: str
    precision: str

    def check(self, made: Made, name: str, dimension: int | None) -> None:
        """Raise an error if the index with a name is none of these."""
        known = made.metric, made.kind, made.precision
        for what, one, wanted in zip(self._fields, known, self, strict=True):
            if one != wanted:
                raise InvalidInput(
                    f"The Redis index {name!r} was made for the {what} {one!r}, not for "
                    f"{wanted!r}.",
                    fix=f"Open it with its own {what}, or give another name.",
                )
        check_dimension(made, name, dimension)


def check_dimension(made: Made, name: str, dimension: int | None) -> None:
    """Raise DimensionMismatch if vectors of a dimension do not fit an index."""
    if dimension is not None and made.dimension != dimension:
        raise DimensionMismatch(
            f"The Redis index {name!r} holds vectors of dimension {made.dimension}, not "
            f"{dimension}. Nothing was changed.",
            fix="Use the embedding model that the index was made with, or give another name.",
        )
