import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragopt import Embedding, EmbeddingBatch, FaissIndex, Ids, RecordBatch
from ragopt.errors import CorruptData, InvalidInput, StorageError
from ragopt.indexes import _files
from ragopt.indexes._files import manifest_text


def made(size: int = 50, **options: Any) -> FaissIndex:
    index = FaissIndex(**options)
    matrix = np.random.default_rng(0).normal(size=(size, 16)).astype(np.float32)
    metadatas = [{"i": i, "tags": ["a"]} for i in range(size)]
    ids = [f"r{i}" for i in range(size)]
    index.add(RecordBatch(ids, ids, EmbeddingBatch.of_dense(matrix), metadatas, ids))
    return index


def contents(index: FaissIndex) -> list[Any]:
    return [(r.id, r.text, r.metadata, r.document_id) for r in index.find()]


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_what_is_saved_is_loaded(kind: Any, metric: str, tmp_path: Path) -> None:
    index = made(kind=kind, metric=metric, m=8, ef_search=77)
    index.delete(Ids(["r3", "r4"]))
    index.save(tmp_path / "index")
    loaded = FaissIndex.load(tmp_path / "index")
    assert contents(loaded) == contents(index)
    assert (loaded.metric, loaded.dimension, loaded.version()) == (metric, 16, index.version())
    query = Embedding(np.ones(16, np.float32))
    for a, b in zip(index.search(query, k=20), loaded.search(query, k=20), strict=True):
        assert a.id == b.id
        assert a.score == pytest.approx(b.score)
    loaded.add(RecordBatch(["new"], ["new"], EmbeddingBatch.of_dense(np.ones((1, 16)))))
    assert loaded.search(query, k=1)[0].id == "new"
    assert loaded.version() != index.version()


def test_an_empty_index(tmp_path: Path) -> None:
    FaissIndex().save(tmp_path)
    assert FaissIndex.load(tmp_path).count() == 0


def test_saving_again_leaves_no_old_files(tmp_path: Path) -> None:
    index = made()
    for _ in range(3):
        index.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    assert not list(tmp_path.glob("*.pkl"))


def test_a_full_disk_keeps_the_old_index(small_disk: Path) -> None:
    folder = small_disk / "index"
    old = made()
    old.save(folder)
    with pytest.raises(StorageError, match=r"could not be saved.*is as it was.*Free some space"):
        made(30_000).save(folder)
    assert contents(FaissIndex.load(folder)) == contents(old)
    assert len(list(folder.iterdir())) == 3
    old.save(folder)


def test_a_crash_before_the_manifest_keeps_the_old_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = made()
    old.save(tmp_path)

    def crash(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            made(10).save(tmp_path)
    assert contents(FaissIndex.load(tmp_path)) == contents(old)
    assert len(list(tmp_path.iterdir())) == 3


def test_many_save_to_one_folder(tmp_path: Path) -> None:
    """None removes what another one is about to name, and what is there can always be read."""
    indexes = [made(size) for size in (10, 20, 30)]
    indexes[0].save(tmp_path)
    over = threading.Event()

    def read() -> int:
        loaded = 0
        while not over.is_set():
            loaded += FaissIndex.load(tmp_path).count() in (10, 20, 30)
        return loaded

    def save(index: FaissIndex) -> None:
        for _ in range(20):
            index.save(tmp_path)

    with ThreadPoolExecutor() as threads:
        reading = threads.submit(read)
        for saving in [threads.submit(save, index) for index in indexes]:
            saving.result()
        over.set()
        assert reading.result() > 0
    assert len(list(tmp_path.iterdir())) == 3


def test_an_index_needs_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match="to no folder"):
        made().save("")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mmap", [False, True])
def test_a_save_while_another_process_reads(
    mmap: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(10).save(tmp_path)
    read, saves = _files._read, [made(20), made(30)]

    def late(*arguments: Any) -> Any:
        if saves:
            saves.pop(0).save(tmp_path)
        return read(*arguments)

    monkeypatch.setattr(_files, "_read", late)
    assert FaissIndex.load(tmp_path, mmap=mmap).count() == 30


@pytest.mark.parametrize("pattern", ["vectors-*", "records-*"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "empty"])
def test_a_damaged_file_is_named(pattern: str, damage: str, tmp_path: Path) -> None:
    made().save(tmp_path)
    (path,) = tmp_path.glob(pattern)
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        changed = {"flip": bytes(content), "cut": bytes(content[:-9]), "empty": b""}
        path.write_bytes(changed[damage])
    with pytest.raises(CorruptData, match=f"{path.name} is missing or is not what was saved"):
        FaissIndex.load(tmp_path)


@pytest.mark.parametrize(
    "manifest",
    [
        "",
        "[]",
        "null",
        "{",
        '{"format": 1}',
        '{"format": 1, "files": [], "settings": {}}',
        "\udcff",
    ],
)
def test_a_damaged_manifest(manifest: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(manifest.encode("utf-8", "surrogateescape"))
    with pytest.raises(CorruptData, match=r"manifest\.json is missing or is not what was saved"):
        FaissIndex.load(tmp_path)


def change(folder: Path, **parts: Any) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for part, value in parts.items():
        manifest[part] = {**manifest[part], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(manifest))


def test_a_newer_format(tmp_path: Path) -> None:
    made().save(tmp_path)
    change(tmp_path, format=2)
    with pytest.raises(StorageError, match=r"has format 2.*Upgrade ragopt"):
        FaissIndex.load(tmp_path)


@pytest.mark.parametrize(
    "settings", [{"kind": "hnsw"}, {"metric": "l2"}, {"dimension": 17}, {"m": "x"}, {"new": 1}]
)
def test_changed_settings(settings: dict[str, Any], tmp_path: Path) -> None:
    made().save(tmp_path)
    change(tmp_path, settings=settings)
    with pytest.raises(CorruptData, match=r"manifest\.json"):
        FaissIndex.load(tmp_path)


def test_a_manifest_cannot_point_outside(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    made().save(folder)
    (records,) = folder.glob("records-*")
    shutil.copy(records, tmp_path / "outside")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["records"]["name"] = "../outside"
    (folder / "manifest.json").write_text(manifest_text(manifest["settings"], manifest["files"]))
    with pytest.raises(CorruptData, match="outside is missing or is not what was saved"):
        FaissIndex.load(folder)


def test_no_index_and_no_folder(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(StorageError, match="no saved index"):
            FaissIndex.load(folder)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError):
        FaissIndex.load(tmp_path / "file")
    with pytest.raises(StorageError, match="could not be saved"):
        made().save(tmp_path / "file")


def test_the_folder_is_the_owners_alone(tmp_path: Path) -> None:
    made().save(tmp_path / "index")
    assert os.stat(tmp_path / "index").st_mode & 0o077 == 0


def test_what_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made().save(tmp_path)

    def refuse(_: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(_files, "_digest", refuse)  # root may read everything
    with pytest.raises(StorageError, match=r"cannot be read \(Permission denied\)"):
        FaissIndex.load(tmp_path)
