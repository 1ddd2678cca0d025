"""The first use of a model that is not here: real embedders, and a hub of the tests' own."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import sys
import termios
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import close_session, constants, hf_hub_download
from tests.checkpoints import small
from tests.hub_server import Hub, asked_from_here

from ragopt import BGEM3Embedder, TransformersEmbedder
from ragopt._progress import without_bar
from ragopt._runtime import ASYNC
from ragopt.embedders._files import ModelFiles
from ragopt.embedders.hub import find
from ragopt.embedders.hub_cache import cache_folder, is_whole
from ragopt.embedders.sharing import MODELS
from ragopt.errors import BackendUnavailable, StorageError

NAME = "acme/model"
TEXTS = ["a text", "another one", "猫が庭で寝ている。"]
SMALL = {
    "1_Pooling/config.json",
    "colbert_linear.pt",
    "config.json",
    "sparse_linear.pt",
    "tokenizer_config.json",
}
LARGE = {"tokenizer.json", "model.safetensors"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    return small(path, layers=1, hidden=16, heads=2, pooling=True)


@pytest.fixture(scope="module")
def files(folder: Path) -> dict[str, bytes]:
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert set(found) == SMALL | LARGE
    return {**found, "README.md": b"# A model", "pytorch_model.bin": b"torch", "tf_model.h5": b""}


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Other weights for the same model."""
    path = small(tmp_path_factory.mktemp("other"), layers=1, hidden=16, heads=2, seed=1)
    return (path / "model.safetensors").read_bytes()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    MODELS.clear()
    with asked_from_here(tmp_path) as server:
        yield server


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return what says that no server is to be asked."""

    def say() -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        close_session()

    yield say
    close_session()


@pytest.fixture
def cut_off(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what takes the network away."""
    nowhere = "http://127.0.0.1:9"

    def cut() -> None:
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
        monkeypatch.setattr(constants, "ENDPOINT", nowhere)
        template = f"{nowhere}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    return cut


def embedder(**options: Any) -> BGEM3Embedder:
    return BGEM3Embedder(NAME, device="cpu", **options)


def dense(model: BGEM3Embedder | TransformersEmbedder) -> Any:
    return model.embed(TEXTS).dense


# -- what is fetched -------------------------------------------------------------------------


def test_the_first_text_fetches_what_embedders_read(
    hub: Hub, files: dict[str, bytes], folder: Path
) -> None:
    commit = hub.add(NAME, files)
    model = embedder()
    vectors = dense(model)
    assert Counter(hub.fetched()) == Counter(SMALL | LARGE), "each file once, and no other"
    assert model.spec.revision == commit
    np.testing.assert_array_equal(vectors, dense(BGEM3Embedder(folder, device="cpu")))
    assert dense(model) is not None
    assert hub.asked == []


def test_the_spec_fetches_only_small_files(hub: Hub, files: dict[str, bytes]) -> None:
    hub.add(NAME, files)
    for model in (embedder(), TransformersEmbedder(NAME)):
        assert model.spec.dimension == 16
    fetched = hub.fetched()
    assert not LARGE.intersection(fetched)
    assert sum(len(files.get(name, b"")) for name in fetched) < 10_000
    dense(embedder())
    assert set(hub.fetched()) >= LARGE, "control: they would have been seen"


def test_any_model_with_its_pooling(hub: Hub, files: dict[str, bytes], folder: Path) -> None:
    hub.add(NAME, files)
    model = TransformersEmbedder(NAME, device="cpu")
    np.testing.assert_array_equal(dense(model), dense(TransformersEmbedder(folder, device="cpu")))
    assert dict(model.spec.params)["pooling"] == "cls"


def test_the_engine_of_flag_embedding(hub: Hub, files: dict[str, bytes]) -> None:
    hub.add(NAME, files)
    np.testing.assert_allclose(dense(embedder(engine="flag")), dense(embedder()), atol=1e-5)


def test_progress_goes_to_a_function(hub: Hub, files: dict[str, bytes]) -> None:
    hub.add(NAME, files)
    hub.pause = 0.02
    seen: list[tuple[int, int]] = []
    model = embedder()
    model.load(progress=lambda done, total: seen.append((done, total)))
    assert len(seen) > 1
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1] >= sum(len(files[name]) for name in LARGE)
    seen.clear()
    embedder(revision=model.spec.revision).load(progress=lambda *each: seen.append(each))
    assert seen == [], "nothing was fetched"


# -- one download ----------------------------------------------------------------------------


def test_64_threads_ask_first_and_one_fetches(hub: Hub, files: dict[str, bytes]) -> None:
    hub.add(NAME, files)
    models = [embedder() for _ in range(4)]
    start = threading.Barrier(64)

    def ask(number: int) -> Any:
        start.wait()
        return dense(models[number % 4])

    with ThreadPoolExecutor(64) as pool:
        assert len(list(pool.map(ask, range(64)))) == 64
    assert Counter(hub.fetched()) == Counter(SMALL | LARGE)


