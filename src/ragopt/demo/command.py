"""The options of ``ragopt demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ragopt.demo.run import run
from ragopt.demo.settings import Settings

_DEFAULT = Settings()


def demo(
    corpus: Annotated[
        Path | None,
        typer.Option(
            help="Your documents: a folder of text, Markdown or reStructuredText files, a .jsonl "
            "file or a .csv file. Without it: the docstrings of Python's standard library.",
        ),
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(help="Your questions: a text file with one in each line, or a .jsonl file."),
    ] = None,
    passages: Annotated[
        int, typer.Option(min=1, help="The most passages to index.")
    ] = _DEFAULT.passages,
    asks: Annotated[int, typer.Option(min=1, help="Length of the stream.")] = _DEFAULT.asks,
    distinct: Annotated[
        int, typer.Option(min=1, help="Different questions that the stream is drawn from.")
    ] = _DEFAULT.distinct,
    zipf: Annotated[
        float,
        typer.Option(min=0, help="Exponent of Zipf's law; the higher, the more repetition."),
    ] = _DEFAULT.zipf,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = _DEFAULT.seed,
    llm: Annotated[
        str | None,
        typer.Option(help="LangChain's id of a chat model, such as openai:gpt-4o-mini."),
    ] = None,
    redis: Annotated[
        str | None, typer.Option(help="URL of a Redis server as a third layer of the caches.")
    ] = None,
    postgres: Annotated[
        str | None, typer.Option(help="DSN of a PostgreSQL server in the place of FAISS.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder in which the caches are kept for the next run.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the numbers to this file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page to this file.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Answer a stream of questions without and with ragopt, and show what changes.

    LangChain and LlamaIndex, each in processes of its own, with a small embedding model on this
    machine: no server, no key, no network.
    """
    settings = Settings(
        corpus=corpus,
        questions=questions,
        passages=passages,
        asks=asks,
        distinct=distinct,
        zipf=zipf,
        seed=seed,
        llm=llm,
        redis=redis,
        postgres=postgres,
        cache=cache,
    )
    run(settings, json=json, html=html, quiet=quiet)
