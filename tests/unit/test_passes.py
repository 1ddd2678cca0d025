"""Batches by tokens, and what happens when memory runs out, at any batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from ragopt.embedders._passes import Passes, is_out_of_memory
from ragopt.embedders.engines import Engine, Tokens
from ragopt.embedders.health import EmbedderStats
from ragopt.errors import OutOfMemory
from ragopt.types import EmbeddingBatch, Output

DENSE: frozenset[Output] = frozenset({"dense"})
TEXTS = [Tokens(f"text {n}", list(range(n % 7 + 1))) for n in range(50)]


class Scripted:
    """An engine that fails when it is told to, and otherwise says which text it saw."""

    device, dimension, outputs = "cpu", 2, DENSE

    def __init__(self, fails: Sequence[int] = (), most: int = 10**6) -> None:
        self.calls: list[list[str]] = []
        self.done: list[str] = []
        self.freed = 0
        self._fails = set(fails)
        self._most = most

    def encode(self, texts: Sequence[Tokens], outputs: frozenset[Output], /) -> EmbeddingBatch:
        self.calls.append([text.text for text in texts])
        if len(self.calls) - 1 in self._fails or sum(map(len, texts)) > self._most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.done += [text.text for text in texts]
        rows = [[float(text.text.split()[1]), float(len(text))] for text in texts]
        return EmbeddingBatch(dense=np.array(rows, np.float32))

    def free(self) -> None:
        self.freed += 1


def embed(engine: Engine, tokens: int = 40, size: int | None = None) -> EmbedderStats:
    stats = EmbedderStats()
    batch = Passes(engine, stats, tokens, size).embed(TEXTS, DENSE)
    assert batch.dense is not None
    assert batch.dense[:, 0].tolist() == list(range(50)), "every text in its own place"
    return stats


def test_batches_hold_no_more_tokens_than_they_may() -> None:
    engine = Scripted()
    stats = embed(engine, tokens=20)
    lengths = {text.text: len(text) for text in TEXTS}
    sizes = [sum(lengths[name] for name in call) for call in engine.calls]
    assert max(sizes) <= 20
    assert sizes == sorted(sizes, reverse=True) or max(map(len, engine.calls)) > 2
    assert stats.passes == len(sizes)
    assert stats.computed == 50
    longest = [max(lengths[name] for name in call) for call in engine.calls]
    assert longest == sorted(longest, reverse=True), "what is too large shows first"


def test_batches_hold_no_more_texts_than_they_may() -> None:
    engine = Scripted()
    embed(engine, size=4)
    assert max(map(len, engine.calls)) == 4


def test_a_text_with_more_tokens_than_a_batch_goes_alone() -> None:
    engine = Scripted()
    embed(engine, tokens=1)
    assert {len(call) for call in engine.calls} == {1}


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("index", range(6))
def test_memory_runs_out_at_any_batch(index: int, times: int) -> None:
    engine = Scripted(fails=range(index, index + times))
    stats = embed(engine)
    assert stats.out_of_memory == engine.freed == times
    assert sorted(engine.done) == sorted(text.text for text in TEXTS), "nothing twice, none lost"
    assert stats.failures.total() == 0


def test_the_batch_is_halved_and_grows_again() -> None:
    engine = Scripted(most=20)
    stats, tokens = EmbedderStats(), 64
    passes = Passes(engine, stats, tokens)
    passes.embed(TEXTS, DENSE)
    assert passes.shrunk
    assert 2 <= stats.out_of_memory <= 4
    engine._most = 10**6
    for _ in range(10):
        passes.embed(TEXTS, DENSE)
    assert not passes.shrunk


def test_a_batch_of_one_that_does_not_fit_is_one_clear_error() -> None:
    engine = Scripted(most=6)
    with pytest.raises(OutOfMemory, match=r"memory of cpu does not suffice for one text of 7"):
        embed(engine)
    assert isinstance(OutOfMemory("a", fix="b"), MemoryError)


class Picky(Scripted):
    def encode(self, texts: Sequence[Tokens], outputs: frozenset[Output], /) -> EmbeddingBatch:
        batch = super().encode(texts, outputs)
        if any(text.text == "text 17" for text in texts):
            raise RuntimeError("index out of range in self")
        return batch


def test_another_error_keeps_its_message_and_names_the_text() -> None:
    engine = Picky()
    with pytest.raises(RuntimeError, match="index out of range") as caught:
        embed(engine)
    assert str(caught.value) == "index out of range in self"
    assert caught.value.__notes__ == ["This happened while text 17 was embedded: 'text 17'"]
    assert engine.freed == 0, "no batch was made smaller"


def test_what_says_that_memory_ran_out() -> None:
    for error in (
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"
        ),
    ):
        assert is_out_of_memory(error)
    other: Exception
    for other in (RuntimeError("index out of range"), ValueError("out of memory"), KeyError("x")):
        assert not is_out_of_memory(other)


def test_the_real_allocator_says_so() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert is_out_of_memory(caught.value)
