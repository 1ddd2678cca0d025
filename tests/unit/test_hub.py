"""Models of the hub: fetching, listing and removing, with a server of the tests' own."""

import errno
import os
import shutil
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from huggingface_hub import close_session, constants, hf_hub_download
from tests.hub_server import Hub, asked_from_here

from ragopt.embedders import hub_cache
from ragopt.embedders.hub import _wanted, find, pull
from ragopt.embedders.hub_cache import cache_folder, cached, removal, remove, snapshot
from ragopt.errors import BackendUnavailable, InvalidInput, RagoptError, StorageError

NAME = "acme/model"
SMALL = {"config.json": b"{}", "tokenizer.json": b"[]", "1_Pooling/config.json": b"{ }"}
WEIGHTS = Random(0).randbytes(200_000)
FILES = {
    ".gitattributes": b"*",
    **SMALL,
    "README.md": b"# A model",
    "onnx/model.onnx": b"onnx",
    "pytorch_model.bin": b"torch",
    "model.safetensors": WEIGHTS,
    "tf_model.h5": b"tf",
}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with asked_from_here(tmp_path) as server:
        yield server


# -- what is fetched -------------------------------------------------------------------------


def test_the_first_pull_fetches_what_embedders_read_and_the_second_nothing(hub: Hub) -> None:
    commit = hub.add(NAME, FILES)
    seen: list[tuple[int, int]] = []
    pulled = pull(NAME, progress=lambda done, size: seen.append((done, size)))
    wanted = {*SMALL, "model.safetensors"}
    assert set(hub.fetched()) == wanted
    size = sum(len(FILES[name]) for name in wanted)
    assert (pulled.revision, pulled.files, pulled.size, pulled.downloaded) == (
        commit,
        4,
        size,
        size,
    )
    assert seen[-1] == (size, size)
    assert {p.relative_to(pulled.path).as_posix() for p in pulled.path.rglob("*.*")} == wanted
    assert (pulled.path / "model.safetensors").read_bytes() == WEIGHTS
    assert snapshot(NAME) == pulled.path
    again = pull(NAME)
    assert hub.fetched() == []
    assert (again.path, again.downloaded) == (pulled.path, 0)


def test_progress_is_told_while_it_goes_on(hub: Hub) -> None:
    hub.add(NAME, FILES)
    hub.pause = 0.05
    seen: list[int] = []
    pull(NAME, progress=lambda done, _: seen.append(done))
    assert seen == sorted(seen)
    assert len(set(seen)) > 2


def test_what_progress_raises_is_raised_and_the_files_are_kept(hub: Hub) -> None:
    class Enough(Exception):
        pass

    def tell(done: int, size: int) -> None:
        raise Enough

    commit = hub.add(NAME, FILES)
    hub.pause = 0.05
    with pytest.raises(Enough):
        pull(NAME, progress=tell)
    hub.fetched()
    pulled = pull(NAME)
    assert (pulled.revision, pulled.downloaded, hub.fetched()) == (commit, 0, [])


def test_what_a_commit_lacks_is_known_afterwards(hub: Hub) -> None:
    commit = hub.add(NAME, FILES)
    pull(NAME)
    hub.asked.clear()
    assert find(NAME, "sentence_bert_config.json", commit) is None
    assert find(NAME, "config.json", commit) is not None
    assert hub.asked == []
    assert find(NAME, "no_loader_looks_for_this.json", commit) is None
    assert len(hub.asked) == 1, "control: what is not known is asked"
    assert find(NAME, "no_loader_looks_for_this.json", commit) is None
    assert len(hub.asked) == 1


def test_what_a_commit_lacks_cannot_be_written_down(hub: Hub) -> None:
    hub.add(NAME, FILES)
    repo = cache_folder() / "models--acme--model"
    repo.mkdir(parents=True)
    (repo / ".no_exist").write_text("no folder")
    assert pull(NAME).files == 4


def test_a_new_commit_shares_what_it_has_in_common(hub: Hub) -> None:
    hub.add(NAME, FILES)
    first = pull(NAME)
    hub.fetched()
    commit = hub.add(NAME, {**FILES, "config.json": b'{"new": 1}'})
    second = pull(NAME)
    assert hub.fetched() == ["config.json"]
    assert (second.revision, second.downloaded) == (commit, 10)
    assert snapshot(NAME) == second.path
    assert {each.path for each in cached().models} == {first.path, second.path}


