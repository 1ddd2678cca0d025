"""Sparse vectors in the shapes of others, with the packages that define these shapes."""

import json
import warnings
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pgvector import SparseVector as PgSparseVector

from ragopt import CachedEmbedder, HashingEmbedder, SparseVector
from ragopt.embedders.sparse import (
    PGVECTOR_INDEXED,
    PGVECTOR_STORED,
    SparseEncoder,
    from_csr,
    from_lists,
    from_pgvector,
    sparse_fn,
    to_csr,
    to_lists,
    to_pgvector,
)
from ragopt.errors import InvalidInput, PruningWarning

scipy_sparse: Any = import_module("scipy.sparse")

VOCABULARY = 250_002
EMPTY = SparseVector.from_dict({})
TEXTS = ["How do I open a file?", "open the file", ""]

weights = st.floats(width=32, allow_nan=False, allow_infinity=False)
vectors = st.dictionaries(st.integers(0, VOCABULARY - 1), weights, max_size=20).map(
    SparseVector.from_dict
)
batches = st.lists(vectors, max_size=5)


def numbers(count: int) -> SparseVector:
    """Return a vector with so many entries, whose weights rise with their indices."""
    return SparseVector(np.arange(count) * 3, np.arange(1, count + 1, dtype=np.float32))


# -- one vector ------------------------------------------------------------------------------


@given(vectors, st.randoms())
def test_lists_and_back_in_any_order(vector: SparseVector, random: Any) -> None:
    indices, values = vector.to_lists()
    pairs = list(zip(indices, values, strict=True))
    random.shuffle(pairs)
    assert SparseVector.from_lists([i for i, _ in pairs], [v for _, v in pairs]) == vector


@given(vectors)
def test_dicts_and_lists_are_plain_and_survive_json(vector: SparseVector) -> None:
    lists, mapping = vector.to_lists(), vector.to_dict()
    assert {type(number) for number in [*lists.indices, *mapping]} <= {int}
    assert {type(number) for number in [*lists.values, *mapping.values()]} <= {float}
    assert SparseVector.from_lists(*json.loads(json.dumps(lists))) == vector
    assert SparseVector.from_dict(mapping) == vector


def test_control_numpy_numbers_are_not_json() -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        json.dumps(list(numbers(2).indices))


@pytest.mark.parametrize(
    ("indices", "values", "problem"),
    [
        ([3, 3], [1.0, 2.0], "not unique"),
        ([-1], [1.0], "not unique, ascending and >= 0"),
        ([1, 2], [1.0], "indices of shape"),
        ([1], [1.0, 2.0], "indices of shape"),
        ([[1]], [[1.0]], "indices of shape"),
    ],
)
def test_lists_that_are_no_vector(indices: Any, values: Any, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem):
        SparseVector.from_lists(indices, values)


def test_pruning_keeps_the_highest_weights() -> None:
    vector = SparseVector.from_dict({1: 0.5, 4: -3.0, 6: 0.0, 8: 2.0, 9: 0.5})
    kept, rest = vector.prune(3)
    assert kept.to_dict() == {1: 0.5, 4: -3.0, 8: 2.0}
    assert rest.to_dict() == {6: 0.0, 9: 0.5}
    assert vector.prune(0) == (EMPTY, vector)
    assert vector.prune(9) == (vector, EMPTY)
    with pytest.raises(InvalidInput, match="-1 entries were to be kept"):
        vector.prune(-1)


@given(vectors, st.integers(0, 25))
def test_pruning_parts_a_vector(vector: SparseVector, most: int) -> None:
    kept, rest = vector.prune(most)
    assert len(kept) == min(most, len(vector))
    assert kept.to_dict() | rest.to_dict() == vector.to_dict()
    if len(kept) and len(rest):
        assert np.abs(kept.values).min() >= np.abs(rest.values).max()


# -- batches -----------------------------------------------------------------------------------


@given(batches)
def test_lists_of_a_batch(batch: list[SparseVector]) -> None:
    indices, values = to_lists(batch)
    assert len(indices) == len(values) == len(batch)
    assert from_lists(*json.loads(json.dumps([indices, values]))) == batch


