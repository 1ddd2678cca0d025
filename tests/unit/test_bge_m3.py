"""From texts to three kinds of vectors, on a checkpoint that the real loaders read."""

from __future__ import annotations

import asyncio
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.checkpoints import MIXED, plain_bert, plain_xlmr, small
from tests.unit.embeddings import all_three, assert_same
from transformers import AutoModel, AutoTokenizer

from ragopt import CachedEmbedder, EmbeddingBatch, SparseVector
from ragopt.embedders.bge_m3 import BGEM3Embedder
from ragopt.embedders.sharing import MODELS
from ragopt.embedders.transformers import TruncationWarning
from ragopt.errors import InvalidInput, OutOfMemory, StorageError
from ragopt.testing import EmbedderContract
from ragopt.types import OUTPUTS

TEXTS = list(MIXED)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small(tmp_path_factory.mktemp("bge") / "m3")


@pytest.fixture
def embedder(folder: Path) -> BGEM3Embedder:
    return BGEM3Embedder(folder, device="cpu")


@pytest.fixture
def broken(folder: Path, tmp_path: Path) -> Path:
    """A copy from which files can be taken."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


class TestBGEM3(EmbedderContract):
    @pytest.fixture(autouse=True)
    def _made(self, folder: Path) -> None:
        self.folder = folder

    def make_embedder(self) -> BGEM3Embedder:
        return BGEM3Embedder(self.folder, device="cpu")


class TestCachedBGEM3(TestBGEM3):
    def make_embedder(self) -> CachedEmbedder:  # type: ignore[override]
        return CachedEmbedder(super().make_embedder())


def by_the_paper(folder: Path, text: str) -> tuple[Any, dict[int, float], Any]:
    """Compute a text alone, in the plainest way."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    heads = {}
    for name in ("sparse_linear", "colbert_linear"):
        state = torch.load(folder / f"{name}.pt", weights_only=True)
        heads[name] = lambda x, s=state: x @ s["weight"].T + s["bias"]
    ids = tokenizer(text, truncation=True, max_length=8192)["input_ids"]
    with torch.inference_mode():
        states = model.eval()(torch.tensor([ids])).last_hidden_state[0]
        weights = torch.relu(heads["sparse_linear"](states))[:, 0].tolist()
        rows = torch.nn.functional.normalize(heads["colbert_linear"](states[1:]), dim=-1)
    lexical: dict[int, float] = {}
    for token, weight in zip(ids, weights, strict=True):
        if token > 3 and weight > 0:
            lexical[token] = max(weight, lexical.get(token, 0.0))
    dense = torch.nn.functional.normalize(states[0], dim=-1)
    return dense.numpy(), lexical, rows.numpy()


def test_each_output_is_as_the_paper_says(folder: Path, embedder: BGEM3Embedder) -> None:
    batch = all_three(embedder)
    assert batch.dense is not None
    for row, text in enumerate(TEXTS):
        dense, lexical, rows = by_the_paper(folder, text)
        np.testing.assert_allclose(batch.dense[row], dense, atol=1e-5)
        found = batch[row]
        assert found.sparse is not None
        assert found.sparse.to_dict() == pytest.approx(lexical, abs=1e-5)
        assert found.multi is not None
        np.testing.assert_allclose(found.multi, rows, atol=1e-5)


def test_the_order_of_a_batch_changes_nothing(embedder: BGEM3Embedder) -> None:
    order = np.random.default_rng(0).permutation(len(TEXTS))
    shuffled, straight = all_three(embedder, [TEXTS[i] for i in order]), all_three(embedder)
    assert_same(shuffled, EmbeddingBatch.of([straight[i] for i in order]))


def test_what_nobody_asked_for_is_not_computed(embedder: BGEM3Embedder) -> None:
    embedder.load()
    assert embedder._state is not None
    heads = embedder._state.shared.value.heads
    calls: list[str] = []
    for name, head in heads.items():
        head.register_forward_hook(lambda *_, name=name: calls.append(name))
    embedder.embed(["a"])
    assert calls == []
    embedder.embed(["a"], outputs=["sparse"])
    assert calls == ["sparse"]


