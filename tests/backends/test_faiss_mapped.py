"""FAISS indexes whose vectors are mapped into memory instead of being read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.backends.records import batch, query

from ragopt import Embedding, EmbeddingBatch, F, FaissIndex, HashingEmbedder, Ids, RecordBatch
from ragopt.errors import CorruptData, InvalidInput
from ragopt.filters import Filter
from ragopt.indexes._files import manifest_text
from ragopt.langchain import FaissVectorStore
from ragopt.llama_index import FaissVectorStore as FaissNodes
from ragopt.types import Dense

SIZE, DIMENSION = 600, 16
KINDS: list[dict[str, Any]] = [
    {"kind": "flat"},
    {"kind": "flat", "metric": "l2"},
    {"kind": "hnsw", "m": 8},
    {"kind": "sq8", "train_at": 500},
    {"kind": "ivf_flat", "train_at": 500},
    {"kind": "pq_refined", "train_at": 500},
    {"kind": "rabitq_refined", "train_at": 500},
    {"factory": "PCA8,IVF4,SQ8", "train_at": 500},
]


def array(size: int = SIZE, dimension: int = DIMENSION) -> Dense:
    return np.random.default_rng(0).standard_normal((size, dimension), dtype=np.float32)


def made(size: int = SIZE, dimension: int = DIMENSION, **options: Any) -> FaissIndex:
    index = FaissIndex(**options)
    ids = [f"r{row}" for row in range(size)]
    metadatas = [{"row": row} for row in range(size)]
    index.add(RecordBatch(ids, ids, EmbeddingBatch(array(size, dimension)), metadatas))
    return index


def seen(index: FaissIndex, where: Filter | None = None) -> list[tuple[str, float, str]]:
    found = index.search_batch(EmbeddingBatch(array(5)), k=7, where=where)
    return [(hit.id, hit.score, hit.text) for hits in found for hit in hits]


def vectors_of(folder: Path) -> Path:
    (path,) = folder.glob("vectors-*")
    return path


@pytest.mark.parametrize("options", KINDS, ids=lambda options: "-".join(map(str, options.values())))
def test_every_kind_searches_as_if_it_had_been_read(
    options: dict[str, Any], tmp_path: Path
) -> None:
    made(**options).save(tmp_path)
    mapped, read = FaissIndex.load(tmp_path, mmap=True), FaissIndex.load(tmp_path)
    assert mapped.version() == read.version()
    for where in (None, F("row") >= 200, F("row") < 20):
        assert seen(mapped, where) == seen(read, where)
    for one, other in zip(mapped.find(embeddings=True), read.find(embeddings=True), strict=True):
        np.testing.assert_array_equal(one.embedding.dense, other.embedding.dense)


@pytest.mark.parametrize("options", KINDS[:1] + KINDS[2:3])
async def test_it_cannot_be_changed(options: dict[str, Any], tmp_path: Path) -> None:
    made(**options).save(tmp_path)
    index = FaissIndex.load(tmp_path, mmap=True)
    before = index.version()
    says = r"loaded with mmap=True cannot be changed\. Nothing was changed\. Load it without mmap"
    with pytest.raises(InvalidInput, match=says):
        index.add(RecordBatch(["new"], ["new"], EmbeddingBatch(array(1))))
    with pytest.raises(InvalidInput, match=says):
        await index.adelete(Ids(["r3"]))
    with pytest.raises(InvalidInput, match=says):
        index.clear()
    assert (index.version(), index.count()) == (before, SIZE)
    assert index.search(Embedding(array()[3]), k=1)[0].id == "r3"


def test_an_empty_index_cannot_be_changed_either(tmp_path: Path) -> None:
    FaissIndex().save(tmp_path)
    index = FaissIndex.load(tmp_path, mmap=True)
    assert index.count() == 0
    with pytest.raises(InvalidInput, match="cannot be changed"):
        index.add(batch(["a"]))


@pytest.mark.parametrize("kind", ["flat", "ivf_flat"])
def test_it_outlives_the_file_that_it_maps(kind: Any, tmp_path: Path) -> None:
    made(kind=kind, train_at=500).save(tmp_path)
    old = vectors_of(tmp_path)
    index = FaissIndex.load(tmp_path, mmap=True)
    before = seen(index)
    newer = FaissIndex()
    newer.add(batch(["newer"]))
    newer.save(tmp_path)
    assert not old.exists()
    assert seen(index) == before
    assert FaissIndex.load(tmp_path, mmap=True).search(query(1, 0, 0, 0), k=1)[0].id == "newer"


def test_it_can_be_saved_even_over_what_it_maps(tmp_path: Path) -> None:
    made().save(tmp_path)
    index = FaissIndex.load(tmp_path, mmap=True)
    for folder in (tmp_path, tmp_path / "copy"):
        index.save(folder)
        assert seen(FaissIndex.load(folder)) == seen(index)
    assert index.search(Embedding(array()[3]), k=1)[0].id == "r3"


def test_a_file_that_was_cut_is_named(tmp_path: Path) -> None:
    made().save(tmp_path)
    path = vectors_of(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])  # a look past the end would end the process
    with pytest.raises(CorruptData, match=f"{path.name} is missing or is not what was saved"):
        FaissIndex.load(tmp_path, mmap=True)


def test_what_faiss_cannot_read_is_named(tmp_path: Path) -> None:
    made().save(tmp_path)
    path = vectors_of(tmp_path)
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(CorruptData, match=f"{path.name} is missing or is not what was saved"):
        FaissIndex.load(tmp_path, mmap=True)


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_the_records_are_checked_and_the_vectors_are_trusted(tmp_path: Path) -> None:
    made().save(tmp_path)
    flip_last_byte(vectors_of(tmp_path))
    assert FaissIndex.load(tmp_path, mmap=True).count() == SIZE
    with pytest.raises(CorruptData, match="vectors-"):
        FaissIndex.load(tmp_path)
    (records,) = tmp_path.glob("records-*")
    flip_last_byte(records)
    with pytest.raises(CorruptData, match=records.name):
        FaissIndex.load(tmp_path, mmap=True)


def test_a_file_saved_before_its_size_was_is_read_once(tmp_path: Path) -> None:
    made().save(tmp_path)
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    for entry in manifest["files"].values():
        del entry["bytes"]
    path.write_text(manifest_text(manifest["settings"], manifest["files"]))
    assert FaissIndex.load(tmp_path, mmap=True).count() == SIZE
    flip_last_byte(vectors_of(tmp_path))
    with pytest.raises(CorruptData, match="vectors-"):
        FaissIndex.load(tmp_path, mmap=True)


LARGE = 3_000, 8_192  # 94 MiB of vectors beside few records
BOUND = 16 * 2**20
PROGRAM = """
import sys
from pathlib import Path
import faiss, numpy as np
from ragopt import Embedding, FaissIndex

