"""What each kind of FAISS index is made of, when it is trained, and how hard it searches."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isqrt
from typing import Any, Literal, TypeAlias, get_args

from ragopt._imports import require
from ragopt.errors import InvalidInput
from ragopt.types import Metric

Kind: TypeAlias = Literal[
    "flat", "hnsw", "fp16", "sq8", "ivf_flat", "ivf_pq", "pq_refined", "rabitq_refined", "auto"
]

REFINED = ",RFlat"
"""What a factory string ends with if exact vectors are kept to score candidates again."""

_POINTS = 39
"""Vectors for each list that k-means wants to see at least."""


@dataclass(frozen=True)
class Settings:
    """The arguments of a ``FaissIndex`` beside metric and dimension; see there."""

    kind: Kind = "flat"
    factory: str | None = None
    recall: float = 0.99
    train_at: int | None = None
    m: int = 32
    ef_construction: int = 128
    ef_search: int = 128
    nprobe: int | None = None
    k_factor: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in _FACTORIES:
            raise InvalidInput(
                f"{self.kind!r} is not a kind of index.",
                fix=f"Use one of {', '.join(map(repr, get_args(Kind)))}, or give a factory.",
            )
        if self.factory is not None and self.kind != "flat":
            raise InvalidInput(
                f"An index was given the kind {self.kind!r} and the factory {self.factory!r}.",
                fix="Give one of them.",
            )
        for name, (fits, range_) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not fits(value):
                raise InvalidInput(
                    f"An index was given {name}={value!r}.", fix=f"Give {name} {range_}."
                )

    def text(self, dimension: int, size: int) -> str:
        """Return the factory string for a number of records."""
        if self.factory is not None:
            return self.factory
        exact = self.kind == "auto" and self.recall == 1
        template = _FACTORIES["flat" if exact else self.kind]
        return template.format(
            m=self.m,
            lists=_lists(size),
            pieces=_pieces(dimension, 4, 32),  # four bits for four numbers
            eighths=_pieces(dimension, 8, 16),
        )

    def make(self, dimension: int, metric: Metric, size: int = 0, *, whole: bool = True) -> Any:
        """Return an empty FAISS index; one that refines without its exact half if not ``whole``.

        Raises:
            InvalidInput: FAISS cannot make it.
        """
        faiss = require("faiss", "faiss")
        text = self.text(dimension, size)
        try:
            index = faiss.index_factory(
                dimension, text if whole else text.removesuffix(REFINED), measure(metric)
            )
        except (RuntimeError, AssertionError) as error:
            raise InvalidInput(
                f"FAISS cannot make {text!r} for {metric} and dimension {dimension} "
                f"({reason(error)}).",
                fix='Check the factory string; "IVF256,PQ64x4fs,RFlat" is one.',
            ) from error
        for part in parts(index):
            if isinstance(part, faiss.IndexIDMap):
                raise InvalidInput(
                    f"The factory {text!r} brings ids of its own, and records have theirs.",
                    fix="Leave IDMap out.",
                )
            if isinstance(part, faiss.IndexHNSW):
                part.hnsw.efConstruction = self.ef_construction
        self.apply(index)
        return index

    def apply(self, index: Any) -> None:
        """Set how hard an index searches, where that was given."""
        faiss = require("faiss", "faiss")
        for part in parts(index):
            if isinstance(part, faiss.IndexHNSW):
                part.hnsw.efSearch = self.ef_search
        for knob in knobs(index):
            if (value := getattr(self, knob.name)) is not None:
                knob.set(value)

    def first_training(self, index: Any) -> int | None:
        """Return how many records an empty index waits for; None if it does not wait."""
        if index.is_trained and self.kind not in _TRAIN_AT:
            return None
        if self.train_at is not None:
            return self.train_at
        if self.kind == "auto":
            return auto_from(index.d)
        lists = max((knob.most for knob in knobs(index) if knob.name == "nprobe"), default=0)
        return max(_TRAIN_AT.get(self.kind, 10_000), _POINTS * lists if self.factory else 0)


def auto_from(dimension: int) -> int:
    """Return from how many records on ``auto`` sifts and refines; below that it is flat.

    A flat search of 10,000 vectors of 1,024 dimensions takes 3 ms. Shorter vectors are read
    sooner, so there may be more of them.
    """
    return max(10_000, 10_240_000 // dimension)


def _lists(size: int) -> int:
    """Return 2 to 4 times the root of the size, if there are vectors enough to train on."""
    most = max(1, min(4 * isqrt(size), size // _POINTS))
    return 1 << (most.bit_length() - 1)


def _pieces(dimension: int, widest: int, fewest: int) -> int:
    """Return into how many parts a product quantizer cuts a vector.

    Parts of ``widest`` numbers, or of a half or a quarter of that where there would be fewer
    parts than ``fewest``.
    """
    widths = (widest, widest // 2, widest // 4)
    fits = (dimension // width for width in widths if width and dimension % width == 0)
    return next((parts for parts in fits if parts >= fewest), dimension)


_FACTORIES = {
    "flat": "Flat",
    "hnsw": "HNSW{m}",
    "fp16": "SQfp16",
    "sq8": "SQ8",
    "ivf_flat": "IVF{lists},Flat",
    "ivf_pq": "IVF{lists},PQ{eighths}np",  # np: no polysemous training, which takes minutes
    "pq_refined": f"PQ{{pieces}}x4fs{REFINED}",
    "rabitq_refined": f"RaBitQfs{REFINED}",
    "auto": f"PQ{{pieces}}x4fs{REFINED}",
}
# These learn little or nothing, but what they save on few records is not worth the rounding.
_TRAIN_AT = {"sq8": 1_000, "fp16": 1_000}
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "recall": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "train_at": (lambda value: value >= 1, "of 1 or more"),
    "m": (lambda value: value >= 2, "of 2 or more"),
    "ef_construction": (lambda value: value >= 1, "of 1 or more"),
    "ef_search": (lambda value: value >= 1, "of 1 or more"),
    "nprobe": (lambda value: value >= 1, "of 1 or more"),
    "k_factor": (lambda value: value >= 1, "of 1 or more"),
}


@dataclass(frozen=True)
class Knob:
    """A number that trades time for recall: how many lists, or how many candidates."""

    part: Any
    name: str
    most: int

    def set(self, value: float) -> None:
        """Turn it."""
        setattr(self.part, self.name, value)

    def values(self) -> list[int]:
        """Return what to try, least work first."""
        doubled = [1 << power for power in range(self.most.bit_length())]
        return doubled if doubled[-1] == self.most else [*doubled, self.most]


def knobs(index: Any) -> list[Knob]:
    """Return what can be turned in an index and those within it, innermost first."""
    faiss = require("faiss", "faiss")
    found = []
    for part in parts(index):
        if isinstance(part, faiss.IndexIVF):
            found.append(Knob(part, "nprobe", part.nlist))
        elif isinstance(part, faiss.IndexRefine):
            found.append(Knob(part, "k_factor", 512))
    return found[::-1]


def parts(index: Any) -> Iterator[Any]:
    """Yield an index and those within it, outermost first."""
    faiss = require("faiss", "faiss")
    while index is not None:
        index = faiss.downcast_index(index)
        yield index
        index = getattr(index, "base_index", None) or getattr(index, "index", None)


def size_of(index: Any) -> int:
    """Return the bytes of what an index and those within it hold of each vector."""
    faiss = require("faiss", "faiss")
    size = 0
    for part in parts(index):
        holder = part
        if isinstance(part, faiss.IndexHNSW):
            size += 4 * part.hnsw.neighbors.size()
            holder = faiss.downcast_index(part.storage)
        elif isinstance(part, faiss.IndexRefine):
            holder = faiss.downcast_index(part.refine_index)
        elif isinstance(part, faiss.IndexIVF):
            lists = faiss.downcast_index(part.quantizer)
            size += lists.ntotal * getattr(lists, "code_size", 0)
            size += 8 * (part.ntotal + part.direct_map.array.size())  # which vector is where
        size += holder.ntotal * getattr(holder, "code_size", 0)  # none, where it only transforms
    return size


def measure(metric: Metric) -> int:
    """Return FAISS's number of a metric; the cosine is the inner product of unit vectors."""
    faiss = require("faiss", "faiss")
    return int(faiss.METRIC_L2 if metric is Metric.L2 else faiss.METRIC_INNER_PRODUCT)


def reason(error: BaseException) -> str:
    """Return what FAISS says without the place in its source."""
    text = " ".join(str(error).split())
    text = re.sub(r"^Error in .*? at \S+:\d+: ", "", text)
    return re.sub(r"^Error: '.*' failed: ", "", text) or type(error).__name__