def test_lists_of_different_lengths() -> None:
    assert to_lists([]) == ([], [])
    assert from_lists([], []) == []
    with pytest.raises(InvalidInput, match="Indices of 2 and values of 1 sparse vectors"):
        from_lists([[1], [2]], [[1.0]])


# -- SciPy -------------------------------------------------------------------------------------


@given(batches)
def test_csr_and_back(batch: list[SparseVector]) -> None:
    matrix = to_csr(batch, VOCABULARY)
    assert isinstance(matrix, scipy_sparse.csr_array)
    assert matrix.shape == (len(batch), VOCABULARY)
    assert matrix.dtype == np.float32
    assert matrix.has_canonical_format
    assert from_csr(matrix) == batch


def test_csr_says_what_the_vectors_say() -> None:
    batch = [SparseVector.from_dict({0: 1.0, 3: 2.0}), EMPTY, SparseVector.from_dict({3: 0.5})]
    matrix = to_csr(batch, 4)
    assert matrix.toarray().tolist() == [[1, 0, 0, 2], [0, 0, 0, 0], [0, 0, 0, 0.5]]
    assert (matrix @ matrix.T).toarray()[0, 2] == batch[0].dot(batch[2]) == 1.0


@pytest.mark.parametrize("form", ["coo_array", "csc_array", "csr_matrix", "lil_array", "dok_array"])
def test_vectors_of_any_sparse_format(form: str) -> None:
    matrix = getattr(scipy_sparse, form)(np.array([[0, 2, 0, 1], [0, 0, 0, 0]]))
    before = matrix.toarray()
    assert [vector.to_dict() for vector in from_csr(matrix)] == [{1: 2.0, 3: 1.0}, {}]
    assert np.array_equal(matrix.toarray(), before)


def test_entries_out_of_order_and_given_twice_leave_the_matrix_as_it_is() -> None:
    matrix = scipy_sparse.csr_array(
        (np.array([1.0, 2.0, 4.0]), np.array([3, 1, 3]), np.array([0, 3])), shape=(1, 5)
    )
    assert from_csr(matrix) == [SparseVector.from_dict({1: 2.0, 3: 5.0})]
    assert matrix.indices.tolist() == [3, 1, 3]
    row = from_csr(scipy_sparse.coo_array(np.array([0.0, 2.0])))  # of one dimension
    assert row == [SparseVector.from_dict({1: 2.0})]


def test_an_empty_batch_has_its_columns() -> None:
    assert to_csr([], VOCABULARY).shape == (0, VOCABULARY)
    assert from_csr(to_csr([], VOCABULARY)) == []


# -- pgvector ----------------------------------------------------------------------------------


@given(vectors)
def test_pgvector_and_back_without_zeros(vector: SparseVector) -> None:
    value = to_pgvector(vector, VOCABULARY)
    assert isinstance(value, PgSparseVector)
    assert value.dimensions() == VOCABULARY
    there = {index: weight for index, weight in vector.to_dict().items() if weight}
    assert from_pgvector(value).to_dict() == there
    assert from_pgvector(PgSparseVector.from_binary(value.to_binary())).to_dict() == there


def test_pruning_for_pgvector_says_what_is_left_out() -> None:
    vector = numbers(1_250)
    with pytest.warns(PruningWarning) as said:
        value = to_pgvector(vector, VOCABULARY, most=PGVECTOR_INDEXED)
    assert str(said[0].message) == (
        "A sparse vector of 1,250 entries was pruned to the 1,000 of the highest weights: "
        "250 entries and 4.0% of the weight are left out."
    )
    assert said[0].filename == __file__
    assert from_pgvector(value) == vector.prune(1_000)[0]
    assert min(value.values()) == 251


