"""BGE-M3: dense, sparse and multi-vectors of a text in one forward pass."""

from __future__ import annotations

import os
from collections.abc import Collection, Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from ragopt._imports import require
from ragopt.embedders._files import ModelFiles
from ragopt.embedders._heads import HEADS
from ragopt.embedders._tokens import LongText
from ragopt.embedders._torch import (
    Precision,
    TorchEngine,
    TorchModel,
    check_choice,
    device_and_precision,
)
from ragopt.embedders.engines import Engine
from ragopt.embedders.text_model import TextModelEmbedder
from ragopt.errors import InvalidInput
from ragopt.types import EmbedderSpec, EmbeddingBatch, Output, SparseVector

EngineName: TypeAlias = Literal["torch", "onnx", "flag"]


@dataclass(frozen=True, slots=True)
class _Settings:
    """What the files say, without the weights."""

    dimension: int
    outputs: frozenset[Output]
    max_length: int
    revision: str | None
    device: str
    precision: Precision


class BGEM3Embedder(TextModelEmbedder):
    """Embeddings of BGE-M3 (Chen et al., "M3-Embedding", 2024), and of models tuned from it.

    One pass makes any subset of a dense vector (of the first token), a sparse one (a weight for
    each token id of the text, the highest where it is repeated) and a multi-vector (one vector
    for each token but the first). What was not asked for is not computed.

    Args:
        model: A folder, or a model id on the Hugging Face hub.
        revision: Branch, tag or commit on the hub.
        engine: ``"torch"`` runs without padding, and ``"onnx"`` too, on ONNX Runtime, which is
            faster on a CPU; ``"flag"`` is FlagEmbedding's own model, the reference.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; ``auto`` for the best there is.
        precision: ``float32``, ``float16`` or ``bfloat16``; ``auto`` for float16 on a GPU and
            float32 on a CPU. With the engine ``"onnx"`` also ``int8``: twice as fast, and near.
        normalize: Scale dense vectors, and each row of multi-vectors, to length 1.
        normalize_sparse: Scale sparse vectors to a sum of 1.
        max_length: Tokens that are read of a text.
        long_text: What becomes of longer texts: ``"cut"`` at the end of a sentence, with a
            ``TruncationWarning``; ``"refuse"``; or ``"split"`` into pieces: see
            ``TextModelEmbedder``.
        batch_size: Texts in one forward pass; None for as many as the tokens allow.
        batch_tokens: Tokens in one forward pass; None for what suits the device.
        query_prefix: Put before every query. It is part of the text: its tokens have weights.
        document_prefix: Put before every document.
        name: Name in cache keys; the model if None.

    Raises:
        MissingDependency: From the first use: a package that the engine needs is missing.
        StorageError: From the first use: the model's files cannot be found or read.
        InvalidInput: An output was asked for whose head the model's files lack; an unknown device
            or engine; a text that is too long and refused.
        OutOfMemory: There is not enough memory for one text alone.

    Examples:
        >>> batch = BGEM3Embedder().embed(["a text"], outputs=("dense", "sparse", "multi"))
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = "BAAI/bge-m3",
        *,
        revision: str | None = None,
        engine: EngineName = "torch",
        device: str = "auto",
        precision: Precision | Literal["auto"] = "auto",
        normalize: bool = True,
        normalize_sparse: bool = False,
        max_length: int = 8_192,
        long_text: LongText = "cut",
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        query_prefix: str = "",
        document_prefix: str = "",
        name: str | None = None,
    ) -> None:
        check_choice(engine, get_args(EngineName), device, precision)
        super().__init__(
            ModelFiles(model, revision),
            max_length=max_length,
            long_text=long_text,
            normalize=normalize,
            batch_tokens=batch_tokens,
            batch_size=batch_size,
            prefixes={"query": query_prefix, "document": document_prefix},
        )
        self._engine_name = engine
        self._device = device
        self._precision = precision
        self._normalize_sparse = normalize_sparse
        self._name = name or self.model

    @property
    def spec(self) -> EmbedderSpec:
        """What the vectors depend on. Reads the model's small files, not its weights."""
        settings = self._settings
        return EmbedderSpec(
            self._name,
            revision=settings.revision,
            dimension=settings.dimension,
            outputs=settings.outputs,
            params=self._params(
                engine=self._engine_name,
                normalize_sparse=self._normalize_sparse,
                precision=settings.precision,
            ),
        )

    @property
    def _limit(self) -> int:
        return self._settings.max_length

    def _lacks(self, outputs: Collection[Output]) -> str:
        missing = sorted(HEADS[output] for output in outputs if output in HEADS)
        return f" For more, {' and '.join(missing)} must lie beside its weights." if missing else ""

    def _model_key(self) -> Hashable:
        settings = self._settings
        key = (self.model, self._files.revision, settings.device, settings.precision)
        return (*key, self._engine_name, self._normalize if self._engine_name == "flag" else None)

    def _load_model(self) -> Any:
        settings = self._settings
        if self._engine_name != "flag":
            return TorchModel(
                self._files,
                device=settings.device,
                precision=settings.precision,
                runtime=self._engine_name,
            )
        from ragopt.embedders._flag import FlagEngine

        try:
            return self._files.tokenizer(), FlagEngine(
                str(self._files.local()),
                device=settings.device,
                dtype=settings.precision,  # type: ignore[arg-type]
                normalize=self._normalize,
            )
        except (OSError, ValueError) as error:
            raise self._files.unreadable(error) from error

    def _engine_over(self, model: Any) -> tuple[Any, Engine]:
        if self._engine_name == "flag":
            tokenizer, engine = model
            return tokenizer, engine
        return model.tokenizer, TorchEngine(
            model, pooling="cls", normalize=self._normalize, heads=True
        )

    def _finish(self, batch: EmbeddingBatch) -> EmbeddingBatch:
        if batch.sparse is None or not self._normalize_sparse:
            return batch
        return EmbeddingBatch(batch.dense, [_to_sum_1(each) for each in batch.sparse], batch.multi)

    @cached_property
    def _settings(self) -> _Settings:
        files = self._files
        config = files.config()
        if config.get("model_type") != "xlm-roberta":
            raise InvalidInput(
                f"{self.model} is a {config.get('model_type')!r} model, and BGE-M3 is built on "
                "xlm-roberta.",
                fix="Use TransformersEmbedder for other encoders.",
            )
        device, precision = device_and_precision(
            require("torch", "transformers"), self._engine_name, self._device, self._precision
        )
        heads = {output for output, name in HEADS.items() if files.find(name) is not None}
        return _Settings(
            dimension=int(config["hidden_size"]),
            outputs=frozenset({"dense", *heads}),
            max_length=self._allowed(self._max_length or 8_192, config),
            revision=files.fingerprint(HEADS.values()),
            device=device,
            precision=precision,
        )


def _to_sum_1(vector: SparseVector) -> SparseVector:
    total = float(np.sum(vector.values))
    return SparseVector(vector.indices, vector.values / total) if total else vector
