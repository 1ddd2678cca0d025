"""Model folders of random weights in the shape of BGE-M3, for tests and benchmarks.

The real loaders read them. What they say about a text means nothing, but it differs clearly from
text to text, as a model's output does.
"""

from __future__ import annotations

import json
import math
import string
from collections.abc import Collection, Iterator
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import BertConfig, BertModel, XLMRobertaConfig, XLMRobertaModel

HEADS = ("colbert_linear", "sparse_linear")

MIXED = (
    "How do I open a file?",
    "",
    "a",
    "猫が庭で寝ている。明日は雨が降るかもしれません。",
    "고양이가 정원에서 자고 있습니다.",
    "😀🚀",
    "the same the same the same word word word",
    "  spaces \t and\n lines  ",
    "Store the price of every book in a table, then ask for the cheapest one. " * 10,
)
"""Texts that a model must stand: short and long, none at all, three languages, signs."""

_ENGLISH = (
    "the a of to in and is not with for every under near from open close read write move find "
    "file folder book table price train station river house garden winter evening doctor teacher "
    "question answer memory number city market letter music window coffee language yellow quiet "
    "small cheap old new quick late always never store ask count build learn forget"
)
_JAPANESE = (
    "私 は が を に で と の 猫 犬 庭 駅 本 雨 夜 朝 町 川 家 水 山 明日 今日 昨日 電車 時間 "
    "値段 言葉 先生 学校 病院 質問 答え 記憶 音楽 手紙 市場 窓 読む 書く 開く 閉じる 探す "
    "覚える 忘れる 寝ている 食べた 小さい 大きい 古い 新しい 安い 静か コーヒー テーブル "
    "ファイル データ です ます ません かもしれない"
)
_KOREAN = (
    "나는 우리는 고양이가 강아지가 정원에서 역에서 집에 학교에 병원에서 시장에서 책을 편지를 "
    "음악을 물을 창문을 파일을 질문을 대답을 가격은 시간은 내일 오늘 어제 아침에 저녁에 작은 "
    "큰 오래된 새로운 싼 조용한 읽습니다 씁니다 엽니다 닫습니다 찾습니다 기억합니다 잊었습니다 "
    "자고 있습니다 먹었습니다 비가 옵니다"
)
# Of each language: words, what further words are put together from, what stands between words
# and at the end of a sentence.
_LANGUAGES = (
    (
        _ENGLISH,
        "ba con der el fi gra hor jo ken lu mi nor ost pre qua sto ter ver wil zen",
        " ",
        ".",
    ),
    (
        _JAPANESE,
        "あ い う か き く こ さ し す た て と な は ま も ら 人 日 中 学 生 力",
        "",
        "。",
    ),
    (_KOREAN, "가 나 다 라 마 바 사 아 자 하 고 노 도 로 모 보 소 오 기 니 리 지 은 국", " ", "."),
)
_SIGNS = string.digits + string.ascii_letters + string.punctuation
_STAMP = "complete.json"
_FULL: dict[str, Any] = {"layers": 24, "hidden": 1024, "heads": 16, "vocabulary": 30_000}


