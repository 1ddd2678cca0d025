"""What the kinds of FAISS index do beyond the contract: training, recall, deletes, files."""

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from ragopt import Embedding, EmbeddingBatch, F, FaissIndex, Ids, RecordBatch
from ragopt.errors import InvalidInput, StorageError
from ragopt.indexes._faiss_kinds import Settings, auto_from
from ragopt.indexes._files import manifest_text
from ragopt.types import Dense, Metric

SIZE, DIMENSION = 20_000, 64
IVF_REFINED = "IVF128,PQ32x4fs,RFlat"
# The share of the true nearest that is found; codes alone cannot tell near ones apart.
RECALLS = {
    "flat": 1.0,
    "hnsw": 0.98,
    "fp16": 0.99,
    "sq8": 0.95,
    "ivf_flat": 0.98,
    "ivf_pq": 0.5,
    "pq_refined": 0.98,
    "rabitq_refined": 0.98,
    "auto": 0.98,
    IVF_REFINED: 0.98,
    "PQ32x4fs": 0.3,  # knows no selector
    "PCA32,IVF64,SQ8": 0.3,
}
LEARNING = sorted(set(RECALLS) - {"flat", "hnsw"})


def clustered(size: int = SIZE, seed: int = 0) -> Dense:
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(200, DIMENSION))
    rows = centres[random.integers(200, size=size)] + random.normal(size=(size, DIMENSION))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def made(kind: str, **options: Any) -> FaissIndex:
    name = "kind" if kind.islower() else "factory"
    return FaissIndex(**{name: kind, **options})


def records(array: Dense, start: int = 0) -> RecordBatch:
    ids = [f"r{row}" for row in range(start, start + len(array))]
    metadatas = [{"row": row} for row in range(start, start + len(array))]
    return RecordBatch(ids, ids, EmbeddingBatch.of_dense(array), metadatas)


def recall(index: FaissIndex, array: Dense, among: Any, where: Any = None) -> float:
    """Search for 50 questions among some rows; return the share of the ten nearest found."""
    questions, found = clustered(50, seed=1), 0
    every = np.flatnonzero(among)
    for question, hits in zip(
        questions, index.search_batch(EmbeddingBatch.of_dense(questions), where=where), strict=True
    ):
        truth = every[np.argsort(-(array[every] @ question))[:10]]
        assert len(hits) == 10
        rows = [int(hit.id[1:]) for hit in hits]
        assert all(among[row] for row in rows)
        found += len(set(truth.tolist()) & set(rows))
    return found / (10 * len(questions))


def type_of(index: FaissIndex) -> str:
    return type(index._index).__name__


# It trains for longer than all others together.
KINDS = [pytest.param(kind, marks=[pytest.mark.slow] * (kind == "ivf_pq")) for kind in RECALLS]


@pytest.fixture(scope="module")
def array() -> Dense:
    return clustered()


@pytest.mark.parametrize("kind", KINDS)
def test_recall_with_filters_deletes_and_files(kind: str, array: Dense, tmp_path: Path) -> None:
    index = made(kind, train_at=10_000)
    index.add(records(array))
    if kind in LEARNING:
        assert type_of(index) != "IndexFlat"
    least = RECALLS[kind]
    rows = np.arange(SIZE)
    assert recall(index, array, rows >= 0) >= least
    assert recall(index, array, rows >= 10_000, F("row") >= 10_000) >= least
    assert recall(index, array, rows < 300, F("row") < 300) >= least  # compared one by one
    index.delete(F("row") < 4_000)
    assert recall(index, array, rows >= 4_000) >= least
    in_all = len(faiss.serialize_index(index._index))  # code books and tables as well
    assert 0.9 * in_all < index.stats().bytes <= in_all
    index.save(tmp_path)
    loaded = FaissIndex.load(tmp_path)
    assert type_of(loaded).startswith(type_of(index).removesuffix("Flat"))  # FAISS names it anew
    assert loaded._settings == index._settings
    assert loaded._train_at == index._train_at
    assert recall(loaded, array, rows >= 4_000) >= least
    question = Embedding(clustered(1, seed=2)[0])
    assert [hit.id for hit in loaded.search(question)] == [hit.id for hit in index.search(question)]
    loaded.add(RecordBatch(["new"], ["new"], EmbeddingBatch.of_dense(-array[:1])))
    assert loaded.search(Embedding(-array[0]), k=1)[0].id == "new"


