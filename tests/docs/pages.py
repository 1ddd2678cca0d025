"""What the tests of the documentation share: the pages, and the code blocks in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]

_FENCE = re.compile(
    r"^(?P<indent>[ \t>]*)(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>[^\n]*)\n"
    r"(?P<body>.*?)^(?P=indent)(?P=fence)[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
_TITLE = re.compile(r'title="(?P<title>[^"]+)"')


class Block(NamedTuple):
    """A fenced code block: its language, its title (a file name), its text, and its indent."""

    language: str
    title: str | None
    text: str
    indent: str


def documents() -> list[Path]:
    """Return every page whose blocks are tests."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(text: str) -> Iterator[Block]:
    """Yield the code blocks of a page."""
    for match in _FENCE.finditer(text):
        language = re.split(r"[\s{]", match["info"].strip() + " ")[0].lower()
        title = _TITLE.search(match["info"])
        yield Block(language, title and title["title"], match["body"], match["indent"])
