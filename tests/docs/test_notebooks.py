"""The notebooks run from top to bottom, and are committed without what they printed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from tests.docs.pages import ROOT

# Its functions are not annotated.
formats: Any = nbformat

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
BY_NAME = [pytest.param(path, id=path.stem) for path in NOTEBOOKS]


async def execute(notebook: Any, folder: Path) -> Any:
    """Run every cell in a folder; the first error is raised."""
    client = NotebookClient(
        notebook,
        timeout=240,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    await client.async_execute()
    return notebook


def output(notebook: Any) -> str:
    """Return what the cells printed."""
    return "".join(
        each.get("text", "") for cell in notebook.cells for each in cell.get("outputs", [])
    )


def leftovers(notebook: Any) -> list[str]:
    """Return the cells that keep what they printed, or how often they ran."""
    return [
        cell["id"]
        for cell in notebook.cells
        if cell.cell_type == "code" and (cell.outputs or cell.execution_count is not None)
    ]


def test_there_are_notebooks_for_both_frameworks_and_for_edits() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["changing_documents", "langchain", "llama_index"]


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Any]:
    """Every notebook, run with a kernel of its own, or its error.

    All at once: most of what they do is to import, with one processor each.
    """

    async def execute_all() -> list[Any]:
        runs = (
            execute(formats.read(path, as_version=4), tmp_path_factory.mktemp(path.stem))
            for path in NOTEBOOKS
        )
        return await asyncio.gather(*runs, return_exceptions=True)

    before = set((ROOT / "notebooks").iterdir())
    found = dict(zip(NOTEBOOKS, asyncio.run(execute_all()), strict=True))
    assert set((ROOT / "notebooks").iterdir()) == before, "a notebook left files beside itself"
    return found


@pytest.mark.parametrize("path", BY_NAME)
def test_a_notebook_runs(path: Path, executed: dict[Path, Any]) -> None:
    if isinstance(executed[path], BaseException):
        raise executed[path]
    printed = output(executed[path])
    assert "before" in printed
    assert "after" in printed


@pytest.mark.parametrize("path", BY_NAME)
def test_a_notebook_is_committed_without_outputs(path: Path) -> None:
    notebook = formats.read(path, as_version=4)
    formats.validate(notebook)
    assert leftovers(notebook) == []


async def test_control_a_cell_that_fails_is_an_error(tmp_path: Path) -> None:
    cells = [formats.v4.new_code_cell("1 / 0")]
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        await execute(formats.v4.new_notebook(cells=cells), tmp_path)


async def test_control_outputs_are_seen(tmp_path: Path) -> None:
    notebook = formats.v4.new_notebook(cells=[formats.v4.new_code_cell("print('here')")])
    assert leftovers(notebook) == []
    await execute(notebook, tmp_path)
    assert leftovers(notebook) == [notebook.cells[0]["id"]]
    assert output(notebook) == "here\n"
