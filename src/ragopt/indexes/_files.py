"""A saved FAISS index: a manifest, the vectors and the records, each with its checksum.

Data files carry a fresh name at every save. The manifest names them and is replaced last, in
one step, so whoever reads finds a whole index whenever the writer stopped.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ragopt._imports import require
from ragopt.codecs import decode_value, encode_value
from ragopt.errors import CorruptData, StorageError

if sys.platform != "win32":
    import fcntl

_FORMAT = 1
_MANIFEST = "manifest.json"


def write(
    folder: Path, settings: dict[str, Any], columns: dict[str, list[Any]], index: Any
) -> None:
    """Save an index; ``index`` is None for one without vectors."""
    mark = secrets.token_hex(6)
    files = {"records": f"records-{mark}.msgpack", "vectors": f"vectors-{mark}.faiss"}
    if index is None:
        del files["vectors"]
    temporary = folder / f"manifest-{mark}.json"
    with _explained(folder), _alone(folder):
        try:
            (folder / files["records"]).write_bytes(encode_value(columns))
            if index is not None:
                require("faiss", "faiss").write_index(index, str(folder / files["vectors"]))
            entries = {
                part: {
                    "name": name,
                    "bytes": (folder / name).stat().st_size,
                    "blake2b": _digest(folder / name),
                }
                for part, name in files.items()
            }
            temporary.write_text(manifest_text(settings, entries))
            for name in (*files.values(), temporary.name):
                _flush(folder / name)
            temporary.replace(folder / _MANIFEST)
            _flush(folder)
        except BaseException:
            for name in (*files.values(), temporary.name):
                (folder / name).unlink(missing_ok=True)
            raise
        for old in (*folder.glob("records-*.msgpack"), *folder.glob("vectors-*.faiss")):
            if old.name not in files.values():
                old.unlink(missing_ok=True)


def read(folder: Path, *, mapped: bool) -> tuple[dict[str, Any], dict[str, list[Any]], Any]:
    """Return settings, columns and the FAISS index (None for one without vectors).

    Args:
        folder: What was written to.
        mapped: Map the vectors into memory and look at the size of their file alone.
    """
    manifest = _manifest(folder)
    while True:
        try:
            return _read(folder, manifest, mapped)
        except StorageError:
            # Somebody may have saved, and so removed the files that this manifest names.
            before, manifest = manifest, _manifest(folder)
            if manifest == before:
                raise


def _manifest(folder: Path) -> bytes:
    try:
        return (folder / _MANIFEST).read_bytes()
    except FileNotFoundError as error:
        raise StorageError(
            f"There is no saved index in {folder}.", fix="Check the path, or save an index there."
        ) from error
    except OSError as error:
        raise _unreadable(folder, error) from error


def _read(
    folder: Path, content: bytes, mapped: bool
) -> tuple[dict[str, Any], dict[str, list[Any]], Any]:
    try:
        manifest = json.loads(content)
        form, settings, entries = (manifest[part] for part in ("format", "settings", "files"))
        whole = form != _FORMAT or manifest["blake2b"] == _sum(settings, entries)
        files = {
            part: (folder / entry["name"], entry["blake2b"], entry.get("bytes"))
            for part, entry in entries.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder / _MANIFEST) from error
    if form != _FORMAT:
        raise StorageError(
            f"The index in {folder} has format {form}; this version of ragopt reads {_FORMAT}.",
            fix="Upgrade ragopt, or build the index again.",
        )
    if not whole:
        raise _damaged(folder / _MANIFEST)
    try:
        for part, (path, digest, size) in files.items():
            # Checked before FAISS sees a byte: its reader trusts the sizes that a file claims.
            # Past the end of a mapped file, even a look would end the process.
            unread = mapped and part == "vectors" and size is not None
            same = path.stat().st_size == size if unread else _digest(path) == digest
            if path.parent != folder or not same:
                raise _damaged(path)
        path = files["records"][0]
        columns = decode_value(path.read_bytes())
        index = None
        if "vectors" in files:
            faiss, path = require("faiss", "faiss"), files["vectors"][0]
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
    except (FileNotFoundError, RuntimeError) as error:  # gone, or nothing that FAISS can read
        raise _damaged(path) from error
    except OSError as error:
        raise _unreadable(folder, error) from error
    if (0 if index is None else index.ntotal) != len(columns["ids"]):
        raise _damaged(folder)
    return settings, columns, index


def manifest_text(settings: dict[str, Any], entries: dict[str, Any]) -> str:
    """Return a manifest with a checksum of its own."""
    manifest = {
        "format": _FORMAT,
        "settings": settings,
        "files": entries,
        "blake2b": _sum(settings, entries),
    }
    return json.dumps(manifest, indent=2)


def _sum(*parts: Any) -> str:
    return blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def _digest(path: Path) -> str:
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unreadable(folder: Path, error: OSError) -> StorageError:
    return StorageError(
        f"The index in {folder} cannot be read ({error.strerror}).", fix="Check its permissions."
    )


def _damaged(path: Path) -> CorruptData:
    return CorruptData(
        f"{path} is missing or is not what was saved.",
        fix="Restore the folder from a copy, or build the index again.",
    )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Make the folder, and wait until nobody else saves to it: of two, the later one stays.

    Whoever saves removes what other saves have left. Where folders cannot be locked (Windows), that
    could be what somebody else is writing; his save then fails and says so.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # until it is closed, or the process has died
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # FAISS reports a failed write as RuntimeError
        raise StorageError(
            f"The index could not be saved to {folder} "
            f"({getattr(error, 'strerror', None) or 'the file could not be written'}). "
            "What was saved there before is as it was.",
            fix="Free some space or choose another folder, and save again.",
        ) from error
