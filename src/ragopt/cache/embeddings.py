"""An embedder that computes each text once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, cast

import numpy as np

from ragopt import codecs
from ragopt._runtime import Runtime
from ragopt.cache.tiers import TieredCache
from ragopt.embedders.base import BaseEmbedder
from ragopt.errors import InvalidInput
from ragopt.keys import KeySpace, namespace_prefix
from ragopt.protocols import Embedder, KVStore
from ragopt.types import OUTPUTS, Dense, EmbedderSpec, EmbeddingBatch, Output, Role, SparseVector

KIND = "embedding"


class CachedEmbedder(BaseEmbedder):
    """An embedder with a cache in front of it; itself an ``Embedder``.

    The key holds model, revision, dimension, settings, role and output, so two models, or a
    query and a document of the same text, never share an entry. Every output has an entry of its
    own: an entry without the sparse vector is a miss only for whoever asks for sparse vectors.
    Duplicates are computed once; every batch is stored as soon as it is computed.

    Args:
        embedder: The model.
        cache: A cache or a store; one in memory of its own if None.
        ttl: Seconds that an embedding is kept; None until it is evicted.
        precision: ``float32`` is exact; ``float16`` and ``int8`` save space.
        batch_size: Texts that are computed and then stored at a time.
        together: Outputs that one pass makes, and that are kept, whichever of them is asked for:
            for a dense and a sparse face of the same texts.
        namespace: Separates applications which share a store.
        tenant: Separates customers of one application.
    """

    def __init__(
        self,
        embedder: Embedder,
        cache: KVStore | None = None,
        *,
        ttl: float | None = 86_400,
        precision: codecs.Precision = "float32",
        batch_size: int = 256,
        together: Collection[Output] = (),
        namespace: str = "default",
        tenant: str | None = None,
    ) -> None:
        if batch_size < 1:
            raise InvalidInput(f"A batch size of {batch_size} was given.", fix="Give 1 or more.")
        self.embedder = embedder
        self.cache = TieredCache.over(cache)
        self.cache.check_tenant(tenant)
        namespace_prefix(namespace, tenant, KIND)  # an empty name is refused now, not later
        self._ttl = ttl
        self._precision = precision
        self._batch_size = batch_size
        self._together = frozenset(together)
        self._namespace = namespace
        self._tenant = tenant
        self._spaces: dict[tuple[Role, Output], KeySpace] = {}

    @property
    def spec(self) -> EmbedderSpec:
        """What the vectors depend on: the wrapped model's own description."""
        return self.embedder.spec

    @property
    def hit_rate(self) -> float:
        """Texts that were found / texts that were looked up; 0 before the first.

        It is ``cache.stats.hit_rate("embedding")``: embedders over one cache have one hit rate.
        """
        return self.cache.stats.hit_rate(KIND)

    async def _embed(
        self, io: Runtime, texts: list[str], role: Role, outputs: frozenset[Output]
    ) -> EmbeddingBatch:
        order = [output for output in OUTPUTS if output in outputs]
        unique = list(dict.fromkeys(texts))
        keys: list[bytes] = []
        for output in order:
            keys += self._space(role, output).text_keys(unique)
        trips = self.cache.trips
        entries = await io.call(self.cache.get_many, self.cache.aget_many, keys)
        values = [None if entry is None else entry[0] for entry in entries]
        columns = {
            output: _Column.read(output, values[i * len(unique) : (i + 1) * len(unique)])
            for i, output in enumerate(order)
        }
        missing = sorted(set().union(*(column.missing() for column in columns.values())))
        stats = self.cache.stats
        stats.count(KIND, "hit", len(unique) - len(missing))
        stats.count(KIND, "miss", len(missing))

        made = outputs | (self._together & self.spec.outputs if missing else set())

        async def compute(rows_left: list[int]) -> None:
            while rows_left:
                rows, rows_left = rows_left[: self._batch_size], rows_left[self._batch_size :]
                asked = [unique[row] for row in rows]
                batch = await io.call(
                    self.embedder.embed, self.embedder.aembed, asked, role=role, outputs=made
                )
                _check(batch, asked, made, self.spec)
                items: dict[bytes, bytes] = {}
                for i, (output, column) in enumerate(columns.items()):
                    values = getattr(batch, output)
                    rows_left = rows_left + column.put(rows, values)
                    places = (keys[i * len(unique) + row] for row in rows)
                    items.update(zip(places, _encode(output, values, self._precision), strict=True))
                for output in made - outputs:
                    others = _encode(output, getattr(batch, output), self._precision)
                    theirs = self._space(role, output).text_keys(asked)
                    items.update(zip(theirs, others, strict=True))
                # Not set_many: an embedding has but one value, so nobody need hear of this one.
                layers = range(len(self.cache.layers))
                await self.cache.write(io, layers, items, self._ttl, trips=trips)

        if missing:
            # What other threads and tasks compute just now is theirs; then it is in the cache.
            flights, tag = self.cache.flights, ",".join(order).encode()
            marks = {row: keys[row] + tag for row in missing}
            led, others = flights.take(io, list(marks.values()))
            try:
                await compute([row for row in missing if marks[row] not in others])
            finally:
                flights.end(led)
            waited = [row for row in missing if marks[row] in others]
            await flights.wait(io, others.values())
            # Who is still at it after that long is not waited for a second time.
            await compute([row for row in waited if not others[marks[row]].done()])
            waited = [row for row in waited if others[marks[row]].done()]
            if waited:
                part = await self._embed(io, [unique[row] for row in waited], role, outputs)
                stats.count(KIND, "shared", len(waited))
                for output, column in columns.items():
                    await compute(column.put(waited, getattr(part, output)))
        rows_of: list[int] | None = None
        if len(unique) < len(texts):
            numbers = {text: row for row, text in enumerate(unique)}
            rows_of = [numbers[text] for text in texts]
        return EmbeddingBatch(
            **{output: column.result(rows_of) for output, column in columns.items()}
        )

    def _space(self, role: Role, output: Output) -> KeySpace:
        space = self._spaces.get((role, output))
        if space is None:
            spec = self.spec
            settings = (spec.model, spec.revision, spec.dimension, spec.params, self._precision)
            space = self._spaces[role, output] = KeySpace(
                KIND, (*settings, role, output), namespace=self._namespace, tenant=self._tenant
            )
        return space


