"""Every kind of file is read, and whatever is not is named in a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ragopt.demo.corpus import Corpus, read
from ragopt.errors import InvalidInput

Write = Callable[[str, str | bytes], Path]
MANY = 1_000_000


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def ids(corpus: Corpus) -> list[str]:
    return [passage.id for passage in corpus.passages]


@pytest.fixture(scope="module")
def everything() -> Corpus:
    """The whole standard library."""
    return read(None, MANY)


def test_the_standard_library_is_there_and_comes_in_the_same_order(
    request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]
) -> None:
    corpus = read(None, 2_000)
    assert capfd.readouterr() == ("", ""), "what some modules print is not shown"
    everything = request.getfixturevalue("everything")
    assert len(corpus.passages) == 2_000
    assert corpus.left_out > 1_000
    assert {"shutil.copytree", "os.walk", "print", "json.loads", "str.split"} <= set(ids(corpus))
    assert everything.passages[:2_000] == corpus.passages
    assert len(set(ids(corpus))) == 2_000


def test_no_passage_of_the_standard_library_holds_an_address(everything: Corpus) -> None:
    assert not [p.id for p in everything.passages if " at 0x" in p.text]


def test_a_folder_is_read_in_order_with_its_subfolders(write: Write, tmp_path: Path) -> None:
    write("b.md", "# Title\n\nA text.")
    write("a/c.rst", "Heading\n=======\n\nAnother text.")
    write("a.txt", "A third.")
    corpus = read(tmp_path, MANY)
    assert [(p.id, p.title) for p in corpus.passages] == [
        ("a.txt", ""),
        ("b.md", "Title"),
        ("a/c.rst", "Heading"),
    ]
    assert corpus.notes == []


def test_what_a_folder_holds_besides_is_named(write: Write, tmp_path: Path) -> None:
    write("a.txt", "A text.")
    write("b.txt", b"\x00\x01binary")
    write("c.png", b"\x89PNG")
    write("README", "A text without a suffix.")
    write(".git/config.txt", "hidden")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    corpus = read(tmp_path, MANY)
    assert ids(corpus) == ["a.txt"]
    notes = " ".join(corpus.notes)
    assert f"{tmp_path / 'b.txt'} is a binary file. It was skipped." in notes
    assert f"{tmp_path / 'gone.txt'} cannot be read (No such file or directory)." in notes
    assert f"The hidden folder {tmp_path / '.git'} was skipped." in notes
    assert "2 files of other kinds were not read: 1 .png, 1 no suffix." in notes


def test_bytes_that_are_not_utf8_are_replaced_and_counted(write: Write) -> None:
    corpus = read(write("a.txt", b"caf\xe9 au lait"), MANY)
    assert corpus.passages[0].text == "caf\ufffd au lait"
    assert "is not all UTF-8: 1 characters were replaced" in corpus.notes[0]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_mark_at_the_beginning_says_the_encoding(write: Write, encoding: str) -> None:
    corpus = read(write("a.txt", "検索の結果".encode(encoding)), MANY)
    assert corpus.passages[0].text == "検索の結果"
    assert corpus.notes == []


def test_json_lines_of_three_kinds(write: Write) -> None:
    rows = [
        {"id": "one", "title": "First", "text": "A text."},
        {"content": "Another."},
        {"id": 3, "passage": "A third."},
    ]
    corpus = read(write("a.jsonl", "\n".join(map(json.dumps, rows))), MANY)
    assert [(p.id, p.title, p.text) for p in corpus.passages] == [
        ("one", "First", "A text."),
        ("a.jsonl:2", "", "Another."),
        ("3", "", "A third."),
    ]


def test_a_broken_line_is_named_and_the_others_are_read(write: Write) -> None:
    path = write("a.jsonl", '{"text": "one"}\n{"text": \n{"other": 1}\n[]\n{"text": "two"}\n')
    corpus = read(path, MANY)
    assert [p.text for p in corpus.passages] == ["one", "two"]
    (note,) = corpus.notes
    assert note.startswith(f"Line 2 of {path} is not JSON (")
    assert note.endswith("and was skipped; so were 2 others of its lines.")


def test_a_table(write: Write) -> None:
    path = write("a.csv", 'id,Text,title\n1,"one, two",First\n2,,Empty\n3,three,\n')
    corpus = read(path, MANY)
    assert [(p.id, p.text, p.title) for p in corpus.passages] == [
        ("1", "one, two", "First"),
        ("3", "three", ""),
    ]
    assert corpus.notes == [f"1 rows of {path} have no text and were skipped."]


def test_a_table_with_semicolons(write: Write) -> None:
    assert read(write("a.csv", "content;id\nx, y;7\n"), MANY).passages[0].text == "x, y"


def test_a_table_without_texts_names_its_columns(write: Write) -> None:
    with pytest.raises(InvalidInput, match=r"no column of texts; its columns are: name, body\."):
        read(write("a.csv", "name,body\na,b\n"), MANY)


@pytest.mark.parametrize("megabytes", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_megabytes_become_many_passages(write: Write, megabytes: int) -> None:
    sentence = "A sentence of the large text which is there many times. "
    corpus = read(write("large.txt", sentence * (megabytes * 2**20 // len(sentence))), 50)
    assert len(corpus.passages) == 50
    assert corpus.left_out > 500 * megabytes
    assert f"{corpus.left_out:,} passages were left out by --passages 50" in corpus.notes[-1]


def test_ids_that_are_taken_get_a_number(write: Write) -> None:
    rows = [{"id": "a", "text": f"Text {n}."} for n in range(3)]
    corpus = read(write("a.jsonl", "\n".join(map(json.dumps, rows))), MANY)
    assert ids(corpus) == ["a", "a~2", "a~3"]
    assert corpus.notes == ["2 passages had an id that was taken; ~2, ~3 ... was added to it."]


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"There is no .*nowhere"):
        read(tmp_path / "nowhere", MANY)


@pytest.mark.parametrize("content", [b"", b" \n\n ", b"\x00\x01"])
def test_no_text_at_all(write: Write, tmp_path: Path, content: bytes) -> None:
    write("a.txt", content)
    with pytest.raises(InvalidInput, match="No text was found in"):
        read(tmp_path, MANY)


def test_a_binary_file_alone_is_an_error(write: Write) -> None:
    with pytest.raises(InvalidInput, match=r"a\.txt is a binary file"):
        read(write("a.txt", b"\x00\x01"), MANY)


def test_an_unreadable_file_is_an_error_of_its_own(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("a.txt", "text")

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(InvalidInput, match=r"a\.txt cannot be read \(Permission denied\)"):
        read(path, MANY)
