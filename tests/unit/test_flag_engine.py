"""The reference engine against FlagEmbedding's own ``encode``."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import checkpoints

from ragopt.embedders._flag import FlagEngine
from ragopt.embedders._heads import sparse_vectors
from ragopt.embedders.engines import Engine, Tokens
from ragopt.types import OUTPUTS, EmbeddingBatch, Output

TEXTS = list(checkpoints.MIXED)
SUBSETS: list[frozenset[Output]] = [
    frozenset(name for bit, name in enumerate(OUTPUTS) if number & 1 << bit)
    for number in range(1, 8)
]
ALL = SUBSETS[-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.small(tmp_path_factory.mktemp("m3"))


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return reference(folder)


@pytest.fixture(scope="module")
def engine(folder: Path) -> FlagEngine:
    return FlagEngine(str(folder))


def reference(folder: Path, **options: Any) -> Any:
    from FlagEmbedding import BGEM3FlagModel  # its import takes seconds

    return BGEM3FlagModel(str(folder), use_fp16=False, devices="cpu", **options)


def tokens(reference: Any, texts: list[str]) -> list[Tokens]:
    ids = reference.tokenizer(texts, truncation=True, max_length=8192)["input_ids"]
    return [Tokens(text, row) for text, row in zip(texts, ids, strict=True)]


def compare(
    ours: EmbeddingBatch,
    theirs: Any,
    texts: list[str],
    outputs: Collection[Output] = ALL,
    rounding: float = 0.0,
) -> None:
    """Check that a batch is what the package's own ``encode`` makes of the texts."""
    made = theirs.encode(
        texts,
        batch_size=64,
        max_length=8192,
        return_dense="dense" in outputs,
        return_sparse="sparse" in outputs,
        return_colbert_vecs="multi" in outputs,
    )
    assert {name for name in OUTPUTS if getattr(ours, name) is not None} == set(outputs)
    if ours.dense is not None:
        assert ours.dense.dtype == np.float32
        np.testing.assert_allclose(ours.dense, made["dense_vecs"], rtol=0, atol=rounding)
    if ours.sparse is not None:
        for mine, weights in zip(ours.sparse, made["lexical_weights"], strict=True):
            expected = {int(token): float(weight) for token, weight in weights.items()}
            assert mine.to_dict() == pytest.approx(expected, rel=0, abs=rounding)
    if ours.multi is not None:
        for rows, expected_rows in zip(ours.multi, made["colbert_vecs"], strict=True):
            assert rows.dtype == np.float32
            np.testing.assert_allclose(rows, expected_rows, rtol=0, atol=rounding)


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_one_text_alone_is_exactly_the_package(engine: FlagEngine, theirs: Any, text: str) -> None:
    compare(engine.encode(tokens(theirs, [text]), ALL), theirs, [text])


@pytest.mark.parametrize("outputs", SUBSETS, ids=lambda names: "+".join(sorted(names)))
def test_a_mixed_batch_is_the_package(
    engine: FlagEngine, theirs: Any, outputs: frozenset[Output]
) -> None:
    # The package sorts texts by length; in another order sums may be rounded differently.
    ours = engine.encode(tokens(theirs, TEXTS), outputs)
    compare(ours, theirs, TEXTS, outputs, rounding=1e-6)


def test_a_batch_in_the_order_of_the_package_is_exactly_the_package(
    engine: FlagEngine, theirs: Any
) -> None:
    lengths = [len(row) for row in tokens(theirs, TEXTS)]
    longest_first = [TEXTS[row] for row in np.argsort([-length for length in lengths])]
    compare(engine.encode(tokens(theirs, longest_first), ALL), theirs, longest_first)


def test_without_normalising(folder: Path) -> None:
    theirs = reference(folder, normalize_embeddings=False)
    ours = FlagEngine(str(folder), normalize=False).encode(tokens(theirs, TEXTS), ALL)
    compare(ours, theirs, TEXTS, rounding=1e-5)
    assert ours.dense is not None
    assert (np.linalg.norm(ours.dense, axis=1) > 2).all()


def test_sparse_weights_are_positive_and_of_no_special_token(
    engine: FlagEngine, theirs: Any
) -> None:
    batch = engine.encode(tokens(theirs, TEXTS), frozenset({"sparse"}))
    assert batch.sparse is not None
    assert len(batch.sparse[TEXTS.index("")]) == 0
    for vector in batch.sparse:
        assert vector.indices.dtype == np.int64
        assert (vector.values > 0).all()
        assert not set(vector.indices.tolist()) & {0, 1, 2, 3}


