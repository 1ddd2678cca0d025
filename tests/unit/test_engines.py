"""The engines of an embedder: they agree, in any batch, after a fork, and when memory runs out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.checkpoints import MIXED, full_size, plain_bert, small
from tests.unit.embeddings import all_three, assert_same
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

from ragopt import BGEM3Embedder, EmbeddingBatch, TransformersEmbedder
from ragopt.embedders import _onnx_graph
from ragopt.embedders._onnx import OnnxEncoder
from ragopt.embedders.transformers import TruncationWarning
from ragopt.errors import InvalidInput
from ragopt.testing import EmbedderContract
from ragopt.types import OUTPUTS

TEXTS = list(MIXED)
ODD = [*TEXTS, "あ", "🙂", "mixed 混ざった 섞인 " * 40]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small(tmp_path_factory.mktemp("engines") / "m3")


@pytest.fixture
def embedder(folder: Path) -> BGEM3Embedder:
    return BGEM3Embedder(folder, device="cpu")


class TestOnnx(EmbedderContract):
    @pytest.fixture(autouse=True)
    def _made(self, folder: Path) -> None:
        self.folder = folder

    def make_embedder(self) -> BGEM3Embedder:
        return BGEM3Embedder(self.folder, engine="onnx")


class TestInt8(TestOnnx):
    def make_embedder(self) -> BGEM3Embedder:
        return BGEM3Embedder(self.folder, engine="onnx", precision="int8")


# -- they agree --------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_it_agrees_with_the_reference(folder: Path, engine: Any) -> None:
    reference = BGEM3Embedder(folder, device="cpu", engine="flag")
    other = BGEM3Embedder(folder, device="cpu", engine=engine)
    texts = [*ODD, "word and word. " * 5_000]
    with pytest.warns(TruncationWarning):
        assert_same(all_three(reference, texts), all_three(other, texts))
    order = np.random.default_rng(1).permutation(len(TEXTS))
    shuffled = [TEXTS[i] for i in order]
    assert_same(all_three(reference, shuffled), all_three(other, shuffled))
    assert reference.spec.params != other.spec.params, "an engine is part of every key"


@pytest.mark.parametrize("engine", ["onnx", "flag"])
@pytest.mark.parametrize("outputs", [["dense"], ["sparse"], ["multi"], ["dense", "multi"]])
def test_each_output_alone(
    folder: Path, embedder: BGEM3Embedder, engine: Any, outputs: list[Any]
) -> None:
    other = BGEM3Embedder(folder, device="cpu", engine=engine)
    one, two = (each.embed(TEXTS, outputs=outputs) for each in (embedder, other))
    for name in OUTPUTS:
        assert (getattr(one, name) is None) == (getattr(two, name) is None) == (name not in outputs)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_they_agree_at_full_size(tmp_path_factory: pytest.TempPathFactory) -> None:
    model = full_size(tmp_path_factory.mktemp("full") / "m3")
    reference = BGEM3Embedder(model, device="cpu", engine="flag")
    long = " ".join(["a long text of many words"] * 1_500)  # more than 8,192 tokens
    with pytest.warns(TruncationWarning):
        expected = all_three(reference, [*ODD, long])
    reference.unload()
    engines: list[Any] = ["torch", "onnx"]
    for engine in engines:
        other = BGEM3Embedder(model, device="cpu", engine=engine)
        with pytest.warns(TruncationWarning):
            assert_same(all_three(other, [*ODD, long]), expected)
        order = np.random.default_rng(2).permutation(len(ODD))
        shuffled = all_three(other, [ODD[i] for i in order])
        assert_same(shuffled, EmbeddingBatch.of([expected[i] for i in order]))
        other.unload()


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "int8"])
def test_other_precisions_are_near_and_keyed(
    folder: Path, embedder: BGEM3Embedder, precision: Any
) -> None:
    engine: Any = "onnx" if precision == "int8" else "torch"
    other = BGEM3Embedder(folder, device="cpu", engine=engine, precision=precision)
    assert other.spec.params != embedder.spec.params
    dense, exact = other.embed(TEXTS).dense, embedder.embed(TEXTS).dense
    assert dense is not None
    assert exact is not None
    assert dense.dtype == np.float32
    assert (np.sum(dense * exact, axis=1) > 0.99).all()
    assert not np.allclose(dense, exact, atol=1e-4)


# -- int8 --------------------------------------------------------------------------------------


def test_int8_does_not_depend_on_the_batch(folder: Path, embedder: BGEM3Embedder) -> None:
    """One rounding in a layer would grow to a thousandth and more in the next ones."""
    int8 = BGEM3Embedder(folder, engine="onnx", precision="int8")
    together = all_three(int8, ODD)
    alone = EmbeddingBatch.of([all_three(int8, [text])[0] for text in ODD])
    assert_same(alone, together, 1e-6)  # PyTorch's rounding in the heads
    np.testing.assert_array_equal(alone.dense, together.dense)
    with pytest.raises(AssertionError):  # so close is nothing that differs by its precision
        assert_same(all_three(embedder, ODD), together, 1e-4)


def ratio_of_sums() -> float:
    """Return (a - b) / (b - c) of three sums: of all products, of every other one, and of none.

    All products are the largest that there can be.
    """
    config = BertConfig(hidden_size=96, num_hidden_layers=1, num_attention_heads=4)
    model: Any = BertModel(config)
    (layer,) = model.eval().encoder.layer
    weights = torch.zeros(96, 96)
    weights[:32] = 1.0
    weights[32:64, ::2] = 1.0
    with torch.no_grad():
        layer.attention.self.value.weight[:] = 1.0  # of every text the same high number
        layer.attention.output.dense.weight[:] = weights
        layer.output.dense.weight[:] = 0.0
    encoder = OnnxEncoder(model, lambda: model, int8=True)
    found = encoder._run(encoder._session, np.full((2, 96), 5.0, np.float32), [2])[0]
    return float((found[0] - found[40]) / (found[40] - found[80]))


def test_sums_of_products_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU without VNNI two products are added in 16 bits, where larger ones do not fit."""
    assert ratio_of_sums() == pytest.approx(1, abs=0.01)
    flags = Path("/proc/cpuinfo")
    if flags.is_file() and "avx2" in flags.read_text() and "vnni" not in flags.read_text():
        monkeypatch.setattr(_onnx_graph, "_WEIGHT_STEPS", 127)
        assert ratio_of_sums() < 0.9


