"""One arm of the comparison in a process of its own, and how the parent hears from it."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import cycle
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ragopt.demo import measure
from ragopt.demo.answerer import answerer
from ragopt.demo.arms import Caches, Kit
from ragopt.demo.passages import Passage
from ragopt.demo.questions import Questions
from ragopt.demo.settings import MOST_ASKERS, Settings
from ragopt.embedders.transformers import TransformersEmbedder, TruncationWarning
from ragopt.errors import RagoptError

Framework: TypeAlias = Literal["LangChain", "LlamaIndex"]
Tell: TypeAlias = Callable[[str, Any], None]

FRAMEWORKS: tuple[Framework, ...] = ("LangChain", "LlamaIndex")

_MODULES = {
    "LangChain": "ragopt.demo.langchain_arms",
    "LlamaIndex": "ragopt.demo.llama_index_arms",
}
_ENVIRONMENT = {
    # Threads that spin while they wait starve each other as soon as anything else runs here: a
    # question then takes PyTorch 20 times as long.
    "OMP_WAIT_POLICY": "passive",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "LANGSMITH_TRACING": "false",
    "LANGCHAIN_TRACING_V2": "false",
}
_TRUNCATED = "Some passages are longer than the model's 256 tokens: it reads their beginning."
_PATIENCE = 5.0  # seconds for a child to end before it is killed


@dataclass(frozen=True, slots=True)
class Job:
    """What one arm has to do.

    Args:
        framework: Whose chain it is.
        ragopt: With ragopt, or the framework alone.
        settings: The options of the run.
        passages: What to index.
        questions: What to ask.
        folder: Where the cache file is.
        namespace: Of the entries in the caches.
        table: Name of a table, where PostgreSQL is used.
    """

    framework: Framework
    ragopt: bool
    settings: Settings
    passages: list[Passage]
    questions: Questions
    folder: Path
    namespace: str
    table: str

    @property
    def name(self) -> str:
        """Name of the arm, for people."""
        return f"{self.framework} {'with ragopt' if self.ragopt else 'alone'}"


def run(job: Job, hear: Tell) -> measure.Measured:
    """Run an arm in a new process and return what was measured.

    Args:
        job: What to do.
        hear: Told every event: a step with its size, an advance, a note.

    Raises:
        RagoptError: The arm failed; the sentence says why.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(job, sender), daemon=True)
    try:
        with _interrupts_held():
            process.start()
        sender.close()
        while True:
            try:
                kind, value = receiver.recv()
            except EOFError:
                process.join(_PATIENCE)
                raise _died(job, process.exitcode) from None
            if kind == "done":
                result: measure.Measured = value
                return result
            if kind == "failed":
                raise RagoptError(value[0], fix=value[1])
            if kind == "crashed":
                raise RagoptError(
                    f"{job.name} failed unexpectedly:\n{value}",
                    fix="This is a fault of the demo or of a package it uses; please report it.",
                )
            hear(kind, value)
    finally:
        _end(process)
        receiver.close()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Start a child that never sees Ctrl-C: its parent ends it, in order and without a traceback.

    The mask is inherited; an interrupt that comes meanwhile reaches the parent afterwards.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(process: BaseProcess) -> None:
    if process.pid is None:
        return  # it never started
    if process.is_alive():
        process.terminate()
        process.join(_PATIENCE)
    if process.is_alive():
        process.kill()
    process.join()


def _died(job: Job, code: int | None) -> RagoptError:
    how = f"signal {-code}" if code is not None and code < 0 else f"exit status {code}"
    return RagoptError(
        f"The process of {job.name} ended before it was done ({how}).",
        fix="If memory ran out, index less with --passages.",
    )


# -- in the child -----------------------------------------------------------------------------


class _Notes(logging.Handler):
    """Sends what ragopt logs to the parent."""

    def __init__(self, sender: Connection) -> None:
        super().__init__(logging.WARNING)
        self._sender = sender

    def emit(self, record: logging.LogRecord) -> None:
        self._sender.send(("note", record.getMessage()))


