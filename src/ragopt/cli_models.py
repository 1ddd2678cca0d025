"""The commands ``ragopt models``: what of the Hugging Face hub is kept on this machine."""

from __future__ import annotations

import json as jsons
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from ragopt._imports import require
from ragopt._readable import size
from ragopt.cli_cache import confirm, shown_name
from ragopt.embedders import hub, hub_cache
from ragopt.embedders.hub_cache import CachedModel, CachedModels, Removal

_SHORT = 7  # characters of a commit that are shown

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Its id on the hub, such as BAAI/bge-m3.")
]
RevisionOption = Annotated[
    str | None, typer.Option("--revision", metavar="NAME", help="Branch, tag or commit.")
]


def list_models(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the models in the cache of the Hugging Face hub, and what they take up.

    The cache is the folder that HF_HUB_CACHE names, or hub in HF_HOME. Other programs use it, too.
    """
    _quiet()
    found = hub_cache.cached()
    if json:
        typer.echo(jsons.dumps(_plain(found), indent=2))
    else:
        _print(found)


def pull(
    model: ModelArgument,
    revision: RevisionOption = None,
    files: Annotated[
        list[str] | None,
        typer.Option(
            "--files",
            metavar="PATTERN",
            help="Fetch these files instead of those that the embedders read; may be repeated.",
        ),
    ] = None,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Fetch the files for ONNX Runtime as well.")
    ] = False,
) -> None:
    """Fetch a model from the Hugging Face hub into the cache.

    Of all its files, those that the embedders read: the configuration, the tokenizer, the weights
    as safetensors or else for PyTorch, and BGE-M3's two heads. What is there is not fetched again.
    """
    _quiet()
    with _bar(model) as progress:
        pulled = hub.pull(model, revision=revision, files=files or (), onnx=onnx, progress=progress)
    many = "1 file" if pulled.files == 1 else f"{pulled.files:,} files"
    fetched = f"{size(pulled.downloaded)} fetched" if pulled.downloaded else "nothing to fetch"
    typer.echo(f"{model} ({pulled.revision[:_SHORT]}): {many}, {size(pulled.size)}, {fetched}.")
    typer.echo(str(pulled.path))


def rm(
    model: ModelArgument,
    revision: Annotated[
        str | None,
        typer.Option(
            "--revision", metavar="NAME", help="Only this branch, tag or (beginning of a) commit."
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove a model from the cache, or one revision of it."""
    _quiet()
    what = hub_cache.removal(model, revision)
    if not yes:
        confirm(f"Remove {_meaning(what)}, {size(what.size)}, from {hub_cache.cache_folder()}?")
    hub_cache.remove(what)
    typer.echo(f"Removed {_meaning(what)}, {size(what.size)}.")


COMMANDS: dict[str, Callable[..., None]] = {"list": list_models, "pull": pull, "rm": rm}


def _quiet() -> None:
    """Keep huggingface_hub from printing: what matters is printed here, or is an error."""
    utils = require("huggingface_hub.utils", "transformers")
    utils.logging.set_verbosity_error()
    utils.disable_progress_bars()


# -- what is printed -----------------------------------------------------------------------


@contextmanager
def _bar(model: str) -> Iterator[hub.Progress]:
    console = Console(stderr=True)
    columns = (
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(model, total=None, visible=False)

        def progress(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total, visible=True)

        yield progress


def _meaning(what: Removal) -> str:
    if not what.revisions:
        return f"what a broken-off download of {what.model} left"
    return f"{what.model} ({'; '.join(map(_described, what.revisions))})"


def _described(each: CachedModel) -> str:
    many = "1 file" if each.files == 1 else f"{each.files:,} files"
    return f"{_revision(each)}: {many}"


def _revision(each: CachedModel) -> str:
    return ", ".join([each.revision[:_SHORT], *map(shown_name, each.refs)])


def _plain(found: CachedModels) -> dict[str, Any]:
    models = [
        {
            **asdict(each),
            "path": str(each.path),
            "used": datetime.fromtimestamp(each.used, UTC).isoformat(timespec="seconds"),
        }
        for each in found.models
    ]
    return {
        "folder": str(found.folder),
        "bytes": found.size,
        "models": models,
        "broken": found.broken,
    }


def _print(found: CachedModels) -> None:
    console = Console(highlight=False)
    number = len({each.model for each in found.models})
    many = {0: "no models", 1: "1 model"}.get(number, f"{number:,} models")
    taken = f", {size(found.size)}" if number else ""
    console.print(Text(f"{found.folder}: {many}{taken}"), soft_wrap=True)
    if found.models:
        table = Table()
        for name in ("Model", "Revision"):
            table.add_column(name, overflow="fold")
        for name in ("Size", "Files"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("Last used", no_wrap=True)
        for each in found.models:
            table.add_row(
                Text(shown_name(each.model)),
                Text(_revision(each)),
                size(each.size),
                f"{each.files:,}",
                f"{datetime.fromtimestamp(each.used):%Y-%m-%d %H:%M}",
            )
        console.print(table)
    for model in found.broken:
        sentence = f"{shown_name(model)} is not whole: pull it again, or remove it."
        console.print(Text(sentence), soft_wrap=True)
