"""The model of an embedder in this process: found, loaded, shared, looked at and let go."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Hashable, Mapping
from functools import partial
from threading import Lock
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ragopt._run import run
from ragopt._runtime import ASYNC, SYNC, Runtime
from ragopt.embedders._files import ModelFiles
from ragopt.embedders._packed import most_positions
from ragopt.embedders._passes import Passes, batch_tokens_for
from ragopt.embedders._tokens import LongText, TextTokenizer
from ragopt.embedders.base import BaseEmbedder
from ragopt.embedders.engines import Engine
from ragopt.embedders.health import EmbedderStats, Health, Status
from ragopt.embedders.hub import Progress
from ragopt.embedders.sharing import MODELS, Shared
from ragopt.errors import InvalidInput
from ragopt.types import DENSE, EmbeddingBatch, Role

Param: TypeAlias = str | int | float | bool | None

_TEST_TEXT = "Health check: 動作確認"


class Ready(NamedTuple):
    """A loaded model, and what turns texts into passes over it."""

    shared: Shared[Any]
    tokenizer: TextTokenizer
    passes: Passes
    engine: Engine


class LocalModelEmbedder(BaseEmbedder):
    """An embedder whose model runs in this process; see ``TextModelEmbedder`` for its arguments.

    The model is loaded at the first text, once in a process for all embedders that name the same
    files, device and precision, and dropped when the last of them is closed or forgotten. Files
    that are not here are fetched from the hub before.
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
        self._state: Ready | None = None
        self._files_read = False

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

    # -- public ------------------------------------------------------------------------------

    def load(self, *, progress: Progress | None = None) -> None:
        """Load the model now, rather than at the first text, and embed a first text.

        Args:
            progress: Called some times a second, from another thread, while files come from the
                hub: with the bytes that are here and those that are to come in all. None for a
                bar where stderr is a terminal.

        Raises:
            BackendUnavailable: Files are missing, and the hub cannot be reached.
            StorageError: The model's files cannot be found or read.
            InvalidInput: There is no such device.
        """
        run(self._warm_up(SYNC, progress))

    async def aload(self, *, progress: Progress | None = None) -> None:
        """Load the model now, rather than at the first text; see ``load``."""
        await self._warm_up(ASYNC, progress)

    def unload(self) -> None:
        """Let go of the model. Its memory is free when no other embedder uses it."""
        with self._lock:
            state, self._state = self._state, None
        if state is not None:
            state.shared.release()

    def health(self) -> Health:
        """Embed a test text, if the model is loaded, and say how that went."""
        return run(self._health(SYNC))

    async def ahealth(self) -> Health:
        """Embed a test text, if the model is loaded, and say how that went."""
        return await self._health(ASYNC)

    # -- one body for both colours -----------------------------------------------------------

    async def _read_files(self, io: Runtime) -> None:
        """Have ``spec`` at hand, without blocking an event loop while its files are fetched."""
        if not self._files_read:
            await io.cpu(lambda: self.spec)
            self._files_read = True

    async def _ready(self, io: Runtime, progress: Progress | None = None) -> Ready:
        state = self._state
        if state is None:
            # First, since a branch is the commit that it stands for from then on.
            await self._read_files(io)
            key = await io.cpu(self._model_key)  # it may import PyTorch to look for a device
            load = partial(self._load, progress)
            state = self._take(await MODELS.acquire_in(io, key, load))
        return state

    def _load(self, progress: Progress | None) -> Any:
        self._files.fetch(progress)
        return self._load_model()

    def _take(self, shared: Shared[Any]) -> Ready:
        with self._lock:
            if self._state is not None:  # another thread was faster
                shared.release()
                return self._state
            tokenizer, engine = self._engine_over(shared.value)
            tokens = self._batch_tokens or batch_tokens_for(engine.device)
            self._state = Ready(
                shared,
                TextTokenizer(tokenizer, self._limit, self._long_text),
                Passes(engine, self.stats, tokens, self._batch_size),
                engine,
            )
            return self._state

    async def _warm_up(self, io: Runtime, progress: Progress | None) -> None:
        await self._try_out(io, await self._ready(io, progress))

    async def _try_out(self, io: Runtime, state: Ready) -> EmbeddingBatch:
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
        self, status: Status, state: Ready, seconds: float | None, problem: str | None
    ) -> Health:
        engine = state.engine
        return Health(status, self.model, engine.device, engine.dimension, seconds, problem)