async def test_64_tasks_ask_first_and_one_fetches(hub: Hub, files: dict[str, bytes]) -> None:
    hub.add(NAME, files)
    models = [embedder() for _ in range(4)]
    asked = (models[number % 4].aembed(TEXTS) for number in range(64))
    assert len(await asyncio.gather(*asked)) == 64
    assert Counter(hub.fetched()) == Counter(SMALL | LARGE)


async def test_an_event_loop_goes_on_meanwhile(hub: Hub, files: dict[str, bytes]) -> None:
    hub.add(NAME, files)
    hub.pause = 0.3  # for each of the three small files
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticker = asyncio.create_task(tick())
    await embedder()._read_files(ASYNC)
    asynchronous, ticks = ticks, 0
    ModelFiles(NAME, revision=hub.add(NAME, {**files, "new": b""})).config()
    ticker.cancel()
    assert asynchronous > 20
    assert ticks < 3, "control: what blocks the loop is seen"


# -- afterwards ------------------------------------------------------------------------------


def test_a_commit_that_is_here_is_not_asked_for(hub: Hub, files: dict[str, bytes]) -> None:
    commit = hub.add(NAME, files)
    for model in (embedder(revision=commit), TransformersEmbedder(NAME, revision=commit)):
        dense(model)
    hub.asked.clear()
    MODELS.clear()
    for model in (embedder(revision=commit), TransformersEmbedder(NAME, revision=commit)):
        dense(model)
    assert hub.asked == []
    dense(embedder())
    assert [(each.method, each.path) for each in hub.asked] == [
        ("HEAD", f"/{NAME}/resolve/main/config.json")
    ], "control: what a branch stands for is asked, once"


def test_a_branch_that_moved(hub: Hub, files: dict[str, bytes], others: bytes) -> None:
    old = hub.add(NAME, files)
    before, late = embedder(), embedder()
    vectors = dense(before)
    assert late.spec.revision == old
    hub.asked.clear()
    new = hub.add(NAME, {**files, "model.safetensors": others})
    after = embedder()
    assert not np.allclose(dense(after), vectors)
    assert Counter(hub.fetched()) == Counter(["model.safetensors"]), "the rest is the same"
    assert (before.spec.revision, after.spec.revision) == (old, new)
    # Whoever read the old commit's configuration has its weights as well.
    np.testing.assert_array_equal(dense(late), vectors)
    np.testing.assert_array_equal(dense(before), vectors)
    assert hub.fetched() == []


def test_without_a_network(hub: Hub, files: dict[str, bytes], cut_off: Any) -> None:
    hub.add(NAME, files)
    vectors = dense(embedder())
    cut_off()
    np.testing.assert_array_equal(dense(embedder()), vectors)
    np.testing.assert_array_equal(dense(TransformersEmbedder(NAME, device="cpu")), vectors)
    with pytest.raises(BackendUnavailable, match=r"127\.0\.0\.1:9 cannot be reached: "):
        dense(TransformersEmbedder("acme/other"))


def test_offline(hub: Hub, files: dict[str, bytes], offline: Any) -> None:
    hub.add(NAME, files)
    vectors = dense(embedder())
    hub.asked.clear()
    offline()
    np.testing.assert_array_equal(dense(embedder()), vectors)
    with pytest.raises(BackendUnavailable, match=r"The hub is not asked for acme/other, since HF_"):
        dense(TransformersEmbedder("acme/other"))
    assert hub.asked == []


def test_offline_with_a_part_of_it(hub: Hub, files: dict[str, bytes], offline: Any) -> None:
    hub.add(NAME, files)
    model = embedder()
    assert model.spec
    offline()
    with pytest.raises(BackendUnavailable) as raised:
        dense(model)
    assert "can be used as it is" not in str(raised.value)
    assert "copy the model's folder from another machine" in raised.value.fix


def test_a_failing_network_is_no_missing_file(
    hub: Hub, files: dict[str, bytes], cut_off: Any, offline: Any
) -> None:
    """Taken for one, a model would pool by another rule than its own, and nobody would know."""
    commit = hub.add(NAME, files)
    hf_hub_download(NAME, "config.json", revision=commit, cache_dir=cache_folder())
    cut_off()
    with pytest.raises(BackendUnavailable, match="cannot be reached"):
        find(NAME, "1_Pooling/config.json", commit)
    offline()
    assert find(NAME, "1_Pooling/config.json", commit) is None, "what is here counts as it is"
    with pytest.raises(BackendUnavailable, match="not asked"):
        find(NAME, "1_Pooling/config.json", "v1")


# -- what goes wrong -------------------------------------------------------------------------


