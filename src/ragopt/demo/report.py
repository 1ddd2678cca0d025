"""The outcome of a run as plain values, as JSON and as a page."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

import ragopt
from ragopt.demo.answerer import EXTRACTIVE
from ragopt.demo.corpus import Corpus
from ragopt.demo.measure import Measured
from ragopt.demo.questions import Questions
from ragopt.demo.settings import ENOUGH, REPEATED, WITHIN, Settings
from ragopt.demo.table import Row, differing, rows, show

FOOTNOTES = (
    "* The answerer's own time is left out. The mean over "
    f"{REPEATED} questions that are not in the stream.",
    "** The most askers, doubling from 1, of whose answers "
    f"{ENOUGH:.0%} arrive within {WITHIN * 1_000:.0f} ms. Every number of askers begins the "
    "stream anew with empty caches; in the line below, the stream goes on with the caches as "
    "they are.",
    "Passages and embeddings are looked up only when the answer is not cached.",
    "Memory: growth of the process after the model was loaded, with everything in memory.",
)
_SAMPLES = 3


@dataclass(frozen=True, slots=True)
class Comparison:
    """One framework without and with ragopt.

    Args:
        framework: Its name.
        rows: The measures.
        same: Questions that both answered alike.
        asked: Questions that both were asked.
        differing: The others.
        samples: Questions with their answers.
        reused: Embeddings of passages that were in a cache of an earlier run.
    """

    framework: str
    rows: list[Row]
    same: int
    asked: int
    differing: list[str]
    samples: list[tuple[str, str]]
    reused: int

    @property
    def verdict(self) -> str:
        """One sentence on the answers."""
        return f"{self.same} of {self.asked} answers are the same without and with ragopt."


def compare(
    framework: str, before: Measured, after: Measured, corpus: Corpus, questions: Questions
) -> Comparison:
    """Put both arms of a framework side by side."""
    other = differing(before, after)
    asked = len(before.answers)
    samples = [(each, after.answers[each]) for each in questions.most_asked[:_SAMPLES]]
    return Comparison(
        framework,
        rows(before, after, len(corpus.passages)),
        asked - len(other),
        asked,
        other,
        samples,
        after.reused,
    )


def setting(settings: Settings, corpus: Corpus, questions: Questions) -> dict[str, str]:
    """Return the conditions of the run, for people. No URL: it may hold a password."""
    layers = ["memory", "SQLite", *(["Redis"] if settings.redis else [])]
    index = "PostgreSQL, exact search" if settings.postgres else "FAISS, flat (exact)"
    caches = f"{', '.join(layers)}; {'kept from run to run' if settings.cache else 'empty'}"
    return {
        "Corpus": corpus.name,
        "Passages": f"{len(corpus.passages):,}",
        "Questions": questions.source,
        "Stream": f"{settings.asks} asks of {questions.distinct} different questions, drawn from "
        f"{len(questions.pool)} by Zipf's law with s = {settings.zipf:g} (seed {settings.seed})",
        "Embedding model": "all-MiniLM-L6-v2, 384 dimensions",
        "Answerer": settings.llm or EXTRACTIVE,
        "Alone": "LangChain InMemoryVectorStore; LlamaIndex SimpleVectorStore",
        "ragopt": f"{ragopt.__version__}, {index}; caches in {caches} at the start",
        "Processor cores": str(os.cpu_count()),
    }


def to_json(
    settings: Settings,
    corpus: Corpus,
    questions: Questions,
    comparisons: list[Comparison],
    measured: Mapping[str, Measured],
) -> str:
    """Return everything as JSON; times in seconds, sizes in bytes."""
    content: dict[str, Any] = {
        "setting": {
            **setting(settings, corpus, questions),
            "passages": len(corpus.passages),
            "left_out": corpus.left_out,
            "asks": settings.asks,
            "distinct": questions.distinct,
            "zipf": settings.zipf,
            "seed": settings.seed,
        },
        "notes": [*corpus.notes, *questions.notes],
        "frameworks": {
            each.framework: {
                "rows": [row.to_json() for row in each.rows],
                "same_answers": each.same,
                "questions": each.asked,
                "differing": each.differing,
                "samples": [{"question": q, "answer": a} for q, a in each.samples],
            }
            for each in comparisons
        },
        "measured": {name: asdict(each) for name, each in measured.items()},
    }
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def to_html(
    settings: Settings, corpus: Corpus, questions: Questions, comparisons: list[Comparison]
) -> str:
    """Return one page that needs nothing else."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.globals.update(bars=_bars, show=show)
    source = files("ragopt.demo").joinpath("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        setting=setting(settings, corpus, questions),
        comparisons=comparisons,
        notes=[*corpus.notes, *questions.notes],
        footnotes=FOOTNOTES,
    )


def _bars(row: Row) -> list[tuple[str, float, str]]:
    """Return name, length in percent and text of the bars of a row, if it has two values."""
    if row.before is None or row.after is None or row.detail:
        return []
    longest = 1.0 if row.unit == "share" else max(row.before, row.after)
    if longest <= 0:
        return []
    return [
        (name, 100 * value / longest, show(value, row.unit))
        for name, value in (("alone", row.before), ("with ragopt", row.after))
    ]