def own():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))

before = own()
index = FaissIndex.load(sys.argv[1], mmap=sys.argv[2] == "mapped")
assert index.search(Embedding(np.ones(index.dimension, np.float32)), k=3)
print(own() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_vectors_take_no_memory_of_the_process(tmp_path: Path) -> None:
    made(*LARGE).save(tmp_path)
    grown = {}
    for way in ("mapped", "read"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path), way],
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        grown[way] = int(done.stdout)
    assert grown["mapped"] < BOUND
    assert grown["read"] > 4 * BOUND  # the control: what a reader keeps


def test_through_the_stores_of_both_frameworks(tmp_path: Path) -> None:
    store = FaissVectorStore(HashingEmbedder(16))
    store.add_texts(["pears", "cars"])
    store.save_local(tmp_path)
    mapped = FaissVectorStore.load_local(tmp_path, HashingEmbedder(16), mmap=True)
    assert mapped.similarity_search("cars", k=1)[0].page_content == "cars"
    nodes = FaissNodes.from_persist_path(tmp_path, mmap=True)
    for index in (mapped.index, nodes.client):
        with pytest.raises(InvalidInput, match="mmap=True cannot be changed"):
            index.delete(Ids(["a"]))


def test_the_model_is_saved(tmp_path: Path) -> None:
    index = made(size=3)
    index.check_model("one")
    index.save(tmp_path)
    loaded = FaissIndex.load(tmp_path)
    loaded.check_model("one")
    with pytest.raises(InvalidInput, match="made by the model 'one', not by 'two'"):
        loaded.check_model("two")