class _Column:
    """One output of a batch while it is put together: found rows first, computed ones later."""

    def __init__(
        self, output: Output, size: int, found: dict[int, Any], whole: Dense | None = None
    ) -> None:
        self._dense = output == "dense"
        self._size = size
        self._rows = found
        self._whole = whole  # all rows as one array, where all were found

    @classmethod
    def read(cls, output: Output, payloads: list[bytes | None]) -> _Column:
        """Decode what the cache gave; bytes that are no such vector count as absent."""
        if output == "dense" and None not in payloads:
            whole = codecs.decode_dense(cast("list[bytes]", payloads))
            if whole is not None:
                return cls(output, len(payloads), {}, whole)
        decode = _DECODERS[output]
        rows = {
            row: value
            for row, payload in enumerate(payloads)
            if payload is not None and (value := decode(payload)) is not None
        }
        if output == "dense" and len({len(value) for value in rows.values()}) > 1:
            rows = {}
        return cls(output, len(payloads), rows)

    def missing(self) -> set[int]:
        return set() if self._whole is not None else set(range(self._size)) - self._rows.keys()

    def put(self, rows: list[int], values: Any) -> list[int]:
        """Take in computed rows; give up, and return, those found with another dimension.

        A model that was replaced under the same name is no reason to fail.
        """
        if self._whole is not None:  # found whole, but another output of these texts was not
            self._rows, self._whole = dict(enumerate(self._whole)), None
        self._rows.update(zip(rows, values, strict=True))
        if not self._dense:
            return []
        width = len(values[0])
        stale = [row for row, value in self._rows.items() if len(value) != width]
        for row in stale:
            del self._rows[row]
        return stale

    def result(self, rows_of: list[int] | None) -> Any:
        if self._whole is not None:
            return self._whole if rows_of is None else self._whole[rows_of]
        order = range(self._size) if rows_of is None else rows_of
        values = [self._rows[row] for row in order]
        return np.stack(values) if self._dense else values


def _decode_dense(payload: bytes) -> Dense | None:
    rows = codecs.decode_dense([payload])
    return None if rows is None else rows[0]


_DECODERS: dict[Output, Callable[[bytes], Any]] = {
    "dense": _decode_dense,
    "sparse": codecs.decode_sparse,
    "multi": codecs.decode_multi,
}


def _encode(output: Output, values: Any, precision: codecs.Precision) -> list[bytes]:
    if output == "dense":
        return [codecs.encode_dense(row, precision) for row in values]
    if output == "sparse":
        return [codecs.encode_sparse(vector) for vector in values]
    return [codecs.encode_multi(vectors, precision) for vectors in values]


def _check(
    batch: EmbeddingBatch, texts: Sequence[str], outputs: frozenset[Output], spec: EmbedderSpec
) -> None:
    """Refuse a result which must not be cached, since it would be served for a day."""
    for output in outputs:
        part: Sequence[Dense] | Sequence[SparseVector] | Dense | None = getattr(batch, output)
        if part is None or len(part) != len(texts):
            raise InvalidInput(
                f"{spec.model} returned {0 if part is None else len(part)} {output} vectors "
                f"for {len(texts)} texts. None of them was cached.",
                fix="Check the embedding model: it must return one vector for each text.",
            )
    if batch.dense is not None:
        finite = np.isfinite(batch.dense).all(axis=1)
        if not finite.all():
            text = texts[int(np.argmin(finite))]
            raise InvalidInput(
                f"{spec.model} returned NaN or infinity for the text {text[:60]!r}. "
                "Nothing of this batch was cached.",
                fix="Leave the text out, or run the model in a higher precision.",
            )
