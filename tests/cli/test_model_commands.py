"""``ragopt models``: the real command, with a hub of the tests' own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
from huggingface_hub import close_session, constants, utils
from tests.checkpoints import small
from tests.demo import command
from tests.hub_server import Hub, asked_from_here

hub_utils: Any = utils  # not all of it is exported
NAME = "acme/model"
WEIGHTS = Random(0).randbytes(300_000)
FILES = {
    "config.json": b'{"hidden_size": 8}',
    "tokenizer.json": b"{}",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"torch",
    "onnx/model.onnx": b"onnx",
}


@dataclass
class Machine:
    """Where the command runs: its cache, and the hub that it asks."""

    hub: Hub
    home: Path

    @property
    def cache(self) -> Path:
        return self.home / "hub"

    def environment(self, **more: str) -> dict[str, str]:
        kept = {
            name: value
            for name, value in command.environment(self.home).items()
            if not name.startswith("HF_") and not name.lower().endswith("_proxy")
        }
        return {**kept, "HF_HOME": str(self.home), "HF_ENDPOINT": self.hub.url, **more}

    def start(self, *arguments: object, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", command.MAIN, "models", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment(**more),
        )

    def apart(self, *arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
        """Run it as a process, which has the environment from its start."""
        with self.start(*arguments, **more) as process:
            out, err = process.communicate(timeout=50)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def run(self, *arguments: object, typed: str = "") -> subprocess.CompletedProcess[str]:
        return command.here("models", *arguments, typed=typed)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    level = hub_utils.logging.get_verbosity()
    with asked_from_here(tmp_path) as hub:
        yield Machine(hub, tmp_path)
    # The command sets both for its process, which is that of the other tests here.
    hub_utils.logging.set_verbosity(level)
    hub_utils.enable_progress_bars()


def test_pull_list_and_rm(machine: Machine) -> None:
    commit = machine.hub.add(NAME, FILES)
    done = machine.apart("list")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{machine.cache}: no models\n", "")

    path = machine.cache / "models--acme--model" / "snapshots" / commit
    done = machine.run("pull", NAME)
    head = f"{NAME} ({commit[:7]}): 3 files, 293.0 KiB"
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{head}, 293.0 KiB fetched.\n{path}\n"
    assert sorted(machine.hub.fetched()) == ["config.json", "model.safetensors", "tokenizer.json"]

    done = machine.run("pull", NAME)
    assert done.stdout == f"{head}, nothing to fetch.\n{path}\n"
    assert machine.hub.fetched() == []

    done = machine.run("list")
    assert done.stdout.startswith(f"{machine.cache}: 1 model, 293.0 KiB\n")
    row = next(line for line in done.stdout.splitlines() if NAME in line)
    cells = [each.strip() for each in row.strip("│").split("│")]
    assert cells[:4] == [NAME, f"{commit[:7]}, main", "293.0 KiB", "3"]
    assert cells[4].startswith(time.strftime("%Y-"))
    said = json.loads(machine.run("list", "--json").stdout)
    assert (said["folder"], said["bytes"], said["broken"]) == (str(machine.cache), 300_020, [])
    assert said["models"][0].pop("used").endswith("+00:00")
    assert said["models"] == [
        {
            "model": NAME,
            "revision": commit,
            "refs": ["main"],
            "size": 300_020,
            "files": 3,
            "path": str(path),
        }
    ]

    done = machine.run("rm", NAME, "--yes")
    assert done.stdout == f"Removed {NAME} ({commit[:7]}, main: 3 files), 293.0 KiB.\n"
    assert machine.run("list").stdout == f"{machine.cache}: no models\n"
    done = machine.apart("rm", NAME, "--yes")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"There is no model {NAME} in {machine.cache}.")


def test_rm_asks(machine: Machine) -> None:
    old = machine.hub.add(NAME, FILES, "main", "v1")
    assert machine.run("pull", NAME, "--revision", "v1").returncode == 0
    new = machine.hub.add(NAME, {**FILES, "config.json": b"{}"})
    assert machine.run("pull", NAME).returncode == 0
    asked = f"Remove {NAME} ({old[:7]}, v1: 3 files), 18 B, from {machine.cache}? [y/N] "
    for typed in ("n\n", "\n", "nonsense\n"):
        done = machine.run("rm", NAME, "--revision", "v1", typed=typed)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"{asked}Nothing was removed.\n"
    done = machine.run("rm", NAME, "--revision", "v1")
    assert done.stderr == f"{asked}\nNothing was removed. Pass --yes where nobody can be asked.\n"
    done = machine.run("rm", NAME, "--revision", "v1", typed="y\n")
    assert done.returncode == 0, done
    said = json.loads(machine.run("list", "--json").stdout)
    assert [each["revision"] for each in said["models"]] == [new]


def test_other_files_and_another_folder(machine: Machine, tmp_path: Path) -> None:
    machine.hub.add(NAME, FILES)
    elsewhere = tmp_path / "elsewhere"
    options = "--files", "config.json", "--files", "*.bin"
    done = machine.apart("pull", NAME, *options, HF_HUB_CACHE=str(elsewhere))
    assert ": 2 files, 23 B, 23 B fetched.\n" in done.stdout
    assert sorted(machine.hub.fetched()) == ["config.json", "pytorch_model.bin"]
    assert not machine.cache.exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_CACHE", str(elsewhere))
        assert machine.run("pull", NAME, "--onnx").returncode == 0
        assert "onnx/model.onnx" in machine.hub.fetched()
        assert f"{elsewhere}: 1 model" in machine.run("list").stdout
    assert not machine.cache.exists()


@pytest.mark.parametrize(
    ("arguments", "constant", "sentence"),
    [
        (["acme/none"], {}, "has no model acme/none, or it is private."),
        (["acme/gated"], {}, "acme/gated is not open to you."),
        ([NAME, "--revision", "v9"], {}, f"{NAME} has no revision 'v9'."),
        ([NAME, "--files", "*.gguf"], {}, f"No file of {NAME} is called *.gguf."),
        (["a/b/c"], {}, "'a/b/c' is no model id."),
        ([NAME], {"ENDPOINT": "http://127.0.0.1:9"}, "127.0.0.1:9 cannot be reached: "),
        (
            [NAME],
            {"HF_HUB_OFFLINE": True},
            f"The hub is not asked for {NAME}, since HF_HUB_OFFLINE is set.",
        ),
        ([NAME], {"HF_HUB_CACHE": "/dev/null/no/hub"}, "cannot be written"),
    ],
    ids=["none", "gated", "revision", "file", "id", "unreachable", "offline", "unwritable"],
)
def test_what_goes_wrong_is_a_sentence(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    constant: dict[str, object],
    sentence: str,
) -> None:
    machine.hub.add(NAME, FILES)
    machine.hub.add("acme/gated", FILES)
    machine.hub.gated.add("acme/gated")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    for name, value in constant.items():
        monkeypatch.setattr(constants, name, value)
    close_session()  # the client of a process is made for one of them
    done = machine.run("pull", *arguments)
    assert (done.returncode, done.stdout) == (1, ""), done
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_what_goes_wrong_in_a_process(machine: Machine) -> None:
    done = machine.apart("pull", "acme/none")
    assert (done.returncode, done.stdout) == (1, ""), done
    assert "has no model acme/none, or it is private." in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_an_interrupted_pull_ends_at_once_and_is_taken_up(machine: Machine) -> None:
    machine.hub.add(NAME, FILES)
    machine.hub.pause = 2.0  # the weights would take half a minute
    with machine.start("pull", NAME) as process:
        until = time.monotonic() + 40
        while not any(
            each.method == "GET" and each.path.endswith(".safetensors")
            for each in list(machine.hub.asked)
        ):
            assert time.monotonic() < until
            time.sleep(0.02)
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert time.monotonic() - begin < 10
    assert (process.returncode, out, err) == (130, "", "Interrupted.\n")
    machine.hub.fetched()
    machine.hub.pause = 0.0
    assert machine.run("pull", NAME).returncode == 0
    assert machine.hub.fetched() == ["model.safetensors"]


def test_a_pulled_model_is_used_offline(machine: Machine, tmp_path: Path) -> None:
    """Files that a model does not have are not asked for either."""
    folder = small(tmp_path / "model", layers=1, hidden=16, heads=2)
    names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    machine.hub.add(NAME, {name: (folder / name).read_bytes() for name in names})
    assert machine.apart("pull", NAME).returncode == 0
    code = (
        "from ragopt import TransformersEmbedder\n"
        f"embedder = TransformersEmbedder({NAME!r}, device='cpu')\n"
        "print(embedder.embed(['a']).dense.shape, embedder.spec.revision)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=machine.environment(HF_HUB_OFFLINE="1"),
        timeout=100,
    )
    commit = machine.hub.refs[NAME]["main"]
    assert done.stdout == f"(1, 16) {commit}\n", done.stderr


@pytest.mark.parametrize("arguments", [["pull"], ["rm"], ["nonsense"], ["pull", "a", "--nonsense"]])
def test_wrong_options(machine: Machine, arguments: list[str]) -> None:
    done = machine.run(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