def small(
    folder: Path,
    *,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    vocabulary: int = 2_000,
    seed: int = 0,
    without: Collection[str] = (),
    pooling: bool = False,
) -> Path:
    """Write a model; the same arguments write the same model.

    Args:
        folder: Made if it is not there.
        layers: Number of layers.
        hidden: Length of a vector.
        heads: Attention heads; they divide ``hidden``.
        vocabulary: Tokens to train for; there are fewer where the sample text has no more.
        seed: Of the sample text and of the weights.
        without: Files to leave out, of ``HEADS``.
        pooling: Whether to say the pooling as sentence-transformers does.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _unigram(vocabulary, seed)
    _save(
        tokenizer,
        folder,
        special=("<s>", "</s>", "<pad>", "<unk>", "<mask>"),
        model_max_length=8192,
        model_input_names=["input_ids", "attention_mask"],
        bos_token="<s>",
        eos_token="</s>",
    )
    config = XLMRobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=8194,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        initializer_range=hidden**-0.5,
    )
    # Others may have seeded the generator that everything in PyTorch shares.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = XLMRobertaModel(config)
        _spread(model.eval())
        model.save_pretrained(folder)
        for name, head in _heads(model, tokenizer).items():
            if name not in without:
                torch.save(head.state_dict(), folder / f"{name}.pt")
    if pooling:
        (folder / "1_Pooling").mkdir(exist_ok=True)
        _write(
            folder / "1_Pooling" / "config.json",
            word_embedding_dimension=hidden,
            pooling_mode_cls_token=True,
            pooling_mode_mean_tokens=False,
        )
    return folder


def full_size(folder: Path) -> Path:
    """Write a model with the layers of BGE-M3 and a small vocabulary: 1.4 GB, in a minute.

    A folder that is complete is left as it is.

    Args:
        folder: Made if it is not there.

    Returns:
        The folder.
    """
    stamp = folder / _STAMP
    # What another version of this file wrote is another model.
    recipe = blake2b(Path(__file__).read_bytes(), digest_size=8).hexdigest()
    whole = json.dumps({**_FULL, "recipe": recipe})
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != whole:
        stamp.unlink(missing_ok=True)
        small(folder, **_FULL)
        stamp.write_text(whole, encoding="utf-8")
    return folder


def plain_xlmr(folder: Path, *, seed: int = 0) -> Path:
    """Write a model of the right architecture without the heads that make it BGE-M3."""
    return small(folder, seed=seed, without=HEADS)


def plain_bert(folder: Path, *, seed: int = 0) -> Path:
    """Write a model of another architecture, with another kind of tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens += [*_SIGNS, *(f"##{sign}" for sign in _SIGNS)]
    tokenizer = Tokenizer(
        models.WordPiece({token: row for row, token in enumerate(tokens)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    _finish(tokenizer, "[CLS]", "[SEP]", tokens[:5])
    _save(
        tokenizer,
        folder,
        special=("[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"),
        model_max_length=512,
    )
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        initializer_range=32**-0.5,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BertModel(config).save_pretrained(folder)
    return folder


def sentences(count: int, *, invented: int = 0, seed: int = 0) -> Iterator[str]:
    """Yield sentences of no meaning in English, Japanese and Korean, in turns.

    Args:
        count: Number of sentences.
        invented: Words of each language that do not exist, beside those that do.
        seed: The same seed gives the same sentences.
    """
    random = Random(seed)
    words = [
        known.split() + _invent(random, syllables.split(), invented)
        for known, syllables, _, _ in _LANGUAGES
    ]
    for row in range(count):
        language = row % len(_LANGUAGES)
        *_, between, end = _LANGUAGES[language]
        yield between.join(random.choices(words[language], k=random.randint(3, 14))) + end


def _invent(random: Random, syllables: list[str], count: int) -> list[str]:
    return ["".join(random.choices(syllables, k=random.randint(2, 4))) for _ in range(count)]


def _unigram(vocabulary: int, seed: int) -> Tokenizer:
    """Make a tokenizer as XLM-RoBERTa has one."""
    normalizer = normalizers.NFKC()
    words = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    first = ["<s>", "<pad>", "</s>", "<unk>"]
    # The trainer of unigram models gives other scores in every process. That of byte pairs finds
    # the same pieces always, the most frequent first.
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer, trained.pre_tokenizer = normalizer, words
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 1,
        special_tokens=first,
        initial_alphabet=list(_SIGNS),
        max_token_length=16,
        show_progress=False,
    )
    text = sentences(2 * vocabulary, invented=vocabulary // 2, seed=seed)
    trained.train_from_iterator(text, trainer)
    pieces = sorted(trained.get_vocab().items(), key=lambda piece: piece[1])
    scores = [(piece, -math.log(row + 1)) for piece, row in pieces]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=3))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, words
    tokenizer.decoder = decoders.Metaspace()
    _finish(tokenizer, "<s>", "</s>", [*first, AddedToken("<mask>", lstrip=True)])
    return tokenizer


def _spread(model: Any) -> None:
    """Scale random weights so that texts, and the tokens of one text, stay apart.

    As they are, what all tokens share outweighs the rest, and after some layers all are the same.
    """
    deep = len(model.encoder.layer) ** -0.5
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:  # no bias is 0, no norm is 1: who leaves one out is found out
                weight.add_(torch.randn_like(weight), alpha=0.02)
        model.embeddings.position_embeddings.weight.mul_(0.2)
        model.embeddings.token_type_embeddings.weight.mul_(0.1)
        for layer in model.encoder.layer:
            layer.attention.self.query.weight.mul_(1.5)
            layer.attention.output.dense.weight.mul_(2 * deep)
            layer.output.dense.weight.mul_(0.3 * deep)


def _heads(model: Any, tokenizer: Tokenizer) -> dict[str, torch.nn.Linear]:
    """Return random heads; that of the sparse weights gives 0 to about half of the tokens."""
    hidden = model.config.hidden_size
    heads = {
        name: torch.nn.Linear(hidden, size) for name, size in zip(HEADS, (hidden, 1), strict=True)
    }
    sparse = heads["sparse_linear"]
    with torch.no_grad():
        for head in heads.values():
            head.weight.normal_(std=hidden**-0.5)
        ids = [tokenizer.encode(text).ids for text in sentences(12)]
        states = [model(torch.tensor([row])).last_hidden_state[0] for row in ids]
        middle = (torch.cat(states) @ sparse.weight.T).median().item()
        sparse.bias.fill_(-round(middle, 2))  # rounded: the last digits depend on the machine
    return heads


def _finish(tokenizer: Tokenizer, start: str, end: str, special: list[Any]) -> None:
    """Make tokens special, those that are new at the end, and set two of them round a text."""
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        pair=f"{start} $A {end} $B {end}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (start, end)],
    )


def _save(tokenizer: Tokenizer, folder: Path, *, special: tuple[str, ...], **more: Any) -> None:
    """Write a tokenizer as transformers reads it, with what its special tokens are for."""
    names = ("cls_token", "sep_token", "pad_token", "unk_token", "mask_token")
    tokenizer.save(str(folder / "tokenizer.json"))
    _write(
        folder / "tokenizer_config.json",
        tokenizer_class="PreTrainedTokenizerFast",
        **dict(zip(names, special, strict=True)),
        **more,
    )


def _write(path: Path, **content: Any) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
