import functools

from tests.models import UseMultilingual

from ragopt import CachedEmbedder, HashingEmbedder, TransformersEmbedder
from ragopt.testing import EmbedderContract


class TestHashing(EmbedderContract):
    def make_embedder(self) -> HashingEmbedder:
        return HashingEmbedder(64)


class TestCachedHashing(EmbedderContract):
    def make_embedder(self) -> CachedEmbedder:
        return CachedEmbedder(HashingEmbedder(64), batch_size=3)


@functools.cache
def minilm() -> TransformersEmbedder:
    return TransformersEmbedder.minilm(batch_size=4)


class TestMiniLM(EmbedderContract):
    def make_embedder(self) -> TransformersEmbedder:
        return minilm()


class TestCachedMiniLM(EmbedderContract):
    def make_embedder(self) -> CachedEmbedder:
        return CachedEmbedder(minilm())


@functools.cache
def multilingual() -> UseMultilingual:
    return UseMultilingual()


class TestUseMultilingual(EmbedderContract):
    def make_embedder(self) -> UseMultilingual:
        return multilingual()
