"""The files of a model: in a folder, in the cache of the Hugging Face hub, or on the hub."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Hashable, Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

from ragopt._imports import require
from ragopt._progress import download_bar
from ragopt.embedders import hub
from ragopt.embedders.hub_cache import VOCABULARIES, WEIGHTS, is_whole
from ragopt.embedders.sharing import SharedModels
from ragopt.errors import InvalidInput, StorageError

T = TypeVar("T")

_SAMPLES, _SAMPLE_BYTES = 16, 1 << 16


# One fetch for all who ask at the same time.
_FETCHES = SharedModels()


class ModelFiles:
    """The files of one model, found when they are asked for.

    Args:
        model: A folder, or a model id on the Hugging Face hub.
        revision: Branch, tag or commit on the hub.
    """

    def __init__(self, model: str | os.PathLike[str], revision: str | None = None) -> None:
        self.model = str(model)
        folder = Path(self.model).expanduser()
        self.folder = folder if folder.is_dir() else None
        self._revision = revision
        self._commit: str | None = None

    @property
    def revision(self) -> str | None:
        """Branch, tag or commit on the hub; the commit from the first file on that was found.

        So all files are of one commit, and of those that are here the hub is not asked again.
        """
        return self._commit or self._revision

    def find(self, name: str) -> Path | None:
        """Return where a file is, downloaded if need be; None if the model has no such file.

        Raises:
            BackendUnavailable: It is not in the cache, and the hub cannot be reached.
            StorageError: The model is neither a folder nor on the hub, or it is not open to you.
        """
        if self.folder is not None:
            return self.folder / name if (self.folder / name).is_file() else None
        require("transformers", "transformers")  # nothing is fetched that could not be loaded
        model, revision = self.model, self.revision
        try:
            found = _once((model, revision, name), lambda: hub.find(model, name, revision))
        except InvalidInput as error:
            reason = "it is neither a folder that is there nor a model id of the hub"
            raise self.unreadable(reason) from error
        if found is not None and self._commit is None:
            self._commit = found.parents[name.count("/")].name
        return found

    def fetch(self, progress: hub.Progress | None = None) -> None:
        """Have all files here that the embedders read.

        Args:
            progress: Called with the bytes that are here and those that are to come in all; None
                for a bar where stderr is a terminal.

        Raises:
            BackendUnavailable: A file is missing, and the hub cannot be reached.
            StorageError: There is no such model, it is not open to you, or the disk is full.
        """
        if self.folder is not None:
            return
        self.config()
        folder = self._snapshot()
        # Without that file a tokenizer can still be made, but perhaps another one.
        self.find("tokenizer_config.json")
        if not is_whole(folder):
            _once((self.model, self._commit), lambda: self._pull(progress))

    def _pull(self, progress: hub.Progress | None) -> None:
        with download_bar(self.model) as drawn:
            hub.pull(self.model, revision=self._commit, progress=progress or drawn)

    def _snapshot(self) -> Path:
        config = self.find("config.json")
        assert config is not None, "fetch() has found it"
        return config.parent

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
            raise self.unreadable("config.json is missing")
        return config

    def tokenizer(self) -> Any:
        """Return the tokenizer.

        Raises:
            StorageError: Its files are missing or cannot be read.
        """
        transformers, folder = require("transformers", "transformers"), self.local()
        if not any((folder / name).exists() for name in VOCABULARIES):
            # transformers would make a tokenizer that knows no word, and say nothing.
            raise self.unreadable("the tokenizer's vocabulary is missing")
        try:
            return transformers.AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise self.unreadable(error) from error

    def local(self) -> Path:
        """Return the folder with all files that the embedders read; see ``fetch``."""
        self.fetch()
        return self.folder or self._snapshot()

    def fingerprint(self, others: Iterable[str] = ()) -> str | None:
        """Return the commit of a model from the hub, or a fingerprint of a local folder.

        Of each file of weights, the size and 16 samples are hashed: a fine-tuned copy differs in
        all of them, and reading gigabytes at every start would cost more than it tells.

        Args:
            others: More files that the vectors depend on.
        """
        if self.folder is None:
            self.find("config.json")
            return self._commit
        digest = blake2b(digest_size=16)
        for name in ("config.json", *VOCABULARIES, "1_Pooling/config.json"):
            if (path := self.find(name)) is not None:
                digest.update(path.read_bytes())
        patterns = (*(name for names in WEIGHTS for name in names), *others)
        for pattern in patterns:
            for path in sorted(self.folder.glob(pattern)):
                size = path.stat().st_size
                digest.update(f"{path.name}:{size}:".encode())
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


def _once(key: Hashable, fetch: Callable[[], T]) -> T:
    """Fetch something, once for all threads that ask at the same time."""
    shared = _FETCHES.acquire(key, fetch)
    try:
        return shared.value
    finally:
        shared.release()
