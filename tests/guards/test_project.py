"""The project's files agree with each other."""

from __future__ import annotations

import inspect
import re
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import ragopt
from ragopt.errors import RagoptError

ROOT = Path(__file__).resolve().parents[2]
MOST_LINES = 400


def test_the_version_is_written_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dynamic"] == ["version"]
    assert "version" not in project
    assert version("ragopt") == ragopt.__version__, "install the package again: pip install -e ."


def is_documented(value: object) -> bool:
    """Tell whether a value has a docstring of its own, not one inherited from its class."""
    if inspect.isclass(value) or inspect.isroutine(value):
        return bool((vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__) or "")
    return is_documented(type(value))


@pytest.mark.parametrize("name", sorted(set(ragopt.__all__) - {"__version__"}))
def test_every_public_name_is_documented(name: str) -> None:
    assert is_documented(getattr(ragopt, name))


def test_control_a_class_without_a_docstring_is_seen() -> None:
    class Silent(RagoptError):
        pass

    assert not is_documented(Silent)
    assert not is_documented(lambda: None)


def long_files(folder: Path) -> list[str]:
    """Return the Python files below a folder that have grown beyond the limit."""
    return [
        f"{path.relative_to(folder)}: {lines} lines"
        for path in sorted(folder.rglob("*.py"))
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES
    ]


def test_no_file_of_the_package_is_long() -> None:
    assert long_files(ROOT / "src") == []


def test_control_a_long_file_is_seen(tmp_path: Path) -> None:
    (tmp_path / "short.py").write_text("x = 1\n" * MOST_LINES)
    (tmp_path / "long.py").write_text("x = 1\n" * (MOST_LINES + 1))
    assert long_files(tmp_path) == [f"long.py: {MOST_LINES + 1} lines"]


def make_targets(makefile: str) -> set[str]:
    """Return the targets that a makefile describes in its help."""
    return set(re.findall(r"^([a-z-]+):.*## ", makefile, flags=re.MULTILINE))


def make_commands(text: str) -> set[str]:
    """Return the targets that a text tells its readers to make, in code spans and code blocks."""
    return set(re.findall(r"(?:`|^\s*(?:\$ )?)make ([a-z][a-z-]*)", text, flags=re.MULTILINE))


def test_every_make_command_in_the_documents_exists() -> None:
    targets = make_targets((ROOT / "Makefile").read_text())
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    named = {path.name: make_commands(path.read_text(encoding="utf-8")) for path in documents}
    assert named["README.md"], "the README names no make target"
    assert {name: missing for name, used in named.items() if (missing := used - targets)} == {}


def test_control_make_commands_are_found() -> None:
    text = "Run `make demo`, then\n\n    make test ARGS=-x\n\n$ make no-such\nwhich can make sense."
    assert make_commands(text) == {"demo", "test", "no-such"}
    assert make_targets("demo: a ## Say\nhidden: b\n") == {"demo"}


def test_every_target_is_phony() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)
    assert phony is not None
    assert set(phony[1].split()) == make_targets(makefile)


def test_help_is_the_default_and_lists_every_target() -> None:
    done = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    listed = set(re.findall(r"^  ([a-z-]+) ", done.stdout, flags=re.MULTILINE))
    assert listed == make_targets((ROOT / "Makefile").read_text())


def test_the_ci_script_parses() -> None:
    subprocess.run(["bash", "-n", str(ROOT / ".ci/run")], check=True)


def test_every_extra_is_in_all() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    (everything,) = extras.pop("all")
    assert set(re.findall(r"[a-z0-9-]+", everything.partition("[")[2])) == set(extras)
