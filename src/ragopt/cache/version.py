"""The state of the documents that something cached was made from."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TypeAlias

from ragopt._runtime import Runtime
from ragopt.errors import InvalidInput
from ragopt.protocols import VectorIndex

Version: TypeAlias = str | Callable[[], str] | VectorIndex
"""A name for the state, a function that returns one, or the index that holds the documents."""


async def current(io: Runtime, version: Version) -> str:
    """Return the version now: the index's token, the function's result, or the string."""
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


def check(version: object, what: str) -> None:
    """Raise InvalidInput for something that cannot tell a version."""
    if not (isinstance(version, (str, VectorIndex)) or callable(version)) or version == "":
        raise InvalidInput(
            f"{what} was given the version {version!r}.",
            fix="Pass a string, a function that returns one, or a ragopt index.",
        )
