from ragopt import MemoryStore
from ragopt.testing import FakeClock, KVStoreContract


class TestMemoryStore(KVStoreContract):
    def make_store(self, clock: FakeClock) -> MemoryStore:
        return MemoryStore(clock=clock)
