"""BGE-M3 as its authors run it: the reference that other engines are compared with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from ragopt._imports import require
from ragopt.embedders._heads import HEADS, sparse_vectors, special_ids
from ragopt.embedders._torch import free_memory, stay_alone_after_fork
from ragopt.embedders.engines import Tokens
from ragopt.types import EmbeddingBatch, Output


class FlagEngine:
    """Runs BGE-M3 with the module of the FlagEmbedding package, padded to the longest text.

    The package's own ``encode`` is not used: it computes the longest batch twice, and turns every
    error of PyTorch into another one. What it computes is the same.

    No lock is needed: a forward pass changes nothing.

    Args:
        folder: The model's files.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        dtype: Of the weights, on every device. The package's own ``encode`` would compute in
            float32 on a CPU, with weights that were rounded before.
        normalize: Scale dense vectors, and each row of a multi-vector, to length 1.

    Raises:
        MissingDependency: FlagEmbedding is not installed.
        Exception: Whatever the package raises for files that it cannot read.
    """

    def __init__(
        self,
        folder: str,
        *,
        device: str = "cpu",
        dtype: Literal["float32", "float16", "bfloat16"] = "float32",
        normalize: bool = True,
    ) -> None:
        package = require("FlagEmbedding", "flag-embedding")
        self._torch = require("torch", "transformers")
        # For heads that are not both there the package makes random ones, and says nothing.
        heads = {
            output: self._torch.load(path, map_location="cpu", weights_only=True)
            for output, name in HEADS.items()
            if (path := Path(folder) / name).is_file()
        }
        # Kept whole: when it is collected, it moves its module to the CPU.
        self._reference = package.BGEM3FlagModel(
            folder,
            normalize_embeddings=normalize,
            use_fp16=dtype == "float16",
            use_bf16=dtype == "bfloat16",
            devices=device,
            colbert_dim=heads["multi"]["weight"].shape[0] if "multi" in heads else -1,
        )
        self._pid = os.getpid()
        module = self._reference.model
        for output, file in HEADS.items():
            name = file.removesuffix(".pt")
            if output in heads:
                getattr(module, name).load_state_dict(heads[output])
            else:
                setattr(module, name, None)
        self._module = module.to(device, getattr(self._torch, dtype)).eval()
        self._outputs: frozenset[Output] = frozenset({"dense", *heads})
        self._special = special_ids(self._reference.tokenizer)

    @property
    def device(self) -> str:
        """Where it runs."""
        return str(self._module.model.device)

    @property
    def dimension(self) -> int:
        """Length of a dense vector."""
        return int(self._module.config.hidden_size)

    @property
    def outputs(self) -> frozenset[Output]:
        """Dense, and the outputs whose heads are among the files."""
        return self._outputs

    def encode(self, texts: Sequence[Tokens], outputs: frozenset[Output], /) -> EmbeddingBatch:
        """Embed texts in one forward pass; see ``Engine.encode``."""
        self._pid = stay_alone_after_fork(self._torch, self._pid)
        padded = self._reference.tokenizer.pad(
            {"input_ids": [list(text.ids) for text in texts]}, padding=True, return_tensors="pt"
        )
        with self._torch.inference_mode():
            made = self._module(
                padded.to(self.device),
                return_dense="dense" in outputs,
                return_sparse="sparse" in outputs,
                return_colbert_vecs="multi" in outputs,
            )
        # NumPy has no bfloat16.
        arrays = {name: tensor.float().cpu().numpy() for name, tensor in made.items()}
        dense, weights, rows = map(arrays.get, ("dense_vecs", "sparse_vecs", "colbert_vecs"))
        ids = [text.ids for text in texts]
        sparse = multi = None
        if weights is not None:
            own = [row[: len(each)] for row, each in zip(weights[:, :, 0], ids, strict=True)]
            sparse = sparse_vectors(ids, np.concatenate(own), self._special)
        if rows is not None:
            # Copies, so that who keeps one vector does not keep the whole batch.
            multi = [row[: len(each) - 1].copy() for row, each in zip(rows, ids, strict=True)]
        return EmbeddingBatch(dense, sparse, multi)

    def free(self) -> None:
        """Give the memory that PyTorch keeps for later back to the device."""
        free_memory(self._torch, self.device)
