"""The state of the documents that something cached was made from."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from ragopt._runtime import Runtime
from ragopt.errors import InvalidInput
from ragopt.protocols import VectorIndex

Version: TypeAlias = str | Callable[[], str] | VectorIndex
"""A name for the state, a function that returns one, or the index that holds the documents."""


async def current(io: Runtime, version: Version) -> str:
    """Return the version now: the index's token, the function's result, or the string."""
    if isinstance(version, str):
        return version
    if callable(version):
        return version()
    return await io.call(version.version, version.aversion)


def check(version: object, what: str) -> None:
    """Raise InvalidInput for something that cannot tell a version."""
    if not (isinstance(version, (str, VectorIndex)) or callable(version)) or version == "":
        raise InvalidInput(
            f"{what} was given the version {version!r}.",
            fix="Pass a string, a function that returns one, or a ragopt index.",
        )
