"""The stream is the same every time, and follows Zipf's law."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

import pytest

from ragopt.demo.corpus import read
from ragopt.demo.passages import Passage
from ragopt.demo.questions import draw, prepare
from ragopt.demo.settings import REPEATED, Settings
from ragopt.errors import InvalidInput


@pytest.fixture(scope="module")
def passages() -> list[Passage]:
    return read(None, 300).passages


def test_the_same_settings_draw_the_same_stream(passages: list[Passage]) -> None:
    one, two = (prepare(Settings(), passages) for _ in range(2))
    assert one == two
    assert len(one.stream) == 300
    assert len(one.pool) == 150
    assert prepare(Settings(seed=2), passages).stream != one.stream


def test_questions_that_are_asked_twice_are_in_no_stream(passages: list[Passage]) -> None:
    asked = prepare(Settings(), passages)
    assert len(set(asked.repeated)) == REPEATED
    assert not set(asked.repeated) & {*asked.pool, *asked.stream, *asked.later}


def test_frequencies_follow_the_law() -> None:
    pool = [f"q{rank}" for rank in range(1, 51)]
    counts = Counter(draw(pool, 100_000, 0.8, Random(1)))
    for rank in (2, 5, 10, 40):
        assert counts["q1"] / counts[f"q{rank}"] == pytest.approx(rank**0.8, rel=0.1)


def test_exponent_zero_draws_all_alike() -> None:
    counts = Counter(draw(["a", "b"], 10_000, 0, Random(1)))
    assert counts["a"] == pytest.approx(5_000, rel=0.05)


def test_many_questions_of_the_standard_library_are_written_by_hand(
    passages: list[Passage],
) -> None:
    asked = prepare(Settings(), passages)
    assert "How do I copy a whole directory tree?" in asked.pool
    assert asked.source.startswith("86 questions written by hand")


def test_a_file_of_questions(tmp_path: Path) -> None:
    path = tmp_path / "questions.txt"
    path.write_text("One?\n\nTwo?\nOne?\n")
    asked = prepare(Settings(corpus=tmp_path, questions=path, asks=20), [Passage("a", "A text.")])
    assert set(asked.pool) == {"One?", "Two?"}
    assert set(asked.stream) == {"One?", "Two?"}
    assert asked.source == f"questions of {path}"


def test_json_lines_of_questions(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"question": "One?"}\n{"text": "Two?"}\nnonsense\n')
    asked = prepare(Settings(corpus=tmp_path, questions=path), [Passage("a", "A text.")])
    assert set(asked.pool) == {"One?", "Two?"}
    assert asked.notes[0].startswith(f"Line 3 of {path} is not JSON")


@pytest.mark.parametrize("content", [None, "", "\n \n"])
def test_a_file_without_questions(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "questions.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidInput, match=r"There is no (file|question in) .*questions\.txt"):
        prepare(Settings(questions=path), [])


def test_questions_are_made_from_titles_and_first_sentences(tmp_path: Path) -> None:
    passages = [Passage("a", "Text.", "The title"), Passage("b", "Ok. 検索の結果を保存します。")]
    asked = prepare(Settings(corpus=tmp_path), passages)
    assert {*asked.pool, *asked.repeated} == {
        "What is said about The title?",
        "What is said about 検索の結果を保存します?",
    }
    assert asked.source == "questions made from the passages by template"


def test_one_passage_is_enough(tmp_path: Path) -> None:
    asked = prepare(Settings(corpus=tmp_path, asks=3), [Passage("a", "A text.")])
    assert len(asked.stream) == 3
