"""Models of the Hugging Face hub, fetched into its cache.

All of it goes through ``huggingface_hub``: folders, environment variables and tokens are those of
every other program that uses it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from threading import Event, Thread
from typing import Any, TypeAlias

from ragopt._imports import require
from ragopt._progress import without_bar
from ragopt._readable import size as readable
from ragopt.embedders._hub_errors import explained
from ragopt.embedders.hub_cache import VOCABULARIES, WEIGHTS, cache_folder, snapshot
from ragopt.errors import InvalidInput, StorageError

Progress: TypeAlias = Callable[[int, int], None]

_EXTRA = "transformers"
_MAIN = "main"
_COMMIT = re.compile("[0-9a-f]{40}")
_TRIES = 2
_INTERVAL = 0.2  # seconds between two looks at what is on disk

_SMALL_FILES = (
    "config.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "preprocessor_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "sparse_linear.pt",
    "colbert_linear.pt",
)
_ONNX = ("*.onnx", "*.onnx_data", "onnx/*")
# Files that loaders look for, and many models lack.
_OPTIONAL = (
    *VOCABULARIES,
    *(name for name in _SMALL_FILES if "*" not in name),
    "tokenizer_config.json",
    "adapter_config.json",
)


@dataclass(frozen=True, slots=True)
class Pulled:
    """A model that was fetched.

    Args:
        model: Its id on the hub.
        revision: The commit.
        path: The folder with the files.
        files: How many files were asked for.
        size: Their bytes.
        downloaded: Bytes of those which were not there before.
    """

    model: str
    revision: str
    path: Path
    files: int
    size: int
    downloaded: int


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    size: int
    etag: str | None


def pull(
    model: str,
    *,
    revision: str | None = None,
    files: Sequence[str] = (),
    onnx: bool = False,
    progress: Progress | None = None,
) -> Pulled:
    """Fetch a model from the hub into the cache; what is there already is not fetched again.

    A branch stands for its new commit only when all files of that are there. So a pull that is
    broken off leaves the model usable that was there before. Files that are complete are kept for
    the next pull.

    Args:
        model: Its id on the hub.
        revision: Branch, tag or commit; None for the main branch.
        files: Patterns of the files to fetch; none for what the embedders read: the configuration,
            the tokenizer, the weights (safetensors if there are any), and BGE-M3's two heads.
        onnx: Fetch the files for ONNX Runtime as well.
        progress: Called from another thread, some times a second, with the bytes that are there
            and those that are to come in all.

    Raises:
        MissingDependency: huggingface_hub is not installed.
        BackendUnavailable: The hub cannot be reached, or does not answer as it should.
        StorageError: There is no such model or revision, it is not open to you, or the disk is
            full.
        InvalidInput: This is no model id, or no file is called like that.
    """
    with explained(model, revision):
        for _ in range(_TRIES):
            pulled = _pull(model, revision or _MAIN, tuple(files), onnx, progress)
            if pulled is not None:
                return pulled
    raise StorageError(
        f"The revision {revision or _MAIN!r} of {model} changed while it was fetched.",
        fix="Run it again: files that are complete are kept.",
    )


def find(model: str, name: str, revision: str | None = None) -> Path | None:
    """Return where a file of a model is, fetched if need be; None if the model has no such file.

    What a commit has, and what it lacks, is kept in the cache: no server is asked for that again.
    What a branch or tag stands for, the server is asked each time. If it does not answer, or is
    not to be asked, that counts which it stood for last.

    Args:
        model: Its id on the hub.
        name: Of the file, with its folder in the repository.
        revision: Branch, tag or commit; None for the main branch.

    Raises:
        BackendUnavailable: The file is not in the cache, and the hub cannot be reached or does not
            answer as it should.
        StorageError: There is no such model or revision, or it is not open to you.
        InvalidInput: This is no model id.

    Examples:
        >>> find("BAAI/bge-m3", "config.json")
    """
    hub, errors = require("huggingface_hub", _EXTRA), require("huggingface_hub.errors", _EXTRA)
    revision, folder = revision or _MAIN, cache_folder()
    with explained(model, revision):
        if _COMMIT.fullmatch(revision):
            known = hub.try_to_load_from_cache(model, name, cache_dir=folder, revision=revision)
            if known is not None:  # the path, or a mark that there is none
                return Path(known) if isinstance(known, str) else None
        try:
            found = hub.hf_hub_download(
                model, name, revision=revision, cache_dir=folder, **without_bar(hub.hf_hub_download)
            )
        except errors.LocalEntryNotFoundError:
            # With HF_HUB_OFFLINE, a model that is here counts as it is. A network that fails is
            # another thing: taken for a file that is missing, it would change the vectors.
            if not _offline() or snapshot(model, revision) is None:
                raise
            return None
        except errors.EntryNotFoundError:
            return None
    return Path(found)


def _offline() -> bool:
    return bool(require("huggingface_hub.constants", _EXTRA).HF_HUB_OFFLINE)


def _pull(
    model: str, revision: str, patterns: Sequence[str], onnx: bool, progress: Progress | None
) -> Pulled | None:
    hub, folder = require("huggingface_hub", _EXTRA), cache_folder()
    info = hub.HfApi().model_info(model, revision=revision, files_metadata=True)
    files = {each.rfilename: _file(each) for each in info.siblings or ()}
    wanted = [files[name] for name in _wanted(model, list(files), patterns, onnx)]
    repo = folder / f"models--{model.replace('/', '--')}"
    path = repo / "snapshots" / info.sha
    missing = [each for each in wanted if not (path / each.name).exists()]
    # Other revisions share files with this one.
    absent = [
        each for each in missing if not each.etag or not (repo / "blobs" / each.etag).exists()
    ]
    size = sum(each.size for each in absent)
    _check_space(model, folder, size)
    options = {} if progress is None else without_bar(hub.hf_hub_download)
    with _watched(repo / "blobs", size, progress):
        # One after the other, in this thread: a download in a pool goes on after an interrupt.
        for each in missing:
            hub.hf_hub_download(model, each.name, revision=info.sha, cache_dir=folder, **options)
    _mark_absent(repo / ".no_exist" / info.sha, files)
    if not _COMMIT.fullmatch(revision):  # a branch or tag: now it stands for these files
        found = hub.hf_hub_download(model, wanted[0].name, revision=revision, cache_dir=folder)
        if path not in Path(found).parents:
            return None
    whole = sum(each.size for each in wanted)
    return Pulled(model, info.sha, path, len(wanted), whole, size)


def _mark_absent(folder: Path, there: Collection[str]) -> None:
    """Write down which files the commit lacks, as huggingface_hub does when it asks for one."""
    with suppress(OSError):  # a cache that cannot be written to; loaders will ask the hub, then
        for name in _OPTIONAL:
            if name not in there:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).touch()


def _file(sibling: Any) -> _File:
    lfs = sibling.lfs
    etag = sibling.blob_id if lfs is None else lfs.sha256
    return _File(sibling.rfilename, sibling.size or 0, etag)


def _wanted(model: str, names: list[str], patterns: Sequence[str], onnx: bool) -> list[str]:
    """Return the names of the files to fetch, in their order."""
    if patterns:
        found = _matching(names, patterns)
        if not found:
            raise InvalidInput(
                f"No file of {model} is called {' or '.join(patterns)}.",
                fix=f"There is: {', '.join(sorted(names)) or 'nothing'}.",
            )
    else:
        weights = next(
            (
                [whole] if whole in names else [index, *_matching(names, [parts])]
                for whole, index, parts in WEIGHTS
                if whole in names or index in names
            ),
            [],
        )
        if not weights and not onnx:
            raise StorageError(
                f"{model} has no weights that the embedders read.",
                fix="They read model.safetensors and pytorch_model.bin. Name the files that you "
                "want with files=, on the command line with --files.",
            )
        found = _matching(names, _SMALL_FILES) | set(weights)
    if onnx:
        more = _matching(names, _ONNX)
        if not more:
            raise InvalidInput(f"{model} has no files for ONNX Runtime.", fix="Leave onnx out.")
        found |= more
    return [name for name in names if name in found]


def _matching(names: list[str], patterns: Sequence[str]) -> set[str]:
    return {
        name
        for name in names
        for pattern in patterns
        # A star is not meant to reach into folders unless the pattern names one.
        if fnmatchcase(name, pattern) and name.count("/") >= pattern.count("/") >= ("/" in name)
    }


def _check_space(model: str, folder: Path, size: int) -> None:
    there = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(there).free
    if size > free:
        raise StorageError(
            f"{model} needs {readable(size)}, and {folder} has {readable(free)} left.",
            fix="Make room, or name a folder on another disk in HF_HOME.",
        )


@contextmanager
def _watched(blobs: Path, size: int, progress: Progress | None) -> Iterator[None]:
    if progress is None or not size:
        yield
        return
    before, end = _taken(blobs), Event()
    failed: list[Exception] = []

    def watch() -> None:
        try:
            while not end.wait(_INTERVAL):
                progress(min(max(_taken(blobs) - before, 0), size), size)
        except Exception as error:  # noqa: BLE001 - the caller's own; the caller gets it
            failed.append(error)

    thread = Thread(target=watch, name="ragopt-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
    if failed:
        raise failed[0]
    progress(size, size)


def _taken(folder: Path) -> int:
    try:
        return sum(path.stat().st_size for path in folder.iterdir())
    except OSError:  # not there yet, or a file was just renamed
        return 0
