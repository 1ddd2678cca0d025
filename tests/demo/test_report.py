"""The table, the JSON and the page say the same, and the page needs nothing from elsewhere."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import pytest

from ragopt.demo.corpus import Corpus
from ragopt.demo.measure import Ask, Level, Measured, at_once, percentile
from ragopt.demo.passages import Passage
from ragopt.demo.questions import Questions
from ragopt.demo.report import Comparison, compare, to_html, to_json
from ragopt.demo.settings import Settings, check_folder, check_writable, write
from ragopt.demo.table import Row, show
from ragopt.errors import InvalidInput

SETTINGS = Settings(asks=2, redis="redis://user:secret@localhost")
CORPUS = Corpus("texts", [Passage("a", "A <b>text</b>.")], 3, ["3 passages were left out."])
QUESTIONS = Questions("a list", ["q <1>?"], ["q <1>?", "q <1>?"], [], [])


def measured(seconds: float, answer: str = "<script>x</script>") -> Measured:
    return Measured(
        build=seconds,
        again=seconds,
        asks=[Ask(seconds, seconds / 2, seconds / 4, seconds / 8, 1, 1)] * 2,
        first=[seconds],
        second=[seconds / 50],
        cold=[Level(1, 1.0, seconds), Level(2, 0.5, seconds)],
        memory=2**20,
        answers={"q <1>?": answer},
        hits={"answers": (1, 2), "retrieval": (0, 1), "embeddings": (0, 1)},
    )


@pytest.fixture
def comparison() -> Comparison:
    return compare("LangChain", measured(0.5), measured(0.05), CORPUS, QUESTIONS)


def test_the_page_and_the_numbers_agree(comparison: Comparison) -> None:
    page = to_html(SETTINGS, CORPUS, QUESTIONS, [comparison])
    content = json.loads(to_json(SETTINGS, CORPUS, QUESTIONS, [comparison], {}))
    cells = [unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", page)]
    rows = content["frameworks"]["LangChain"]["rows"]
    assert len(cells) == 4 * len(rows)
    for number, row in enumerate(rows):
        shown = [show(row[when], row["unit"]) for when in ("before", "after")]
        expected = [row["name"].strip(), *shown, row["change"]]
        assert cells[4 * number : 4 * number + 4] == expected


def test_the_page_fetches_nothing_and_is_escaped(comparison: Comparison) -> None:
    page = to_html(SETTINGS, CORPUS, QUESTIONS, [comparison])
    assert "http" not in page
    assert not re.search(r"url\(|@import|<script|<link|<img|src=", page)
    assert "&lt;script&gt;" in page
    assert "q &lt;1&gt;?" in page


def test_no_report_holds_a_password(comparison: Comparison) -> None:
    assert "secret" not in to_html(SETTINGS, CORPUS, QUESTIONS, [comparison])
    assert "secret" not in to_json(SETTINGS, CORPUS, QUESTIONS, [comparison], {})


def test_answers_that_differ_are_counted() -> None:
    other = compare("LangChain", measured(1), measured(1, "another"), CORPUS, QUESTIONS)
    assert (other.same, other.asked, other.differing) == (0, 1, ["q <1>?"])
    assert other.verdict == "0 of 1 answers are the same without and with ragopt."


@pytest.mark.parametrize(
    ("row", "change", "improved"),
    [
        (Row("k", "n", 2.0, 0.2, "s"), "90% less (x10)", True),
        (Row("k", "n", 1.0, 0.001, "s"), "99.9% less (x1,000)", True),
        (Row("k", "n", 1.0, 1.3, "s"), "30% more", False),
        (Row("k", "n", 1.0, 1.001, "s"), "the same", False),
        (Row("k", "n", 1.0, 0.999, "s"), "the same", False),
        (Row("k", "n", 0.0, 0.7, "share"), "+70 points", True),
        (Row("k", "n", 8, 64, "askers"), "x8", True),
        (Row("k", "n", 0, 64, "askers"), "", False),
        (Row("k", "n", 8e6, 4e6, "bytes"), "50% less (x2)", True),
        (Row("k", "n", None, 4e6, "bytes"), "", False),
    ],
)
def test_changes_are_told_in_words(row: Row, change: str, improved: bool) -> None:
    assert row.change == change
    assert row.improved is improved


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (12.34, "s", "12.3 s"),
        (1.234, "s", "1.23 s"),
        (0.01234, "s", "12.3 ms"),
        (0.001234, "s", "1.23 ms"),
        (0.00001234, "s", "0.012 ms"),
        (0.678, "share", "68%"),
        (None, "s", "-"),
    ],
)
def test_numbers_are_written_with_their_unit(value: float | None, unit: str, text: str) -> None:
    assert show(value, unit) == text  # type: ignore[arg-type]


def test_the_askers_who_were_served_in_time() -> None:
    assert at_once([Level(1, 1.0, 0.1), Level(2, 0.95, 0.5), Level(4, 0.94, 0.6)]) == 2
    assert at_once([Level(1, 0.5, 0.9)]) == 0


def test_percentiles_by_nearest_rank() -> None:
    values = [float(n) for n in range(1, 101)]
    assert (percentile(values, 0.5), percentile(values, 0.95)) == (50, 95)
    assert percentile([7.0], 0.95) == 7
    assert percentile([], 0.5) == 0


def test_a_file_is_written_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    write(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["", "nowhere/report.json"])
def test_a_file_that_cannot_be_written_is_a_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput, match=r"is a folder|cannot be written"):
        check_writable(tmp_path / name)


def test_a_cache_in_a_file_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(InvalidInput, match="cannot be used for the cache"):
        check_folder(path)
