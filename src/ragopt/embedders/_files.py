"""The files of a model: in a folder, in the cache of the Hugging Face hub, or on the hub."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ragopt._imports import require
from ragopt.errors import StorageError

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


class ModelFiles:
    """The files of one model, found when they are asked for.

    Args:
        model: A folder, or a model id on the Hugging Face hub.
        revision: Branch, tag or commit on the hub.
    """

    def __init__(self, model: str | os.PathLike[str], revision: str | None = None) -> None:
        self.model = str(model)
        self.revision = revision
        folder = Path(self.model).expanduser()
        self.folder = folder if folder.is_dir() else None

    def find(self, name: str) -> Path | None:
        """Return where a file is, downloaded if need be; None if the model has no such file.

        Raises:
            StorageError: The model is neither a folder nor in the cache, and cannot be downloaded.
        """
        if self.folder is not None:
            return self.folder / name if (self.folder / name).is_file() else None
        hub = require("transformers.utils.hub", "transformers")
        try:
            found = hub.cached_file(
                self.model,
                name,
                revision=self.revision,
                _raise_exceptions_for_missing_entries=False,
            )
        except (OSError, ValueError) as error:
            raise self.unreadable(error) from error
        return None if found is None else Path(found)

    def json(self, name: str) -> dict[str, Any] | None:
        """Return the content of a JSON file; None if the model has no such file.

        Raises:
            StorageError: It cannot be read.
        """
        path = self.find(name)
        if path is None:
            return None
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self.unreadable(f"{name}: {error}") from error
        return content

    def config(self) -> dict[str, Any]:
        """Return config.json.

        Raises:
            StorageError: There is none, or it cannot be read.
        """
        config = self.json("config.json")
        if config is None:
            raise self.unreadable(
                "config.json is missing"
                if self.folder
                else "no such folder is there, and its config.json is neither in the cache of the "
                "hub nor could it be fetched"
            )
        return config

    def tokenizer(self) -> Any:
        """Return the tokenizer.

        Raises:
            StorageError: Its files are missing or cannot be read.
        """
        transformers = require("transformers", "transformers")
        if not any(self.find(name) for name in _TOKENIZERS):
            # transformers would make a tokenizer that knows no word, and say nothing.
            raise self.unreadable("the tokenizer's vocabulary is missing")
        try:
            return transformers.AutoTokenizer.from_pretrained(self.model, revision=self.revision)
        except (OSError, ValueError) as error:
            raise self.unreadable(error) from error

    def local(self) -> Path:
        """Return the folder that has all files which were found so far."""
        return self.folder or (self.find("config.json") or Path()).parent

    def fingerprint(self, others: Iterable[str] = ()) -> str | None:
        """Return the commit of a model from the hub, or a fingerprint of a local folder.

        Of the weights, the size and 16 samples are hashed: a fine-tuned copy differs in all of
        them, and reading a file of gigabytes at every start would cost more than it tells.

        Args:
            others: More files that the vectors depend on.
        """
        if self.folder is None:
            config = self.find("config.json")
            return None if config is None else config.parent.name
        digest = blake2b(digest_size=16)
        for name in ("config.json", "tokenizer.json", "1_Pooling/config.json"):
            if (path := self.find(name)) is not None:
                digest.update(path.read_bytes())
        for name in (*_WEIGHTS, *others):
            if (path := self.find(name)) is not None:
                size = path.stat().st_size
                digest.update(f"{name}:{size}:".encode())
                with path.open("rb") as file:
                    for sample in range(_SAMPLES):
                        file.seek(size * sample // _SAMPLES)
                        digest.update(file.read(_SAMPLE_BYTES))
        return digest.hexdigest()

    def unreadable(self, reason: object) -> StorageError:
        """Return the error that says why the model cannot be loaded."""
        first = str(reason).strip().splitlines()[0].rstrip(".")
        return StorageError(
            f"The embedding model {self.model} cannot be loaded: {first}.",
            fix="Give a folder with config.json, the tokenizer and the weights, or a model id of "
            "the Hugging Face hub; without a network only models in its cache are found.",
        )
