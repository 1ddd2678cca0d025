"""Models of the transformers package, run on PyTorch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

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
from ragopt.embedders._packed import PackedEncoder, can_pack
from ragopt.embedders.engines import Tokens
from ragopt.errors import InvalidInput
from ragopt.types import EmbeddingBatch, Output

Pooling: TypeAlias = Literal["mean", "cls", "last"]
Precision: TypeAlias = Literal["float32", "float16", "bfloat16"]


class TorchModel:
    """A model's weights in memory, with its sparse and multi-vector heads where it has them.

    Args:
        files: Where the weights are.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        precision: Of the weights and of the computation.

    Raises:
        StorageError: The files cannot be read.
        InvalidInput: PyTorch knows no such device, or it is not there.
    """

    def __init__(self, files: ModelFiles, *, device: str, precision: Precision) -> None:
        torch = self.torch = require("torch", "transformers")
        transformers = require("transformers", "transformers")
        self.device = check_device(torch, device)
        self.tokenizer = files.tokenizer()
        dtype = getattr(torch, precision)
        try:
            model = transformers.AutoModel.from_pretrained(
                files.model, revision=files.revision, dtype=dtype
            )
            self.heads = {
                output: _head(torch, files, name).to(device=self.device, dtype=dtype)
                for output, name in HEADS.items()
                if files.find(name) is not None
            }
        except (OSError, ValueError) as error:
            raise files.unreadable(error) from error
        self.model = model.eval().to(self.device)
        self.dimension = int(model.config.hidden_size)
        self._pid = os.getpid()
        self._packed = PackedEncoder(self.model) if can_pack(model.config) else None

    def states(self, ids: Sequence[Sequence[int]]) -> Any:
        """Return the last hidden states of all tokens, shape ``(tokens, hidden)``."""
        self._pid = stay_alone_after_fork(self.torch, self._pid)
        if self._packed is not None:
            return self._packed(ids)
        padded = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(self.device)
        states = self.model(**padded).last_hidden_state
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
        """Give back memory that PyTorch keeps for its next call."""
        free_memory(self._torch, self.device)

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
