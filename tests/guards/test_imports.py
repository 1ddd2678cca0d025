"""Importing is cheap, every public name is there, and imports run one way."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ragopt

ROOT = Path(__file__).resolve().parents[2]

HEAVY = (
    "asyncio",
    "asyncpg",
    "faiss",
    "langchain_core",
    "llama_index",
    "msgpack",
    "numpy",
    "opensearchpy",
    "PIL",
    "prometheus_client",
    "pydantic",
    "redis",
    "redisvl",
    "rich",
    "sqlite3",
    "torch",
    "transformers",
    "typer",
)


def heavy_modules_loaded_by(code: str) -> set[str]:
    """Return the heavy modules that a new interpreter has loaded after running ``code``."""
    program = (
        "import sys\n"
        "before = set(sys.modules)\n"
        f"{code}\n"
        "import json\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    return loaded.intersection(HEAVY)


def test_importing_ragopt_loads_nothing_heavy() -> None:
    assert heavy_modules_loaded_by("import ragopt") == set()


def test_asking_for_an_error_class_loads_nothing_heavy() -> None:
    assert heavy_modules_loaded_by("from ragopt import RagoptError, MissingDependency") == set()


@pytest.mark.parametrize("module", ["asyncio", "sqlite3", "numpy", "msgpack"])
def test_control_a_heavy_import_is_seen(module: str) -> None:
    assert module in heavy_modules_loaded_by(f"import ragopt, {module}")


def test_control_a_heavy_public_name_is_seen() -> None:
    assert "sqlite3" in heavy_modules_loaded_by("import ragopt; ragopt.SqliteStore")


@pytest.mark.parametrize("name", ragopt.__all__)
def test_every_public_name_resolves_and_is_listed(name: str) -> None:
    assert getattr(ragopt, name) is not None
    assert name in dir(ragopt)


def test_type_checkers_see_the_same_names_in_the_same_modules() -> None:
    tree = ast.parse((ROOT / "src/ragopt/__init__.py").read_text())
    seen = {
        alias.name: statement.module
        for statement in ast.walk(tree)
        if isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith("ragopt.")
        for alias in statement.names
    }
    assert seen == ragopt._EXPORTS


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'ragopt' has no attribute 'NoSuchName'"):
        _ = ragopt.NoSuchName


def lint_imports(root: Path) -> tuple[bool, str]:
    """Check the import contracts of the tree at ``root``: whether they hold, and the report."""
    # The folder src of this very tree, whichever one is installed.
    program = (
        f"import sys; sys.path.insert(0, {str(root / 'src')!r})\n"
        "from importlinter.cli import lint_imports\n"
        f"sys.exit(lint_imports({str(root / 'pyproject.toml')!r}, no_cache=True))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package and its configuration, to be broken."""
    shutil.copytree(
        ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
    )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_imports_run_one_way() -> None:
    holds, report = lint_imports(ROOT)
    assert holds, report
    assert "0 broken" in report, report


def modules_without_a_layer(package: Path, config: str) -> set[str]:
    """Return the modules of a package that the contract on layers does not know."""
    (layers,) = (
        contract["layers"]
        for contract in tomllib.loads(config)["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
    )
    known = {name.strip(" ()") for layer in layers for name in re.split("[|:]", layer)}
    there = {f"{package.name}.{path.stem}" for path in package.iterdir() if path.suffix == ".py"}
    there |= {f"{package.name}.{path.parent.name}" for path in package.glob("*/__init__.py")}
    return there - known - {f"{package.name}.__init__"}


def test_every_module_has_its_layer() -> None:
    config = (ROOT / "pyproject.toml").read_text()
    assert modules_without_a_layer(ROOT / "src/ragopt", config) == set()


def test_control_a_module_without_a_layer_is_seen(copy: Path) -> None:
    config = (copy / "pyproject.toml").read_text()
    (copy / "src/ragopt/attic").mkdir()
    (copy / "src/ragopt/attic/__init__.py").touch()
    (copy / "src/ragopt/loft.py").touch()
    seen = modules_without_a_layer(copy / "src/ragopt", config)
    assert seen >= {"ragopt.attic", "ragopt.loft"}


@pytest.mark.parametrize(
    ("file", "line", "contract", "named"),
    [
        (
            "stores/memory.py",
            "import langchain_core",
            "The core knows no framework",
            "ragopt.stores.memory -> langchain_core",
        ),
        (
            "cache/tiers.py",
            "from llama_index.core.schema import TextNode",
            "The core knows no framework",
            "ragopt.cache.tiers -> llama_index",
        ),
        (
            "indexes/base.py",
            "def late():\n    import typer",
            "The core knows no framework",
            "ragopt.indexes.base -> typer",
        ),
        (
            "stores/memory.py",
            "from ragopt.cache import tiers",
            "Imports run one way",
            "ragopt.stores.memory -> ragopt.cache",
        ),
        (
            "types.py",
            "def late():\n    from ragopt.filters import F",
            "Imports run one way",
            "ragopt.types -> ragopt.filters",
        ),
    ],
    ids=["framework", "framework-in-a-cache", "framework-late", "layer", "layer-late"],
)
def test_control_an_import_the_wrong_way_breaks_its_contract(
    copy: Path, file: str, line: str, contract: str, named: str
) -> None:
    path = copy / "src/ragopt" / file
    path.write_text(f"{path.read_text()}\n\n{line}\n")
    holds, report = lint_imports(copy)
    assert not holds, report
    assert f"{contract} BROKEN" in report, report
    assert named in report, report


def banned_imports(root: Path) -> str:
    """Return ruff's report on imports of banned modules in the package at ``root``."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "ruff", "check", "--no-cache", "--quiet"),
            *("--select", "TID251", "--output-format", "concise", "src"),
        ],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def test_the_core_knows_neither_event_loops_nor_pickle() -> None:
    assert banned_imports(ROOT) == ""


@pytest.mark.parametrize(
    "line",
    ["import asyncio", "from asyncio import Lock", "import pickle", "from pickle import loads"],
)
def test_control_a_banned_import_is_reported(copy: Path, line: str) -> None:
    path = copy / "src/ragopt/stores/banned.py"
    path.write_text(f'"""A module."""\n\n\ndef work() -> None:\n    {line}\n')
    report = banned_imports(copy)
    assert "stores/banned.py:5" in report.replace("\\", "/"), report
    assert "TID251" in report


def test_control_only_the_runtime_may_use_event_loops(copy: Path) -> None:
    config = copy / "pyproject.toml"
    config.write_text(config.read_text().replace('"src/ragopt/_runtime.py" = ["TID251"]', ""))
    assert "_runtime.py" in banned_imports(copy)
