"""A stream of a million texts stays within a bound of memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.checkpoints import small

TEXTS = 1_000_000
BOUND = 48 * 2**20  # bytes; the vectors alone are 64 bytes a text, the texts about as much

PROGRAM = """
import asyncio, json, sys
import psutil
from ragopt import TransformersEmbedder

folder, way, many = sys.argv[1], sys.argv[2], int(sys.argv[3])
embedder, process = TransformersEmbedder(folder, device="cpu"), psutil.Process()
kept, sizes, seen, told = [], [], 0, (0, None)

def progress(*now):
    global told
    told = now

def texts():
    for number in range(many):
        yield f"text {number}"

def take(part, batch):
    global seen
    seen += len(part)
    sizes.append(process.memory_info().rss)
    if way == "keep":
        kept.append((part, batch))

async def consume():
    async for part, batch in embedder.astream(texts(), progress=progress):
        take(part, batch)

if way == "astream":
    asyncio.run(consume())
else:
    for part, batch in embedder.stream(texts(), progress=progress):
        take(part, batch)
grown = max(sizes) - sizes[5]  # by then, what PyTorch keeps for its next call is there
print(json.dumps({"seen": seen, "told": told, "grown": grown}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small(tmp_path_factory.mktemp("m3"), layers=1, hidden=16, heads=2, pooling=True)


def streamed(folder: Path, way: str) -> dict[str, Any]:
    """Stream all texts in a process of its own; return what it saw."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), way, str(TEXTS)],
        capture_output=True,
        text=True,
        check=False,
        timeout=550,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", ["stream", "astream"])
def test_memory_does_not_grow_with_the_texts(folder: Path, way: str) -> None:
    found = streamed(folder, way)
    assert found["seen"] == TEXTS
    assert found["told"] == [TEXTS, None]
    assert found["grown"] < BOUND


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_control_keeping_everything_breaks_the_bound(folder: Path) -> None:
    assert streamed(folder, "keep")["grown"] > 2 * BOUND