def test_what_fits_is_not_pruned_and_nothing_is_said() -> None:
    zeros = SparseVector(np.arange(1_500), (np.arange(1_500) < 1_000).astype(np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(to_pgvector(zeros, VOCABULARY, most=1_000).indices()) == 1_000
        assert len(to_pgvector(numbers(PGVECTOR_STORED), VOCABULARY).indices()) == 16_000
        assert to_pgvector(EMPTY, 1, most=0).indices() == []


def test_more_than_postgres_stores_is_refused() -> None:
    vector = numbers(PGVECTOR_STORED + 1)
    with pytest.raises(InvalidInput, match="has 16,001 entries, pgvector stores 16,000") as raised:
        to_pgvector(vector, VOCABULARY)
    assert "most=1000" in raised.value.fix
    with pytest.warns(PruningWarning, match="1 entries"):
        to_pgvector(vector, VOCABULARY, most=PGVECTOR_STORED)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(InvalidInput, match="NaN or infinity"):
        to_pgvector(SparseVector.from_dict({1: value}), 3)


# -- dimensions --------------------------------------------------------------------------------


@pytest.mark.parametrize("convert", [lambda v, n: to_csr([v], n), to_pgvector], ids=["csr", "pg"])
def test_an_index_that_the_dimension_does_not_have(convert: Any) -> None:
    vector = SparseVector.from_dict({2: 1.0, 1_000: 0.5})
    convert(vector, 1_001)  # the control: it fits
    with pytest.raises(InvalidInput) as raised:
        convert(vector, 1_000)
    assert raised.value.problem == (
        "Sparse vector 0 has the index 1,000, but the dimension is 1,000."
    )
    assert raised.value.fix == "Give the size of the model's vocabulary, 1,001 or more."
    for dimension in (0, -1):
        with pytest.raises(InvalidInput, match=f"A dimension of {dimension} was given"):
            convert(EMPTY, dimension)


def test_more_dimensions_than_pgvector_has() -> None:
    with pytest.raises(InvalidInput, match="from 1 to 1,000,000,000"):
        to_pgvector(EMPTY, 1_000_000_001)


# -- for vector stores -------------------------------------------------------------------------


def expected(texts: list[str]) -> list[SparseVector]:
    return list(HashingEmbedder(8).embed(texts, outputs=["sparse"]).sparse or ())


def test_a_function_for_qdrant() -> None:
    embedder = CachedEmbedder(HashingEmbedder(8))
    encode = sparse_fn(embedder)
    indices, values = encode(TEXTS)
    assert from_lists(indices, values) == expected(TEXTS)
    json.dumps([indices, values])
    assert encode([]) == ([], [])
    assert embedder.cache.stats.total("embedding", "miss") == 3
    sparse_fn(embedder, "query")(TEXTS)  # the control: a query is not a document
    assert embedder.cache.stats.total("embedding", "miss") == 6


async def test_an_encoder_for_qdrant_and_milvus() -> None:
    lists = SparseEncoder(HashingEmbedder(8), SparseVector.to_lists)
    dicts = SparseEncoder(HashingEmbedder(8), SparseVector.to_dict)
    one = lists.embed_query("open")
    assert SparseVector.from_lists(one.indices, one.values) == expected(["open"])[0]
    assert await lists.aembed_query("open") == one
    documents = [vector.to_dict() for vector in expected(TEXTS)]
    assert dicts.embed_documents(TEXTS) == documents
    assert await dicts.aembed_documents(TEXTS) == documents
    assert dicts.encode_documents(TEXTS) == dicts.encode_queries(TEXTS) == documents
    assert await dicts.async_encode_documents(TEXTS) == documents
    assert await dicts.async_encode_queries(TEXTS) == documents
    assert dicts.embed_documents([]) == []


async def test_queries_and_documents_have_entries_of_their_own() -> None:
    embedder = CachedEmbedder(HashingEmbedder(8))
    encoder = SparseEncoder(embedder, SparseVector.to_dict)
    encoder.embed_documents(["a"])
    assert embedder.hit_rate == 0
    encoder.encode_documents(["a"])
    await encoder.aembed_documents(["a"])
    assert embedder.hit_rate == pytest.approx(2 / 3)
    encoder.embed_query("a")
    assert embedder.hit_rate == 0.5
    encoder.encode_queries(["a"])
    await encoder.aembed_query("a")
    assert embedder.hit_rate == pytest.approx(4 / 6)