def test_a_tag_and_a_commit(hub: Hub) -> None:
    old = hub.add(NAME, FILES, "main", "v1")
    new = hub.add(NAME, {**FILES, "config.json": b'{"new": 1}'})
    assert pull(NAME, revision="v1").revision == old
    assert pull(NAME, revision=new).revision == new
    assert {each.revision: each.refs for each in cached().models} == {old: ("v1",), new: ()}


def test_a_branch_stands_for_a_commit_when_that_is_complete(hub: Hub) -> None:
    hub.add(NAME, FILES)
    first = pull(NAME)
    changed = {**FILES, "config.json": b'{"new": 1}', "model.safetensors": WEIGHTS[::-1]}
    hub.add(NAME, changed)
    hub.fetched()

    class Enough(Exception):
        pass

    def stop(*_: Any, **__: Any) -> None:
        raise Enough

    with pytest.MonkeyPatch.context() as patch:
        hub.pause = 0.01
        patch.setattr("huggingface_hub.file_download._chmod_and_move", _after(1, stop))
        with pytest.raises(Enough):
            pull(NAME)
    assert hub.fetched() == ["config.json", "model.safetensors"]
    assert snapshot(NAME) == first.path
    assert pull(NAME).downloaded == len(WEIGHTS)
    assert hub.fetched() == ["model.safetensors"]
    assert snapshot(NAME) != first.path


def _after(number: int, then: Any) -> Any:
    """Return a function that moves so many files, and then does something else."""
    from huggingface_hub import file_download

    original, calls = file_download._chmod_and_move, iter(range(100))
    return lambda *args: original(*args) if next(calls) < number else then()


