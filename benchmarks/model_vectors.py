"""Vectors that a real model makes of real English: computed once, then read from a file.

The file is in the folder ``RAGOPT_BENCHMARK_CACHE`` names, or in ``~/.cache/ragopt-benchmarks``.
"""

from __future__ import annotations

import ast
import json
import os
import re
import sysconfig
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
from tests.retrieval_data import FOLDER

from ragopt import TransformersEmbedder
from ragopt.types import Dense

CACHE = Path(os.environ.get("RAGOPT_BENCHMARK_CACHE", Path.home() / ".cache" / "ragopt-benchmarks"))

_SHORTEST = 3  # words of a text
_LONGEST = 2  # sentences of a passage; each starts one sentence after the one before
_END = re.compile(r"(?<=[.!?])\s+(?=\S)")
_LINES = {  # the files of sentences, and what they call them
    "banking77/queries.jsonl": ("text",),
    "negation/pairs.jsonl": ("a", "b"),
    "stsb_en/pairs.jsonl": ("a", "b"),
    "xquad_en/queries.jsonl": ("text",),
}
_DOCUMENTS = ("cranfield/docs.jsonl", "xquad_en/docs.jsonl")


def passages(number: int) -> list[str]:
    """Return different texts in an order without meaning, the same in every run.

    They are questions and sentences of public collections, pairs of neighbouring sentences of
    their documents, and the sentences of documentation in Python and numpy.

    Raises:
        SystemExit: The collections are not here, or there are not so many texts.
    """
    if not (FOLDER / _DOCUMENTS[0]).is_file():
        raise SystemExit(f"The public collections are not in {FOLDER}. Set RAGOPT_DATA.")
    found = dict.fromkeys(text for text in _texts() if len(text.split()) >= _SHORTEST)
    if len(found) < number:
        raise SystemExit(f"There are {len(found):,} texts in {FOLDER}, not {number:,}.")
    texts = sorted(found)
    return [texts[row] for row in np.random.default_rng(3).permutation(len(texts))[:number]]


def vectors(texts: list[str]) -> Dense:
    """Return the vectors of all-MiniLM-L6-v2, of unit length, shape ``(len(texts), 384)``."""
    model = TransformersEmbedder.minilm(device="cpu", engine="onnx")
    name = blake2b("\0".join([str(model.spec), *texts]).encode(), digest_size=8).hexdigest()
    file = CACHE / f"minilm-{len(texts)}-{name}.npy"
    if not file.is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        made = np.concatenate(
            [
                batch.dense
                for _, batch in model.stream(texts, progress=True)
                if batch.dense is not None
            ]
        )
        part = file.with_suffix(".part.npy")
        np.save(part, made)
        part.replace(file)
    found: Dense = np.load(file)
    return found


def _texts() -> Iterator[str]:
    for name, fields in _LINES.items():
        for line in _read(name):
            yield from (line[field].strip() for field in fields)
    for name in _DOCUMENTS:
        for line in _read(name):
            sentences = _END.split(line["text"].strip())
            for length in range(1, _LONGEST + 1):
                for start in range(len(sentences) - length + 1):
                    yield " ".join(sentences[start : start + length])
    for text in (*topics.values(), *_docstrings()):
        for paragraph in re.split(r"\n\s*\n", text):
            if ">>>" not in paragraph:  # an example is no sentence
                yield from _END.split(" ".join(paragraph.split()))


def _read(name: str) -> Iterable[dict[str, str]]:
    lines = (FOLDER / name).read_text("utf-8").split("\n")
    return (json.loads(line) for line in lines if line)


def _docstrings() -> Iterator[str]:
    library = Path(sysconfig.get_path("stdlib"))
    own = (path for path in library.rglob("*.py") if "site-packages" not in path.parts)
    for path in sorted([*own, *Path(np.__file__).parent.rglob("*.py")]):
        if {"test", "tests", "idle_test"}.intersection(path.parts):
            continue
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, UnicodeDecodeError):  # samples of what does not parse
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield ast.get_docstring(node) or ""
