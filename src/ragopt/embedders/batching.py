"""Dynamic micro-batching: calls of many threads and tasks become few calls of an embedder."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from threading import Lock, Thread
from time import monotonic
from typing import ClassVar

from ragopt._forks import fork_safe
from ragopt._runtime import SYNC, Runtime
from ragopt.embedders.base import BaseEmbedder
from ragopt.embedders.exported import Exported, Family, Sample
from ragopt.embedders.queueing import Call, Lane, Queue, Text
from ragopt.errors import BackendUnavailable, InvalidInput, StorageError
from ragopt.protocols import Embedder
from ragopt.types import EmbedderSpec, EmbeddingBatch, Output, Role

_IDLE = 5.0  # seconds without work after which the worker thread ends
_LONG = 3600.0  # seconds; the longest wait there is, after which one looks again
# What has nothing to do with the texts: the model or its server is missing, or out of reach.
_UNAVAILABLE = (StorageError, ImportError, OSError)
_PROBES = 3  # callers that fail alone, while none succeeds, before all are taken to fail
_SEARCH, _SEARCH_RATIO = 5.0, 3.0  # seconds, or times the failed batch: how long to look for it


@dataclass(frozen=True, slots=True)
class BatchingStats:
    """What a ``BatchingEmbedder`` did so far.

    Args:
        calls: Calls with texts, without those that were passed through.
        passed: Calls with more texts than a batch, which were passed through.
        batches: Calls of the wrapped embedder for texts of ``calls``, those that failed included.
        texts: Texts in these batches. The same text of several callers counts once.
        waits: Calls that had to wait for room in the queue.
        queued: Texts that wait just now.
    """

    calls: int = 0
    passed: int = 0
    batches: int = 0
    texts: int = 0
    waits: int = 0
    queued: int = 0

    @property
    def mean_batch(self) -> float:
        """Texts in a batch on average; 0 before the first."""
        return self.texts / self.batches if self.batches else 0.0


class BatchingEmbedder(Exported, BaseEmbedder):
    """Gathers calls that come at the same time into one call of another embedder.

    While nothing is under way, a call is computed at once. What arrives meanwhile, from any
    thread and any event loop, forms the next batch (continuous batching). Only texts of the same
    role with the same outputs share a batch; a text that several ask for at the same time is
    computed once. Everybody gets arrays of their own.

    A sync call that finds nothing under way computes in its own thread. All else is computed in
    one thread of this embedder, which ends when it has had nothing to do for some seconds: so no
    event loop is blocked, and a cancelled task takes nothing with it but its own texts.

    Where a batch of several callers fails, their texts are tried again in parts, halved from
    step to step, so that only those whose own texts fail get an error: the one of the wrapped
    embedder, unchanged. An error that is no matter of the texts goes to all at once: a
    ``StorageError`` (``BackendUnavailable`` is one), an ``ImportError`` and an ``OSError``
    (``TimeoutError`` is one). So does any other, when three callers have failed alone and nobody
    has succeeded, or the search has taken three times as long as the batch, and 5 s at least.

    Args:
        embedder: The embedder that computes. Its ``embed`` is called from other threads.
        max_batch: Texts in one batch. A call with more texts is passed through on its own, at
            once, and takes no part in all this.
        max_wait: Seconds that a text waits for others while nothing is computed, when it came
            while something was. 0 to start with what there is.
        max_queue: Texts that wait. When there are as many, callers wait for room.
        timeout: Seconds that a caller waits for room; 0 to refuse at once. What is in the queue
            is computed, however long that takes.

    Raises:
        InvalidInput: An argument is out of range.
        BackendUnavailable: From a call: there was no room in the queue in time.

    References:
        The dynamic batcher of NVIDIA Triton (``max_queue_delay``, queue policies), and the queue
        of Hugging Face text-embeddings-inference.

    Examples:
        >>> embedder = BatchingEmbedder(TransformersEmbedder.minilm())
        >>> embedder.register(embedder="minilm")  # its statistics, to Prometheus
    """

    _families: ClassVar[tuple[Family, ...]] = (
        Family("ragopt_batching_calls", "Counter", "Calls, without those passed through"),
        Family("ragopt_batching_passed", "Counter", "Calls too large, which were passed through"),
        Family("ragopt_batching_batches", "Counter", "Calls of the embedder behind it"),
        Family("ragopt_batching_texts", "Counter", "Texts in these calls"),
        Family("ragopt_batching_waits", "Counter", "Calls that had to wait for room"),
        Family("ragopt_batching_mean_batch_size", "Gauge", "Texts in a batch on average"),
        Family("ragopt_batching_queue_length", "Gauge", "Texts that wait now"),
        Family("ragopt_batching_queue_limit", "Gauge", "Texts that may wait"),
    )

    def __init__(
        self,
        embedder: Embedder,
        *,
        max_batch: int = 64,
        max_wait: float = 0.003,
        max_queue: int = 1024,
        timeout: float = 60.0,
    ) -> None:
        times_fit = 0 <= max_wait <= _LONG and 0 <= timeout <= _LONG
        if max_batch < 1 or max_queue < max_batch or not times_fit:
            raise InvalidInput(
                f"max_batch={max_batch}, max_wait={max_wait}, max_queue={max_queue} and "
                f"timeout={timeout} were given.",
                fix="Give a max_batch of 1 or more, a max_queue not below it, and times of 0 to "
                f"{_LONG:.0f} s.",
            )
        self.embedder = embedder
        self.max_batch = max_batch
        self.max_wait = max_wait
        self.max_queue = max_queue
        self.timeout = timeout
        self._lock = fork_safe(Lock())
        self._queue = Queue(self._lock, max_batch, max_queue)
        self._calls = self._passed = self._batches = self._texts = self._waits = 0

    @property
    def spec(self) -> EmbedderSpec:
        """What the vectors depend on: what those of the wrapped embedder do."""
        return self.embedder.spec

    @property
    def stats(self) -> BatchingStats:
        """What it did so far."""
        with self._lock:
            queued = self._queue.size
            counts = (self._calls, self._passed, self._batches, self._texts, self._waits)
        return BatchingStats(*counts, queued)

    def _samples(self) -> dict[str, Sample]:
        stats = self.stats
        values = {
            "calls": stats.calls,
            "passed": stats.passed,
            "batches": stats.batches,
            "texts": stats.texts,
            "waits": stats.waits,
            "mean_batch_size": stats.mean_batch,
            "queue_length": stats.queued,
            "queue_limit": self.max_queue,
        }
        return {f"ragopt_batching_{name}": value for name, value in values.items()}

    async def _embed(
        self, io: Runtime, texts: list[str], role: Role, outputs: frozenset[Output]
    ) -> EmbeddingBatch:
        unique = dict.fromkeys(texts)
        if len(unique) > self.max_batch:
            with self._lock:
                self._passed += 1
            return await io.call(
                self.embedder.embed, self.embedder.aembed, texts, role=role, outputs=outputs
            )
        with self._lock:
            if self._queue.pid != os.getpid():  # the parent's callers and worker are not here
                self._queue = Queue(self._lock, self.max_batch, self.max_queue)
            queue = self._queue
            call = Call(queue.lane(role, outputs), unique)
        batch: list[Text] = []
        try:
            batch = self._join(queue, call, leads=io is SYNC)
            if batch:
                self._compute(queue, call.lane, batch)
                self._rouse(queue)
            await self._wait(io, queue, call)
        except BaseException:  # cancelled or interrupted too: this caller wants nothing any more
            with self._lock:
                queue.withdraw(call)
                queue.put_back(call.lane, batch)  # what others want of it
            self._rouse(queue)
            raise
        return call.result(texts)

    def _join(self, queue: Queue, call: Call, *, leads: bool) -> list[Text]:
        """Queue a call. Return what the caller has to compute, if it leads and all is quiet."""
        with self._lock:
            self._calls += 1
            busy = queue.busy
            quiet = not (busy or queue.size)
            if quiet and leads:
                queue.enter(call, 0.0)
                return queue.take(call.lane)
            if queue.must_wait(call):
                queue.line_up(call)
                self._waits += 1
                return []
            was_empty = not queue.size
            queue.enter(call, monotonic() + (0.0 if quiet else self.max_wait))
            news = not busy and (was_empty or len(call.lane.waiting) >= self.max_batch)
        if news or queue.worker is None:
            self._rouse(queue)
        return []

    async def _wait(self, io: Runtime, queue: Queue, call: Call) -> None:
        seconds = self.timeout if call.in_line else _LONG
        while not call.future.done():
            try:
                await io.wait(call.future, seconds)
            except TimeoutError:
                seconds = _LONG
                if call.in_line:
                    raise BackendUnavailable(
                        f"{self.spec.model} is overloaded: {queue.size} texts wait, and there "
                        f"was no room for {len(call.names)} more within {self.timeout} s.",
                        fix="Send fewer texts at a time, or give a larger max_queue or timeout.",
                    ) from None
        call.future.result()  # an error of the embedder may be a TimeoutError as well

    def _rouse(self, queue: Queue) -> None:
        """Let the worker look at the queue, if anything waits there."""
        with self._lock:
            if not queue.size:
                return
            if queue.worker is not None:
                queue.wake.notify()
                return
            worker = Thread(target=self._serve, args=(queue,), name="ragopt-batching", daemon=True)
            worker.start()
            queue.worker = worker

    def _serve(self, queue: Queue) -> None:
        while self._serve_one(queue):  # whose variables end with it: they hold a whole batch
            pass

    def _serve_one(self, queue: Queue) -> bool:
        with self._lock:
            lane = self._next(queue)
            if lane is None:
                queue.worker = None
                return False
            batch = queue.take(lane)
        try:
            self._compute(queue, lane, batch)
        except BaseException as error:  # noqa: BLE001 - theirs who wait; the thread goes on
            self._fail(queue, lane, batch, error)
        return True

    def _next(self, queue: Queue) -> Lane | None:
        """Wait for a lane with a batch to compute; None if there was nothing for some time."""
        while True:
            if not queue.size:
                if not queue.wake.wait(_IDLE) and not queue.size:
                    return None
            elif queue.busy:  # a leader, which rouses this thread when it is done
                queue.wake.wait()
            else:
                now = monotonic()
                lane = queue.ready(now)
                if lane is not None:
                    return lane
                queue.wake.wait(queue.next_due() - now)

    def _compute(self, queue: Queue, lane: Lane, batch: list[Text]) -> None:
        """Give everybody who waits for these texts their vectors, or their error."""
        start = monotonic()
        error = self._attempt(queue, lane, batch)
        if error is None:
            return
        if isinstance(error, _UNAVAILABLE) or _of_one_caller(batch):
            self._fail(queue, lane, batch, error)
            return
        now = monotonic()
        self._search(queue, lane, batch, error, now + max(_SEARCH, _SEARCH_RATIO * (now - start)))

    def _search(
        self, queue: Queue, lane: Lane, batch: list[Text], error: Exception, until: float
    ) -> None:
        """Find out for whose texts a batch failed; ``error`` is for those left in the end."""
        with self._lock:
            texts = queue.drop_unwanted(lane, batch)
            parts = [list(part) for _, part in groupby(texts, key=lambda text: text.calls[0])]
        if len(parts) == 1:  # the texts of one caller, which others asked for as well
            parts = [[text] for text in texts]
        # Three callers from different places come first: they tell whether anybody can succeed.
        places = {0, len(parts) // 2, len(parts) - 1}
        todo = deque([part] for place, part in enumerate(parts) if place in places)
        todo += _halves([part for place, part in enumerate(parts) if place not in places])
        failed, succeeded = 0, False
        while todo:
            group = todo.popleft()
            texts = list(chain.from_iterable(group))
            if (failed >= _PROBES and not succeeded) or monotonic() > until:
                self._fail(queue, lane, texts, error)
                continue
            failure = self._attempt(queue, lane, texts)
            if failure is None:
                succeeded = True
            elif isinstance(failure, _UNAVAILABLE):
                error, until = failure, 0.0
                self._fail(queue, lane, texts, error)
            elif len(group) > 1:
                todo.extendleft(reversed(_halves(group)))
            elif len(texts) == 1 or _of_one_caller(texts):
                failed += 1
                self._fail(queue, lane, texts, failure)
            else:
                todo.extendleft([[text]] for text in reversed(texts))

    def _attempt(self, queue: Queue, lane: Lane, texts: list[Text]) -> Exception | None:
        """Compute texts and hand out what was found; return the error if that failed."""
        with self._lock:
            texts = queue.drop_unwanted(lane, texts)
            if not texts:
                return None
            self._batches += 1
            self._texts += len(texts)
        names = [text.text for text in texts]
        try:
            batch = self.embedder.embed(names, role=lane.role, outputs=lane.outputs)
            _check(batch, names, lane.outputs, self.embedder)
        except Exception as error:  # noqa: BLE001 - the callers', once it is known whose
            return error
        with self._lock:
            done = queue.found(lane, texts, batch)
        for call in done:
            call.future.set_result(None)
        return None

    def _fail(self, queue: Queue, lane: Lane, texts: list[Text], error: BaseException) -> None:
        with self._lock:
            failed = queue.failed(lane, texts)
        for call in failed:
            call.future.set_exception(error)


def _of_one_caller(texts: list[Text]) -> bool:
    return len({call for text in texts for call in text.calls}) <= 1


def _halves(parts: list[list[Text]]) -> list[list[list[Text]]]:
    middle = (len(parts) + 1) // 2
    return [half for half in (parts[:middle], parts[middle:]) if half]


def _check(
    batch: EmbeddingBatch, texts: list[str], outputs: frozenset[Output], embedder: Embedder
) -> None:
    """Refuse a result whose rows cannot be told apart: they belong to different callers."""
    for output in outputs:
        part: Sequence[object] | None = getattr(batch, output)
        if part is None or len(part) != len(texts):
            raise InvalidInput(
                f"{embedder.spec.model} returned {0 if part is None else len(part)} {output} "
                f"vectors for {len(texts)} texts.",
                fix="Check the embedding model: it must return one vector for each text.",
            )
