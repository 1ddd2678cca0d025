"""The notebooks run from top to bottom, and are committed without what they printed."""

from __future__ import annotations

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


def execute(notebook: Any, folder: Path) -> Any:
    """Run every cell in a folder; the first error is raised."""
    client = NotebookClient(
        notebook,
        timeout=240,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
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


@pytest.mark.parametrize("path", BY_NAME)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    before = set(path.parent.iterdir())
    printed = output(execute(formats.read(path, as_version=4), tmp_path))
    assert "before" in printed
    assert "after" in printed
    assert set(path.parent.iterdir()) == before, "the notebook left files beside itself"


@pytest.mark.parametrize("path", BY_NAME)
def test_a_notebook_is_committed_without_outputs(path: Path) -> None:
    notebook = formats.read(path, as_version=4)
    formats.validate(notebook)
    assert leftovers(notebook) == []


def test_control_a_cell_that_fails_is_an_error(tmp_path: Path) -> None:
    cells = [formats.v4.new_code_cell("1 / 0")]
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        execute(formats.v4.new_notebook(cells=cells), tmp_path)


def test_control_outputs_are_seen(tmp_path: Path) -> None:
    notebook = formats.v4.new_notebook(cells=[formats.v4.new_code_cell("print('here')")])
    assert leftovers(notebook) == []
    execute(notebook, tmp_path)
    assert leftovers(notebook) == [notebook.cells[0]["id"]]
    assert output(notebook) == "here\n"