@pytest.mark.parametrize("kind", LEARNING)
def test_it_is_exact_until_it_is_trained(kind: str, array: Dense) -> None:
    index = made(kind, train_at=3_000)
    index.add(records(array[:2_999]))
    assert type_of(index) == "IndexFlat"
    assert recall(index, array[:2_999], np.full(2_999, True)) == 1
    waiting = index.stats()
    assert (waiting.kind, waiting.indexed) == ("flat", float(kind == "auto"))
    index.add(records(array[2_999:3_000], 2_999))
    assert type_of(index) != "IndexFlat"
    assert (index.stats().kind, index.stats().indexed) == (kind, 1.0)
    assert recall(index, array[:3_000], np.full(3_000, True)) >= RECALLS[kind]
    index.clear()
    index.add(records(array[:10]))
    assert type_of(index) == "IndexFlat"


def test_it_learns_again_when_it_has_grown_fourfold(array: Dense, tmp_path: Path) -> None:
    index = made("ivf_flat", train_at=2_000)
    index.add(records(array[:2_000]))
    lists = index._index.nlist
    index.add(records(array[2_000:7_999], 2_000))
    assert index._index.nlist == lists
    index.save(tmp_path)
    for grown in (index, FaissIndex.load(tmp_path)):
        grown.add(records(array[7_999:9_000], 7_999))
        assert grown._index.nlist > lists
        assert recall(grown, array[:9_000], np.full(9_000, True)) >= 0.98


def test_a_loaded_refined_index_learns_again(array: Dense, tmp_path: Path) -> None:
    """The exact half is carried over from what FAISS has read."""
    index = made("pq_refined", train_at=1_000)
    index.add(records(array[:1_000]))
    index.save(tmp_path)
    loaded = FaissIndex.load(tmp_path)
    for start in range(1_000, 9_000, 1_000):
        loaded.add(records(array[start : start + 1_000], start))
    assert loaded._train_at == 16_000
    assert recall(loaded, array[:9_000], np.full(9_000, True)) >= 0.98
    loaded.save(tmp_path)
    assert FaissIndex.load(tmp_path).count() == 9_000


def test_codes_alone_do_not_learn_again(array: Dense) -> None:
    index = made("sq8")
    index.add(records(array[:1_000]))
    assert (type_of(index), index._train_at) == ("IndexScalarQuantizer", None)


def test_packing_keeps_what_was_learned(array: Dense) -> None:
    for kind in ("pq_refined", "rabitq_refined", "ivf_flat", "ivf_pq", IVF_REFINED):
        index = made(kind, train_at=5_000)
        index.add(records(array[:5_000]))
        learned, left = index._index, np.arange(5_000) >= 3_000
        index.delete(F("row") < 3_000)
        assert index._index is not learned
        assert index._index.ntotal == 2_000
        assert type_of(index).startswith(type(learned).__name__.removesuffix("Flat"))
        assert recall(index, array[:5_000], left) >= RECALLS[kind]


