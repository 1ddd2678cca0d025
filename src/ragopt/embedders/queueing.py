"""Who waits for which texts: the queue of a ``BatchingEmbedder``, without threads or I/O."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Collection, Iterable
from concurrent.futures import Future
from itertools import islice
from threading import Condition, Lock, Thread
from time import monotonic

from ragopt.types import Embedding, EmbeddingBatch, Output, Role, SparseVector


class Text:
    """A text that is to be computed once, and everybody who waits for it."""

    __slots__ = ("calls", "due", "found", "text")

    def __init__(self, text: str, due: float) -> None:
        self.text = text
        self.due = due
        self.calls: list[Call] = []
        self.found = Embedding()


class Lane:
    """The texts that may share a batch: those of one role and the same outputs."""

    __slots__ = ("computing", "outputs", "role", "waiting")

    def __init__(self, role: Role, outputs: frozenset[Output]) -> None:
        self.role: Role = role
        self.outputs = outputs
        self.waiting: dict[str, Text] = {}  # oldest first
        self.computing: dict[str, Text] = {}


class Call:
    """A caller, who waits until none of its texts is missing."""

    __slots__ = ("future", "in_line", "lane", "missing", "names", "texts")

    def __init__(self, lane: Lane, names: Collection[str]) -> None:
        self.lane = lane
        self.names = names
        self.texts: dict[str, Text] = {}  # once it has entered the queue
        self.in_line = False
        self.missing = len(names)
        self.future: Future[None] = Future()

    def result(self, names: Iterable[str]) -> EmbeddingBatch:
        # Copies: a view would keep a whole batch in memory, or be somebody else's as well.
        return EmbeddingBatch.of([_copy(self.texts[name].found) for name in names])


class Queue:
    """Who waits for what. Every method is called under the embedder's lock."""

    def __init__(self, lock: Lock, max_batch: int, max_queue: int) -> None:
        self.pid = os.getpid()
        self.wake = Condition(lock)
        self.worker: Thread | None = None
        self.size = 0  # texts that wait in all lanes
        self.line: deque[Call] = deque()  # callers who wait for room, first come, first served
        self._lanes: dict[tuple[Role, frozenset[Output]], Lane] = {}
        self._max_batch = max_batch
        self._max_size = max_queue

    @property
    def busy(self) -> bool:
        """Whether somebody computes a batch; one is computed at a time."""
        return any(lane.computing for lane in self._lanes.values())

    def lane(self, role: Role, outputs: frozenset[Output]) -> Lane:
        found = self._lanes.get((role, outputs))
        if found is None:
            found = self._lanes[role, outputs] = Lane(role, outputs)
        return found

    def must_wait(self, call: Call) -> bool:
        """Return whether a call must stand in line: there is no room for its new texts."""
        lane = call.lane
        new = sum(not (name in lane.waiting or name in lane.computing) for name in call.names)
        first = not self.line or self.line[0] is call
        return new > 0 and not (first and self.size + new <= self._max_size)

    def line_up(self, call: Call) -> None:
        call.in_line = True
        self.line.append(call)

    def enter(self, call: Call, due: float) -> None:
        """Let a call wait for its texts, with whoever waits for them already."""
        lane = call.lane
        for name in call.names:
            text = lane.computing.get(name) or lane.waiting.get(name)
            if text is None:
                text = lane.waiting[name] = Text(name, due)
                self.size += 1
            text.calls.append(call)
            call.texts[name] = text

    def ready(self, now: float) -> Lane | None:
        """Return the lane that has waited longest of those with a batch to compute now."""
        found, longest = None, float("inf")
        for lane in self._lanes.values():
            if lane.waiting:
                due = next(iter(lane.waiting.values())).due
                if due < longest and (due <= now or len(lane.waiting) >= self._max_batch):
                    found, longest = lane, due
        return found

    def next_due(self) -> float:
        lanes = (lane.waiting for lane in self._lanes.values() if lane.waiting)
        return min(next(iter(waiting.values())).due for waiting in lanes)

    def take(self, lane: Lane) -> list[Text]:
        """Begin to compute the oldest texts of a lane."""
        batch = list(islice(lane.waiting.values(), self._max_batch))
        for text in batch:
            lane.computing[text.text] = lane.waiting.pop(text.text)
        self.size -= len(batch)
        self._admit()
        return batch

    def withdraw(self, call: Call) -> None:
        """Forget a caller, and those of its texts that nobody else waits for."""
        if call.in_line:
            call.in_line = False
            self.line.remove(call)
        for text in call.texts.values():
            if call in text.calls:
                text.calls.remove(call)
                if not text.calls and call.lane.waiting.get(text.text) is text:
                    del call.lane.waiting[text.text]
                    self.size -= 1
        self._admit()

    def drop_unwanted(self, lane: Lane, texts: list[Text]) -> list[Text]:
        """Return the texts that somebody still waits for; forget the others."""
        for text in texts:
            if not text.calls:
                self._end(lane, text)
        return [text for text in texts if text.calls]

    def found(self, lane: Lane, texts: list[Text], batch: EmbeddingBatch) -> list[Call]:
        """Hand out vectors; return the callers who have all of theirs."""
        done = []
        for row, text in enumerate(texts):
            self._end(lane, text)
            text.found = batch[row]
            for call in text.calls:
                call.missing -= 1
                if not call.missing:
                    done.append(call)
            text.calls = []
        return done

    def failed(self, lane: Lane, texts: list[Text]) -> list[Call]:
        """Give texts up; return the callers who waited for them, and wait for nothing now."""
        calls = list(dict.fromkeys(call for text in texts for call in text.calls))
        for text in texts:
            self._end(lane, text)
        for call in calls:
            self.withdraw(call)
        return calls

    def put_back(self, lane: Lane, texts: list[Text]) -> None:
        """Let texts whose computation was broken off be the first of the next batch."""
        texts = [text for text in texts if self._end(lane, text)]
        left = {text.text: text for text in texts if text.calls}
        lane.waiting = {**left, **lane.waiting}
        self.size += len(left)

    @staticmethod
    def _end(lane: Lane, text: Text) -> bool:
        """Let a text be computed no longer; False if it was not."""
        if lane.computing.get(text.text) is not text:  # the same text may be asked for again
            return False
        del lane.computing[text.text]
        return True

    def _admit(self) -> None:
        while self.line and not self.must_wait(self.line[0]):
            call = self.line.popleft()
            call.in_line = False
            self.enter(call, due=monotonic())


def _copy(found: Embedding) -> Embedding:
    """Return arrays of the caller's own. Dense ones are copied as they are gathered."""
    sparse, multi = found.sparse, found.multi
    if sparse is not None:
        sparse = SparseVector(sparse.indices.copy(), sparse.values.copy())
    return Embedding(found.dense, sparse, None if multi is None else multi.copy())