@pytest.mark.slow
def test_int8_of_a_real_model_finds_nearly_the_same() -> None:
    exact, int8 = (
        TransformersEmbedder.minilm(engine="onnx", precision=precision)
        for precision in ("float32", "int8")
    )
    texts = [
        f"{subject} {verb} {place}."
        for subject in _SUBJECTS
        for verb in _VERBS
        for place in _PLACES
    ]
    one, two = exact.embed(texts).dense, int8.embed(texts).dense
    assert one is not None
    assert two is not None
    assert np.sum(one * two, axis=1).mean() > 0.995


_SUBJECTS = ("The teacher", "A cat", "My old train", "Nobody", "The city council")
_VERBS = ("waits at", "sleeps near", "wrote a letter about", "has forgotten", "will soon leave")
_PLACES = ("the river", "the station", "the hospital garden", "an empty house", "the market")


# -- threads, forks, memory --------------------------------------------------------------------


def test_a_forked_process_computes_on(folder: Path) -> None:
    """Each engine in a process of its own, forked from one that has imported what they share."""
    code = f"""
import os, signal, torch
from ragopt import BGEM3Embedder
from transformers import AutoTokenizer, XLMRobertaModel  # not onnxruntime: it starts a thread
for engine in ("torch", "onnx", "flag"):
    if os.fork() == 0:
        torch.set_num_threads(4)
        embedder = BGEM3Embedder({str(folder)!r}, device="cpu", engine=engine)
        before = embedder.embed(["a text " * 400] * 2, outputs=["dense"]).dense
        if os.fork() == 0:
            signal.alarm(30)
            after = embedder.embed(["a text " * 400] * 2, outputs=["dense"]).dense
            embedder.unload()
            del embedder
            raise SystemExit(0 if abs(after - before).max() < 1e-5 else 1)
        raise SystemExit(0 if os.wait()[1] == 0 else 2)
    assert os.wait()[1] == 0, engine
"""
    assert_runs(code)


def test_onnx_runtime_says_that_memory_ran_out(folder: Path) -> None:
    """A text whose attention does not fit is one clear error, and what fits goes on."""
    code = f"""
import resource
from ragopt import BGEM3Embedder
from ragopt.errors import OutOfMemory
embedder = BGEM3Embedder({str(folder)!r}, engine="onnx", batch_tokens=500_000)
short, long = ["a text"] * 3, [f"{{n}} " + "a b c d e f " * 130 for n in range(60)]
before = embedder.embed(short).dense
limit = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + 300 * 2**20
_, most = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (limit, most))
try:
    assert len(embedder.embed(long)) == 60
    assert embedder.stats.out_of_memory > 0
finally:
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
assert abs(embedder.embed(short).dense - before).max() < 1e-5
"""
    assert_runs(code)


def assert_runs(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr


# -- what does not go --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"engine": "onnx", "device": "cuda"}, "device='cuda'"),
        ({"engine": "onnx", "precision": "float16"}, "precision='float16'"),
        ({"engine": "torch", "precision": "int8"}, "does not compute in int8"),
        ({"engine": "magic"}, "no engine"),
        ({"precision": "float8"}, "no precision"),
    ],
)
def test_what_does_not_go_together(folder: Path, options: dict[str, Any], said: str) -> None:
    options = {"device": "auto", "precision": "float32", **options}
    for kind in (BGEM3Embedder, TransformersEmbedder):
        with pytest.raises(InvalidInput, match=said):
            kind(folder, **options)


def test_models_that_onnx_does_not_run(tmp_path: Path) -> None:
    plain_bert(tmp_path)
    BertModel(
        BertConfig(
            vocab_size=200,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            hidden_act="relu",
        )
    ).save_pretrained(tmp_path)
    with pytest.raises(InvalidInput, match="'bert' model with 'relu'"):
        TransformersEmbedder(tmp_path, engine="onnx").embed(["a"])
    DistilBertModel(
        DistilBertConfig(vocab_size=200, dim=32, n_layers=1, n_heads=2)
    ).save_pretrained(tmp_path)
    with pytest.raises(InvalidInput, match="'distilbert' model"):
        TransformersEmbedder(tmp_path, engine="onnx").embed(["a"])
    assert len(TransformersEmbedder(tmp_path, device="cpu").embed(["a"])) == 1


def test_bert_on_onnx(tmp_path: Path) -> None:
    plain_bert(tmp_path)
    one = TransformersEmbedder(tmp_path, device="cpu")
    other = TransformersEmbedder(tmp_path, engine="onnx")
    assert_same(one.embed(TEXTS), other.embed(TEXTS))
    assert one.spec != other.spec


def test_auto_and_the_device_that_it_is_are_one_model(folder: Path) -> None:
    named, found = (TransformersEmbedder(folder, device=device) for device in ("cpu", "auto"))
    named.load()
    found.load()
    assert named._state is not None
    assert found._state is not None
    assert (named._state.shared.value is found._state.shared.value) == (
        named._state.engine.device == found._state.engine.device
    )
