"""Models of the Hugging Face hub that are on this machine: what there is, and removing it.

All of it goes through ``huggingface_hub``, so it is the cache of every other program, too.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragopt._imports import require
from ragopt.errors import InvalidInput, StorageError

_EXTRA = "transformers"
_SHORTEST = 4  # characters by which a commit may be named

WEIGHTS = (
    ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"),
)
"""One file, or an index and its parts; embedders read the first that a model has."""

VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
)
"""Files of which every tokenizer has one or more."""


@dataclass(frozen=True, slots=True)
class CachedModel:
    """One revision of a model in the cache.

    Args:
        model: Its id on the hub.
        revision: The commit.
        refs: The branches and tags that stand for this commit here.
        size: Bytes of its files; another revision may share some of them.
        files: How many files there are.
        used: When a file was last read or written, in Unix time, as the disk records it.
        path: The folder with the files.
    """

    model: str
    revision: str
    refs: tuple[str, ...]
    size: int
    files: int
    used: float
    path: Path


@dataclass(frozen=True, slots=True)
class CachedModels:
    """All models in the cache.

    Args:
        folder: Where the cache is.
        models: Their revisions, by name.
        size: Bytes that they take up together.
        broken: Models of which no revision can be read; a download may have been broken off.
    """

    folder: Path
    models: list[CachedModel]
    size: int
    broken: list[str]


@dataclass(frozen=True, slots=True)
class Removal:
    """What goes when a model, or one revision of it, is removed.

    Args:
        model: Its id on the hub.
        revisions: What goes; none if only the rest of a broken-off download is there.
        size: Bytes that become free.
        folders: Folders and files that go.
        execute: Removes them.
    """

    model: str
    revisions: list[CachedModel]
    size: int
    folders: list[Path]
    execute: Callable[[], None]


def cache_folder() -> Path:
    """Return the folder of the cache: ``HF_HUB_CACHE``, or ``hub`` in ``HF_HOME``."""
    return Path(require("huggingface_hub.constants", _EXTRA).HF_HUB_CACHE).expanduser().resolve()


def snapshot(model: str, revision: str | None = None) -> Path | None:
    """Return the folder of a model in the cache; None if it is not there. Asks no server.

    Args:
        model: Its id on the hub.
        revision: Branch, tag or commit.
    """
    found = require("huggingface_hub", _EXTRA).try_to_load_from_cache(
        model, "config.json", cache_dir=cache_folder(), revision=revision
    )
    return Path(found).parent if isinstance(found, str) else None


def is_whole(folder: Path) -> bool:
    """Tell whether a folder has the weights, all parts of them, and a tokenizer's vocabulary."""
    if not any((folder / name).exists() for name in VOCABULARIES):
        return False
    return any(
        (folder / whole).exists() or _has_parts(folder, index) for whole, index, _ in WEIGHTS
    )


def _has_parts(folder: Path, index: str) -> bool:
    try:
        parts = json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values()
        return all((folder / name).exists() for name in set(parts))
    except (OSError, ValueError, LookupError, AttributeError, TypeError):  # absent or damaged
        return False


def cached() -> CachedModels:
    """Return the models in the cache.

    Raises:
        StorageError: The folder of the cache cannot be read.
    """
    folder = cache_folder()
    repos = _repos(folder)
    models = [_cached_model(repo, revision) for repo in repos for revision in repo.revisions]
    known = {repo.repo_path for repo in repos}
    broken = [path.name for path in folder.glob("models--*") if path not in known]
    return CachedModels(
        folder,
        sorted(models, key=lambda each: (each.model, -each.used)),
        sum(repo.size_on_disk + _unfinished(repo.repo_path) for repo in repos),
        sorted(name.removeprefix("models--").replace("--", "/") for name in broken),
    )


def _repos(folder: Path) -> list[Any]:
    if not folder.exists():
        return []
    try:
        found = require("huggingface_hub", _EXTRA).scan_cache_dir(folder)
    except (OSError, ValueError) as error:
        raise StorageError(
            f"The model cache {folder} cannot be read ({error}).",
            fix="Check its rights, or name another folder in HF_HOME.",
        ) from error
    return [repo for repo in found.repos if repo.repo_type == "model"]


def _cached_model(repo: Any, revision: Any) -> CachedModel:
    times = [max(file.blob_last_accessed, file.blob_last_modified) for file in revision.files]
    return CachedModel(
        repo.repo_id,
        revision.commit_hash,
        tuple(sorted(revision.refs)),
        revision.size_on_disk,
        len(revision.files),
        max(times, default=revision.last_modified),
        revision.snapshot_path,
    )


def _unfinished(repo: Path) -> int:
    return sum(path.stat().st_size for path in repo.glob("blobs/*.incomplete"))


# -- removing --------------------------------------------------------------------------------


def removal(model: str, revision: str | None = None) -> Removal:
    """Return what goes when a model is removed from the cache. Nothing is removed yet.

    Args:
        model: Its id on the hub.
        revision: Branch, tag or commit, which may be cut short; None for all revisions.

    Raises:
        StorageError: There is no such model or revision in the cache.
        InvalidInput: Several commits begin like that.
    """
    folder = cache_folder()
    hub = require("huggingface_hub", _EXTRA)
    repo = next((each for each in _repos(folder) if each.repo_id == model), None)
    if repo is None:
        path = folder / f"models--{model.replace('/', '--')}"
        if not path.is_dir() or path.parent != folder or revision is not None:
            raise StorageError(
                f"There is no model {model} in {folder}.",
                fix="Show those that are there: ragopt models list",
            )
        size = sum(each.lstat().st_size for each in path.rglob("*") if each.is_file())
        return Removal(model, [], size, [path], lambda: shutil.rmtree(path))
    chosen = sorted(repo.revisions, key=lambda each: str(each.commit_hash))
    if revision is not None:
        chosen = [_revision(model, chosen, revision)]
    strategy = hub.scan_cache_dir(folder).delete_revisions(*(each.commit_hash for each in chosen))
    return Removal(
        model,
        [_cached_model(repo, each) for each in chosen],
        strategy.expected_freed_size + sum(map(_unfinished, strategy.repos)),
        [*strategy.repos, *strategy.snapshots, *strategy.blobs],
        strategy.execute,
    )


def _revision(model: str, there: list[Any], wanted: str) -> Any:
    found = [each for each in there if wanted in each.refs]
    if not found and len(wanted) >= _SHORTEST:
        found = [each for each in there if each.commit_hash.startswith(wanted.lower())]
    if len(found) == 1:
        return found[0]
    names = ", ".join(" ".join([each.commit_hash[:12], *sorted(each.refs)]) for each in there)
    if found:
        raise InvalidInput(
            f"Several revisions of {model} begin with {wanted!r}.", fix=f"There is: {names}."
        )
    raise StorageError(
        f"There is no revision {wanted!r} of {model} in the cache.", fix=f"There is: {names}."
    )


def remove(what: Removal) -> None:
    """Remove what ``removal`` returned.

    Raises:
        StorageError: Some of it is still there.
    """
    try:
        what.execute()
        left: list[Any] = [path for path in what.folders if path.exists()]
    except OSError as error:
        left = [error]
    if left:  # huggingface_hub only logs what it may not delete
        raise StorageError(
            f"Not all of {what.model} could be removed: {left[0]}.",
            fix="Check the rights of that folder, and run it again.",
        )
