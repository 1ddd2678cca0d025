"""Every Python block of the documentation is run, and the runner can fail."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import conftest as root_conftest
from tests.docs.pages import ROOT, blocks, documents

# What is no code to run, or is run elsewhere: shell lines by test_commands.
_LANGUAGES = {"python", "sh", "text", "toml"}

# Pages with blocks that have a title: test_backends and test_migration run them.
_TITLED = {"backends.md", "migration.md"}

PAGES = [pytest.param(path, id=str(path.relative_to(ROOT))) for path in documents()]


@pytest.mark.parametrize("path", PAGES)
def test_no_block_escapes_the_runner(path: Path) -> None:
    """Every Python block is an example of the runner, or a file that test_backends runs."""
    found = list(blocks(path.read_text(encoding="utf-8")))
    assert {block.language for block in found} <= _LANGUAGES
    python = [block for block in found if block.language == "python"]
    assert all(block.indent == "" for block in python), "an indented block is not run"
    assert all(">>>" not in block.text for block in python), "write plain code without prompts"
    titled = [block for block in python if block.title]
    assert not titled or path.name in _TITLED, "their blocks are run by tests of their own"
    examples = list(root_conftest.documentation.parse(path).examples())
    assert len(examples) == len(python) - len(titled)


def test_the_pages_have_blocks() -> None:
    names = {path.name for path in documents() if "```python" in path.read_text(encoding="utf-8")}
    assert {"README.md", "index.md", "langchain.md", "llama-index.md", "caching.md"} <= names


# Pages of every kind. Each control below looks at what one run said of its own.
_FAILS = "# A page\n\n```python\nassert 1 + 1 == 3\n```\n"
_PASSES = (
    '```python\nfrom pathlib import Path\nnumber = 2\nPath("litter").write_text("")\n```\n'
    "text\n```python\nassert number == 2\n```\n"
)
_CONTROLS = {
    "README.md": _FAILS,
    "docs/page.md": _FAILS,
    "docs/deep/er/page.md": _FAILS,
    "docs/passing.md": _PASSES,
    "docs/other.md": "```python\npass\n```\n",
    "docs/shares.md": "```python\nshared = 1\n```\n",
    "docs/takes.md": "```python\nshared\n```\n",
}


class Run(NamedTuple):
    """A run over pages: the folder, the exit status, and what was printed."""

    folder: Path
    status: int
    printed: str

    def outcomes(self, page: str) -> list[str]:
        """Return what became of each block of a page."""
        return re.findall(rf"^([A-Z]+) {re.escape(page)}::line:", self.printed, re.MULTILINE)


@pytest.fixture(scope="module")
def controls(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_pages(tmp_path_factory.mktemp("pages"), _CONTROLS)


@pytest.mark.parametrize("place", ["README.md", "docs/page.md", "docs/deep/er/page.md"])
def test_control_a_failing_block_fails(controls: Run, place: str) -> None:
    assert controls.status == 1, controls.printed
    assert controls.outcomes(place) == ["FAILED"]
    assert re.search(rf"^FAILED {place}::.* - AssertionError", controls.printed, re.MULTILINE)


def test_control_a_passing_block_passes(controls: Run) -> None:
    assert controls.outcomes("docs/passing.md") == ["PASSED", "PASSED"]
    assert controls.outcomes("docs/other.md") == ["PASSED"]
    assert not list(controls.folder.rglob("litter")), "a page left a file behind"


def test_control_pages_do_not_share_names(controls: Run) -> None:
    assert controls.outcomes("docs/shares.md") == ["PASSED"]
    assert controls.outcomes("docs/takes.md") == ["FAILED"]
    assert "NameError: name 'shared' is not defined" in controls.printed


def test_control_pages_without_a_failure_pass(controls: Run, tmp_path: Path) -> None:
    """The exit status is that of the blocks, and nothing else."""
    good = [name for name in _CONTROLS if "FAILED" not in controls.outcomes(name)]
    assert good == ["docs/passing.md", "docs/other.md", "docs/shares.md"]
    assert run_pages(tmp_path, {name: _CONTROLS[name] for name in good}).status == 0


def test_control_blocks_are_found() -> None:
    page = '```python\na\n```\n\n- x\n\n    ~~~ py\n    b\n    ~~~\n\n````sh title="s"\n```\n````\n'
    assert [tuple(block)[:2] for block in blocks(page)] == [
        ("python", None),
        ("py", None),
        ("sh", "s"),
    ]


def run_pages(folder: Path, pages: dict[str, str]) -> Run:
    """Run pages below a folder as the project's own are run."""
    shutil.copy(ROOT / "conftest.py", folder)
    for name, text in pages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", *pages],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return Run(folder, done.returncode, done.stdout)
