"""The model folders of the tests: the real loaders read them, and their outputs differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import checkpoints
from tests.checkpoints import HEADS, MIXED
from transformers import AutoModel, AutoTokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.small(tmp_path_factory.mktemp("m3"), pooling=True)


def load(folder: Path) -> tuple[Any, Any]:
    return AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()


def states(folder: Path) -> list[torch.Tensor]:
    """Return the token vectors of every text, each computed alone."""
    tokenizer, model = load(folder)
    with torch.inference_mode():
        return [
            model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in MIXED
        ]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = AutoModel.from_pretrained(folder).state_dict()
    for name in HEADS:
        head = torch.load(folder / f"{name}.pt", weights_only=True)
        found.update({f"{name}.{part}": values for part, values in head.items()})
    return found


def test_the_shape_of_bge_m3(folder: Path) -> None:
    tokenizer, model = load(folder)
    config = model.config
    assert config.model_type == "xlm-roberta"
    assert (config.pad_token_id, config.type_vocab_size) == (1, 1)
    assert (config.max_position_embeddings, config.layer_norm_eps) == (8194, 1e-5)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    assert tokenizer.convert_tokens_to_ids(special) == [0, 1, 2, 3, config.vocab_size - 1]
    assert len(tokenizer) == config.vocab_size
    assert tokenizer.model_max_length == 8192
    shapes = {name: tuple(values.shape) for name, values in weights(folder).items()}
    assert shapes["colbert_linear.weight"] == (64, 64)
    assert shapes["colbert_linear.bias"] == (64,)
    assert shapes["sparse_linear.weight"] == (1, 64)
    assert shapes["sparse_linear.bias"] == (1,)
    assert json.loads((folder / "1_Pooling/config.json").read_text())["pooling_mode_cls_token"]


def test_the_tokenizer_knows_three_languages_and_normalises(folder: Path) -> None:
    tokenizer, _ = load(folder)
    assert tokenizer("")["input_ids"] == [0, 2]
    for text in ("The file is in the house.", "明日は雨です。", "고양이가 정원에서 자고 있습니다."):
        ids = tokenizer(text)["input_ids"]
        assert (ids[0], ids[-1]) == (0, 2)
        assert 3 not in ids
        assert len(ids) < len(text) + 2
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer("ｆｉｌｅ ﾃﾞｰﾀ") == tokenizer("file データ")
    assert 3 in tokenizer("😀")["input_ids"]


def test_dense_vectors_tell_texts_apart(folder: Path) -> None:
    first = torch.stack([rows[0] for rows in states(folder)])
    first = torch.nn.functional.normalize(first, dim=-1)
    cosines = first @ first.T - 2 * torch.eye(len(first))
    assert cosines.max() < 0.95


def test_sparse_weights_are_zero_or_positive(folder: Path) -> None:
    head = torch.load(folder / "sparse_linear.pt", weights_only=True)
    positive = [
        (rows @ head["weight"].T + head["bias"] > 0)[:, 0].float() for rows in states(folder)
    ]
    for kinds in positive:
        if len(kinds) > 5:
            assert 0 < kinds.mean() < 1
    assert 0.2 < torch.cat(positive[:-1]).mean() < 0.8  # the last one is longer than all others


def test_a_token_depends_on_its_place_and_on_its_neighbours(folder: Path) -> None:
    tokenizer, model = load(folder)
    ids = tokenizer("a b", return_tensors="pt")["input_ids"]
    other = ids.clone()
    other[0, 1:-1] = ids[0, 1:-1].flip(0)
    with torch.inference_mode():
        rows, moved = (model(values).last_hidden_state[0] for values in (ids, other))
    # A last bit is 1e-6 at most.
    assert (rows[1:-1].flip(0) - moved[1:-1]).abs().max() > 1e-2
    assert (rows[-1] - moved[-1]).abs().max() > 1e-2


def test_no_weight_can_be_left_out_unseen(folder: Path) -> None:
    for name, values in weights(folder).items():
        assert values.abs().max() > 1e-3, name
        if "LayerNorm.weight" in name:
            assert (values - 1).abs().max() > 1e-3, name


def test_the_same_seed_gives_the_same_model(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    again = checkpoints.small(tmp_path / "again", pooling=True)
    assert torch.equal(torch.random.get_rng_state(), before)
    other = checkpoints.small(tmp_path / "other", seed=1)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes(), name
    mine, same, different = map(weights, (folder, again, other))
    for name, values in mine.items():
        assert torch.equal(values, same[name]), name
        assert not torch.equal(values, different[name]), name
    assert (other / "tokenizer.json").read_bytes() != (folder / "tokenizer.json").read_bytes()


def test_another_shape(tmp_path: Path) -> None:
    checkpoints.small(tmp_path, layers=1, hidden=32, heads=2, vocabulary=500)
    _, model = load(tmp_path)
    config = model.config
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (1, 32, 500)


@pytest.mark.parametrize("missing", HEADS)
def test_without_one_head(folder: Path, tmp_path: Path, missing: str) -> None:
    checkpoints.small(tmp_path, without=[missing])
    assert not (tmp_path / f"{missing}.pt").exists()
    (kept,) = set(HEADS) - {missing}
    head, whole = (
        torch.load(where / f"{kept}.pt", weights_only=True) for where in (tmp_path, folder)
    )
    assert torch.equal(head["weight"], whole["weight"])
    assert not (tmp_path / "1_Pooling").exists()


def test_models_that_are_not_bge_m3(tmp_path: Path) -> None:
    xlmr, bert = (
        checkpoints.plain_xlmr(tmp_path / "xlmr"),
        checkpoints.plain_bert(tmp_path / "bert"),
    )
    for folder, architecture in ((xlmr, "xlm-roberta"), (bert, "bert")):
        assert not list(folder.glob("*.pt"))
        tokenizer, model = load(folder)
        assert model.config.model_type == architecture
        found = tokenizer("Open a file.", return_tensors="pt")
        assert model(**found).last_hidden_state.isfinite().all()
    assert tokenizer.convert_ids_to_tokens(tokenizer("a?")["input_ids"]) == [
        *("[CLS]", "a", "?", "[SEP]")
    ]


def test_a_complete_folder_is_not_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = {"layers": 1, "hidden": 16, "heads": 2, "vocabulary": 500}
    monkeypatch.setattr(checkpoints, "_FULL", shape)
    file = checkpoints.full_size(tmp_path) / "sparse_linear.pt"
    file.unlink()
    checkpoints.full_size(tmp_path)
    assert not file.exists()
    # Cut short, or of another shape, it is built again.
    (tmp_path / checkpoints._STAMP).unlink()
    checkpoints.full_size(tmp_path)
    assert file.exists()
    file.unlink()
    monkeypatch.setattr(checkpoints, "_FULL", shape | {"layers": 2})
    assert load(checkpoints.full_size(tmp_path))[1].config.num_hidden_layers == 2
    assert file.exists()
