"""What every embedder must do."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import pytest

from ragopt.errors import InvalidInput
from ragopt.protocols import Embedder
from ragopt.testing.faces import BothColours, Face
from ragopt.types import OUTPUTS, SparseVector

TEXTS = [
    "How do I open a file?",
    "",
    "a",
    "ファイルを開くにはどうすればよいですか。",
    "파일을 여는 방법은 무엇입니까?",
    "emoji 🙂 and ünïcode",
    "a longer passage about opening and closing files " * 8,
]


class EmbedderContract(BothColours):
    """Subclass it as ``Test...`` and write ``make_embedder``."""

    #: Largest difference between a text embedded alone and in a batch.
    tolerance = 1e-5

    @abstractmethod
    def make_embedder(self) -> Embedder:
        """Return the embedder; it may be the same one every time."""

    @pytest.fixture
    def raw(self) -> Embedder:
        """Return the embedder under test."""
        return self.make_embedder()

    @pytest.fixture
    def embedder(self, raw: Embedder, face: Face) -> Any:
        """Return the embedder under test in one colour."""
        return face(raw)

    def test_is_an_embedder(self, raw: Embedder) -> None:
        assert isinstance(raw, Embedder)
        assert raw.spec.model
        assert raw.spec == raw.spec
        assert raw.spec.outputs <= set(OUTPUTS)

    def test_exactly_the_outputs_asked_for(self, embedder: Any, raw: Embedder) -> None:
        for output in raw.spec.outputs:
            batch = embedder.embed(TEXTS, outputs=[output])
            assert len(batch) == len(TEXTS)
            assert [name for name in OUTPUTS if getattr(batch, name) is not None] == [output]

    def test_shapes_and_types(self, embedder: Any, raw: Embedder) -> None:
        batch = embedder.embed(TEXTS, outputs=raw.spec.outputs)
        if batch.dense is not None:
            assert batch.dense.dtype == np.float32
            assert batch.dense.ndim == 2
            assert raw.spec.dimension in (None, batch.dense.shape[1])
            assert np.isfinite(batch.dense).all()
        for vector in batch.sparse or []:
            assert isinstance(vector, SparseVector)
        for vectors in batch.multi or []:
            assert vectors.dtype == np.float32
            assert vectors.ndim == 2

    @pytest.mark.parametrize("role", ["query", "document"])
    def test_order_and_duplicates(self, embedder: Any, role: str) -> None:
        forward = embedder.embed(TEXTS, role=role).dense
        backward = embedder.embed([*reversed(TEXTS), TEXTS[0]], role=role).dense
        np.testing.assert_allclose(backward[:-1][::-1], forward, atol=self.tolerance)
        np.testing.assert_allclose(backward[-1], forward[0], atol=self.tolerance)

    def test_alone_and_in_a_batch(self, embedder: Any) -> None:
        together = embedder.embed(TEXTS).dense
        alone = np.concatenate([embedder.embed([text]).dense for text in TEXTS])
        np.testing.assert_allclose(alone, together, atol=self.tolerance)

    def test_nothing_to_embed(self, embedder: Any, raw: Embedder) -> None:
        batch = embedder.embed([], outputs=raw.spec.outputs)
        assert len(batch) == 0

    def test_the_input_is_not_changed(self, embedder: Any) -> None:
        texts = list(TEXTS)
        embedder.embed(texts)
        assert texts == TEXTS

    @pytest.mark.parametrize("bad", [[None], [1], ["fine", b"bytes"]])
    def test_what_is_no_text(self, embedder: Any, bad: list[Any]) -> None:
        with pytest.raises(InvalidInput, match="not a string"):
            embedder.embed(bad)

    def test_one_string_instead_of_a_list(self, embedder: Any) -> None:
        with pytest.raises(InvalidInput, match="instead of a list"):
            embedder.embed("text")

    def test_unknown_role_or_output(self, embedder: Any) -> None:
        with pytest.raises(InvalidInput, match="role"):
            embedder.embed(["a"], role="passage")
        with pytest.raises(InvalidInput, match="It can make"):
            embedder.embed(["a"], outputs=["colour"])
        with pytest.raises(InvalidInput, match="It can make"):
            embedder.embed(["a"], outputs=[])