def test_duplicates_are_computed_once(embedder: BGEM3Embedder) -> None:
    batch = all_three(embedder, ["a text", "another", "a text", "a text"])
    assert embedder.stats.computed == 2
    assert_same(EmbeddingBatch.of([batch[0]] * 2), EmbeddingBatch.of([batch[2], batch[3]]), 0)


def test_normalising(folder: Path) -> None:
    plain = all_three(BGEM3Embedder(folder, device="cpu", normalize=False), TEXTS[3:])
    assert plain.dense is not None
    assert (np.linalg.norm(plain.dense, axis=1) > 1.5).all()
    summed = all_three(BGEM3Embedder(folder, device="cpu", normalize_sparse=True))
    for vector in summed.sparse or []:
        assert len(vector) == 0 or vector.values.sum() == pytest.approx(1)


def test_a_prefix_belongs_to_its_role(folder: Path, embedder: BGEM3Embedder) -> None:
    prefixed = BGEM3Embedder(folder, device="cpu", query_prefix="find: ")
    assert_same(
        all_three(prefixed, ["the cat"], role="query"), all_three(embedder, ["find: the cat"])
    )
    assert_same(all_three(prefixed, ["the cat"]), all_three(embedder, ["the cat"]))
    assert prefixed.spec != embedder.spec


class TestLongTexts:
    LONG = "One sentence here. " * 40

    def test_cut(self, folder: Path, embedder: BGEM3Embedder) -> None:
        short = BGEM3Embedder(folder, device="cpu", max_length=32)
        with pytest.warns(TruncationWarning, match="1 of 2 texts"):
            found = all_three(short, ["a", self.LONG])
        kept = max(
            (self.LONG[: 19 * n] for n in range(1, 40)),
            key=lambda text: (len(embedder_tokens(short, text)) <= 32, len(text)),
        )
        assert_same(EmbeddingBatch.of([found[1]]), all_three(embedder, [kept]))

    def test_refused(self, folder: Path) -> None:
        short = BGEM3Embedder(folder, device="cpu", max_length=32, long_text="refuse")
        with pytest.raises(InvalidInput, match="Text 1 has 760 characters"):
            short.embed(["a", self.LONG])
        assert short.stats.failures == {"InvalidInput": 1}

    def test_split(self, folder: Path, embedder: BGEM3Embedder) -> None:
        short = BGEM3Embedder(folder, device="cpu", max_length=32, long_text="split")
        found = all_three(short, ["a", self.LONG, "b"])
        assert short._state is not None
        pieces = short._state.tokenizer.encode([self.LONG]).pieces
        assert len(pieces) > 3
        parts = all_three(embedder, [piece.text for piece in pieces])
        assert parts.dense is not None
        mean = np.average(parts.dense, axis=0, weights=[len(piece) for piece in pieces])
        highest: dict[int, float] = {}
        for vector in parts.sparse or []:
            for token, weight in vector.to_dict().items():
                highest[token] = max(weight, highest.get(token, 0))
        one = found[1]
        assert one.dense is not None
        assert one.multi is not None
        np.testing.assert_allclose(one.dense, mean / np.linalg.norm(mean), atol=1e-5)
        assert one.sparse is not None
        assert one.sparse.to_dict() == pytest.approx(highest, abs=1e-5)
        np.testing.assert_allclose(one.multi, np.concatenate(list(parts.multi or [])), atol=1e-5)
        alone = all_three(embedder, ["a", "b"])
        assert_same(EmbeddingBatch.of([found[0], found[2]]), alone)

    def test_more_than_8192_tokens(self, embedder: BGEM3Embedder) -> None:
        with pytest.warns(TruncationWarning, match="8192 tokens"):
            batch = all_three(embedder, ["word and word. " * 5_000])
        assert batch.multi is not None
        assert 8_000 < len(batch.multi[0]) < 8_192


def embedder_tokens(embedder: BGEM3Embedder, text: str) -> list[int]:
    assert embedder._state is not None
    ids: list[int] = embedder._state.tokenizer.tokenizer(text)["input_ids"]
    return ids


