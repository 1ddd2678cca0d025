"""Texts as token ids, and what becomes of texts that are longer than a model can read."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal, TypeAlias

from ragopt.embedders.engines import Tokens
from ragopt.errors import InvalidInput

LongText: TypeAlias = Literal["cut", "refuse", "split"]

# Ends of sentences in Japanese, Korean and English. A full stop counts before white space only:
# not within 3.14 or example.com.
_CLOSING = r"[\"'”’」』）)\]]*"
_SENTENCE_END = re.compile(rf"(?:[。．！？!?]+|\.+(?={_CLOSING}(?:\s|$))){_CLOSING}\s*|\n+\s*")
_LEAST_KEPT = 0.5  # of what fits; a sentence end before that is passed over


class TruncationWarning(UserWarning):
    """A text is longer than the model can read, and only its beginning was embedded."""


@dataclass(frozen=True, slots=True)
class Tokenized:
    """Texts as the model reads them.

    Args:
        pieces: What to embed. Of a text that was split there are several, one after another.
        rows: The text that each piece belongs to.
    """

    pieces: list[Tokens]
    rows: list[int]


class TextTokenizer:
    """Turns texts into tokens, none of them more than a model can read.

    Args:
        tokenizer: A tokenizer of the transformers package.
        limit: Tokens that the model reads of a text, with the special ones.
        long: What becomes of a longer text: ``"cut"`` keeps its beginning, up to the last end
            of a sentence that fits, and warns; ``"refuse"`` raises; ``"split"`` makes several
            pieces of it.
    """

    def __init__(self, tokenizer: Any, limit: int, long: LongText) -> None:
        self.tokenizer = tokenizer
        self.limit = limit
        self._long = long

    def encode(self, texts: Sequence[str], prefix: str = "") -> Tokenized:
        """Return the tokens of texts, with a prefix before each.

        Raises:
            InvalidInput: A text is too long, and such texts are refused.
        """
        starts = [prefix + self._start(text) for text in texts]
        ids = self._ids(starts)
        pieces: list[Tokens] = []
        rows: list[int] = []
        lost: dict[int, int] = {}
        for row, (text, start) in enumerate(zip(texts, starts, strict=True)):
            if len(ids[row]) <= self.limit:
                pieces.append(Tokens(start, ids[row]))
                rows.append(row)
                continue
            if self._long == "refuse":
                raise InvalidInput(
                    f"Text {row} has {len(text):,} characters, which is more than the "
                    f"{self.limit:,} tokens that the model reads. Nothing was embedded.",
                    fix='Split it into passages first, or pass long_text="cut" or "split".',
                )
            cuts = self._pieces(text, prefix, once=self._long == "cut")
            pieces += cuts
            rows += [row] * len(cuts)
            if self._long == "cut":
                lost[row] = len(prefix) + len(text) - len(cuts[0].text)
        if lost:
            self._warn(texts, lost)
        return Tokenized(pieces, rows)

    def _pieces(self, text: str, prefix: str, *, once: bool) -> list[Tokens]:
        """Cut a text, each piece with the prefix; only the first one if ``once``."""
        pieces: list[Tokens] = []
        begin = 0
        while begin < len(text) and not (once and pieces):
            piece = self._first(prefix + self._start(text, begin))
            if len(piece.text) <= len(prefix):
                raise InvalidInput(
                    f"The prefix {prefix[:40]!r} leaves no room for a text in {self.limit} tokens.",
                    fix="Shorten it, or raise max_length.",
                )
            pieces.append(piece)
            begin += len(piece.text) - len(prefix)
        return pieces

    def _first(self, start: str) -> Tokens:
        """Return as much of a text's beginning as fits."""
        encoded = self.tokenizer(start, return_offsets_mapping=True, verbose=False)
        if len(encoded["input_ids"]) <= self.limit:
            return Tokens(start, encoded["input_ids"])
        special = self.tokenizer.num_special_tokens_to_add()
        # Where the first token begins that does not fit. Special tokens have no place: (0, 0).
        places = [place for place in encoded["offset_mapping"] if place[1]]
        most = places[self.limit - special][0]
        ends = (found.end() for found in _SENTENCE_END.finditer(start))
        end = max(takewhile(lambda each: each <= most, ends), default=0)
        if end < _LEAST_KEPT * most:
            end = most
        while True:
            cut = start[:end]
            (ids,) = self._ids([cut])
            # Cut within a word, its beginning may have more tokens than it had in the word.
            if len(ids) <= self.limit or end <= 1:
                return Tokens(cut, ids)
            end -= max(1, (len(ids) - self.limit) // 2)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        found: list[list[int]] = self.tokenizer(
            list(texts), truncation=False, return_attention_mask=False, verbose=False
        )["input_ids"]
        return found

    def _start(self, text: str, begin: int = 0) -> str:
        """Return as much of a text as surely has more tokens than fit.

        Reading all of a text of megabytes to keep some hundred tokens would take seconds. Twice
        the tokens are enough: where the text is cut here, only its last word changes.
        """
        size = 32 * self.limit
        while begin + size < len(text):
            (ids,) = self._ids([text[begin : begin + size]])
            if len(ids) > 2 * self.limit:
                break
            size *= 4
        return text[begin : begin + size]

    def _warn(self, texts: Sequence[str], lost: dict[int, int]) -> None:
        worst = max(lost, key=lambda row: lost[row])
        warnings.warn(
            f"{len(lost)} of {len(texts)} texts are longer than the model's {self.limit} tokens; "
            f"only their beginning is embedded. Of row {worst}, which has {len(texts[worst]):,} "
            f"characters, the last {lost[worst]:,} are left out. Split long documents into "
            'passages first, or pass long_text="split".',
            TruncationWarning,
            stacklevel=2,
        )
