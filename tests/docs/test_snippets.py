"""Every Python block of the documentation is run, and the runner can fail."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import conftest as root_conftest
from tests.docs.pages import ROOT, blocks, documents

# What is no code to run, or is run elsewhere: shell lines by test_commands.
_LANGUAGES = {"python", "sh", "text", "toml"}

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
    assert not titled or path.name == "backends.md", "only backends.md has blocks that are files"
    examples = list(root_conftest.documentation.parse(path).examples())
    assert len(examples) == len(python) - len(titled)


def test_the_pages_have_blocks() -> None:
    names = {path.name for path in documents() if "```python" in path.read_text(encoding="utf-8")}
    assert {"README.md", "index.md", "langchain.md", "llama-index.md", "caching.md"} <= names


@pytest.mark.parametrize("place", ["README.md", "docs/page.md", "docs/deep/er/page.md"])
def test_control_a_failing_block_fails(tmp_path: Path, place: str) -> None:
    done = run_pages(tmp_path, {place: "# A page\n\n```python\nassert 1 + 1 == 3\n```\n"})
    assert done.returncode == 1, done.stdout
    assert "1 failed" in done.stdout
    assert "AssertionError" in done.stdout


def test_control_a_passing_block_passes(tmp_path: Path) -> None:
    page = (
        '```python\nfrom pathlib import Path\nnumber = 2\nPath("litter").write_text("")\n```\n'
        "text\n```python\nassert number == 2\n```\n"
    )
    done = run_pages(tmp_path, {"docs/page.md": page, "docs/other.md": "```python\npass\n```\n"})
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout
    assert not list(tmp_path.rglob("litter")), "a page left a file behind"


def test_control_pages_do_not_share_names(tmp_path: Path) -> None:
    pages = {"docs/a.md": "```python\nshared = 1\n```\n", "docs/b.md": "```python\nshared\n```\n"}
    done = run_pages(tmp_path, pages)
    assert done.returncode == 1
    assert "NameError" in done.stdout


def test_control_blocks_are_found() -> None:
    page = '```python\na\n```\n\n- x\n\n    ~~~ py\n    b\n    ~~~\n\n````sh title="s"\n```\n````\n'
    assert [tuple(block)[:2] for block in blocks(page)] == [
        ("python", None),
        ("py", None),
        ("sh", "s"),
    ]


def run_pages(folder: Path, pages: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run pages below a folder as the project's own are run."""
    shutil.copy(ROOT / "conftest.py", folder)
    for name, text in pages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\n")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *sorted(pages)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
