"""What an index that searches text must do, alone and fused with vectors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from math import log
from typing import Any

import numpy as np
import pytest

from ragopt.errors import InvalidInput
from ragopt.filters import F, Ids
from ragopt.fusion import Fusion
from ragopt.protocols import VectorIndex
from ragopt.testing.faces import BothColours, Face
from ragopt.testing.records import HOSTILE, vectors
from ragopt.types import Embedding, EmbeddingBatch, RecordBatch

TEXTS = {
    "tower": "The Tokyo Tower opened in 1958.",
    "towers": "Towers of silence",
    "都": "東京都の天気は晴れです。",
    "京": "京都から東京へ行く",
    "駅": "最寄りの駅はラーメン屋の前",
    "食": "食べ物がおいしい。GPT-4で調べた",
    "서울": "서울은 대한민국의 수도이다",
    "부산": "부산에서 서울까지 세 시간",
    "北": "北京的天气很好",
    "ไทย": "ภาษาไทยไม่มีวรรค",
    "हि": "हिन्दी भाषा",
    "mixed": "東京TOWERとcafé",
}
FOUND = [
    ("tower", {"tower", "mixed"}),
    ("TOWER!", {"tower", "mixed"}),
    ("tokyo towers", {"tower", "towers"}),
    ("ｔｏｗｅｒ", {"tower", "mixed"}),
    ("195", set()),
    ("Café", {"mixed"}),
    ("東京", {"都", "京", "mixed"}),
    ("東京都", {"都"}),
    ("京都", {"都", "京"}),  # within a word, too: there is no dictionary
    ("東京都の天気は？", {"都"}),
    ("天気", {"都"}),
    ("天气", {"北"}),
    ("駅", {"駅"}),
    ("ﾗｰﾒﾝ", {"駅"}),
    ("うまいラーメン屋", {"駅"}),
    ("食べ物", {"食"}),
    ("gpt", {"食"}),
    ("서울", {"서울", "부산"}),
    ("서울에서", {"서울", "부산"}),
    ("대한민국 수도", {"서울"}),
    ("ภาษาไทย", {"ไทย"}),
    ("हिन्दी", {"हि"}),
    ("東京 tower", {"tower", "都", "京", "mixed"}),
    ("", set()),
    ("!?。・ …", set()),
    ("nothing", set()),
]


class TextIndexContract(BothColours):
    """Subclass it as ``Test...`` and write ``make_index``."""

    @abstractmethod
    def make_index(self) -> VectorIndex:
        """Return an empty index for the cosine, exact in its dense vectors."""

    @pytest.fixture
    def index(self, face: Face) -> Iterator[Any]:
        """Return the index under test in one colour."""
        shown = face(self.make_index())
        yield shown
        shown.close()

    # -- what is found ---------------------------------------------------------------------

    def test_words_and_phrases(self, index: Any) -> None:
        index.add(records(TEXTS))
        found = {query: set(ids(find(index, query))) for query, _ in FOUND}
        assert found == dict(FOUND)

    def test_scores_are_bm25(self, index: Any) -> None:
        random = np.random.default_rng(3)
        words = np.array([f"w{i}" for i in range(40)])
        chances = 1 / np.arange(1, 41)
        texts = {
            f"r{i}": " ".join(random.choice(words, size, p=chances / chances.sum()))
            for i, size in enumerate(random.integers(1, 120, 200))
        }
        names = list(texts)
        for begin in range(0, 200, 50):  # in parts, as an index grows
            index.add(records({name: texts[name] for name in names[begin : begin + 50]}))
        for query in ("w0 w5 w20", "w39", "w7 w7 w1", "w3 other"):
            truth = bm25(query, texts)
            hits = find(index, query, k=20)
            assert ids(hits) == sorted(truth, key=lambda name: -truth[name])[:20]
            exact = [truth[hit.id] for hit in hits]
            np.testing.assert_allclose([hit.score for hit in hits], exact, rtol=1e-5)
            relevance = [hit.relevance for hit in hits]
            assert relevance[0] < 1
            assert relevance == sorted(relevance, reverse=True)
            assert relevance[-1] > 0

    def test_a_phrase_among_many_with_its_letters(self, index: Any) -> None:
        texts = {f"r{i}": "京都と東京 " * 5 for i in range(300)}
        index.add(records(texts | dict.fromkeys("abc", "長い文の中の東京都" + "。" * 50)))
        assert ids(find(index, "東京都", k=3)) == ["a", "b", "c"]
        assert ids(find(index, "東京都", k=10)) == ["a", "b", "c"]
        assert len(find(index, "京都", k=10)) == 10

    def test_equal_scores_come_in_the_order_of_adding(self, index: Any) -> None:
        index.add(records(dict.fromkeys("bac", "the same words")))
        assert ids(find(index, "words")) == ["b", "a", "c"]

    def test_hostile_texts(self, index: Any) -> None:
        index.add(records({f"r{i}": text for i, text in enumerate(HOSTILE)}))
        for query, row in (
            ("'; DROP TABLE records; --", 0),
            ('"backslash\\', 1),
            ("$where:[] | @braces -*", 2),
            ("tab\tcomma\n,", 3),
            ("日本語", 4),
            ("x" * 10_000, 7),
        ):
            assert ids(find(index, query)) == [f"r{row}"]
        for query in ("🙂", "%_%", "*", "' OR 1=1", "@text:*"):
            assert find(index, query) == []

    # -- with other conditions -------------------------------------------------------------

    def test_filters_apply_inside(self, index: Any) -> None:
        texts = {f"r{i}": "word " * (100 - i) for i in range(100)}
        index.add(records(texts, metadatas=[{"i": i} for i in range(100)]))
        assert ids(find(index, "word", k=3, where=F("i") >= 95)) == ["r95", "r96", "r97"]
        where = F("i").is_in([7, 3]) & ~Ids(["r3"])
        assert ids(find(index, "word", where=where)) == ["r7"]

    def test_a_threshold_alone(self, index: Any) -> None:
        index.add(records({f"r{i}": "word " * (i + 1) + "x " * (20 - i) for i in range(20)}))
        best = find(index, "word", k=20)
        assert ids(best) == [f"r{i}" for i in reversed(range(20))]
        least = (best[6].score + best[7].score) / 2
        assert ids(find(index, "word", k=None, min_score=least)) == ids(best[:7])
        assert ids(find(index, "word", k=4, min_score=least)) == ids(best[:4])
        assert find(index, "word", min_score=99) == []

    def test_a_batch_is_like_single_searches(self, index: Any) -> None:
        index.add(records(TEXTS))
        texts = ["tower", "", "서울", "東京都", "京都"]
        together = index.search_batch(EmbeddingBatch(), texts=texts, k=2, by="text")
        assert [ids(hits) for hits in together] == [ids(find(index, text, k=2)) for text in texts]
        assert index.search_batch(EmbeddingBatch(), texts=[], by="text") == []

    def test_fusion(self, index: Any) -> None:
        dense = np.eye(4, dtype=np.float32)
        texts = {"a": "alpha", "b": "beta", "c": "gamma", "d": "delta"}
        index.add(records(texts, dense=dense))
        query = Embedding(dense[0])
        both = Fusion({"dense": 1.0, "text": 1.0})
        assert {hit.id for hit in index.search(query, k=2, text="delta", by=both)} == {"a", "d"}
        weights = ((9.0, 1.0), (1.0, 9.0))
        fusions = [Fusion({"dense": a, "text": b}, method="relative") for a, b in weights]
        assert [
            index.search(query, k=1, text="delta", by=each)[0].id for each in fusions
        ] == ["a", "d"]  # fmt: skip
        (alone,) = index.search(Embedding(), text="beta", by=Fusion({"text": 1.0}))
        assert (alone.id, alone.score, alone.relevance) == ("b", 1, 1)
        batch = EmbeddingBatch.of_dense(dense[:2])
        first, second = index.search_batch(batch, texts=["delta", "gamma"], k=2, by=both)
        assert ({hit.id for hit in first}, {hit.id for hit in second}) == ({"a", "d"}, {"b", "c"})

    # -- writing ---------------------------------------------------------------------------

    def test_replace_and_delete(self, index: Any) -> None:
        index.add(records({"a": "one two", "b": "one", "c": "one three"}))
        assert set(ids(find(index, "one"))) == {"a", "b", "c"}
        index.add(records({"a": "two"}))
        assert ids(find(index, "one")) == ["b", "c"]
        assert ids(find(index, "two")) == ["a"]
        index.delete(Ids(["b"]))
        assert ids(find(index, "one two three")) == ["c", "a"]
        index.clear()
        assert find(index, "one two") == []
        index.add(records({"d": "one"}))
        assert ids(find(index, "one")) == ["d"]

    def test_scores_forget_what_was_removed(self, index: Any) -> None:
        texts = {f"r{i}": "common rare" if i % 9 == 0 else "common" for i in range(600)}
        index.add(records(texts))
        assert len(find(index, "rare", k=100)) == 67
        index.delete(Ids([name for name in texts if int(name[1:]) > 60]))
        index.add(records({"r0": "common"}))
        left = {name: text for name, text in texts.items() if 0 < int(name[1:]) <= 60}
        truth = bm25("common rare", {**left, "r0": "common"})
        hits = find(index, "common rare", k=61)
        assert len(hits) == 61
        for hit in hits:
            assert hit.score == pytest.approx(truth[hit.id], rel=1e-5)

    def test_an_empty_index(self, index: Any) -> None:
        assert find(index, "word") == []
        query = Embedding(vectors(1)[0])
        assert index.search(query, text="word", by=Fusion({"dense": 1, "text": 1})) == []

    # -- bad input -------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("query", "text", "by", "says"),
        [
            (Embedding(), None, "text", "by text came without one"),
            (Embedding(vectors(1)[0]), None, Fusion({"dense": 1, "text": 1}), "came without one"),
            (Embedding(), "word", Fusion({"dense": 1, "text": 1}), "without a dense"),
            (Embedding(), 7, "text", "query 0 is 7"),
        ],
    )
    def test_a_bad_query(self, index: Any, query: Embedding, text: Any, by: Any, says: str) -> None:
        index.add(records({"a": "word"}))
        with pytest.raises(InvalidInput, match=says):
            index.search(query, text=text, by=by)

    @pytest.mark.parametrize("texts", ["ab", ["one"]])
    def test_a_text_for_each_query(self, index: Any, texts: Any) -> None:
        index.add(records({"a": "word"}))
        batch = EmbeddingBatch.of_dense(vectors(2))
        with pytest.raises(InvalidInput, match="one for each query"):
            index.search_batch(batch, texts=texts, by=Fusion({"dense": 1, "text": 1}))


def find(index: Any, text: str, **how: Any) -> Any:
    """Search by text."""
    return index.search(Embedding(), text=text, by="text", **how)


def records(texts: dict[str, str], **columns: Any) -> RecordBatch:
    """Return records of these names and texts."""
    dense = columns.pop("dense", None)
    dense = vectors(len(texts)) if dense is None else dense
    return RecordBatch(
        list(texts), list(texts.values()), EmbeddingBatch.of_dense(dense), **columns
    )  # fmt: skip


def bm25(query: str, texts: dict[str, str]) -> dict[str, float]:
    """Return the scores above 0, by the definition; words are parted by spaces."""
    words = {name: text.split() for name, text in texts.items()}
    scores: dict[str, float] = {}
    for term in query.split():
        holding = sum(term in each for each in words.values())
        idf = log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
        for name, each in words.items():
            if tf := each.count(term):
                norm = 1.2 * (0.25 + 0.75 * len(each) / 200)
                scores[name] = scores.get(name, 0) + idf * tf * 2.2 / (tf + norm)
    return scores


def ids(hits: Sequence[Any]) -> list[str]:
    """Return the ids of hits, in their order."""
    return [hit.id for hit in hits]
