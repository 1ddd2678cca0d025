"""Texts as terms."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragopt.text import TextQuery, highest, term_vector


def score(query: str, text: str) -> float:
    asked = TextQuery(query)
    return asked.weighted(10, dict.fromkeys(asked.terms, 1)).dot(term_vector(text))


def test_the_weight_of_a_term() -> None:
    (weight,) = term_vector("word " * 3).values
    assert weight == pytest.approx(3 * 2.2 / (3 + 1.2 * (0.25 + 0.75 * 3 / 200)))
    more = term_vector("word " * 30).values[0]
    assert weight < more < 2.2


def test_a_long_text_says_less_with_one_word() -> None:
    assert score("pear", "pear") > score("pear", "pear and " + "apple " * 500) > 0


def test_case_and_width() -> None:
    assert term_vector("ＴＯＫＹＯ ﾀﾜｰ") == term_vector("tokyo タワー")
    assert term_vector("STRASSE ﬁn") == term_vector("straße fin")


def test_runs_without_spaces_are_letters_and_pairs() -> None:
    assert len(term_vector("東京都")) == len({"東", "京", "都", "東京", "京都"})
    assert len(term_vector("서울에서 tower")) == 3 + 3 + 1
    assert len(term_vector("")) == len(term_vector("。、!? _ -")) == 0


def test_signs_are_part_of_a_word() -> None:
    assert len(term_vector("हिन्दी")) == 1  # each of its vowel signs is no letter to Python
    assert len(term_vector("e\u0301clair")) == 1


@given(st.text(st.characters(max_codepoint=127)))
def test_plain_texts_have_the_terms_of_others(text: str) -> None:
    # The end makes the text one of those that are not plain; it is no word itself.
    assert term_vector(text) == term_vector(text + " …")


@given(
    st.text("ab 東京タワー서울_é\ud800", max_size=12), st.text("ab 東京タワー서울_é", max_size=30)
)
def test_a_text_matches_as_its_terms_do(query: str, text: str) -> None:
    if TextQuery(query).matches(text):
        assert score(query, text) > 0
    assert TextQuery(text).matches(text) == (len(term_vector(text)) > 0)


@given(st.lists(st.sampled_from(["a", "b", "東京", "c"]), min_size=1), st.text("abc 東京"))
def test_no_score_reaches_the_highest(words: list[str], text: str) -> None:
    asked = TextQuery(" ".join(words))
    weighted = asked.weighted(10, dict.fromkeys(asked.terms, 1))
    assert weighted.dot(term_vector(text * 50)) < highest(weighted)


def test_a_word_that_is_asked_for_twice_counts_twice() -> None:
    assert score("a a b", "a") == pytest.approx(2 * score("a b", "a"))


def test_rare_terms_weigh_more_and_unknown_ones_nothing() -> None:
    asked = TextQuery("rare common unknown")
    rare, common, unknown = (TextQuery(word).terms[0] for word in ("rare", "common", "unknown"))
    weights = asked.weighted(100, {rare: 1, common: 90, unknown: 0}).to_dict()
    assert weights.keys() == {rare, common}
    assert weights[rare] == pytest.approx(np.log(1 + 99.5 / 1.5))
    assert weights[common] == pytest.approx(np.log(1 + 10.5 / 90.5))
    everywhere = asked.weighted(9, {rare: 9, common: 9, unknown: 9})
    assert min(everywhere.values) > 0


def test_a_phrase_needs_all_its_terms_and_a_word_itself() -> None:
    def groups(text: str) -> tuple[tuple[int, ...], ...]:
        asked = TextQuery(text)
        return asked.weighted(9, dict.fromkeys(asked.terms, 1)).groups

    assert groups("red pear") == ()
    (pairs,) = groups("東京都")
    assert list(pairs) == TextQuery("東京都").terms
    assert sorted(map(len, groups("red 東京都"))) == [1, 2]
    assert len(groups("서울에서")) == 1  # without its particle
