"""The errors that ragopt raises. Each says what happened, to what, and what to do next."""

from __future__ import annotations


class RagoptError(Exception):
    """Base of every error that ragopt raises on purpose.

    Args:
        problem: One sentence: what happened, and to what.
        fix: One sentence: what the reader can do about it.
    """

    def __init__(self, problem: str, *, fix: str) -> None:
        super().__init__(f"{problem} {fix}")
        self.problem = problem
        self.fix = fix


class MissingDependency(RagoptError, ImportError):
    """A package that belongs to an optional extra is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package} is not installed.",
            fix=f'Install it with: pip install "ragopt[{extra}]"',
        )
        self.package = package
        self.extra = extra


class InvalidInput(RagoptError, ValueError):
    """A value handed in cannot be used; nothing was stored or changed."""


class DimensionMismatch(InvalidInput):
    """A vector does not have the dimension that the index or the cache was made for."""


class UnkeyableValue(InvalidInput, TypeError):
    """A value has no injective encoding, so no cache key can be made from it."""


class StorageError(RagoptError):
    """A file, disk or database could not do what was asked; what was stored before is intact."""


class CorruptData(StorageError):
    """Stored bytes are not what was written."""


class BackendUnavailable(StorageError, ConnectionError):
    """A server could not be reached, or did not answer in time."""


class PruningWarning(UserWarning):
    """Entries of a sparse vector were left out, so that a database takes it."""


class OutOfMemory(RagoptError, MemoryError):
    """Not even the smallest part of the work fits into memory."""
