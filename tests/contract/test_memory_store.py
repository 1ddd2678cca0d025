from ragopt import MemoryStore
from ragopt.testing import CoordinatorContract, FakeClock


class TestMemoryStore(CoordinatorContract):
    def make_store(self, clock: FakeClock) -> MemoryStore:
        return MemoryStore(clock=clock)
