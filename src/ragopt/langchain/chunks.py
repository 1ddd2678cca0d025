"""The answer of a chain: whole, or in the chunks in which it was streamed."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import BaseMessage, BaseMessageChunk
from langchain_core.runnables.utils import AddableDict

from ragopt.codecs import decode_value, encode_value
from ragopt.errors import InvalidInput
from ragopt.langchain.plain import as_chunk, as_message, from_plain, to_plain


class Pieces:
    """An answer in chunks, as they come."""

    def __init__(self) -> None:
        self.stored: list[bytes] | None = []

    def add(self, chunk: Any) -> None:
        """Take a copy of a chunk. One that has no stored form ends the taking."""
        if self.stored is not None:
            try:
                self.stored.append(encode_value(to_plain(chunk)))
            except InvalidInput:
                self.stored = None

    def whole(self) -> Any:
        """Return what ``invoke`` would have returned.

        Raises:
            InvalidInput: There are no chunks, one of them has no stored form, or nobody can tell
                what they add up to.
        """
        if self.stored is None:
            raise InvalidInput("A chunk of an answer has no stored form.", fix="It is not cached.")
        return _together(_chunks(self.stored))


def encode(answer: Any) -> dict[str, Any]:
    """Return an answer, whole or in ``Pieces``, as JSON-like values.

    Raises:
        InvalidInput: It has no such form from which the same could be made again.
    """
    if isinstance(answer, Pieces):
        return {"whole": to_plain(answer.whole()), "chunks": answer.stored}
    return {"whole": to_plain(answer), "chunks": None}


def decode(stored: Any) -> Any:
    """Return a stored answer as ``invoke`` returns it."""
    return from_plain(stored["whole"])


def decode_chunks(stored: Any) -> list[Any]:
    """Return a stored answer as it is streamed; a whole one as its only chunk."""
    if stored["chunks"] is None:
        return [_only(decode(stored))]
    return _chunks(stored["chunks"])


def _chunks(stored: list[bytes]) -> list[Any]:
    return [from_plain(decode_value(data)) for data in stored]


def _only(answer: Any) -> Any:
    if isinstance(answer, BaseMessage):
        return as_chunk(answer)
    if type(answer) is dict:
        return AddableDict({key: _only(item) for key, item in answer.items()})
    return answer


def _together(chunks: list[Any]) -> Any:
    first = chunks[0] if chunks else None
    if chunks and all(type(chunk) is AddableDict for chunk in chunks):
        return {key: _together(_under(chunks, key)) for chunk in chunks for key in chunk}
    if len(chunks) == 1:
        return as_message(first) if isinstance(first, BaseMessage) else first
    if isinstance(first, str) and all(isinstance(chunk, str) for chunk in chunks):
        return "".join(chunks)
    if isinstance(first, BaseMessageChunk) and all(type(chunk) is type(first) for chunk in chunks):
        whole: Any = first
        for chunk in chunks[1:]:
            whole += chunk
        return as_message(whole)
    if chunks and all(type(chunk) is dict for chunk in chunks):
        return chunks[-1]  # plain dicts cannot be added: each is the answer so far
    raise InvalidInput(
        f"A stream of {len(chunks)} chunks cannot be put together.", fix="It is not cached."
    )


def _under(chunks: list[Any], key: Any) -> list[Any]:
    found = [chunk[key] for chunk in chunks if key in chunk]
    return [item for item in found if item is not None] or [None]
