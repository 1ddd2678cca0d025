"""Several ways of searching at once, and one list of what they find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Literal, TypeAlias

from ragopt.errors import InvalidInput
from ragopt.types import OUTPUTS, EmbedderSpec, Hit, Output

Way: TypeAlias = Literal["dense", "sparse", "text", "multi"]

_WAYS = frozenset({"dense", "sparse", "text", "multi"})
_LEAST = 50  # candidates of each way, however few hits are asked for


@dataclass(frozen=True, slots=True)
class Fusion:
    """Several ways of searching at once, and how what they find becomes one list.

    A fused score lies in [0, 1] and is its own relevance; a record that one way did not find has 0
    of it. ``rrf`` adds up ``weight / (rank_constant + rank)``, divided by the most that there can
    be (Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and individual
    Rank Learning Methods", SIGIR 2009): it needs no common scale. ``relative`` adds up scores,
    those of each way stretched to [0, 1] between its worst and its best, by weight: it keeps how
    far ahead the best ones are. Multi-vectors score what the other ways found.

    Args:
        weights: How much each way counts.
        method: ``rrf`` or ``relative``.
        candidates: How many records each way brings at most, at least ``k``; None for four times
            ``k``, and 50 at least.
        rank_constant: The higher, the less the first ranks stand out; of ``rrf``.

    Raises:
        InvalidInput: There is no way, one of them is unknown, a weight is not above 0, or another
            value is out of its range.
    """

    weights: Mapping[Way, float] = field(default_factory=lambda: {"dense": 1.0, "sparse": 1.0})
    method: Literal["rrf", "relative"] = "rrf"
    candidates: int | None = None
    rank_constant: int = 60

    def __post_init__(self) -> None:
        if not self.weights or not all(
            way in _WAYS and 0 < weight < inf for way, weight in self.weights.items()
        ):
            raise InvalidInput(
                f"A fusion was given the weights {dict(self.weights)!r}.",
                fix='Give weights above 0 to some of "dense", "sparse", "text" and "multi".',
            )
        if self.method not in ("rrf", "relative"):
            raise InvalidInput(f"{self.method!r} is no fusion.", fix='Use "rrf" or "relative".')
        if self.rank_constant < 0 or (self.candidates is not None and self.candidates < 1):
            raise InvalidInput(
                f"A fusion was given candidates={self.candidates} and "
                f"rank_constant={self.rank_constant}.",
                fix="Give 1 candidate or more, and a rank constant of 0 or more.",
            )

    def __ragopt_key__(self) -> object:
        """What this fusion is, for cache keys."""
        weights = sorted(self.weights.items())
        return weights, self.method, self.candidates, self.rank_constant


By: TypeAlias = Way | Fusion
"""How to search: by one kind of vector, by the words of a text, or by several of them."""


def check_by(by: object) -> None:
    """Raise InvalidInput unless this is a way of searching, or several."""
    if not isinstance(by, Fusion) and not (isinstance(by, str) and by in _WAYS):
        raise InvalidInput(
            f"An index cannot search by {by!r}.",
            fix='Search by "dense", "sparse", "text", "multi" or a Fusion.',
        )


def ways_of(by: By) -> frozenset[str]:
    """Return the ways of searching that are asked for; InvalidInput if there is no such way."""
    check_by(by)
    return frozenset(by.weights if isinstance(by, Fusion) else (by,))


def vectors_for(by: By) -> frozenset[Output]:
    """Return the kinds of vectors that a query needs."""
    ways = ways_of(by)
    if ways == {"multi"}:  # dense vectors name the candidates
        return frozenset({"dense", "multi"})
    return frozenset(output for output in OUTPUTS if output in ways)


def check_outputs(spec: EmbedderSpec, by: By) -> None:
    """Raise InvalidInput unless an embedder makes the vectors that a search needs."""
    if missing := vectors_for(by) - spec.outputs:
        raise InvalidInput(
            f"A search by {by!r} needs {' and '.join(sorted(missing))} vectors, and "
            f"{spec.model or 'the embedder'} makes {', '.join(sorted(spec.outputs))}.",
            fix='Use an embedder that makes them, such as BGEM3Embedder, or search by="dense".',
        )


def candidates(fusion: Fusion, k: int) -> int:
    """Return how many records each way brings when the best ``k`` are asked for."""
    return max(k, fusion.candidates or max(4 * k, _LEAST))


def fuse(found: Mapping[Way, Sequence[Hit]], fusion: Fusion, k: int) -> list[Hit]:
    """Return the ``k`` best hits of all lists, with fused scores; equal ones as they came.

    Args:
        found: What each way found, best first.
        fusion: How to weigh them.
        k: How many hits at most.
    """
    total: dict[str, float] = {}
    hits: dict[str, Hit] = {}
    for way, weight in fusion.weights.items():
        for hit, share in zip(found[way], _shares(found[way], fusion), strict=True):
            total[hit.id] = total.get(hit.id, 0.0) + weight * share
            hits.setdefault(hit.id, hit)
    whole = sum(fusion.weights.values())
    best = sorted(total, key=total.__getitem__, reverse=True)[:k]
    for id_ in best:
        hits[id_].score = hits[id_].relevance = min(total[id_] / whole, 1.0)
    return [hits[id_] for id_ in best]


def _shares(hits: Sequence[Hit], fusion: Fusion) -> list[float]:
    """Return what each hit of one list brings, the first one 1."""
    if fusion.method == "rrf":
        first = fusion.rank_constant + 1
        return [first / (first + rank) for rank in range(len(hits))]
    best, worst = (hits[0].score, hits[-1].score) if hits else (0.0, 0.0)
    return [(hit.score - worst) / (best - worst) if best > worst else 1.0 for hit in hits]
