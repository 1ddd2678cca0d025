"""What a run of the demo was asked to do, and the files it writes."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ragopt.errors import InvalidInput

TOP_K = 4
"""Passages that are handed to the answerer."""

REPEATED = 30
"""Questions, outside the stream, that are asked twice in a row."""

WITHIN = 0.5
"""Seconds within which an answer counts as in time when many ask at once."""

ENOUGH = 0.95
"""Share of the answers that must be in time."""

MOST_ASKERS = 256
"""Where the doubling of the askers ends."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The options that decide what is measured.

    Args:
        corpus: Folder or file with the documents; None for Python's standard library.
        questions: File with the questions; None for questions of the demo's own.
        passages: The most passages to index.
        asks: Length of the stream of questions.
        distinct: Different questions that the stream is drawn from, at most.
        zipf: Exponent of the distribution they are drawn by; 0 draws all alike.
        seed: Of the draw.
        llm: LangChain's id of a chat model; None for the extractive answerer.
        redis: URL of a server that becomes the third layer of the caches.
        postgres: DSN of a server that takes the place of FAISS.
        cache: Folder in which the caches outlive the run; None for a temporary one.
    """

    corpus: Path | None = None
    questions: Path | None = None
    passages: int = 2_000
    asks: int = 300
    distinct: int = 150
    zipf: float = 0.8
    seed: int = 1
    llm: str | None = None
    redis: str | None = None
    postgres: str | None = None
    cache: Path | None = None


def check_writable(path: Path) -> None:
    """Raise InvalidInput if a report could not be written there, before anything is measured."""
    if path.is_dir():
        raise InvalidInput(f"{path} is a folder.", fix="Give the name of a file to write.")
    try:
        with tempfile.TemporaryFile(dir=path.absolute().parent):
            pass
    except OSError as error:
        raise InvalidInput(
            f"{path} cannot be written ({error.strerror}).",
            fix="Give a file in a folder that exists and that you may write to.",
        ) from error


def check_folder(path: Path) -> None:
    """Make the folder for caches that are kept, or raise InvalidInput."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InvalidInput(
            f"The folder {path} cannot be used for the cache ({error.strerror}).",
            fix="Give a folder that you may write to.",
        ) from error


def write(path: Path, text: str) -> None:
    """Write a file as a whole: a reader finds the old content or the new one, never a part."""
    handle, temporary = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).chmod(0o644)
        os.replace(temporary, path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise InvalidInput(
            f"{path} cannot be written ({error.strerror}).", fix="Give another file."
        ) from error