@pytest.mark.filterwarnings("ignore")
def test_a_connection_that_breaks_is_taken_up_where_it_broke(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    hub.add(NAME, FILES)
    hub.cut["model.safetensors"] = 150_000
    pulled = pull(NAME)
    assert (pulled.path / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [each.bytes for each in hub.asked if each.bytes]
    assert len(ranges) == 1
    assert int(ranges[0].removeprefix("bytes=").removesuffix("-")) > 100_000


def test_a_branch_that_moves_meanwhile(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(NAME, FILES)

    def move(number: int) -> Any:
        original = _after(number, lambda: None)

        def moved(*args: Any) -> None:
            original(*args)
            hub.add(NAME, {**FILES, "config.json": os.urandom(8)})

        return moved

    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.file_download._chmod_and_move", move(100))
        with pytest.raises(StorageError, match=r"'main' of acme/model changed while"):
            pull(NAME)
    assert pull(NAME).revision == hub.refs[NAME]["main"]


@pytest.mark.parametrize(
    ("names", "options", "expected"),
    [
        (["config.json", "pytorch_model.bin"], {}, ["config.json", "pytorch_model.bin"]),
        (["model.safetensors", "pytorch_model.bin"], {}, ["model.safetensors"]),
        (
            ["a.safetensors", "model.safetensors.index.json", "model-1-of-1.safetensors"],
            {},
            ["model.safetensors.index.json", "model-1-of-1.safetensors"],
        ),
        (
            ["pytorch_model.bin", "sparse_linear.pt", "colbert_linear.pt", "imgs/a.jpg", "a.pt"],
            {},
            ["pytorch_model.bin", "sparse_linear.pt", "colbert_linear.pt"],
        ),
        (
            ["model.safetensors", "sentencepiece.bpe.model", "onnx/tokenizer.json", "vocab.txt"],
            {},
            ["model.safetensors", "sentencepiece.bpe.model", "vocab.txt"],
        ),
        (
            ["model.safetensors", "onnx/model.onnx", "onnx/weights", "openvino/a.bin"],
            {"onnx": True},
            ["model.safetensors", "onnx/model.onnx", "onnx/weights"],
        ),
        (["config.json", "model.onnx"], {"onnx": True}, ["config.json", "model.onnx"]),
        (["a.gguf", "b/c.gguf", "d"], {"patterns": ["*.gguf"]}, ["a.gguf"]),
        (["a.gguf", "b/c.gguf", "d"], {"patterns": ["b/*", "d"]}, ["b/c.gguf", "d"]),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_which_files(names: list[str], options: dict[str, Any], expected: list[str]) -> None:
    given = {"patterns": (), "onnx": False, **options}
    assert _wanted("m", names, **given) == expected


def test_files_that_are_not_there(hub: Hub) -> None:
    hub.add(NAME, {"config.json": b"{}", "model.gguf": b""})
    with pytest.raises(StorageError, match=r"no weights that the embedders read.*--files"):
        pull(NAME)
    with pytest.raises(InvalidInput, match=r"called \*\.bin\. There is: config.json, model.gguf"):
        pull(NAME, files=["*.bin"])
    with pytest.raises(InvalidInput, match="no files for ONNX Runtime"):
        pull(NAME, onnx=True)
    assert hub.fetched() == []
    assert pull(NAME, files=["*.gguf"]).files == 1


# -- what goes wrong -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refusal", "kind", "sentence"),
    [
        ((404, "RepoNotFound"), StorageError, "has no model acme/model, or it is private"),
        ((401, "RepoNotFound"), StorageError, "has no model acme/model, or it is private"),
        ((401, ""), StorageError, "asks for a token for acme/model, or refused yours"),
        ((404, ""), StorageError, "has no model acme/model, or it is private"),
        ((403, "GatedRepo"), StorageError, "acme/model is not open to you. Accept its terms"),
        ((403, ""), StorageError, "acme/model is not open to you"),
        ((500, ""), BackendUnavailable, "answered with status 500. Try again later"),
        ((429, ""), BackendUnavailable, "answered with status 429"),
    ],
    ids=str,
)
def test_a_hub_that_refuses(
    hub: Hub, refusal: tuple[int, str], kind: type[RagoptError], sentence: str
) -> None:
    hub.add(NAME, FILES)
    hub.refuse[NAME] = refusal
    with pytest.raises(kind) as raised:
        pull(NAME)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)
    assert cached().models == []


def test_a_model_whose_files_are_gated(hub: Hub) -> None:
    hub.add(NAME, FILES)
    hub.gated.add(NAME)
    with pytest.raises(StorageError, match="is not open to you"):
        pull(NAME)


def test_names_that_lead_nowhere(hub: Hub) -> None:
    hub.add(NAME, FILES)
    with pytest.raises(StorageError, match=r"acme/model has no revision 'v9'\. Name a branch"):
        pull(NAME, revision="v9")
    for name in ("a/b/c", "", "-a", "a b"):
        with pytest.raises(InvalidInput, match="is no model id"):
            pull(name)


def test_a_hub_that_is_down(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(NAME, FILES)
    there = pull(NAME).path
    monkeypatch.setattr(constants, "ENDPOINT", "http://user:sesame@127.0.0.1:9")
    with pytest.raises(BackendUnavailable) as raised:
        pull("acme/other")
    assert str(raised.value).startswith("127.0.0.1:9 cannot be reached: ")
    assert "copy the model's folder from another machine" in raised.value.fix
    with pytest.raises(BackendUnavailable) as raised:
        pull(NAME)
    assert f"The copy of it in {there} can be used" in raised.value.fix
    assert "sesame" not in str(raised.value)


def test_a_hub_that_goes_down_meanwhile(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    nowhere = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    hub.add(NAME, FILES)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", nowhere)
    with pytest.raises(BackendUnavailable, match=r"cannot be reached: .*refused"):
        pull(NAME)


def test_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(NAME, FILES)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    with pytest.raises(BackendUnavailable, match=r"since HF_HUB_OFFLINE is set\. Unset it"):
        pull(NAME)
    assert hub.asked == []


def test_a_disk_that_is_too_small(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    hub.add(NAME, FILES)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100_000))
    with pytest.raises(StorageError, match=r"needs 195\.3 KiB, and .* has 97\.7 KiB left"):
        pull(NAME)
    assert hub.fetched() == []


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOSPC, "is full. Make room, or name"),
        (errno.EACCES, "cannot be written"),
        (errno.EROFS, "cannot be written"),
        (errno.EIO, "acme/model could not be fetched: .*Input/output error.*Run it again"),
    ],
)
def test_a_disk_that_refuses(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, number: int, sentence: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number), "/cache/file")

    hub.add(NAME, FILES)
    monkeypatch.setattr("huggingface_hub.file_download._chmod_and_move", refuse)
    with pytest.raises(StorageError, match=sentence):
        pull(NAME)
    assert list(cache_folder().rglob("*.incomplete")) == []


