"""Models of the transformers package, run on PyTorch."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from ragopt._imports import require
from ragopt.embedders._files import ModelFiles
from ragopt.embedders._heads import (
    HEADS,
    cut_apart,
    first_rows,
    sparse_vectors,
    special_ids,
    to_numpy,
)
from ragopt.embedders._onnx import OnnxEncoder, check_runs
from ragopt.embedders._packed import PackedEncoder, can_pack
from ragopt.embedders.engines import Tokens
from ragopt.errors import InvalidInput
from ragopt.types import EmbeddingBatch, Output

Pooling: TypeAlias = Literal["mean", "cls", "last"]
Precision: TypeAlias = Literal["float32", "float16", "bfloat16", "int8"]
Runtime: TypeAlias = Literal["torch", "onnx"]


class TorchModel:
    """A model's weights in memory, with its sparse and multi-vector heads where it has them.

    Args:
        files: Where the weights are.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; see ``device_and_precision``.
        precision: Of the weights and of the computation.
        runtime: What computes the layers.

    Raises:
        StorageError: The files cannot be read.
        InvalidInput: ONNX Runtime cannot run such a model.
    """

    def __init__(
        self,
        files: ModelFiles,
        *,
        device: str,
        precision: Precision,
        runtime: Runtime = "torch",
    ) -> None:
        torch = self.torch = require("torch", "transformers")
        self.device = device
        self.tokenizer = files.tokenizer()
        dtype = torch.float32 if precision == "int8" else getattr(torch, precision)
        load = partial(_load, files, dtype)
        try:
            model = load()
            self.heads = {
                output: _head(torch, files, name).to(device=self.device, dtype=dtype)
                for output, name in HEADS.items()
                if files.find(name) is not None
            }
        except (OSError, ValueError) as error:
            raise files.unreadable(error) from error
        self.dimension = int(model.config.hidden_size)
        self._pid = os.getpid()
        self._encode: Callable[[Sequence[Sequence[int]]], Any]
        if runtime == "onnx":
            check_runs(files.model, model.config)
            self._encode = OnnxEncoder(model, load, int8=precision == "int8")
        elif can_pack(model.config):
            self._encode = PackedEncoder(model.to(self.device))
        else:
            self._encode = partial(self._padded, model.to(self.device))

    def states(self, ids: Sequence[Sequence[int]]) -> Any:
        """Return the last hidden states of all tokens, shape ``(tokens, hidden)``."""
        self._pid = stay_alone_after_fork(self.torch, self._pid)
        return self._encode(ids)

    def free(self) -> None:
        """Give back memory that is kept for the next call."""
        if isinstance(self._encode, OnnxEncoder):
            self._encode.free()
        else:
            free_memory(self.torch, self.device)

    def _padded(self, model: Any, ids: Sequence[Sequence[int]]) -> Any:
        padded = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(self.device)
        states = model(**padded).last_hidden_state
        return states[padded["attention_mask"].bool()]


class TorchEngine:
    """Embeds with a ``TorchModel``.

    Args:
        model: The weights; several engines may share them.
        pooling: How the vectors of tokens become the dense one.
        normalize: Scale dense vectors, and each row of multi-vectors, to length 1.
        heads: Make sparse and multi-vectors, where the model can.
    """

    def __init__(
        self, model: TorchModel, *, pooling: Pooling, normalize: bool, heads: bool = False
    ) -> None:
        self._model = model
        self._torch = model.torch
        self._pooling = pooling
        self._normalize = normalize
        self._heads = model.heads if heads else {}
        self._special = special_ids(model.tokenizer)

    @property
    def device(self) -> str:
        """Where it runs."""
        return self._model.device

    @property
    def dimension(self) -> int:
        """Length of a dense vector."""
        return self._model.dimension

    @property
    def outputs(self) -> frozenset[Output]:
        """What the loaded files can make."""
        return frozenset({"dense", *self._heads})

    def encode(self, texts: Sequence[Tokens], outputs: frozenset[Output], /) -> EmbeddingBatch:
        """Embed texts in one forward pass; see ``Engine``."""
        torch = self._torch
        ids = [text.ids for text in texts]
        lengths = [len(each) for each in ids]
        dense = sparse = multi = None
        with torch.inference_mode():
            states = self._model.states(ids)
            if "dense" in outputs:
                dense = to_numpy(self._scaled(self._pool(states, lengths).float()))
            if "sparse" in outputs:
                weights = torch.relu(self._heads["sparse"](states)).squeeze(-1)
                sparse = sparse_vectors(ids, to_numpy(weights), self._special)
            if "multi" in outputs:
                rest = np.ones(len(states), bool)
                rest[first_rows(lengths)] = False  # the dense vector comes of the first token
                rows = self._heads["multi"](states[torch.from_numpy(rest).to(states.device)])
                vectors = to_numpy(self._scaled(rows.float()))
                multi = cut_apart(vectors, [length - 1 for length in lengths])
        return EmbeddingBatch(dense, sparse, multi)

    def free(self) -> None:
        """Give back memory that is kept for the next call."""
        self._model.free()

    def _pool(self, states: Any, lengths: list[int]) -> Any:
        first = self._torch.from_numpy(first_rows(lengths)).to(states.device)
        if self._pooling == "cls":
            return states[first]
        if self._pooling == "last":
            return states[first + self._torch.tensor(lengths, device=states.device) - 1]
        return self._torch.stack([rows.float().mean(dim=0) for rows in states.split(lengths)])

    def _scaled(self, rows: Any) -> Any:
        return self._torch.nn.functional.normalize(rows, dim=-1) if self._normalize else rows


def free_memory(torch: Any, device: str) -> None:
    """Give back memory that PyTorch keeps for its next call."""
    kind = device.partition(":")[0]
    if kind in ("cuda", "mps"):
        getattr(torch, kind).empty_cache()


def stay_alone_after_fork(torch: Any, pid: int) -> int:
    """Compute with one thread in a forked process; return the process that this was done for.

    The threads that PyTorch computes with on a CPU stay in the parent, and it would wait for them
    for ever.
    """
    if pid != os.getpid():
        torch.set_num_threads(1)
    return os.getpid()


def check_choice(engine: str, engines: Sequence[str], device: str, precision: str) -> None:
    """Raise InvalidInput for what there is not, and for what does not go together."""
    if engine not in engines:
        raise InvalidInput(f"{engine!r} is no engine.", fix=f"Use one of: {', '.join(engines)}.")
    known = ("auto", *get_args(Precision))
    if precision not in known:
        raise InvalidInput(
            f"{precision!r} is no precision.", fix=f"Use one of: {', '.join(known)}."
        )
    if engine == "onnx" and (device not in ("auto", "cpu") or precision in ("float16", "bfloat16")):
        raise InvalidInput(
            f"device={device!r} and precision={precision!r} were given for the engine 'onnx'.",
            fix="It runs on the CPU, in float32 or int8. Use engine='torch' for the rest.",
        )
    if engine != "onnx" and precision == "int8":
        raise InvalidInput(
            f"The engine {engine!r} does not compute in int8.", fix="Use engine='onnx'."
        )


def device_and_precision(
    torch: Any, engine: str, device: str, precision: Precision | Literal["auto"]
) -> tuple[str, Precision]:
    """Return where and in what to compute, found out if it is ``auto``; see ``check_device``."""
    found = check_device(torch, "cpu" if engine == "onnx" else device)
    if precision == "auto":
        return found, "float32" if found == "cpu" else "float16"
    return found, precision


def check_device(torch: Any, device: str) -> str:
    """Return the device, found out if it is ``auto``.

    Raises:
        InvalidInput: PyTorch knows no such device, or this machine has none.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).strip().splitlines()[0].rstrip(".")
        raise InvalidInput(
            f"The device {device!r} cannot be used: {first}.",
            fix='Use "auto", "cpu", "cuda", "cuda:1" or "mps", whichever this machine has.',
        ) from error
    return device


def _load(files: ModelFiles, dtype: Any) -> Any:
    transformers = require("transformers", "transformers")
    # From the folder: by a name, the hub would be asked for files that the model does not have.
    with _no_bar_in_logs(transformers.utils.logging):
        return transformers.AutoModel.from_pretrained(files.local(), dtype=dtype).eval()


@contextmanager
def _no_bar_in_logs(bars: Any) -> Iterator[None]:
    """Keep transformers from drawing a progress bar where there is no terminal."""
    hide = bars.is_progress_bar_enabled() and not sys.stderr.isatty()
    if hide:
        bars.disable_progress_bar()
    try:
        yield
    finally:
        if hide:
            bars.enable_progress_bar()


def _head(torch: Any, files: ModelFiles, name: str) -> Any:
    path = files.find(name)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        rows, columns = state["weight"].shape
        head = torch.nn.Linear(columns, rows)
        head.load_state_dict(state)
    except Exception as error:
        raise files.unreadable(f"{name}: {error}") from error
    return head.eval()
