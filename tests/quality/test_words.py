"""Search by words finds what a reader would find, without a model."""

import numpy as np
import pytest
from tests.retrieval_data import collection

from ragopt import EmbeddingBatch, MemoryIndex, RecordBatch


@pytest.mark.parametrize(("name", "least"), [("xquad_en", 0.98), ("jsquad", 0.94)])
def test_questions_find_their_paragraph(name: str, least: float) -> None:
    data = collection(name)
    if data is None:
        pytest.skip(f"the collection {name} is not there; set RAGOPT_DATA to its parent folder")
    index = MemoryIndex()
    vectors = EmbeddingBatch.of_dense(np.ones((len(data.documents), 2)))
    index.add(RecordBatch(list(data.documents), list(data.documents.values()), vectors))
    asked = [query for query in data.queries if query in data.grades][::8]
    texts = [data.queries[query] for query in asked]
    found = index.search_batch(EmbeddingBatch(), texts=texts, k=10, by="text")
    hits = [
        any(hit.id in data.grades[query] for hit in each)
        for query, each in zip(asked, found, strict=True)
    ]
    assert len(hits) > 100
    assert np.mean(hits) >= least
