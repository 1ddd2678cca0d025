"""Which documents a computation used, noted by whatever finds them.

An index notes what its searches return, a cached result what it was made from. Whoever wants to
know (a cache which must forget an answer when a document changes) collects the notes around the
computation. Threads and tasks that the computation starts note in the same place, as far as they
run in a copy of its context, as those of LangChain, LlamaIndex and asyncio do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Sources:
    """The documents that were used."""

    def __init__(self) -> None:
        self.documents: set[str] = set()
        """Their names."""
        self.tags: set[bytes] = set()
        """Digests of those whose names only a cache knew."""
        self.as_of: int | None = None
        """Number of a change at which all that came out of a cache was current."""


_collecting: ContextVar[Sources | None] = ContextVar("ragopt_sources", default=None)


def collecting() -> Sources | None:
    """Return where to note, or None if nobody wants to know."""
    return _collecting.get()


def used(
    documents: Iterable[str | None], *, tags: Iterable[bytes] = (), as_of: int | None = None
) -> None:
    """Note that these documents were used; call it from a retriever of your own.

    Args:
        documents: Their names; None is left out.
        tags: Digests of more of them, from a cached value.
        as_of: Number of a change at which that value was known to be current.
    """
    sources = _collecting.get()
    if sources is None:
        return
    sources.documents.update(name for name in documents if name is not None)
    sources.tags.update(tags)
    if as_of is not None:
        sources.as_of = as_of if sources.as_of is None else min(sources.as_of, as_of)


@contextmanager
def collect() -> Iterator[Sources]:
    """Collect what is used within; the collector around this one learns of it as well."""
    sources = Sources()
    token = _collecting.set(sources)
    try:
        yield sources
    finally:
        _collecting.reset(token)
        used(sources.documents, tags=sources.tags, as_of=sources.as_of)
