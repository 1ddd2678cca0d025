"""The state of the documents that something cached was made from."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TypeAlias

from ragopt._runtime import Runtime
from ragopt.cache.lineage import Lineage
from ragopt.errors import InvalidInput
from ragopt.protocols import VectorIndex

Version: TypeAlias = str | Callable[[], str] | VectorIndex
"""A name for the state, a function that returns one, or the index that holds the documents."""


async def current(io: Runtime, version: Version | None) -> str | None:
    """Return the version now: the index's token, the function's result, the string, or None."""
    if version is None:
        return None
    if isinstance(version, VectorIndex):
        return await io.call(version.version, version.aversion)
    found: object = version() if callable(version) else version
    if not isinstance(found, str) or not found:
        if isinstance(found, Coroutine):
            found.close()  # or Python warns of it later, and nobody knows whose it was
        raise InvalidInput(
            f"A version function returned {found!r}.",
            fix="Return a string that is not empty, without being async.",
        )
    return found


def check(version: object, lineage: Lineage | None, what: str) -> None:
    """Raise InvalidInput for what cannot tell a version; without one there must be a lineage."""
    if version is None and lineage is not None:
        return
    if not (isinstance(version, (str, VectorIndex)) or callable(version)) or version == "":
        raise InvalidInput(
            f"{what} was given the version {version!r}.",
            fix="Pass a string, a function that returns one, or a ragopt index; or a Lineage.",
        )