def _work(job: Job, sender: Connection) -> None:
    try:
        os.environ.update(_ENVIRONMENT)
        logging.getLogger("ragopt").addHandler(_Notes(sender))

        def tell(kind: str, value: Any) -> None:
            sender.send((kind, value))

        def warn(*_: Any, **__: Any) -> None:
            tell("note", _TRUNCATED)

        warnings.simplefilter("ignore")
        warnings.simplefilter("always", TruncationWarning)
        warnings.showwarning = warn
        tell("done", _measure(job, tell))
    except RagoptError as error:
        sender.send(("failed", (error.problem, error.fix)))
    except (BrokenPipeError, KeyboardInterrupt):
        pass  # the parent has gone or is going
    except BaseException:  # noqa: BLE001 - the parent shows it
        sender.send(("crashed", traceback.format_exc()))
    finally:
        sender.close()


def _measure(job: Job, tell: Tell) -> measure.Measured:
    tell("step", ("loading the model", 1))
    module = import_module(_MODULES[job.framework])
    kit = Kit(
        TransformersEmbedder.minilm(),
        answerer(job.settings.llm),
        _layers(job) if job.ragopt else (),
        (job.settings.postgres, job.table) if job.settings.postgres else None,
    )
    watch = kit.stopwatch
    watch.over("answer", kit.answerer, "complete")
    if not job.ragopt:  # with ragopt it is the cached model that is measured
        watch.over("embed", kit.model, "embed")
    first = _arm(module, kit, f"{job.namespace}-first")
    measure.warm_up(first, kit.model, job.passages)
    _clear(first)
    before = measure.resident()
    result = measure.Measured()

    def advance(number: int) -> None:
        tell("advance", number)

    arm = _arm(module, kit, job.namespace)
    tell("step", ("indexing passages", len(job.passages)))
    result.build = measure.index(arm, job.passages, advance)
    if job.ragopt:
        result.reused = arm.caches.hits()["embeddings"][0]
        arm.caches.reset()
    tell("step", ("asking", len(job.questions.stream)))
    measure.stream(arm, watch, job.questions.stream, result, advance)
    if job.ragopt:
        result.hits = arm.caches.hits()
    result.memory = measure.resident() - before
    tell("step", ("asking twice", len(job.questions.repeated)))
    measure.repeat(arm, watch, job.questions.repeated, result, advance)
    _ask_at_once(job, arm, result, tell)
    few = job.passages[: measure.AGAIN]
    tell("step", ("indexing again", len(few)))
    result.again = measure.index(arm.anew(), few, advance)
    for layer in kit.layers:
        layer.close()
    return result


def _ask_at_once(job: Job, arm: Any, result: measure.Measured, tell: Tell) -> None:
    asked, asks = job.questions, len(job.questions.stream)
    used = []

    def fresh() -> Any:
        used.append(arm.fresh())
        return used[-1]

    def reached(askers: int) -> None:
        tell("reached", askers)

    tell("step", ("asking at once, caches empty", MOST_ASKERS))
    result.cold = measure.served(fresh, cycle(asked.stream), asks, reached)
    if job.ragopt:
        for each in used:
            _clear(each)
        tell("step", ("asking at once, caches as they are", MOST_ASKERS))
        result.warm = measure.served(lambda: arm, cycle(asked.later), asks, reached)


def _clear(arm: Any) -> None:
    """Remove the cache entries of an arm that was only tried out, from a cache that is kept."""
    if hasattr(arm, "caches"):
        arm.caches.clear()


def _arm(module: Any, kit: Kit, namespace: str) -> Any:
    return module.RagoptArm(kit, Caches(kit, namespace)) if kit.layers else module.PlainArm(kit)


def _layers(job: Job) -> tuple[Any, ...]:
    from ragopt import MemoryStore, RedisStore, SqliteStore

    layers: list[Any] = [MemoryStore(), SqliteStore(job.folder / "cache.db")]
    if job.settings.redis:
        layers.append(RedisStore(job.settings.redis))
    return tuple(layers)
