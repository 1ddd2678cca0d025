"""The command line: ``ragopt`` and its commands."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from types import FrameType
from typing import Annotated, Any

import ragopt
from ragopt._imports import require
from ragopt.errors import MissingDependency, RagoptError

_INTERRUPTED = 130
_TERMINATED = 143
# A fault of ours keeps Python's own traceback, which can be pasted whole into a report.
_PLAIN = {"pretty_exceptions_enable": False}


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Args:
        args: The arguments; those of the process if None.
    """
    try:
        app = make_app()
    except MissingDependency as error:
        _complain(error)
        sys.exit(1)
    app(args=args, prog_name="ragopt")


def make_app() -> Any:
    """Return the command line as a ``typer.Typer``.

    Raises:
        MissingDependency: typer is not installed.
    """
    typer = require("typer", "cli")
    from ragopt import cli_cache, cli_models
    from ragopt.demo.command import demo

    app = typer.Typer(name="ragopt", no_args_is_help=True, add_completion=False, **_PLAIN)
    app.callback()(_options(typer))
    app.command()(_in_sentences(demo))
    cache = typer.Typer(no_args_is_help=True, **_PLAIN)
    for command in cli_cache.COMMANDS:
        cache.command()(_in_sentences(command))
    app.add_typer(cache, name="cache", help="See what a store holds, and remove it.")
    models = typer.Typer(no_args_is_help=True, **_PLAIN)
    for name, work in cli_models.COMMANDS.items():
        models.command(name)(_in_sentences(work))
    app.add_typer(models, name="models", help="See, fetch and remove embedding models.")
    return app


def _options(typer: Any) -> Callable[[bool], None]:
    def print_version(asked: bool) -> None:
        if asked:
            typer.echo(f"ragopt {ragopt.__version__}")
            raise typer.Exit

    def options(version: bool = False) -> None:
        """Make an existing RAG chain fast the second time."""

    flag = typer.Option(
        "--version", callback=print_version, is_eager=True, help="Show the version and exit."
    )
    options.__annotations__["version"] = Annotated[bool, flag]
    return options


def _in_sentences(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command whose errors are a sentence and an exit status, never a traceback."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _stop)
        try:
            command(*args, **kwargs)
        except RagoptError as error:
            _complain(error)
            sys.exit(1)
        except KeyboardInterrupt:
            _complain("Interrupted.")
            sys.exit(_INTERRUPTED)

    return wrapped


def _stop(number: int, _frame: FrameType | None) -> None:
    # From here on nothing may cut short what puts things away.
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(_TERMINATED)


def _complain(sentence: object) -> None:
    coloured = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    print(f"\033[31m{sentence}\033[0m" if coloured else sentence, file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main()
