"""What every embedder with a model of its own does: tokens, batches, sharing, health."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from threading import Lock
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ragopt._run import run
from ragopt._runtime import ASYNC, SYNC, Runtime
from ragopt.embedders._files import ModelFiles
from ragopt.embedders._merging import joined, one_each, taken
from ragopt.embedders._packed import most_positions
from ragopt.embedders._passes import Passes, batch_tokens_for
from ragopt.embedders._tokens import LongText, TextTokenizer, Tokenized
from ragopt.embedders.base import BaseEmbedder
from ragopt.embedders.engines import Engine
from ragopt.embedders.health import EmbedderStats, Health, Status
from ragopt.embedders.sharing import MODELS, Shared
from ragopt.errors import InvalidInput
from ragopt.types import DENSE, EmbeddingBatch, Output, Role

Param: TypeAlias = str | int | float | bool | None

_WINDOW = 1024  # texts that are in memory as tokens at a time
_TEST_TEXT = "Health check: 動作確認"


class _Ready(NamedTuple):
    shared: Shared[Any]
    tokenizer: TextTokenizer
    passes: Passes
    engine: Engine


class TextModelEmbedder(BaseEmbedder):
    """An embedder that runs a model in this process.

    The model is loaded at the first text, once in a process for all embedders that name the same
    files, device and precision, and dropped when the last of them is closed or forgotten.

    Args:
        files: Where the model is.
        max_length: Tokens that are read of a text; None for what the model's files say.
        batch_tokens: Tokens in one forward pass; None for what suits the device.
        batch_size: Texts in one forward pass; None for as many as the tokens allow.
        long_text: What becomes of texts longer than that: ``"cut"`` at the end of a sentence,
            with a ``TruncationWarning``; ``"refuse"``; or ``"split"`` into pieces whose dense
            vectors are averaged, weighted by their tokens, whose sparse ones are united by the
            highest weight, and whose multi-vectors are joined.
        normalize: Dense vectors have length 1.
        prefixes: Put before every text of a role.
    """

    def __init__(
        self,
        files: ModelFiles,
        *,
        max_length: int | None,
        batch_tokens: int | None,
        batch_size: int | None,
        long_text: LongText,
        normalize: bool,
        prefixes: dict[Role, str],
    ) -> None:
        least = min(each for each in (batch_tokens, batch_size, 1) if each is not None)
        if least < 1 or (max_length is not None and max_length < 3):
            raise InvalidInput(
                f"batch_size={batch_size}, batch_tokens={batch_tokens} and "
                f"max_length={max_length} were given.",
                fix="Give batches of 1 or more and a maximum length of 3 tokens or more.",
            )
        if long_text not in ("cut", "refuse", "split"):
            raise InvalidInput(
                f"long_text={long_text!r} was given.", fix='Use "cut", "refuse" or "split".'
            )
        self.model = files.model
        self.stats = EmbedderStats()
        """What this embedder did."""
        self._files = files
        self._max_length = max_length
        self._batch_tokens = batch_tokens
        self._batch_size = batch_size
        self._long_text = long_text
        self._normalize = normalize
        self._prefixes = prefixes
        self._lock = Lock()
        self._state: _Ready | None = None

    # -- what a kind of model says of itself -------------------------------------------------

    @property
    @abstractmethod
    def _limit(self) -> int:
        """Tokens that are read of a text."""

    @abstractmethod
    def _model_key(self) -> Hashable:
        """Return what tells the model in memory from every other one."""

    @abstractmethod
    def _load_model(self) -> Any:
        """Load the model: files, device and precision, but no setting of this embedder alone."""

    @abstractmethod
    def _engine_over(self, model: Any) -> tuple[Any, Engine]:
        """Return the tokenizer of a loaded model, and the engine with this one's settings."""

    def _params(self, **own: Param) -> tuple[tuple[str, Param], ...]:
        """Return what the vectors depend on, of every kind of model and of this one alone."""
        shared: dict[str, Param] = {
            "document_prefix": self._prefixes["document"],
            "long_text": self._long_text,
            "max_length": self._limit,
            "normalize": self._normalize,
            "query_prefix": self._prefixes["query"],
        }
        return tuple(sorted((shared | own).items()))

    def _allowed(self, limit: int, config: Mapping[str, Any]) -> int:
        """Return a number of tokens; InvalidInput if the model has no positions for so many."""
        most = most_positions(config)
        if most is not None and limit > most:
            raise InvalidInput(
                f"max_length={limit:,} was given, but {self.model} reads at most {most:,} tokens.",
                fix="Give a smaller one, or none.",
            )
        return limit

    def _finish(self, batch: EmbeddingBatch) -> EmbeddingBatch:
        """Do to vectors what the engine does not."""
        return batch

    # -- public ------------------------------------------------------------------------------

    def load(self) -> None:
        """Load the model now, rather than at the first text, and embed a first text.

        Raises:
            StorageError: The model's files cannot be found or read.
            InvalidInput: There is no such device.
        """
        run(self._warm_up(SYNC))

    async def aload(self) -> None:
        """Load the model now, rather than at the first text; see ``load``."""
        await self._warm_up(ASYNC)

    def unload(self) -> None:
        """Let go of the model. Its memory is free when no other embedder uses it."""
        with self._lock:
            state, self._state = self._state, None
        if state is not None:
            state.shared.release()

    def stream(
        self,
        texts: Iterable[str],
        *,
        role: Role = "document",
        outputs: Iterable[Output] = DENSE,
        window: int = _WINDOW,
    ) -> Iterator[tuple[list[str], EmbeddingBatch]]:
        """Embed any number of texts in bounded memory.

        Args:
            texts: Read as they are needed.
            role: Whether they are queries or documents.
            outputs: Any of ``"dense"``, ``"sparse"``, ``"multi"``.
            window: Texts that are in memory at a time; those of like length share a pass.

        Yields:
            Texts, in their order, and their embeddings.
        """
        wanted, remaining = tuple(outputs), iter(texts)
        while part := list(islice(remaining, window)):
            yield part, self.embed(part, role=role, outputs=wanted)

    def health(self) -> Health:
        """Embed a test text, if the model is loaded, and say how that went."""
        return run(self._health(SYNC))

    async def ahealth(self) -> Health:
        """Embed a test text, if the model is loaded, and say how that went."""
        return await self._health(ASYNC)

    # -- one body for both colours -----------------------------------------------------------

    async def _embed(
        self, io: Runtime, texts: list[str], role: Role, outputs: frozenset[Output]
    ) -> EmbeddingBatch:
        begin = time.perf_counter()
        try:
            state = await self._ready(io)
            batch = await io.cpu(self._compute, state, texts, role, outputs)
        except Exception as error:
            self.stats.failed(error)
            raise
        self.stats.succeeded(len(texts), time.perf_counter() - begin)
        return batch

    async def _ready(self, io: Runtime) -> _Ready:
        state = self._state
        if state is None:
            shared = await MODELS.acquire_in(io, self._model_key(), self._load_model)
            state = self._take(shared)
        return state

    def _take(self, shared: Shared[Any]) -> _Ready:
        with self._lock:
            if self._state is not None:  # another thread was faster
                shared.release()
                return self._state
            tokenizer, engine = self._engine_over(shared.value)
            tokens = self._batch_tokens or batch_tokens_for(engine.device)
            self._state = _Ready(
                shared,
                TextTokenizer(tokenizer, self._limit, self._long_text),
                Passes(engine, self.stats, tokens, self._batch_size),
                engine,
            )
            return self._state

    async def _warm_up(self, io: Runtime) -> None:
        await self._try_out(io, await self._ready(io))

    async def _try_out(self, io: Runtime, state: _Ready) -> EmbeddingBatch:
        tokens = state.tokenizer.encode([_TEST_TEXT]).pieces
        return await io.cpu(state.passes.embed, tokens, frozenset(DENSE))

    async def _health(self, io: Runtime) -> Health:
        state = self._state
        if state is None:
            return Health("not_initialized", self.model)
        engine, begin = state.engine, time.perf_counter()
        try:
            batch = await self._try_out(io, state)
        except Exception as error:  # noqa: BLE001 - that is the finding
            return self._found("unhealthy", state, None, str(error))
        seconds = time.perf_counter() - begin
        problem = None
        if batch.dense is None or batch.dense.shape != (1, engine.dimension):
            problem = "The test text's vector has the wrong length."
        elif not np.isfinite(batch.dense).all():
            problem = "The test text's vector holds NaN or infinity."
        elif state.passes.shrunk:
            problem = "Memory ran out; batches are smaller than they were set to."
        return self._found("degraded" if problem else "healthy", state, seconds, problem)

    def _found(
        self, status: Status, state: _Ready, seconds: float | None, problem: str | None
    ) -> Health:
        engine = state.engine
        return Health(status, self.model, engine.device, engine.dimension, seconds, problem)

    # -- blocking work -----------------------------------------------------------------------

    def _compute(
        self, state: _Ready, texts: list[str], role: Role, outputs: frozenset[Output]
    ) -> EmbeddingBatch:
        unique = list(dict.fromkeys(texts))
        whole = joined(
            [
                self._finish(
                    one_each(
                        state.passes.embed(tokenized.pieces, outputs),
                        tokenized,
                        normalize=self._normalize,
                    )
                )
                for tokenized in _tokenized(state.tokenizer, unique, self._prefixes[role])
            ]
        )
        if len(unique) == len(texts):
            return whole
        numbers = {text: row for row, text in enumerate(unique)}
        return taken(whole, [numbers[text] for text in texts])


def _tokenized(tokenizer: TextTokenizer, texts: list[str], prefix: str) -> Iterator[Tokenized]:
    """Yield texts as tokens, window by window; the next window while this one is computed."""
    if len(texts) <= _WINDOW:
        yield tokenizer.encode(texts, prefix)
        return
    with ThreadPoolExecutor(1, "ragopt-tokens") as ahead:
        following = ahead.submit(tokenizer.encode, texts[:_WINDOW], prefix)
        for start in range(_WINDOW, len(texts) + _WINDOW, _WINDOW):
            tokenized = following.result()
            if start < len(texts):
                part = texts[start : start + _WINDOW]
                following = ahead.submit(tokenizer.encode, part, prefix)
            yield tokenized
