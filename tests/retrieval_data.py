"""Public collections of documents, questions and judgements, where this machine has them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(os.environ.get("RAGOPT_DATA", Path(__file__).parents[2] / "shared" / "data"))


class Collection(NamedTuple):
    """What is searched, what is asked, and what answers it.

    Args:
        documents: Texts by id.
        queries: Texts by id.
        grades: Of each query, how good a document is, by its id; 0 or less is not relevant.
    """

    documents: dict[str, str]
    queries: dict[str, str]
    grades: dict[str, dict[str, float]]


def collection(name: str) -> Collection | None:
    """Return a collection; None if it is not here."""
    folder = FOLDER / name
    if not folder.is_dir():
        return None
    grades: dict[str, dict[str, float]] = {}
    for line in (folder / "qrels.tsv").read_text("utf-8").splitlines():
        query, document, grade = line.split("\t")
        grades.setdefault(query, {})[document] = float(grade)
    return Collection(_texts(folder / "docs.jsonl"), _texts(folder / "queries.jsonl"), grades)


def _texts(file: Path) -> dict[str, str]:
    lines = map(json.loads, file.read_text("utf-8").splitlines())
    return {line["id"]: line["text"] for line in lines}