@pytest.mark.parametrize("error", [MemoryError, RuntimeError])
@pytest.mark.parametrize("broken", ["train", "add"])
def test_training_that_fails_changes_nothing(
    error: type[Exception], broken: str, array: Dense, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = made("pq_refined", train_at=2_000)

    def fail(*_: Any) -> None:
        raise error("no room")

    with monkeypatch.context() as patch:
        patch.setattr(faiss.IndexPQFastScan, broken, fail)
        with pytest.warns(RuntimeWarning, match=r"2000 records \(no room\).*again at 4000"):
            index.add(records(array[:2_000]))
        assert type_of(index) == "IndexFlat"
        index.add(records(array[2_000:3_000], 2_000))
        assert recall(index, array[:3_000], np.full(3_000, True)) == 1
    index.add(records(array[3_000:4_000], 3_000))
    assert type_of(index) == "IndexRefine"
    assert recall(index, array[:4_000], np.full(4_000, True)) >= 0.98


def test_an_add_that_fails_in_the_sieve_is_undone(
    array: Dense, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = made("pq_refined", train_at=2_000)
    index.add(records(array[:2_000]))

    def fail(*_: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(faiss.IndexPQFastScan, "add", fail)
        with pytest.raises(MemoryError):
            index.add(records(array[2_000:2_500], 2_000))
    assert index.count() == 2_000
    index.add(records(array[2_000:3_000], 2_000))
    assert index.search(Embedding(array[2_700]), k=1)[0].id == "r2700"
    assert recall(index, array[:3_000], np.full(3_000, True)) >= 0.98


def test_others_search_and_write_while_it_trains(
    array: Dense, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, training, go_on = (
        made("pq_refined", train_at=4_000),
        threading.Event(),
        threading.Event(),
    )
    train = faiss.IndexPQFastScan.train

    def slow(*arguments: Any) -> None:
        training.set()
        assert go_on.wait(20)
        train(*arguments)

    monkeypatch.setattr(faiss.IndexPQFastScan, "train", slow)
    adding = threading.Thread(target=index.add, args=(records(array[:4_000]),))
    adding.start()
    assert training.wait(20)
    assert index.search(Embedding(array[7]), k=1)[0].id == "r7"
    index.add(records(array[4_000:5_000], 4_000))
    index.delete(Ids(["r7"]))
    assert index.search(Embedding(array[4_500]), k=1)[0].id == "r4500"
    go_on.set()
    adding.join(30)
    assert type_of(index) == "IndexRefine"
    left = np.arange(5_000) != 7
    assert recall(index, array[:5_000], left) >= 0.98


def test_what_is_packed_meanwhile_is_not_overwritten(
    array: Dense, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = made("pq_refined", train_at=4_000)
    train = faiss.IndexPQFastScan.train

    def pack_and_train(*arguments: Any) -> None:
        index.delete(F("row") < 3_000)
        train(*arguments)

    monkeypatch.setattr(faiss.IndexPQFastScan, "train", pack_and_train)
    index.add(records(array[:4_000]))
    assert (type_of(index), index.count()) == ("IndexFlat", 1_000)
    assert recall(index, array[:4_000], np.arange(4_000) >= 3_000) == 1


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_scores_of_refined_kinds_are_exact(metric: str, array: Dense) -> None:
    index = made("pq_refined", train_at=2_000, metric=metric)
    index.add(records(3 * array[:2_000]))
    question = 2 * array[5]
    for hit in index.search(Embedding(question), k=20):
        vector = 3 * array[int(hit.id[1:])]
        exact = vector @ question if metric == "ip" else -np.linalg.norm(vector - question)
        assert hit.score == pytest.approx(exact, abs=1e-4)


def test_more_work_finds_more(array: Dense) -> None:
    found = []
    for k_factor in (1, 4, 64):
        index = made("PQ8x4fs,RFlat", train_at=2_000, k_factor=k_factor)
        index.add(records(array))
        found.append(recall(index, array, np.full(SIZE, True)))
    assert found[0] < found[1] < found[2]
    assert found[0] < 0.9


def test_the_recall_decides_on_the_work(array: Dense) -> None:
    chosen = []
    for wanted in (0.5, 0.9, 0.999):
        index = made("PQ8x4fs,RFlat", train_at=2_000, recall=wanted)
        index.add(records(array))
        chosen.append(index._index.k_factor)
        assert recall(index, array, np.full(SIZE, True)) >= wanted - 0.01
    assert chosen == sorted(chosen)
    assert chosen[0] < chosen[2]


def test_what_auto_is() -> None:
    assert [auto_from(d) for d in (384, 768, 1024, 3072)] == [26_666, 13_333, 10_000, 10_000]
    assert Settings(kind="auto").text(1024, 50_000) == "PQ256x4fs,RFlat"
    assert Settings(kind="auto").text(384, 50_000) == "PQ96x4fs,RFlat"
    assert Settings(kind="auto", recall=1).text(1024, 50_000) == "Flat"
    for dimension in (384, 1024):
        settings = Settings(kind="auto")
        made_ = settings.make(dimension, Metric.COSINE)
        assert settings.first_training(made_) == auto_from(dimension)


@pytest.mark.parametrize(
    ("size", "text"),
    [(100, "IVF2,Flat"), (10_000, "IVF256,Flat"), (1_000_000, "IVF2048,Flat")],
)
def test_how_many_lists_there_are(size: int, text: str) -> None:
    assert Settings(kind="ivf_flat").text(64, size) == text


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kind": "best"}, r"'best' is not a kind.*'pq_refined'"),
        ({"kind": "hnsw", "factory": "Flat"}, r"'hnsw' and the factory 'Flat'.*one of them"),
        ({"recall": 0}, r"recall=0\. Give recall above 0"),
        ({"recall": 1.01}, "recall=1.01"),
        ({"nprobe": 0}, "nprobe=0.*of 1 or more"),
        ({"k_factor": 0.5}, "k_factor=0.5"),
        ({"train_at": 0}, "train_at=0"),
        ({"factory": "nonsense"}, r"cannot make 'nonsense'.*\(could not parse index string"),
        ({"factory": ""}, "cannot make ''"),
        ({"factory": "PQ7x4fs,RFlat"}, "dimension 64.*multiple of the number"),
        ({"factory": "IDMap,Flat"}, "'IDMap,Flat' brings ids of its own.*Leave IDMap out"),
    ],
)
def test_wrong_arguments_get_a_sentence(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=says) as caught:
        FaissIndex(DIMENSION, **options)
    assert ".cpp" not in str(caught.value)


def test_a_wrong_factory_without_a_dimension(array: Dense) -> None:
    index = FaissIndex(factory="PQ7x4fs")
    with pytest.raises(InvalidInput, match="cannot make 'PQ7x4fs'"):
        index.add(records(array[:1]))
    assert index.count() == 0


def test_what_cannot_be_added_to(array: Dense) -> None:
    index = FaissIndex(factory="NSG16")
    with pytest.raises(StorageError, match=r"could not add 5 vectors \(.*Nothing was stored"):
        index.add(records(array[:5]))
    assert index.count() == 0


def test_what_was_saved_before_there_were_kinds(array: Dense, tmp_path: Path) -> None:
    for kind in ("flat", "hnsw"):
        index = made(kind, ef_search=77)
        index.add(records(array[:500]))
        index.save(tmp_path)
        manifest = json.loads((tmp_path / "manifest.json").read_text())
        names = ("kind", "metric", "dimension", "m", "ef_construction", "ef_search", "version")
        old = {name: manifest["settings"][name] for name in names}
        (tmp_path / "manifest.json").write_text(manifest_text(old, manifest["files"]))
        loaded = FaissIndex.load(tmp_path)
        assert recall(loaded, array[:500], np.full(500, True)) >= 0.98
        assert loaded._settings == index._settings


async def test_searches_on_a_loop_take_turns(array: Dense, monkeypatch: pytest.MonkeyPatch) -> None:
    """More threads than cores would keep the loop from its turn."""
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # and five threads in a loop's pool
    index = made("flat")
    index.add(records(array[:100]))
    nearest = index._nearest
    at_once: list[None] = []

    def counted(*arguments: Any) -> Any:
        at_once.append(None)
        time.sleep(0.002)
        found = len(at_once), nearest(*arguments)
        at_once.pop()
        return found[1] if found[0] <= 3 else pytest.fail(f"{found[0]} searches at once")

    monkeypatch.setattr(index, "_nearest", counted)
    found = await asyncio.gather(*(index.asearch(Embedding(row), k=1) for row in array[:20]))
    assert [hits[0].id for hits in found] == [f"r{row}" for row in range(20)]