def test_control_a_fault_of_ours_is_not_explained_away(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise LookupError("a fault of ours")

    hub.add(NAME, FILES)
    monkeypatch.setattr("ragopt.embedders.hub._wanted", broken)
    with pytest.raises(LookupError):
        pull(NAME)


# -- what is here, and removing it -----------------------------------------------------------


def test_an_absent_cache_holds_nothing(hub: Hub) -> None:
    assert not cache_folder().exists()
    assert (cached().models, cached().size, cached().broken) == ([], 0, [])
    with pytest.raises(StorageError, match=r"no model acme/model in .* ragopt models list"):
        removal(NAME)
    assert snapshot(NAME) is None


def test_a_cache_that_is_no_folder(hub: Hub) -> None:
    cache_folder().parent.mkdir(exist_ok=True)
    cache_folder().write_text("")
    with pytest.raises(StorageError, match="cannot be read"):
        cached()


def test_what_is_in_the_cache(hub: Hub) -> None:
    hub.add(NAME, FILES, "main", "v1")
    hub.add("single", FILES)
    path = pull(NAME).path
    hf_hub_download(NAME, "config.json", revision="v1", cache_dir=cache_folder())
    pull("single")
    (cache_folder() / "datasets--acme--data" / "snapshots").mkdir(parents=True)
    (first, second), size = cached().models, cached().size
    assert (first.model, second.model) == (NAME, "single")
    assert (first.refs, second.refs) == (("main", "v1"), ("main",))
    assert (first.files, first.path) == (4, path)
    assert first.size == sum(map(len, SMALL.values())) + len(WEIGHTS)
    assert size == first.size + second.size
    assert abs(first.used - time.time()) < 60


def test_removing_a_model_removes_nothing_else(hub: Hub) -> None:
    hub.add(NAME, FILES)
    hub.add("acme/other", FILES)
    pulled, other = pull(NAME), pull("acme/other")
    what = removal(NAME)
    assert (what.size, [each.path for each in what.revisions]) == (pulled.size, [pulled.path])
    assert len(cached().models) == 2
    remove(what)
    assert [each.path for each in cached().models] == [other.path]
    assert not pulled.path.parents[1].exists()


def test_removing_a_revision_keeps_what_another_one_shares(hub: Hub) -> None:
    old = hub.add(NAME, FILES, "main", "v1")
    pull(NAME, revision="v1")
    hub.add(NAME, {**FILES, "config.json": b'{"new": 1}'})
    new = pull(NAME)
    for name in ("v1", old[:6], old, old.upper()):
        what = removal(NAME, name)
        assert ([each.revision for each in what.revisions], what.size) == ([old], 2), name
    remove(what)
    assert [each.revision for each in cached().models] == [new.revision]
    assert (new.path / "model.safetensors").read_bytes() == WEIGHTS


def test_revisions_that_are_not_there(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = [hub.add(NAME, {**FILES, "config.json": bytes([n])}, f"v{n}") for n in range(2)]
    for number in range(2):
        pull(NAME, revision=f"v{number}")
    for name in ("v9", commits[0][:3], "config.json"):
        with pytest.raises(StorageError, match=f"no revision '{name}' ") as raised:
            removal(NAME, name)
        assert all(f"{commits[number][:12]} v{number}" in raised.value.fix for number in range(2))
    monkeypatch.setattr(hub_cache, "_SHORTEST", 0)
    with pytest.raises(InvalidInput, match="Several revisions of acme/model begin with ''"):
        removal(NAME, "")


def test_what_a_broken_download_left(hub: Hub) -> None:
    hub.add(NAME, FILES)
    repo = pull(NAME).path.parents[1]
    (repo / "blobs" / "abc.1.incomplete").write_bytes(b"1234567")
    whole = sum(map(len, SMALL.values())) + len(WEIGHTS) + 7
    assert cached().size == removal(NAME).size == whole
    shutil.rmtree(repo / "snapshots")
    assert (cached().models, cached().broken) == ([], [NAME])
    what = removal(NAME)
    assert what.revisions == []
    assert what.size >= whole
    remove(what)
    assert cached().broken == []
    for name in ("..", "acme", "../hub"):
        with pytest.raises(StorageError, match="There is no model"):
            removal(name)


def test_what_cannot_be_removed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Any, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    hub.add(NAME, FILES)
    repo = pull(NAME).path.parents[1]
    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(StorageError, match=f"Not all of {NAME} could be removed: .*Check the"):
        remove(removal(NAME))
    monkeypatch.undo()
    assert repo.exists()
