"""Texts are cut at the ends of paragraphs and sentences, and nothing is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragopt.demo.passages import WORDS, sentences, split, words

TEXTS = st.text(alphabet="ab .!?。！\n日本語한국-|", max_size=3_000)


@given(TEXTS)
def test_no_word_is_lost_or_added(text: str) -> None:
    parts = "".join("".join(split(text)).split())
    assert parts == "".join(text.split())


@given(TEXTS)
def test_no_passage_is_long_or_empty(text: str) -> None:
    for passage in split(text):
        assert passage.strip()
        assert len(words(passage)) <= WORDS


def test_short_paragraphs_share_a_passage() -> None:
    assert split("One.\n\nTwo.\n \nThree.") == ["One.\n\nTwo.\n\nThree."]


def test_a_long_paragraph_is_cut_between_sentences() -> None:
    sentence = "This sentence has exactly eight words in it. "
    parts = split(sentence * 60)
    assert len(parts) > 1
    assert all(part.endswith("it.") for part in parts)


@pytest.mark.parametrize("stop", ["。", "！", "？"])
def test_a_long_japanese_paragraph_is_cut_between_sentences(stop: str) -> None:
    parts = split(f"検索の結果を保存します{stop}" * 40)
    assert len(parts) > 1
    assert all(part.endswith(stop) for part in parts)


def test_korean_sentences_end_at_full_stops() -> None:
    assert sentences("검색을 합니다. 결과를 저장합니까? 네.") == [
        "검색을 합니다.",
        "결과를 저장합니까?",
        "네.",
    ]


def test_a_word_without_end_is_cut_all_the_same() -> None:
    parts = split("x" * 5_000)
    assert "".join(parts) == "x" * 5_000
    assert max(map(len, parts)) <= 1_000


def test_a_line_goes_on_in_prose_and_begins_anew_in_a_list() -> None:
    assert sentences("One\ntwo.\n- three\n- four") == ["One two.", "- three", "- four"]