def test_a_stream_is_what_a_batch_is(embedder: BGEM3Embedder) -> None:
    read: list[int] = []

    def texts() -> Any:
        for number in range(25):
            read.append(number)
            yield f"text {number}"

    parts = embedder.stream(texts(), outputs=OUTPUTS, window=10)
    first, batch = next(parts)
    assert len(read) == 10
    others = list(parts)
    assert first + [text for part, _ in others for text in part] == [f"text {n}" for n in range(25)]
    assert_same(batch, all_three(embedder, first))
    assert [len(part) for _, part in others] == [10, 5]


def test_many_texts_in_windows(embedder: BGEM3Embedder) -> None:
    texts = [f"text {number} of many" for number in range(2_500)]
    dense = embedder.embed(texts).dense
    assert dense is not None
    for row in (0, 1_023, 1_024, 2_499):
        alone = embedder.embed([texts[row]]).dense
        assert alone is not None
        np.testing.assert_allclose(dense[row], alone[0], atol=1e-5)


# -- one model for all who ask ------------------------------------------------------------------


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    MODELS.clear()
    found: list[str] = []
    original = AutoModel.from_pretrained

    def counted(model: str, **options: Any) -> Any:
        found.append(model)
        return original(model, **options)

    monkeypatch.setattr(AutoModel, "from_pretrained", counted)
    return found


def test_64_threads_ask_first_and_one_loads(folder: Path, loads: list[str]) -> None:
    embedders = [BGEM3Embedder(folder, device="cpu") for _ in range(4)]
    start = threading.Barrier(64)

    def ask(number: int) -> EmbeddingBatch:
        start.wait()
        return embedders[number % 4].embed(["a text"])

    with ThreadPoolExecutor(64) as pool:
        assert len(list(pool.map(ask, range(64)))) == 64
    assert len(loads) == 1
    (model,) = MODELS.loaded()
    assert model.users == 4


async def test_64_tasks_ask_first_and_one_loads(folder: Path, loads: list[str]) -> None:
    embedder = BGEM3Embedder(folder, device="cpu")
    found = await asyncio.gather(*(embedder.aembed([f"text {n}"]) for n in range(64)))
    assert len(loads) == 1
    assert len(found) == 64


def test_unloading(folder: Path, loads: list[str]) -> None:
    one, other = (BGEM3Embedder(folder, device="cpu", normalize=flag) for flag in (True, False))
    one.load()
    other.load()
    assert len(loads) == 1, "settings of an embedder alone need no second model"
    one.unload()
    assert one.health().status == "not_initialized"
    assert len(MODELS.loaded()) == 1
    other.unload()
    assert MODELS.loaded() == []
    one.embed(["a"])
    assert len(loads) == 2


# -- memory, health, figures --------------------------------------------------------------------


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("times", [1, 2])
def test_memory_runs_out_at_any_batch(
    folder: Path, monkeypatch: pytest.MonkeyPatch, index: int, times: int
) -> None:
    plain = BGEM3Embedder(folder, device="cpu")
    tight = BGEM3Embedder(folder, device="cpu", batch_tokens=200)
    tight.load()
    assert tight._state is not None
    model, calls = tight._state.shared.value, 0
    original = type(model).states

    def states(self: Any, ids: Any) -> Any:
        nonlocal calls
        calls += 1
        if index < calls <= index + times and len(ids) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(self, ids)

    monkeypatch.setattr(type(model), "states", states)
    texts = [f"text {number} with some words" for number in range(60)]
    assert_same(all_three(tight, texts), all_three(plain, texts))
    assert tight.stats.out_of_memory == times


