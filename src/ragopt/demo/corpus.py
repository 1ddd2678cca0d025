"""Documents from files: a folder of texts, JSON Lines or CSV. Whatever is left out is named."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from ragopt.demo import stdlib
from ragopt.demo.passages import Passage, split
from ragopt.errors import InvalidInput

_TEXTS = (".txt", ".text", ".md", ".markdown", ".rst")
_TABLES = (".jsonl", ".ndjson", ".csv")
_TEXT_FIELDS = ("text", "content", "passage")
_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_FORMATS = "a folder of text, Markdown or reStructuredText files, a .jsonl file or a .csv file"


@dataclass(slots=True)
class Corpus:
    """Passages, and in sentences what did not become one.

    Args:
        name: What they are, for people.
        passages: With unique ids.
        left_out: Passages beyond the limit.
        notes: One sentence for everything that was skipped or changed.
    """

    name: str
    passages: list[Passage]
    left_out: int = 0
    notes: list[str] = field(default_factory=list)


class Unreadable(InvalidInput):
    """A file that holds no text, or cannot be read; others may still be."""


def read(path: Path | None, limit: int) -> Corpus:
    """Read a corpus.

    Args:
        path: Folder or file; None for the documentation of Python's standard library.
        limit: The most passages to return.

    Raises:
        InvalidInput: There is nothing there, no text in it, or no column of text.
    """
    if path is None:
        passages, left_out, missing = stdlib.read(limit)
        version = ".".join(map(str, sys.version_info[:2]))
        corpus = Corpus(f"docstrings of Python {version}'s standard library", passages, left_out)
        if missing:
            corpus.notes.append(
                f"{len(missing)} modules are not there on this system: {', '.join(missing)}."
            )
    else:
        notes: list[str] = []
        passages = _unique(_passages(path, notes), notes)
        corpus = Corpus(str(path), passages[:limit], max(0, len(passages) - limit), notes)
    if not corpus.passages:
        reason = f" {corpus.notes[0]}" if corpus.notes else ""
        raise InvalidInput(f"No text was found in {path}.{reason}", fix=f"Give {_FORMATS}.")
    if corpus.left_out:
        corpus.notes.append(
            f"{corpus.left_out:,} passages were left out by --passages {limit}; "
            f"{len(corpus.passages):,} are indexed."
        )
    return corpus


def _passages(path: Path, notes: list[str]) -> Iterator[Passage]:
    if path.is_dir():
        yield from _folder(path, notes)
    elif path.is_file():
        yield from _file(path, path.name, notes)
    elif path.exists():
        raise InvalidInput(f"{path} is neither a folder nor a file.", fix=f"Give {_FORMATS}.")
    else:
        raise InvalidInput(f"There is no {path}.", fix=f"Give {_FORMATS}.")


def _folder(root: Path, notes: list[str]) -> Iterator[Passage]:
    others: Counter[str] = Counter()

    def unreadable(error: OSError) -> None:
        notes.append(f"The folder {error.filename} was skipped ({error.strerror}).")

    for folder, folders, files in os.walk(root, onerror=unreadable):
        folders.sort()
        for hidden in [name for name in folders if name.startswith(".")]:
            folders.remove(hidden)
            notes.append(f"The hidden folder {Path(folder, hidden)} was skipped.")
        for name in sorted(files):
            path = Path(folder, name)
            if path.suffix.lower() not in _TEXTS:
                others[path.suffix.lower() or "no suffix"] += 1
                continue
            try:
                yield from _file(path, path.relative_to(root).as_posix(), notes)
            except Unreadable as error:
                notes.append(f"{error.problem} It was skipped.")
    if others:
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(others.items()))
        notes.append(f"{others.total()} files of other kinds were not read: {kinds}.")


def _file(path: Path, name: str, notes: list[str]) -> Iterator[Passage]:
    text = read_text(path, notes)
    kind = path.suffix.lower()
    if kind in _TABLES:
        rows = _csv(path, text, notes) if kind == ".csv" else _jsonl(path, text, notes)
        for number, (id_, title, content) in enumerate(rows, 1):
            yield from _cut(id_ or f"{name}:{number}", title, content)
    else:
        yield from _cut(name, _title(text), text)


def _cut(id_: str, title: str, text: str) -> Iterator[Passage]:
    for number, part in enumerate(split(text), 1):
        yield Passage(id_ if number == 1 else f"{id_}#{number}", part, title)


def _title(text: str) -> str:
    """Return the heading that a Markdown or reStructuredText file begins with; "" for none."""
    first, _, rest = text.lstrip().partition("\n")
    if first.startswith("# "):
        return first[2:].strip()
    underline = rest.partition("\n")[0].strip()
    is_line = len(underline) >= 3 and len(set(underline)) == 1 and underline[0] in "=-~#*^"
    return first.strip() if is_line else ""


def read_text(path: Path, notes: list[str]) -> str:
    """Read a file as UTF-8, or as UTF-16 if it says so.

    Raises:
        Unreadable: It cannot be opened, or it is no text.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Unreadable(
            f"{path} cannot be read ({error.strerror}).", fix="Check its permissions."
        ) from error
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    if encoding != "utf-16" and b"\0" in data:
        raise Unreadable(f"{path} is a binary file.", fix=f"Give {_FORMATS}.")
    text = data.decode(encoding, "replace")
    damaged = text.count("\ufffd") - data.count("\ufffd".encode())
    if damaged > 0:
        notes.append(f"{path} is not all UTF-8: {damaged} characters were replaced by \ufffd.")
    return text.replace("\r\n", "\n")