def test_what_goes_wrong_is_a_sentence(hub: Hub, files: dict[str, bytes]) -> None:
    hub.add(NAME, files)
    hub.add("acme/gated", files)
    hub.gated.add("acme/gated")
    hub.add("acme/empty", {"config.json": files["config.json"], "tokenizer_config.json": b"{}"})
    hub.add("acme/none", {"model.safetensors": b"", "tokenizer.json": b""})
    for model, revision, sentence in (
        ("acme/nowhere", None, "has no model acme/nowhere, or it is private."),
        ("acme/gated", None, "acme/gated is not open to you."),
        (NAME, "v9", f"{NAME} has no revision 'v9'."),
        ("acme/empty", None, "acme/empty has no weights that the embedders read."),
        ("acme/none", None, "acme/none cannot be loaded: config.json is missing."),
        ("./no/such/folder", None, "it is neither a folder that is there nor a model id"),
    ):
        with pytest.raises(StorageError) as raised:
            dense(BGEM3Embedder(model, revision=revision, device="cpu"))
        assert sentence in str(raised.value)
        assert "\n" not in str(raised.value)


def test_a_download_that_broke_off_is_taken_up(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    hub.add(NAME, files)
    model = embedder()
    assert model.spec
    hub.refuse[NAME] = (503, "")
    with pytest.raises(BackendUnavailable, match="answered with status 503"):
        dense(model)
    hub.refuse.clear()
    hub.fetched()
    assert dense(model) is not None
    known = {"config.json", "sparse_linear.pt", "colbert_linear.pt"}
    assert Counter(hub.fetched()) == Counter(SMALL - known | LARGE)


def test_control_a_fault_of_ours_is_not_explained_away(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise LookupError("a fault of ours")

    hub.add(NAME, files)
    monkeypatch.setattr("ragopt.embedders.hub._wanted", broken)
    with pytest.raises(LookupError):
        dense(embedder())


@pytest.mark.parametrize(
    ("names", "whole"),
    [
        ("tokenizer.json model.safetensors", True),
        ("vocab.txt pytorch_model.bin", True),
        ("tokenizer.json", False),
        ("model.safetensors", False),
        ("tokenizer.json model.safetensors.index.json part1 part2", True),
        ("tokenizer.json pytorch_model.bin.index.json part1 part2", True),
        ("tokenizer.json model.safetensors.index.json part1", False),
    ],
)
def test_what_is_whole(tmp_path: Path, names: str, whole: bool) -> None:
    index = {"weight_map": {"a": "part1", "b": "part2", "c": "part1"}}
    for name in names.split():
        (tmp_path / name).write_text(json.dumps(index) if "index" in name else "")
    assert is_whole(tmp_path) == whole


def test_a_damaged_index_is_not_whole(tmp_path: Path) -> None:
    for content in ("", "[]", "{}", '{"weight_map": 1}', '{"weight_map": {"a": 1}}'):
        (tmp_path / "model.safetensors.index.json").write_text(content)
        (tmp_path / "tokenizer.json").write_text("")
        assert not is_whole(tmp_path)


# -- the bar ---------------------------------------------------------------------------------


def fetched_apart(hub: Hub, home: Path, *, terminal: bool, **more: str) -> str:
    """Fetch the model in a process of its own; return what it wrote to stderr."""
    code = f"from ragopt.embedders._files import ModelFiles; ModelFiles({NAME!r}).fetch()"
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TQDM_"))}
    environment = {**kept, "HF_HOME": str(home), "HF_ENDPOINT": hub.url, **more}
    ours, theirs = pty.openpty() if terminal else os.pipe()
    if terminal:
        termios.tcsetwinsize(theirs, (24, 120))  # a new one has no columns for a bar
    written: list[bytes] = []

    def read() -> None:
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:  # how a terminal says that nobody writes any more
                return
            if not piece:
                return
            written.append(piece)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], stderr=theirs, check=False, env=environment, timeout=50
        )
    finally:
        os.close(theirs)
        reader.join(10)
        os.close(ours)
    said = b"".join(written).decode()
    assert done.returncode == 0, said
    return said


def test_a_bar_where_there_is_a_terminal(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.add(NAME, files)
    hub.pause = 0.02
    more = {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    with ThreadPoolExecutor(2) as pool:
        others = [
            pool.submit(fetched_apart, hub, tmp_path / "two", terminal=False),
            pool.submit(fetched_apart, hub, tmp_path / "three", terminal=True, **more),
        ]
        said = fetched_apart(hub, tmp_path / "one", terminal=True)
        assert f"{NAME}: " in said
        assert "%|" in said
        assert "model.safetensors:" not in said, "one bar for all files"
        assert fetched_apart(hub, tmp_path / "one", terminal=True) == "", "nothing to fetch"
        assert [other.result() for other in others] == ["", ""]


def test_versions_without_that_option_draw_their_own_bars() -> None:
    assert without_bar(lambda model, name: None) == {}
    assert list(without_bar(hf_hub_download)) == ["tqdm_class"]
