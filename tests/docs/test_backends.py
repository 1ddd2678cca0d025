"""The backends of docs/backends.md pass the contract suites, as the page says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.docs.pages import ROOT, blocks

PAGE = ROOT / "docs/backends.md"


def files() -> dict[str, str]:
    """Return the files that the page shows: name -> text."""
    text = PAGE.read_text(encoding="utf-8")
    return {block.title: block.text for block in blocks(text) if block.title}


def run(folder: Path, shown: dict[str, str]) -> subprocess.CompletedProcess[str]:
    for name, text in shown.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\npythonpath = .\nasyncio_mode = auto\n")
    tests = sorted(name for name in shown if name.startswith("test_"))
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def test_the_backends_of_the_page_pass_their_contracts(tmp_path: Path) -> None:
    shown = files()
    assert len(shown) == 6
    done = run(tmp_path, shown)
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 100
    assert "skipped" not in done.stdout


def test_control_a_backend_that_misbehaves_fails(tmp_path: Path) -> None:
    shown = {name: text for name, text in files().items() if name.endswith("my_store.py")}
    broken = shown["my_store.py"].replace("entry.expires_at <= self._clock()", "False")
    assert broken != shown["my_store.py"]
    done = run(tmp_path, {**shown, "my_store.py": broken})
    assert done.returncode == 1, done.stdout
    assert "failed" in done.stdout


def test_the_page_names_the_files_that_it_shows() -> None:
    text = PAGE.read_text(encoding="utf-8")
    command = next(
        block.text for block in blocks(text) if "pytest" in block.text and not block.title
    )
    assert set(re.findall(r"test_\w+\.py", command)) == {
        n for n in files() if n.startswith("test_")
    }
