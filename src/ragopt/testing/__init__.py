"""Contract suites for backends: subclass one, say how to make yours, and pytest does the rest.

::

    class TestMyStore(KVStoreContract):
        def make_store(self, clock):
            return MyStore(clock=clock)

Every test runs in both colours, sync and async.
"""

from ragopt._imports import require

require("pytest", "testing")

from ragopt.testing.coordinator import CoordinatorContract  # noqa: E402
from ragopt.testing.embedder import EmbedderContract  # noqa: E402
from ragopt.testing.index import VectorIndexContract  # noqa: E402
from ragopt.testing.kv import FakeClock, KVStoreContract  # noqa: E402
from ragopt.testing.multi import MultiIndexContract  # noqa: E402
from ragopt.testing.sparse import SparseIndexContract  # noqa: E402
from ragopt.testing.text import TextIndexContract  # noqa: E402

__all__ = [
    "CoordinatorContract",
    "EmbedderContract",
    "FakeClock",
    "KVStoreContract",
    "MultiIndexContract",
    "SparseIndexContract",
    "TextIndexContract",
    "VectorIndexContract",
]