def test_the_highest_weight_of_a_token_counts() -> None:
    ids = [[0, 7, 5, 7, 3, 6, 2], [0, 2], [0, 7, 2]]
    weights = np.array([9, 0.25, 0, 0.5, 9, 1, 9, 9, 9, 9, 0.125, 9], np.float32)
    found = [each.to_dict() for each in sparse_vectors(ids, weights, {0, 1, 2, 3})]
    assert found == [{6: 1.0, 7: 0.5}, {}, {7: 0.125}]
    assert sparse_vectors([], np.empty(0, np.float32), {0}) == []


def test_a_multi_vector_has_a_row_for_each_token_but_the_first(
    engine: FlagEngine, theirs: Any
) -> None:
    texts = tokens(theirs, TEXTS)
    batch = engine.encode(texts, frozenset({"multi"}))
    assert batch.multi is not None
    assert [len(rows) for rows in batch.multi] == [len(text) - 1 for text in texts]
    for rows in batch.multi:
        assert rows.base is None  # nobody keeps the padded batch
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


def test_several_threads_do_not_disturb_each_other(engine: FlagEngine, theirs: Any) -> None:
    texts = tokens(theirs, TEXTS)
    alone = [engine.encode([text], ALL) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda text: engine.encode([text], ALL), texts * 4))
    for row, batch in enumerate(together):
        expected = alone[row % len(texts)]
        np.testing.assert_array_equal(batch.dense, expected.dense)
        assert batch.sparse == expected.sparse


def test_what_it_says_of_itself(engine: FlagEngine) -> None:
    assert isinstance(engine, Engine)
    assert (engine.device, engine.dimension, engine.outputs) == ("cpu", 64, ALL)
    engine.free()


@pytest.mark.parametrize("missing", checkpoints.HEADS)
def test_one_missing_head(folder: Path, tmp_path: Path, theirs: Any, missing: str) -> None:
    checkpoints.small(tmp_path, without=[missing])
    engine = FlagEngine(str(tmp_path))
    gone = {"colbert_linear": "multi", "sparse_linear": "sparse"}[missing]
    assert engine.outputs == ALL - {gone}
    # The package itself would ignore the head that is there; the whole folder tells what it says.
    texts = tokens(theirs, TEXTS[:1])
    compare(engine.encode(texts, engine.outputs), theirs, TEXTS[:1], engine.outputs)
    with pytest.raises(TypeError):  # rather than random numbers
        engine.encode(texts, ALL)


def test_both_heads_missing(tmp_path: Path, theirs: Any) -> None:
    engine = FlagEngine(str(checkpoints.plain_xlmr(tmp_path)))
    assert engine.outputs == {"dense"}
    texts = tokens(theirs, TEXTS[:1])
    compare(engine.encode(texts, engine.outputs), theirs, TEXTS[:1], engine.outputs)


def test_a_multi_vector_may_be_narrower(folder: Path, tmp_path: Path, theirs: Any) -> None:
    checkpoints.small(tmp_path, without=["colbert_linear"])
    head = torch.load(folder / "colbert_linear.pt", weights_only=True)
    narrow = {name: weight[:8] for name, weight in head.items()}
    torch.save(narrow, tmp_path / "colbert_linear.pt")
    texts = tokens(theirs, TEXTS[:1])
    batch = FlagEngine(str(tmp_path)).encode(texts, ALL)
    assert batch.multi is not None
    assert batch.multi[0].shape == (len(texts[0]) - 1, 8)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_where_it_is_asked_for(
    folder: Path, theirs: Any, dtype: Any
) -> None:
    engine = FlagEngine(str(folder), dtype=dtype)
    assert engine._module.model.dtype == getattr(torch, dtype)
    texts = tokens(theirs, TEXTS[:4])
    batch = engine.encode(texts, ALL)
    assert batch.dense is not None
    expected = theirs.encode(TEXTS[:4])["dense_vecs"]
    np.testing.assert_allclose(batch.dense, expected, atol=0.05)
    assert not np.allclose(batch.dense, expected, atol=1e-6)


def test_errors_of_the_software_come_unchanged(engine: FlagEngine) -> None:
    with pytest.raises(IndexError, match="index out of range"):
        engine.encode([Tokens("?", [0, 10**6, 2])], ALL)
    too_long = [Tokens("?", [0] + [5] * 9_000 + [2])]
    with pytest.raises((IndexError, RuntimeError)):
        engine.encode(too_long, ALL)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    checkpoints.small(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        FlagEngine(str(tmp_path))
