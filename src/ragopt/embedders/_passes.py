"""Forward passes over many texts: batches by tokens, and what happens when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from threading import Lock

import numpy as np

from ragopt.embedders.engines import Engine, Tokens
from ragopt.embedders.health import EmbedderStats
from ragopt.errors import OutOfMemory
from ragopt.types import OUTPUTS, EmbeddingBatch, Output

_CALM = 8  # passes without a fault before a batch that was made smaller grows again
_GROWTH = 1.5
# How PyTorch (CUDA, MPS, CPU) and ONNX Runtime say it. Their errors are of many types.
_SAYINGS = (
    "out of memory",
    "can't allocate memory",
    "failed to allocate memory",
    "cublas_status_alloc_failed",
)


def batch_tokens_for(device: str) -> int:
    """Return how many tokens make a good batch: on a CPU, as many as its last cache can hold."""
    return 1_024 if device == "cpu" else 65_536


class Passes:
    """Runs an engine over any number of texts.

    The longest texts come first, so that a batch that is too large shows at once and texts of
    like length are together. When memory runs out, the batch is halved and tried again from where
    it was: nothing is computed twice or lost. After some passes without a fault it grows again.

    Args:
        engine: What computes.
        stats: Where to count.
        batch_tokens: Tokens in one pass.
        batch_size: Texts in one pass; None for as many as the tokens allow.
    """

    def __init__(
        self,
        engine: Engine,
        stats: EmbedderStats,
        batch_tokens: int,
        batch_size: int | None = None,
    ) -> None:
        self._engine = engine
        self._stats = stats
        self._most_tokens = batch_tokens
        self._most_texts = batch_size
        self._lock = Lock()
        self._tokens = batch_tokens  # as many as memory allowed of late
        self._calm = 0

    @property
    def shrunk(self) -> bool:
        """Whether batches are smaller than they were set to, since memory ran out."""
        return self._tokens < self._most_tokens

    def run(
        self, texts: Sequence[Tokens], outputs: frozenset[Output]
    ) -> Iterator[tuple[list[int], EmbeddingBatch]]:
        """Yield ``(numbers of texts, their embeddings)`` until each text was there once.

        Raises:
            OutOfMemory: There is not enough memory for one text alone.
            Exception: What the engine raised, with a note that names the text.
        """
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]), reverse=True)
        place = 0
        while place < len(order):
            rows = self._next(order, place, texts)
            try:
                batch = self._engine.encode([texts[row] for row in rows], outputs)
            except Exception as error:
                if not is_out_of_memory(error):
                    self._note(error, rows, texts, outputs)
                    raise
                self._engine.free()
                self._shrink(rows, texts, error)
                continue
            self._grow()
            self._stats.passed(len(rows), sum(len(texts[row]) for row in rows))
            place += len(rows)
            yield rows, batch

    def embed(
        self,
        texts: Sequence[Tokens],
        outputs: frozenset[Output],
        done: Callable[[list[int]], None] | None = None,
    ) -> EmbeddingBatch:
        """Return the embeddings of all texts, in their order; see ``run``.

        Args:
            texts: What to embed.
            outputs: What to make of it.
            done: Called after each pass with the numbers of its texts. What it raises ends the
                work and is raised as it is.
        """
        dense: np.ndarray | None = None
        others: dict[Output, list[object]] = {
            name: [None] * len(texts) for name in OUTPUTS if name in outputs and name != "dense"
        }
        for rows, batch in self.run(texts, outputs):
            if batch.dense is not None:
                if dense is None:
                    dense = np.empty((len(texts), batch.dense.shape[1]), np.float32)
                dense[rows] = batch.dense
            for name, column in others.items():
                for row, value in zip(rows, getattr(batch, name), strict=True):
                    column[row] = value
            if done is not None:
                done(rows)
        return EmbeddingBatch(dense=dense, **others)  # type: ignore[arg-type]

    def _next(self, order: list[int], place: int, texts: Sequence[Tokens]) -> list[int]:
        """Return the next rows: at least one, and no more tokens than memory allowed of late."""
        end, tokens = place, 0
        most = len(order) if self._most_texts is None else place + self._most_texts
        while end < min(most, len(order)):
            tokens += len(texts[order[end]])
            if tokens > self._tokens and end > place:
                break
            end += 1
        return order[place:end]

    def _shrink(self, rows: list[int], texts: Sequence[Tokens], error: Exception) -> None:
        self._stats.shrank()
        tokens = sum(len(texts[row]) for row in rows)
        if len(rows) == 1:
            raise OutOfMemory(
                f"The memory of {self._engine.device} does not suffice for one text of {tokens:,} "
                "tokens.",
                fix="Lower max_length, split long texts, free memory, or use another device.",
            ) from error
        with self._lock:
            self._tokens, self._calm = tokens // 2, 0

    def _grow(self) -> None:
        if self.shrunk:
            with self._lock:
                self._calm += 1
                if self._calm >= _CALM:
                    self._calm = 0
                    self._tokens = min(self._most_tokens, int(self._tokens * _GROWTH) + 1)

    def _note(
        self,
        error: Exception,
        rows: list[int],
        texts: Sequence[Tokens],
        outputs: frozenset[Output],
    ) -> None:
        """Add to an error which text it is about, found by trying halves."""
        while len(rows) > 1:
            half = rows[: len(rows) // 2]
            rest = rows[len(rows) // 2 :]
            rows = half if self._fails(half, texts, outputs) else rest
        if self._fails(rows, texts, outputs):
            (row,) = rows
            error.add_note(f"This happened while text {row} was embedded: {texts[row].text[:60]!r}")

    def _fails(self, rows: list[int], texts: Sequence[Tokens], outputs: frozenset[Output]) -> bool:
        try:
            self._engine.encode([texts[row] for row in rows], outputs)
        except Exception:  # noqa: BLE001 - the first error is the one that is raised
            return True
        return False


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, and not anything else."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(saying in text for saying in _SAYINGS)
