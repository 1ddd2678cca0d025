"""The two faces of an embedder, and the checks that every model needs, written once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence

import numpy as np

from ragopt._run import run
from ragopt._runtime import ASYNC, SYNC, Runtime
from ragopt.errors import InvalidInput
from ragopt.types import DENSE, OUTPUTS, EmbedderSpec, EmbeddingBatch, Output, Role


class BaseEmbedder(ABC):
    """An ``Embedder`` from one operation, written once for both colours."""

    @property
    @abstractmethod
    def spec(self) -> EmbedderSpec:
        """What the vectors depend on. Part of every cache key."""

    @abstractmethod
    async def _embed(
        self, io: Runtime, texts: list[str], role: Role, outputs: frozenset[Output]
    ) -> EmbeddingBatch:
        """Embed texts that have been checked, at least one."""

    def _lacks(self, outputs: Collection[Output]) -> str:
        """Say what is missing for outputs that this kind of model could make."""
        return ""

    def embed(
        self,
        texts: Sequence[str],
        /,
        *,
        role: Role = "document",
        outputs: Collection[Output] = DENSE,
    ) -> EmbeddingBatch:
        """Embed texts in the order given.

        Args:
            texts: The texts; none is allowed.
            role: Whether they are queries or documents. Some models treat them differently.
            outputs: Any of ``"dense"``, ``"sparse"``, ``"multi"``.

        Returns:
            A batch with exactly the outputs asked for; dense is float32 ``(n, dimension)``.

        Raises:
            InvalidInput: A text is not a string, or the model cannot make an output.
        """
        return run(self._checked(SYNC, texts, role, outputs))

    async def aembed(
        self,
        texts: Sequence[str],
        /,
        *,
        role: Role = "document",
        outputs: Collection[Output] = DENSE,
    ) -> EmbeddingBatch:
        """Embed texts in the order given; see ``embed``."""
        return await self._checked(ASYNC, texts, role, outputs)

    async def _checked(
        self, io: Runtime, texts: Sequence[str], role: Role, outputs: Collection[Output]
    ) -> EmbeddingBatch:
        checked, wanted = self._check(texts, role, outputs)
        return await self._embed(io, checked, role, wanted) if checked else self._none(wanted)

    def _check(
        self, texts: Sequence[str], role: Role, outputs: Collection[Output]
    ) -> tuple[list[str], frozenset[Output]]:
        """Return the texts and the outputs if the model can make these of those.

        Raises:
            InvalidInput: It cannot.
        """
        if isinstance(texts, str):
            raise InvalidInput("One string was given instead of a list.", fix="Wrap it: [text].")
        if role not in ("query", "document"):
            raise InvalidInput(f"{role!r} is not a role.", fix='Use "query" or "document".')
        wanted = frozenset(outputs)
        able = self.spec.outputs
        if not wanted or not wanted <= able:
            raise InvalidInput(
                f"{self.spec.model} was asked for the outputs {sorted(wanted)}.",
                fix=f"It can make: {', '.join(name for name in OUTPUTS if name in able)}."
                + self._lacks(wanted - able),
            )
        checked = list(texts)
        if not set(map(type, checked)) <= {str}:  # in C, for the thousands that are texts
            for row, text in enumerate(checked):
                if not isinstance(text, str):
                    raise InvalidInput(
                        f"Text {row} is a {type(text).__name__}, not a string. "
                        "Nothing was embedded.",
                        fix="Leave it out or turn it into text.",
                    )
        return checked, wanted

    def _none(self, wanted: frozenset[Output]) -> EmbeddingBatch:
        """Return the embeddings of no texts."""
        return EmbeddingBatch(
            np.empty((0, self.spec.dimension or 0), np.float32) if "dense" in wanted else None,
            [] if "sparse" in wanted else None,
            [] if "multi" in wanted else None,
        )
