"""Real models find what a reader would find."""

from itertools import islice

import numpy as np
import pytest
from tests.models import UseMultilingual
from tests.retrieval_data import collection

from ragopt import Embedding, EmbeddingBatch, FaissIndex, RecordBatch, TransformersEmbedder
from ragopt.protocols import Embedder


@pytest.fixture(scope="module")
def multilingual() -> UseMultilingual:
    return UseMultilingual()


def recall(embedder: Embedder, name: str, documents: int, questions: int, k: int = 5) -> float:
    """Return how often a question's paragraph is among the first k of an index."""
    data = collection(name)
    if data is None:
        pytest.skip(f"the collection {name} is not there; set RAGOPT_DATA to its parent folder")
    docs = dict(islice(data.documents.items(), documents))
    truth = {query: known for query, each in data.grades.items() if (known := each.keys() & docs)}
    asked = [query for query in data.queries if query in truth][:questions]
    texts = list(docs.values())
    index = FaissIndex()
    index.add(RecordBatch(list(docs), texts, embedder.embed(texts)))
    queries = embedder.embed([data.queries[query] for query in asked], role="query")
    found = index.search_batch(queries, k=k)
    hits = [bool(truth[q] & {h.id for h in hits}) for q, hits in zip(asked, found, strict=True)]
    assert len(hits) == questions
    return float(np.mean(hits))


@pytest.mark.filterwarnings("ignore::ragopt.embedders.transformers.TruncationWarning")
@pytest.mark.parametrize(
    ("documents", "questions"), [(40, 40), pytest.param(120, 60, marks=pytest.mark.slow)]
)
def test_english_questions_find_their_paragraph(documents: int, questions: int) -> None:
    assert recall(TransformersEmbedder.minilm(), "xquad_en", documents, questions) >= 0.9


@pytest.mark.parametrize(
    ("documents", "questions"), [(100, 50), pytest.param(300, 100, marks=pytest.mark.slow)]
)
def test_japanese_questions_find_their_paragraph(
    multilingual: UseMultilingual, documents: int, questions: int
) -> None:
    assert recall(multilingual, "jsquad", documents, questions) >= 0.75


PAIRS = [
    ("駅までどうやって行けばいいですか。", "最寄りの駅への行き方を教えてください。"),
    ("この薬は一日三回飲みます。", "薬は毎日三度服用してください。"),
    ("비밀번호를 잊어버렸어요.", "암호가 기억나지 않습니다."),
    ("오늘 날씨가 아주 좋네요.", "오늘은 하늘이 맑고 화창합니다."),
    ("How do I reset my password?", "비밀번호를 어떻게 재설정하나요?"),
    ("Where is the station?", "駅はどこですか。"),
]


def test_japanese_and_korean_paraphrases_find_each_other(multilingual: UseMultilingual) -> None:
    left = multilingual.embed([a for a, _ in PAIRS]).dense
    right = multilingual.embed([b for _, b in PAIRS])
    index = FaissIndex()
    ids = [str(i) for i in range(len(PAIRS))]
    index.add(RecordBatch(ids, ids, EmbeddingBatch(dense=right.dense)))
    assert left is not None
    found = [index.search(Embedding(vector), k=1)[0].id for vector in left]
    assert found == ids
