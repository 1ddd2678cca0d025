"""The port between an embedder and the software that runs its model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ragopt.types import EmbeddingBatch, Output


@dataclass(frozen=True, slots=True)
class Tokens:
    """One text as a model reads it.

    Args:
        text: The text, with the prefix of its role, cut where it was too long.
        ids: Its token ids, with the special ones at both ends.
    """

    text: str
    ids: Sequence[int]

    def __len__(self) -> int:
        return len(self.ids)


@runtime_checkable
class Engine(Protocol):
    """Runs one model on one device. Several threads may call it; it says itself if it locks."""

    @property
    def device(self) -> str:
        """Where it runs: ``cpu``, ``cuda:0``, ``mps``."""
        ...

    @property
    def dimension(self) -> int:
        """Length of a dense vector."""
        ...

    @property
    def outputs(self) -> frozenset[Output]:
        """What the loaded files can make."""
        ...

    def encode(self, texts: Sequence[Tokens], outputs: frozenset[Output], /) -> EmbeddingBatch:
        """Embed texts in one forward pass, in the order given; exactly the outputs asked for.

        Sparse weights are those above 0, without special tokens, the highest of each token id.
        A multi-vector has one row for each token but the first.

        Raises:
            Exception: Whatever the software raises, unchanged; the caller finds out what to do.
        """
        ...

    def free(self) -> None:
        """Give back memory that the software keeps for its next call."""
        ...