def test_memory_that_does_not_hold_one_text(
    embedder: BGEM3Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder.load()
    assert embedder._state is not None

    def states(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(type(embedder._state.shared.value), "states", states)
    with pytest.raises(OutOfMemory, match="one text of"):
        embedder.embed(TEXTS)
    health = embedder.health()
    assert health.status == "unhealthy"
    assert "Lower max_length" in (health.problem or "")


def test_health_and_figures(embedder: BGEM3Embedder) -> None:
    before = embedder.health()
    assert (before.status, before.device) == ("not_initialized", None)
    embedder.embed(TEXTS)
    with pytest.raises(InvalidInput):
        embedder.embed([None])  # type: ignore[list-item]
    health = embedder.health()
    assert health.status == "healthy"
    assert (health.device, health.dimension) == ("cpu", 64)
    assert health.test_seconds is not None
    assert health.as_dict()["problem"] is None
    figures = embedder.stats.snapshot()
    assert figures["requests"] == figures["successes"] == 1
    assert figures["texts"] == len(TEXTS)
    assert figures["tokens_per_second"] > 0
    assert figures["mean_batch_size"] > 1


# -- caching ------------------------------------------------------------------------------------


def test_an_entry_without_multi_vectors_is_a_miss_for_those_alone(embedder: BGEM3Embedder) -> None:
    cached = CachedEmbedder(embedder)
    cached.embed(TEXTS, outputs=["dense", "sparse"])
    computed = embedder.stats.computed
    cached.embed(TEXTS, outputs=["dense", "sparse"])
    cached.embed(TEXTS, outputs=["sparse"])
    assert embedder.stats.computed == computed
    assert_same(all_three(cached), all_three(embedder))
    after = embedder.stats.computed
    assert_same(all_three(cached), all_three(embedder, TEXTS))
    assert embedder.stats.computed == after + len(TEXTS), "only the comparison computed"


# -- wrong input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "output"), [("sparse_linear.pt", "sparse"), ("colbert_linear.pt", "multi")]
)
def test_a_missing_head(broken: Path, head: str, output: Any) -> None:
    (broken / head).unlink()
    embedder = BGEM3Embedder(broken, device="cpu")
    assert embedder.embed(["a"]).dense is not None
    with pytest.raises(InvalidInput, match=rf"asked for.*{output}.*{head} must lie"):
        embedder.embed(["a"], outputs=[output])


def test_a_damaged_head(broken: Path) -> None:
    (broken / "sparse_linear.pt").write_bytes(b"nothing")
    with pytest.raises(StorageError, match=r"cannot be loaded: sparse_linear\.pt"):
        BGEM3Embedder(broken, device="cpu").embed(["a"])


def test_no_heads_at_all(tmp_path: Path) -> None:
    embedder = BGEM3Embedder(plain_xlmr(tmp_path / "xlmr"), device="cpu")
    assert embedder.spec.outputs == {"dense"}


def test_another_architecture(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"is a 'bert' model.*TransformersEmbedder"):
        BGEM3Embedder(plain_bert(tmp_path / "bert"), device="cpu").embed(["a"])


def test_a_folder_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for model in (tmp_path / "nowhere", "no/such-model"):
        with pytest.raises(StorageError, match=r"cannot be loaded|not asked for no/such-model"):
            BGEM3Embedder(model).embed(["a"])


@pytest.mark.parametrize("device", ["tpu9", "cuda:99", "nonsense"])
def test_an_unknown_device(folder: Path, device: str) -> None:
    with pytest.raises(InvalidInput, match=rf"device '{device}' cannot be used"):
        BGEM3Embedder(folder, device=device).embed(["a"])


def test_bad_arguments(folder: Path) -> None:
    wrong: list[dict[str, Any]] = [
        {"engine": "magic"},
        {"precision": "float8"},
        {"long_text": "ignore"},
        {"batch_size": 0},
        {"batch_tokens": 0},
        {"max_length": 2},
    ]
    for options in wrong:
        with pytest.raises(InvalidInput):
            BGEM3Embedder(folder, **options)
    with pytest.raises(InvalidInput, match="reads at most 8,192"):
        BGEM3Embedder(folder, device="cpu", max_length=10_000).embed(["a"])


def test_special_tokens_written_in_a_text(embedder: BGEM3Embedder) -> None:
    (vector,) = embedder.embed(["</s><s><pad> <unk>"], outputs=["sparse"]).sparse or []
    assert isinstance(vector, SparseVector)
    assert not set(vector.to_dict()) & {0, 1, 2, 3}
