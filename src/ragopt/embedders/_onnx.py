"""Encoders of the BERT family on ONNX Runtime, which is faster than PyTorch on a CPU."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from itertools import groupby
from threading import Lock
from typing import Any
from weakref import WeakSet

import numpy as np

from ragopt._forks import fork_safe
from ragopt._imports import require
from ragopt.embedders._onnx_graph import layers_graph
from ragopt.embedders._packed import PackedEmbeddings, can_pack
from ragopt.errors import InvalidInput

_sessions: WeakSet[Any] = WeakSet()
_NO_MEMORY = ("failed to allocate memory", "bad allocation", "bad_alloc")


def check_runs(model: str, config: Any) -> None:
    """Raise InvalidInput if ``OnnxEncoder`` cannot run models of this configuration."""
    activation = getattr(config, "hidden_act", None)
    if can_pack(config) and activation == "gelu":
        return
    raise InvalidInput(
        f"The engine 'onnx' runs encoders like BERT with gelu, and {model} is a "
        f"{config.model_type!r} model with {activation!r}.",
        fix="Use engine='torch'.",
    )


class OnnxEncoder:
    """Runs a transformers model's layers on ONNX Runtime, in float32 or in int8, without padding.

    The graph is made of the model's weights in memory: there is no exported file to keep, and none
    that could be of another model.

    Args:
        model: A model that ``check_runs`` lets pass. Its layers are taken over.
        again: Loads the model once more, for a forked process, in which the threads of ONNX Runtime
            are missing.
        int8: Compute the linear layers in int8.
    """

    def __init__(self, model: Any, again: Callable[[], Any], *, int8: bool) -> None:
        self._torch = require("torch", "transformers")
        self._runtime = require("onnxruntime", "onnx")
        self._again = again
        self._int8 = int8
        self._hidden = int(model.config.hidden_size)
        self._embeddings = PackedEmbeddings(model)
        self._lock = fork_safe(Lock())
        self._session = self._open(model)
        self._pid = os.getpid()

    def __call__(self, ids: Sequence[Sequence[int]]) -> Any:
        """Return the last hidden states of all tokens; see ``PackedEncoder``."""
        session = self._of_this_process()
        states = self._embeddings(ids).numpy()
        return self._torch.from_numpy(self._run(session, states, [len(each) for each in ids]))

    def free(self) -> None:
        """Give back the memory that is kept for later runs."""
        options = self._runtime.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._run(self._of_this_process(), np.zeros((1, self._hidden), np.float32), [1], options)

    def _run(self, session: Any, states: Any, lengths: Sequence[int], options: Any = None) -> Any:
        runs = [(len(list(group)), length) for length, group in groupby(lengths)]
        ends = np.cumsum([many * length for many, length in runs])
        inputs = {
            "states": states,
            "begins": np.array([0, *ends[:-1]])[:, None],
            "ends": ends[:, None],
            "shapes": np.array([(many, length, self._hidden) for many, length in runs]),
        }
        try:
            return session.run(None, inputs, options)[0]
        except Exception as error:
            if any(saying in str(error).lower() for saying in _NO_MEMORY):
                raise MemoryError(str(error)) from error
            raise

    def _of_this_process(self) -> Any:
        if self._pid != os.getpid():
            with self._lock:
                if self._pid != os.getpid():
                    self._session, self._pid = self._open(self._again()), os.getpid()
        return self._session

    def _open(self, model: Any) -> Any:
        layers, model.encoder = model.encoder.layer, None
        graph = layers_graph(layers, heads=int(model.config.num_attention_heads), int8=self._int8)
        runtime = self._runtime
        options = runtime.SessionOptions()
        options.intra_op_num_threads = self._torch.get_num_threads()
        # Threads that spin between the parts of a run save a tenth of its time. They must not go on
        # after it, or they take the CPU from everything else in the process.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 4  # what the exception says need not be printed as well
        make = runtime.OrtValue.ortvalue_from_numpy
        options.add_external_initializers(
            list(graph.weights), [make(each) for each in graph.weights.values()]
        )
        providers = ["CPUExecutionProvider"]
        session = runtime.InferenceSession(graph.content, options, providers=providers)
        _sessions.add(session)
        return session


def _in_forked_child() -> None:
    """Keep what waits for the runtime's threads, which stay in the parent, from being dropped.

    That is each session, and at the exit what all of them share: it is left out by an exit that
    comes before. Python has ended by then, so nothing of it is lost.
    """
    for session in _sessions:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
    libc = ctypes.CDLL(None)
    if _sessions and hasattr(libc, "on_exit"):
        libc.on_exit(libc._exit, None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)
