"""Full text as sparse vectors: terms without a dictionary, weighted by BM25.

A text becomes a sparse vector of its terms, and so every index that can search by inner product
searches text too, with the same matches and scores, and without a plugin of its server.

Words are what stands between spaces and punctuation, without regard to case or width (NFKC).
Japanese, Chinese, Korean, Thai, Lao, Khmer and Burmese are written without spaces, or with endings
that stick to a word: their runs of letters are cut into single letters and overlapping pairs, and
what a query has of them is looked for as phrases. In Japanese these are its runs of kanji and of
katakana, so that a question finds the nouns in it; a Korean word may end otherwise than it does in
the query.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from math import log
from unicodedata import normalize

import numpy as np

from ragopt.types import SparseVector

_K1, _B = 1.2, 0.75  # as in Lucene
_LENGTH = 200  # terms of a usual passage; fixed, so that a new record changes no other one
_TERMS = 1_000_000_000  # the most that a sparse column of pgvector takes

_HAN = "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_KATAKANA = "\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
_HANGUL = "\uac00-\ud7a3"
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    f"\u3041-\u3096\u309d-\u309f\u3100-\u312f{_KATAKANA}{_HAN}{_HANGUL}"  # hiragana, bopomofo
)
# Accents and vowel signs, which are no letters to Python, yet part of a word.
_SIGNS = "\u0300-\u036f\u0591-\u05bd\u064b-\u065f\u0900-\u0963\u0981-\u0dff\u200d"
_RUN = re.compile(f"[{_UNSPACED}]+|[^\\W_{_UNSPACED}]+(?:[{_SIGNS}]+[^\\W_{_UNSPACED}]*)*")
_ASCII_RUN = re.compile("[a-z0-9]+")  # the same for most texts, in a third of the time
_IS_UNSPACED = re.compile(f"[{_UNSPACED}]").match
_PHRASE = re.compile(f"[{_HAN}]{{2,}}|[{_KATAKANA}]{{2,}}|([{_HANGUL}]{{2,}})")
_ENDING = 2  # syllables of a Korean word that may be its particle


def term_vector(text: str) -> SparseVector:
    """Return the terms of a record's text, and what each adds to the score of a query for it.

    The weight of a term that stands ``tf`` times in a text of ``n`` terms is
    ``tf (k1 + 1) / (tf + k1 (1 - b + b n / 200))``, with ``k1 = 1.2`` and ``b = 0.75``.

    Returns:
        Indices are hashes below 10**9.

    References:
        Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond",
        Foundations and Trends in Information Retrieval, 2009.
    """
    runs = _runs(_normal(text))
    counts = Counter(runs)
    length = len(runs)
    for run in filter(_IS_UNSPACED, counts.copy()):
        times = counts.pop(run)
        for term in (*run, *_pairs(run)):
            counts[term] += times
        length += times * (len(run) - 1)
    norm = _K1 * (1 - _B + _B * length / _LENGTH)
    return _vector({term: tf * (_K1 + 1) / (tf + norm) for term, tf in counts.items()})


@dataclass(frozen=True, slots=True, eq=False)
class WeightedTerms(SparseVector):
    """A query's terms with their weights, and which of them a record must hold to be found.

    Args:
        indices: The terms, ascending, shape ``(nnz,)``.
        values: Their weights, shape ``(nnz,)``.
        groups: A record must hold all terms of one group. Those of a phrase may yet stand apart.
            No group means that any term is enough, as it is of words alone.
    """

    groups: tuple[tuple[int, ...], ...] = ()


class TextQuery:
    """What a text asks for: records with at least one of its words, the rarer the better.

    Args:
        text: Words, in any order.
    """

    def __init__(self, text: str) -> None:
        self._words: set[str] = set()
        self._phrases: set[str] = set()
        counts: Counter[str] = Counter()
        for run in _runs(_normal(text)):
            if _IS_UNSPACED(run):
                self._phrases.update(_phrases(run))
                counts.update(_pairs(run) if len(run) > 1 else (run,))
            else:
                self._words.add(run)
                counts[run] += 1
        self._terms = _vector(counts)
        alternatives: list[Iterable[str]] = [(word,) for word in self._words]
        alternatives.extend(_pairs(each) if len(each) > 1 else (each,) for each in self._phrases)
        groups = {tuple(sorted({_hash(term) for term in each})) for each in alternatives}
        self._groups = sorted(groups)

    @property
    def terms(self) -> list[int]:
        """The hashes of its terms, ascending; none if there is no word in it."""
        return self._terms.to_lists().indices

    def weighted(self, records: int, holding: Mapping[int, int]) -> WeightedTerms:
        """Return the terms with their inverse document frequencies.

        That is ``ln(1 + (N - n + 0.5) / (n + 0.5))``, as often as the query says a term. Terms that
        no record holds are left out, and all of them if no record can match.

        Args:
            records: How many there are: ``N``.
            holding: How many of them hold each term: ``n``.
        """
        groups = tuple(each for each in self._groups if all(holding[term] for term in each))
        weights = {
            term: count * log(1 + (records - holding[term] + 0.5) / (holding[term] + 0.5))
            for term, count in self._terms.to_dict().items()
            if holding[term] and groups
        }
        vector = SparseVector.from_dict(weights)
        if sorted(groups) == [(term,) for term in vector.indices.tolist()]:
            groups = ()
        return WeightedTerms(vector.indices, vector.values, groups)

    def matches(self, text: str) -> bool:
        """Whether one of the words stands in a text, phrases as they are written."""
        normal = _normal(text)
        return any(phrase in normal for phrase in self._phrases) or not self._words.isdisjoint(
            _runs(normal)
        )


def highest(weighted: SparseVector) -> float:
    """Return what the scores of a query with these weights stay below."""
    return float(weighted.values.sum()) * (_K1 + 1)


def _normal(text: str) -> str:
    return text.lower() if text.isascii() else normalize("NFKC", text).casefold()


def _runs(normal: str) -> list[str]:
    """Return words, and runs of letters that have no spaces between words."""
    return (_ASCII_RUN if normal.isascii() else _RUN).findall(normal)


def _phrases(run: str) -> list[str]:
    """Return what a record must hold, at least one of it, to match a run of a query."""
    found = _PHRASE.finditer(run)
    return [m[1][: max(2, len(m[1]) - _ENDING)] if m[1] else m[0] for m in found] or [run]


def _pairs(run: str) -> Iterator[str]:
    return (run[i : i + 2] for i in range(len(run) - 1))


def _vector(weights: Mapping[str, float]) -> SparseVector:
    hashed: dict[int, float] = {}
    for term, weight in weights.items():
        index = _hash(term)
        hashed[index] = hashed.get(index, 0.0) + weight
    indices = np.fromiter(hashed, np.int64, len(hashed))
    values = np.fromiter(hashed.values(), np.float32, len(hashed))
    order = np.argsort(indices)
    return SparseVector(indices[order], values[order])


@lru_cache(maxsize=2**17)
def _hash(term: str) -> int:
    digest = blake2b(term.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) % _TERMS
