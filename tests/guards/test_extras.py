"""Each extra alone, in an environment of its own: what it promises works, the rest is missing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]

CLI = """
from ragopt.cli import main
try:
    main(["--help"])
except SystemExit as end:
    assert not end.code, end.code
"""
FAISS = "import ragopt\nragopt.FaissIndex(8)"
LANGCHAIN = "import ragopt.langchain"
LLAMA_INDEX = "import ragopt.llama_index"
MINILM = """
import ragopt
assert ragopt.TransformersEmbedder.minilm().embed(["a"]).dense.shape == (1, 384)
"""
PGVECTOR = """
from ragopt.errors import BackendUnavailable
from ragopt.indexes.pgvector import PgvectorIndex
try:
    PgvectorIndex("postgresql://localhost:1/none", "records").count()
except BackendUnavailable:
    pass
"""
PROMETHEUS = "import ragopt\nragopt.CacheStats().register()"
REDIS = """
import ragopt
from ragopt.errors import BackendUnavailable
try:
    ragopt.RedisStore("redis://localhost:1").get_many([b"k"])
except BackendUnavailable:
    pass
"""
TESTING = "import ragopt.testing"
# A model of random weights, made on the spot.
TRANSFORMERS = """
import tempfile, ragopt
from tokenizers import Tokenizer, models
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
with tempfile.TemporaryDirectory() as folder:
    words = Tokenizer(models.WordLevel({"?": 0, "_": 1, "a": 2}, unk_token="?"))
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="?", pad_token="_", model_max_length=16
    ).save_pretrained(folder)
    BertModel(
        BertConfig(
            vocab_size=3, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=8, max_position_embeddings=16,
        )
    ).save_pretrained(folder)
    assert ragopt.TransformersEmbedder(folder).embed(["a"]).dense.shape == (1, 8)
"""
ONNX = TRANSFORMERS.replace("Embedder(folder)", "Embedder(folder, engine='onnx')")
SPARSE = """
from ragopt import SparseVector
from ragopt.embedders.sparse import to_csr
assert to_csr([SparseVector.from_dict({1: 0.5})], 3).shape == (1, 3)
"""
SPARSEVEC = """
from ragopt import SparseVector
from ragopt.embedders.sparse import to_pgvector
assert to_pgvector(SparseVector.from_dict({1: 0.5}), 3).dimensions() == 3
"""
ZSTD = """
from ragopt.codecs import seal, unseal
text = bytes(1000)
assert len(sealed := seal(b"k", text, None, (), 100)) < 100
assert unseal(b"k", sealed).value == text
"""

# What must work with an extra and nothing else.
WORKS = {
    "all": [CLI, FAISS, LANGCHAIN, LLAMA_INDEX, MINILM, PGVECTOR, PROMETHEUS, REDIS, TESTING, ZSTD],
    "bge-m3": [TRANSFORMERS, SPARSE],
    "cli": [CLI],
    "demo": [CLI, FAISS, LANGCHAIN, LLAMA_INDEX, MINILM],
    "faiss": [FAISS],
    "flag-embedding": [TRANSFORMERS, "import FlagEmbedding"],
    "images": [TRANSFORMERS, "import PIL"],
    "langchain": [LANGCHAIN],
    "llama-index": [LLAMA_INDEX],
    "onnx": [ONNX],
    "opensearch": ["import opensearchpy"],
    "postgres": [PGVECTOR, SPARSEVEC],
    "prometheus": [PROMETHEUS],
    "redis": [REDIS],
    "testing": [TESTING],
    "transformers": [TRANSFORMERS],
    "zstd": [ZSTD],
}
# What must name its extra where that is not installed.
NEEDS = {
    "cli": "from ragopt.cli import main\nmain()",
    "faiss": FAISS,
    "flag-embedding": 'from ragopt.embedders._flag import FlagEngine\nFlagEngine("x")',
    "langchain": LANGCHAIN,
    "llama-index": LLAMA_INDEX,
    "onnx": "from ragopt.embedders._onnx_graph import *\nlayers_graph([], heads=1, int8=False)",
    "postgres": PGVECTOR,
    "prometheus": PROMETHEUS,
    "redis": REDIS,
    "testing": TESTING,
    "transformers": 'import ragopt\nragopt.TransformersEmbedder("x").embed(["a"])',
    "zstd": ZSTD,
}


def closure(extra: str) -> set[str]:
    """Return an extra and all the extras that it includes."""
    found = {extra}
    for requirement in EXTRAS[extra]:
        if match := re.fullmatch(r"ragopt\[(.*)\]", requirement):
            found.update(*(closure(name.strip()) for name in match[1].split(",")))
    return found


class Environment:
    """A virtual environment with ragopt and one extra, filled from outside by this pip."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)

    def install(self, requirement: str) -> None:
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "--python", str(self.python), "--no-input"),
                *("install", "--quiet", "--no-compile", "--disable-pip-version-check"),
                *("--constraint", str(ROOT / "constraints.txt"), requirement),
            ],
            check=True,
            stdin=subprocess.DEVNULL,
        )

    def run(self, code: str) -> subprocess.CompletedProcess[str]:
        """Run code that sees this environment and nothing of the one that runs the tests."""
        return subprocess.run(
            [self.python, "-I", "-c", code],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def missing(self, extra: str) -> None:
        """Check that what needs ``extra`` says so, and says nothing else."""
        done = self.run(NEEDS[extra])
        assert done.returncode == 1, done
        assert done.stderr.rstrip().endswith(f'pip install "ragopt[{extra}]"'), done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--wheel-dir", str(folder), str(ROOT)),
        ],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    (built,) = folder.glob("ragopt-*.whl")
    return built


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Environment]:
    made = Environment(tmp_path / "environment")
    yield made
    # PyTorch takes a gigabyte; pytest would keep the last runs.
    shutil.rmtree(made.folder)


def test_every_extra_is_tested() -> None:
    assert set(WORKS) == set(EXTRAS)


@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_an_extra_brings_what_its_classes_need(
    environment: Environment, wheel: Path, extra: str
) -> None:
    included = closure(extra)
    if "transformers" in included:
        environment.install("torch")  # first and by its exact version
    environment.install(f"{wheel}[{extra}]")
    for code in WORKS[extra]:
        done = environment.run(code)
        assert done.returncode == 0, done.stderr
    # These are never brought by another package, as typer is by transformers.
    for other in sorted({"faiss", "postgres", "prometheus"} - included):
        environment.missing(other)


def test_control_without_an_extra_the_core_works_and_the_rest_is_missing(
    environment: Environment, wheel: Path
) -> None:
    environment.install(str(wheel))
    core = environment.run(
        "import ragopt\n"
        "ragopt.MemoryStore().set_many({b'k': b'v'})\n"
        "for name in ragopt.__all__: getattr(ragopt, name)\n"
    )
    assert core.returncode == 0, core.stderr
    for extra in NEEDS:
        environment.missing(extra)
