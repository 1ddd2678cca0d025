"""Every command line that the documentation shows exists, with its options."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from ragopt.demo.settings import Settings
from tests.demo.command import here
from tests.docs.pages import ROOT, blocks, documents

PAGES = [*documents(), ROOT / "CONTRIBUTING.md"]
GROUPS = {"cache", "models"}  # commands that have commands


def lines(text: str) -> Iterator[str]:
    """Yield the shell lines of a page: in ``sh`` blocks and in code spans."""
    for block in blocks(text):
        if block.language in ("sh", ""):
            joined = block.text.replace("\\\n", " ")
            yield from (line.strip().removeprefix("$ ") for line in joined.splitlines())
    without_blocks = re.sub(r"^(`{3,}).*?^\1", "", text, flags=re.MULTILINE | re.DOTALL)
    yield from re.findall(r"`([^`\n]+)`", without_blocks)


def calls(program: str, text: str) -> list[list[str]]:
    """Return the arguments of every call of a program."""
    found = []
    for line in lines(text):
        if re.match(rf"{program} [\w-]", line):
            found.append(shlex.split(line, comments=True)[1:])
    return found


def test_the_program_is_installed() -> None:
    """What the others ask in this process, its own process says as well."""
    done = subprocess.run(
        [Path(sys.executable).with_name("ragopt"), "demo", "--help"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"},
    )
    assert (done.returncode, done.stdout) == (0, help_of("demo"))


@cache
def help_of(*command: str) -> str | None:
    """Return the help of a command of ``ragopt``; None if there is no such command."""
    done = here(*command, "--help")
    return done.stdout if done.returncode == 0 else None


def unknown(arguments: list[str]) -> str | None:
    """Say what of a call of ``ragopt`` does not exist; None if all of it does."""
    words = 2 if arguments[0] in GROUPS else 1
    command = [] if arguments[0].startswith("-") else arguments[:words]
    known = help_of(*command)
    if known is None:
        return f"no command {' '.join(command)!r}"
    options = {each.partition("=")[0] for each in arguments if re.match(r"--?[a-z]", each)}
    missing = options - set(re.findall(r"--?[a-z][a-z-]*", known))
    return f"no option {sorted(missing)} of {' '.join(command)!r}" if missing else None


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(call, id=f"{path.stem}: {' '.join(call)}")
        for path in PAGES
        for call in calls("ragopt", path.read_text(encoding="utf-8"))
    ],
)
def test_every_ragopt_line_parses(arguments: list[str]) -> None:
    assert unknown(arguments) is None


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(call, id=f"{path.stem}: {' '.join(call)}")
        for path in PAGES
        for call in calls("make", path.read_text(encoding="utf-8"))
    ],
)
def test_every_make_line_names_targets(arguments: list[str]) -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = [each for each in arguments if "=" not in each]
    assert set(named) <= targets
    for variable in set(arguments) - set(named):
        assert variable.partition("=")[0] in ("ARGS", "VENV", "PYTHON")


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(call, id=f"{path.stem}: {' '.join(call)}")
        for path in PAGES
        for call in calls("make", path.read_text(encoding="utf-8"))
        if call[0] == "demo" and any(each.startswith("ARGS=") for each in call)
    ],
)
def test_the_arguments_of_make_demo_are_those_of_ragopt_demo(arguments: list[str]) -> None:
    (given,) = (each for each in arguments if each.startswith("ARGS="))
    assert unknown(["demo", *shlex.split(given.removeprefix("ARGS="))]) is None


def test_the_pages_show_commands() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)
    assert ["demo"] in calls("make", text)
    assert ["test"] in calls("make", text)
    assert any(call[0] == "demo" for call in calls("ragopt", text))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("ragopt demmo", "no command 'demmo'"),
        ("ragopt demo --no-such-option", "no option ['--no-such-option'] of 'demo'"),
        ("ragopt demo --no-such-option=1", "no option ['--no-such-option'] of 'demo'"),
        ("ragopt cache stats --no-such-option", "no option ['--no-such-option'] of 'cache stats'"),
        ("ragopt cache start", "no command 'cache start'"),
        ("ragopt cache stats --json", None),
        ("ragopt demo", None),
        ("ragopt --help", None),
    ],
)
def test_control_what_does_not_exist_is_seen(line: str, problem: str | None) -> None:
    (arguments,) = calls("ragopt", f"```sh\n{line}\n```\n")
    assert unknown(arguments) == problem


def test_control_lines_are_found() -> None:
    text = (
        "Run `ragopt demo --asks 10`, or\n\n"
        "```sh\n$ ragopt demo \\\n  --top 3 # fast\nragopt\n```\n"
        "`make lint types` `make` `ragopt` `ragopt.cli`\n"
    )
    assert calls("ragopt", text) == [["demo", "--top", "3"], ["demo", "--asks", "10"]]
    assert calls("make", text) == [["lint", "types"]]


def test_the_page_of_the_demo_lists_its_options() -> None:
    known = help_of("demo")
    assert known is not None
    options = set(re.findall(r"^.{0,4}(--[a-z]+)", known, flags=re.MULTILINE)) - {"--help"}
    assert len(options) > 10
    page = (ROOT / "docs/demo.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(--[a-z]+)", page, flags=re.MULTILINE)) == options


def test_the_page_of_the_demo_lists_the_true_defaults() -> None:
    page = (ROOT / "docs" / "demo.md").read_text(encoding="utf-8")
    stated = dict(re.findall(r"^\| `--(\w+) [NS]` \|.*\| ([\d.]+) \|$", page, re.MULTILINE))
    assert stated.keys() == {"passages", "asks", "distinct", "zipf", "seed"}
    for option, default in stated.items():
        assert float(default) == getattr(Settings(), option), option