def _jsonl(path: Path, text: str, notes: list[str]) -> Iterator[tuple[str, str, str]]:
    for row in json_lines(path, text, notes, _TEXT_FIELDS):
        content = next(row[name] for name in _TEXT_FIELDS if isinstance(row.get(name), str))
        yield _text(row.get("id")), _text(row.get("title")), content


def json_lines(
    path: Path, text: str, notes: list[str], fields: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON Lines text that hold a text in one of the fields."""
    bad: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            bad.append(f"Line {number} of {path} is not JSON ({reason})")
            continue
        if isinstance(row, dict) and any(isinstance(row.get(name), str) for name in fields):
            yield row
        else:
            wanted = " or ".join(f'"{name}"' for name in fields)
            bad.append(f"Line {number} of {path} is no object with a text in {wanted}")
    if bad:
        more = f"; so were {len(bad) - 1} others of its lines" if len(bad) > 1 else ""
        notes.append(f"{bad[0]} and was skipped{more}.")


def _csv(path: Path, text: str, notes: list[str]) -> Iterator[tuple[str, str, str]]:
    csv.field_size_limit(2**31 - 1)  # a cell may hold a whole document
    header = text.partition("\n")[0]
    rows = csv.DictReader(StringIO(text), delimiter=max(",;\t", key=header.count))
    columns = {name.strip().lower(): name for name in rows.fieldnames or () if name}
    column = next((columns[name] for name in _TEXT_FIELDS if name in columns), None)
    if column is None:
        raise InvalidInput(
            f"{path} has no column of texts; its columns are: {', '.join(columns) or 'none'}.",
            fix="Name one of them text or content.",
        )
    empty = 0
    try:
        for row in rows:
            if not (content := _text(row.get(column)).strip()):
                empty += 1
                continue
            id_, title = (_text(row.get(columns.get(name, ""))) for name in ("id", "title"))
            yield id_, title, content
    except csv.Error as error:
        notes.append(f"{path} was read up to line {rows.line_num}, which is broken ({error}).")
    if empty:
        notes.append(f"{empty} rows of {path} have no text and were skipped.")


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _unique(passages: Iterator[Passage], notes: list[str]) -> list[Passage]:
    """Return the passages with ids made unique; an index replaces what has the same id."""
    seen: set[str] = set()
    unique, renamed = [], 0
    for passage in passages:
        id_, copy = passage.id, 2
        while id_ in seen:
            id_, copy = f"{passage.id}~{copy}", copy + 1
        renamed += id_ != passage.id
        seen.add(id_)
        unique.append(Passage(id_, passage.text, passage.title))
    if renamed:
        notes.append(f"{renamed} passages had an id that was taken; ~2, ~3 ... was added to it.")
    return unique
