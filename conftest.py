"""Runs every Python block of README.md and of docs/ as a test.

The blocks of one page share their names and run in order, in an empty folder of their own.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

ROOT = Path(__file__).resolve().parent
_FOLDERS = ("_home", "_folder")  # where a page keeps the two folders, among its own names


def is_documentation(path: Path) -> bool:
    """Tell whether the Python blocks of this file are tests."""
    return path == ROOT / "README.md" or (
        path.suffix == ".md" and path.is_relative_to(ROOT / "docs")
    )


def _enter(namespace: dict[str, Any]) -> None:
    folder = tempfile.mkdtemp(prefix="ragopt-docs-")
    namespace.update(zip(_FOLDERS, (os.getcwd(), folder), strict=True))
    namespace["__name__"] = "page"
    os.chdir(folder)


def _leave(namespace: dict[str, Any]) -> None:
    home, folder = (namespace[name] for name in _FOLDERS)
    os.chdir(home)
    shutil.rmtree(folder, ignore_errors=True)
    if "langchain_core.globals" in sys.modules:  # a page may have set it for the whole process
        from langchain_core.globals import set_llm_cache

        set_llm_cache(None)


documentation = Sybil(
    parsers=[PythonCodeBlockParser()],
    patterns=["*.md"],
    setup=_enter,
    teardown=_leave,
)
_collect = documentation.pytest()


def pytest_collect_file(file_path: Path, parent: Any) -> Any:
    """Collect the documentation; pytest itself collects everything else."""
    return _collect(file_path, parent) if is_documentation(file_path) else None
