"""Passages, and how a long text is cut into them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

WORDS = 180
"""The most words of a passage: MiniLM reads 256 tokens. A Chinese or Japanese character is one."""

# Tables, code and long names have more tokens in a word than prose, so letters count too.
_LETTERS = 950

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
_PARAGRAPH = re.compile(r"\n[ \t]*\n\s*")
# Full stops of Chinese and Japanese are not followed by a space. A line begins something new in
# a list, a table or after a heading; in prose it only goes on.
_SENTENCE = re.compile(
    r"(?<=[.!?])\s+|(?<=[。！？])\s*|\n\s*\n|\n(?=\s*(?:[-*+•|#>]|\d+[.)]\s))|(?<=\|)\n"
)


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of a document: what is embedded, found and quoted.

    Args:
        id: Unique in the corpus.
        text: The passage itself.
        title: Title of the document; empty if it has none.
    """

    id: str
    text: str
    title: str = ""


def split(text: str) -> list[str]:
    """Cut a text into passages of up to 180 words, at the ends of paragraphs and sentences."""
    passages: list[str] = []
    for paragraph in filter(None, map(str.strip, _PARAGRAPH.split(text.strip()))):
        if _fits(paragraph):
            _join(passages, paragraph, "\n\n")
            continue
        passages.append("")  # a paragraph that is cut begins a passage of its own
        for sentence in sentences(paragraph):
            for piece in _pieces(sentence):
                _join(passages, piece, " ")
    return [passage for passage in passages if passage]


def sentences(text: str) -> list[str]:
    """Return the sentences and list items of a text, each on one line."""
    return [" ".join(part.split()) for part in _SENTENCE.split(text) if part and part.strip()]


def words(text: str) -> list[str]:
    """Return the words of a text; each Chinese or Japanese character is one."""
    return _WORD.findall(text)


def _fits(text: str) -> bool:
    return len(text) <= _LETTERS and len(words(text)) <= WORDS


def _join(passages: list[str], piece: str, glue: str) -> None:
    """Put a piece into the last passage, or into a new one where it does not fit."""
    joined = f"{passages[-1]}{glue}{piece}" if passages and passages[-1] else piece
    if passages and _fits(joined):
        passages[-1] = joined
    else:
        passages.append(piece)


def _pieces(sentence: str) -> Iterator[str]:
    """Yield a sentence, or the parts of one that is longer than a passage."""
    while not _fits(sentence):
        ends = [word.end() for word in _WORD.finditer(sentence)]
        end = min(ends[WORDS - 1] if len(ends) >= WORDS else len(sentence), _LETTERS)
        # Between two words, if there is such a place near the end.
        space = sentence.rfind(" ", end // 2, end + 1)
        cut = space if space > 0 else end
        yield sentence[:cut].rstrip()
        sentence = sentence[cut:].lstrip()
    if sentence:
        yield sentence
