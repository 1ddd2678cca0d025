"""Texts through a model in this process: windows of tokens, streams, progress."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Collection,
    Generator,
    Iterable,
    Iterator,
    Sequence,
    Sized,
)
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from ragopt._progress import Progress, Tally, tallied
from ragopt._run import iterate, run
from ragopt._runtime import ASYNC, SYNC, Runtime
from ragopt.embedders._merging import joined, one_each, taken
from ragopt.embedders._tokens import TextTokenizer, Tokenized
from ragopt.embedders.local_model import LocalModelEmbedder, Ready
from ragopt.errors import InvalidInput
from ragopt.types import DENSE, EmbeddingBatch, Output, Role

_WINDOW = 1024  # texts that are in memory as tokens at a time


class TextModelEmbedder(LocalModelEmbedder):
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

    def _finish(self, batch: EmbeddingBatch) -> EmbeddingBatch:
        """Do to vectors what the engine does not."""
        return batch

    # -- public ------------------------------------------------------------------------------

    def embed(
        self,
        texts: Sequence[str],
        /,
        *,
        role: Role = "document",
        outputs: Collection[Output] = DENSE,
        progress: Progress | bool = False,
    ) -> EmbeddingBatch:
        """Embed texts in the order given.

        Args:
            texts: The texts; none is allowed.
            role: Whether they are queries or documents. Some models treat them differently.
            outputs: Any of ``"dense"``, ``"sparse"``, ``"multi"``.
            progress: Called after each forward pass with the texts that are done and with all of
                them, in the thread that computes; True for a bar on stderr. What it raises ends
                the work and is raised here.

        Returns:
            A batch with exactly the outputs asked for; dense is float32 ``(n, dimension)``.

        Raises:
            InvalidInput: A text is not a string, or the model cannot make an output.
            StorageError: The model's files cannot be found, fetched or read.

        Examples:
            >>> embedder.embed(texts, progress=True)
        """
        return run(self._told(SYNC, texts, role, outputs, progress))

    async def aembed(
        self,
        texts: Sequence[str],
        /,
        *,
        role: Role = "document",
        outputs: Collection[Output] = DENSE,
        progress: Progress | bool = False,
    ) -> EmbeddingBatch:
        """Embed texts in the order given; see ``embed``."""
        return await self._told(ASYNC, texts, role, outputs, progress)

    def stream(
        self,
        texts: Iterable[str],
        *,
        role: Role = "document",
        outputs: Iterable[Output] = DENSE,
        window: int = _WINDOW,
        progress: Progress | bool = False,
    ) -> Generator[tuple[list[str], EmbeddingBatch], None, None]:
        """Embed any number of texts in bounded memory.

        Args:
            texts: Read as they are needed.
            role: Whether they are queries or documents.
            outputs: Any of ``"dense"``, ``"sparse"``, ``"multi"``.
            window: Texts that are in memory at a time; those of like length share a pass.
            progress: As in ``embed``; the number of all texts is None if they have no length.

        Yields:
            Texts, in their order, and their embeddings.

        Raises:
            InvalidInput: The window is empty, or as in ``embed``; what was yielded stays good.

        Examples:
            >>> for part, batch in embedder.stream(lines, progress=True):
            ...     np.save(file, batch.dense)
        """
        return iterate(self._stream(SYNC, texts, role, outputs, window, progress))

    def astream(
        self,
        texts: Iterable[str] | AsyncIterable[str],
        *,
        role: Role = "document",
        outputs: Iterable[Output] = DENSE,
        window: int = _WINDOW,
        progress: Progress | bool = False,
    ) -> AsyncGenerator[tuple[list[str], EmbeddingBatch], None]:
        """Embed any number of texts in bounded memory; see ``stream``.

        Args:
            texts: Read as they are needed, in the event loop: where reading takes long, give what
                is read with ``async for``.
            role: Whether they are queries or documents.
            outputs: Any of ``"dense"``, ``"sparse"``, ``"multi"``.
            window: Texts that are in memory at a time; those of like length share a pass.
            progress: As in ``stream``, called in the thread that computes.

        Yields:
            Texts, in their order, and their embeddings.
        """
        return self._stream(ASYNC, texts, role, outputs, window, progress)

    # -- one body for both colours -----------------------------------------------------------

    async def _told(
        self,
        io: Runtime,
        texts: Sequence[str],
        role: Role,
        outputs: Collection[Output],
        progress: Progress | bool,
    ) -> EmbeddingBatch:
        await self._read_files(io)
        checked, wanted = self._check(texts, role, outputs)
        if not checked:
            return self._none(wanted)
        with tallied(progress, len(checked), self.model) as tally:
            return await self._embed(io, checked, role, wanted, tally)

    async def _stream(
        self,
        io: Runtime,
        texts: Iterable[str] | AsyncIterable[str],
        role: Role,
        outputs: Iterable[Output],
        window: int,
        progress: Progress | bool,
    ) -> AsyncGenerator[tuple[list[str], EmbeddingBatch], None]:
        if window < 1:
            raise InvalidInput(f"window={window} was given.", fix="Give 1 or more.")
        if isinstance(texts, str):
            raise InvalidInput("One string was given instead of many.", fix="Wrap it: [text].")
        asked = tuple(outputs)
        remaining = aiter(texts) if isinstance(texts, AsyncIterable) else iter(texts)
        total = len(texts) if isinstance(texts, Sized) else None
        await self._read_files(io)
        with tallied(progress, total, self.model) as tally:
            while part := await _next(remaining, window):
                checked, wanted = self._check(part, role, asked)
                yield part, await self._embed(io, checked, role, wanted, tally)

    async def _embed(
        self,
        io: Runtime,
        texts: list[str],
        role: Role,
        outputs: frozenset[Output],
        tally: Tally | None = None,
    ) -> EmbeddingBatch:
        begin = time.perf_counter()
        try:
            state = await self._ready(io)
            batch = await io.cpu(self._compute, state, texts, role, outputs, tally)
        except Exception as error:
            self.stats.failed(error)
            raise
        self.stats.succeeded(len(texts), time.perf_counter() - begin)
        return batch

    # -- blocking work -----------------------------------------------------------------------

    def _compute(
        self,
        state: Ready,
        texts: list[str],
        role: Role,
        outputs: frozenset[Output],
        tally: Tally | None,
    ) -> EmbeddingBatch:
        unique = Counter(texts)
        times = iter(unique.values())
        whole = joined(
            [
                self._finish(
                    one_each(
                        state.passes.embed(
                            tokenized.pieces,
                            outputs,
                            None if tally is None else _counting(tokenized, times, tally),
                        ),
                        tokenized,
                        normalize=self._normalize,
                    )
                )
                for tokenized in _tokenized(state.tokenizer, list(unique), self._prefixes[role])
            ]
        )
        if len(unique) == len(texts):
            return whole
        numbers = {text: row for row, text in enumerate(unique)}
        return taken(whole, [numbers[text] for text in texts])


def _counting(
    tokenized: Tokenized, times: Iterator[int], tally: Tally
) -> Callable[[list[int]], None]:
    """Return what counts texts as passes end: each with its last piece, as often as it is there."""
    pieces = Counter(tokenized.rows)
    worth = dict(zip(pieces, times, strict=False))  # the rest of the times is the next window's

    def passed(numbers: list[int]) -> None:
        texts = 0
        for number in numbers:
            row = tokenized.rows[number]
            pieces[row] -= 1
            texts += 0 if pieces[row] else worth[row]
        tally.add(texts)

    return passed


async def _next(remaining: Iterator[str] | AsyncIterator[str], most: int) -> list[str]:
    """Return so many texts, or those that are left."""
    if isinstance(remaining, Iterator):
        return list(islice(remaining, most))
    part: list[str] = []
    while len(part) < most:
        try:
            part.append(await anext(remaining))
        except StopAsyncIteration:
            break
    return part


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
