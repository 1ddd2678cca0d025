"""What the demo prints: progress while it runs, tables when it is done."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from ragopt.demo.measure import Measured, mean
from ragopt.demo.report import FOOTNOTES, Comparison
from ragopt.demo.table import show


class Display:
    """Progress bars on stderr, so that what is piped on is the result alone.

    Args:
        quiet: Print nothing.
    """

    def __init__(self, quiet: bool) -> None:
        self._errors = Console(stderr=True, quiet=quiet, highlight=False)
        self._output = Console(quiet=quiet, highlight=False)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._errors,
            transient=True,
        )
        self._arm = ""
        self._task: TaskID | None = None
        self._notes: set[str] = set()

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def begin(self, arm: str) -> None:
        """Show that an arm begins."""
        self._arm = arm
        self._new_task("starting", None)

    def hear(self, kind: str, value: Any) -> None:
        """Show an event of the running arm."""
        if kind == "note":
            self.note(str(value))
        elif kind == "step":
            self._new_task(*value)
        elif self._task is not None:
            if kind == "advance":
                self._progress.advance(self._task, value)
            elif kind == "reached":
                self._progress.update(self._task, completed=value)

    def end(self, measured: Measured) -> None:
        """Show what came out of the arm that has ended."""
        self._remove_task()
        response = show(mean([ask.total for ask in measured.asks]), "s")
        self._errors.print(
            f"[bold]{self._arm}[/]: indexed in {show(measured.build, 's')}, "
            f"{len(measured.asks)} asks, {response} each"
        )

    def note(self, sentence: str) -> None:
        """Print a sentence, once."""
        if sentence not in self._notes:
            self._notes.add(sentence)
            self._errors.print(f"[yellow]Note:[/] {escape(sentence)}")

    def setting(self, setting: dict[str, str]) -> None:
        """Print the conditions of the run."""
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim")
        for name, value in setting.items():
            grid.add_row(name, escape(value))
        self._output.print(grid)
        self._output.print()

    def comparison(self, comparison: Comparison) -> None:
        """Print the table of a framework."""
        table = Table(title=comparison.framework, title_justify="left", title_style="bold")
        table.add_column("Measure")
        for name in ("alone", "with ragopt", "change"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in comparison.rows:
            before, after, change = row.shown
            colour = "dim" if row.detail else "green" if row.improved else ""
            table.add_row(
                row.name,
                before,
                after,
                f"[{colour}]{change}[/]" if colour else change,
                style="dim" if row.detail else "",
            )
        self._output.print(table)
        self._output.print(comparison.verdict)
        self._output.print()

    def samples(self, comparison: Comparison) -> None:
        """Print some questions with their answers, and how things were measured."""
        for question, answer in comparison.samples:
            self._output.print(f"[bold]Q:[/] {escape(question)}")
            self._output.print(f"[bold]A:[/] {escape(answer)}")
            self._output.print()
        for note in FOOTNOTES:
            self._output.print(f"[dim]{escape(note)}[/]")

    def written(self, path: object) -> None:
        """Say where a report is."""
        self._errors.print(f"Written: {escape(str(path))}")

    def _new_task(self, step: str, total: float | None) -> None:
        self._remove_task()
        self._task = self._progress.add_task(f"{self._arm}: {step}", total=total)

    def _remove_task(self) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
