"""Models that are loaded once and shared."""

import asyncio
import gc
import logging
import os
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import pytest

from ragopt._runtime import ASYNC
from ragopt.embedders.sharing import LoadedModel, Shared, SharedModels

MANY = 64


class Model:
    """What is loaded; it can be watched going away."""


class Load:
    """Loads a model when it is let go, and counts how often it ran."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls = 0
        self.error = error
        self.started = threading.Event()
        self.go = threading.Event()

    def __call__(self) -> Model:
        self.calls += 1
        self.started.set()
        assert self.go.wait(20)
        if self.error is not None:
            raise self.error
        model = Model()
        self.made = weakref.ref(model)
        return model


@pytest.fixture
def models() -> SharedModels:
    return SharedModels()


def waiting(models: SharedModels, key: str, number: int) -> None:
    """Wait until so many hold this key, beside the load itself."""
    until = time.monotonic() + 20
    while models._entries[key].users < number + 1:
        assert time.monotonic() < until
        time.sleep(0.001)


# -- one load --------------------------------------------------------------------------------


def test_many_threads_ask_first(models: SharedModels) -> None:
    load = Load()
    with ThreadPoolExecutor(MANY) as pool:
        asked = [pool.submit(models.acquire, "k", load) for _ in range(MANY)]
        waiting(models, "k", MANY)
        assert models.loaded() == []
        load.go.set()
        held = [each.result(20) for each in asked]
    assert load.calls == 1
    assert len({id(each.value) for each in held}) == 1
    assert models.acquire("k", load).value is held[0].value
    assert load.calls == 1


async def test_many_tasks_ask_first_and_need_no_thread_of_the_pool(models: SharedModels) -> None:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))
    calls = []

    def load() -> Model:
        calls.append(1)
        asyncio.run_coroutine_threadsafe(asyncio.to_thread(time.sleep, 0.01), loop).result(10)
        return Model()

    held = await asyncio.gather(*(models.acquire_in(ASYNC, "k", load) for _ in range(MANY)))
    assert len(calls) == 1
    assert len({id(each.value) for each in held}) == 1


async def test_control_threads_of_the_pool_that_wait_are_missing(models: SharedModels) -> None:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))

    def load() -> Model:
        asyncio.run_coroutine_threadsafe(asyncio.to_thread(time.sleep, 0.01), loop).result(0.3)
        return Model()

    with pytest.raises(TimeoutError):
        await asyncio.to_thread(models.acquire, "k", load)


async def test_threads_and_tasks_share_a_load(models: SharedModels) -> None:
    load = Load()
    with ThreadPoolExecutor(8) as pool:
        threads = [pool.submit(models.acquire, "k", load) for _ in range(8)]
        tasks = [asyncio.create_task(models.acquire_in(ASYNC, "k", load)) for _ in range(8)]
        while models._entries["k"].users < 17:
            await asyncio.sleep(0.001)
        load.go.set()
        values = {id((await each).value) for each in tasks}
    values |= {id(each.result(20).value) for each in threads}
    assert (len(values), load.calls) == (1, 1)


def test_other_keys_load_at_the_same_time(models: SharedModels) -> None:
    both = threading.Barrier(2, timeout=20)
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(models.acquire, key, both.wait) for key in ("a", "b")]
        assert sorted(each.result(20).value for each in asked) == [0, 1]


def test_a_load_may_ask_for_another_model_but_not_for_its_own(models: SharedModels) -> None:
    inner: list[Shared[Model]] = []

    def outer() -> Model:
        inner.append(models.acquire("inner", Model))
        return Model()

    held = models.acquire("outer", outer)
    assert held.value is not inner[0].value

    def first() -> object:
        return models.acquire("second", second).value

    def second() -> object:
        return models.acquire("first", first).value

    with pytest.raises(RuntimeError, match="'first' is asked for while it is loaded"):
        models.acquire("first", first)


def test_a_load_sees_the_context_of_who_asked(models: SharedModels) -> None:
    tenant: ContextVar[str] = ContextVar("tenant")
    tenant.set("acme")
    assert models.acquire("k", tenant.get).value == "acme"


# -- errors ----------------------------------------------------------------------------------


def test_an_error_reaches_all_and_the_next_tries_again(models: SharedModels) -> None:
    load = Load(OSError("no such file"))
    with ThreadPoolExecutor(MANY) as pool:
        asked = [pool.submit(models.acquire, "k", load) for _ in range(MANY)]
        waiting(models, "k", MANY)
        load.go.set()
        errors = [each.exception(20) for each in asked]
    assert load.calls == 1
    assert all(error is load.error for error in errors)
    assert len(traceback.extract_tb(load.error.__traceback__)) < 20  # type: ignore[union-attr]
    assert models.loaded() == []
    load.error = None
    assert isinstance(models.acquire("k", load).value, Model)
    assert load.calls == 2


async def test_who_tries_again_at_once_does_not_meet_the_old_error(models: SharedModels) -> None:
    load = Load(OSError("no such file"))

    async def twice() -> Shared[Model]:
        with pytest.raises(OSError, match="no such file"):
            await models.acquire_in(ASYNC, "k", load)
        return await models.acquire_in(ASYNC, "k", Model)

    asked = [asyncio.create_task(twice()) for _ in range(8)]
    await asyncio.to_thread(load.started.wait, 20)
    load.go.set()
    held = await asyncio.gather(*asked)
    assert (load.calls, len({id(each.value) for each in held})) == (1, 1)


def test_the_traceback_shows_where_the_load_failed(models: SharedModels) -> None:
    def fails() -> None:
        raise LookupError("here")

    with pytest.raises(LookupError) as raised:
        models.acquire("k", fails)
    names = [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]
    assert names[-1] == "fails"


def test_a_failed_load_leaves_no_half_model_in_memory(models: SharedModels) -> None:
    halves = []

    def fails() -> None:
        half = Model()
        halves.append(weakref.ref(half))
        try:
            raise MemoryError
        except MemoryError as error:
            raise OSError("out of memory") from error

    with pytest.raises(OSError, match="out of memory") as raised:
        models.acquire("k", fails)
    assert raised.value.__cause__ is not None
    assert halves[0]() is None


def test_a_thread_that_cannot_be_started(
    models: SharedModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            models.acquire("k", Model)
    assert isinstance(models.acquire("k", Model).value, Model)


def test_the_load_is_no_user_any_more_for_those_who_waited(models: SharedModels) -> None:
    load = Load()
    users: Future[list[int]] = Future()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(models.acquire, "k", load)
        waiting(models, "k", 1)
        ended = models._entries["k"].ended
        ended.add_done_callback(
            lambda _: users.set_result([each.users for each in models.loaded()])
        )
        load.go.set()
        held = asked.result(20)
    assert users.result(20) == [1]
    held.release()


# -- cancelled -------------------------------------------------------------------------------


async def test_a_leader_that_is_cancelled_disturbs_nobody(models: SharedModels) -> None:
    load = Load()
    leader = asyncio.create_task(models.acquire_in(ASYNC, "k", load))
    await asyncio.to_thread(load.started.wait, 20)
    other = asyncio.create_task(models.acquire_in(ASYNC, "k", load))
    await asyncio.sleep(0)
    leader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leader
    load.go.set()
    assert isinstance((await other).value, Model)
    assert load.calls == 1
    assert [each.users for each in models.loaded()] == [1]


async def test_what_nobody_waits_for_any_more_is_dropped(models: SharedModels) -> None:
    load, unloaded, there = Load(), threading.Event(), []

    def unload() -> None:
        there.append(load.made() is not None)
        unloaded.set()

    asked = asyncio.create_task(models.acquire_in(ASYNC, "k", load, unload=unload))
    await asyncio.to_thread(load.started.wait, 20)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert not unloaded.is_set()
    load.go.set()
    assert await asyncio.to_thread(unloaded.wait, 20)
    assert there == [False]
    assert models.loaded() == []


# -- letting go ------------------------------------------------------------------------------


def test_the_last_release_drops_the_model_and_then_unloads(models: SharedModels) -> None:
    there: list[bool] = []
    first = models.acquire("k", Model, unload=lambda: there.append(watched() is not None))
    watched = weakref.ref(first.value)
    second = models.acquire("k", Model)
    first.release()
    first.release()
    assert [each.users for each in models.loaded()] == [1]
    assert second.value is watched()
    with pytest.raises(RuntimeError, match=r"released. Acquire it again"):
        _ = first.value
    assert there == []
    second.release()
    assert there == [False]
    assert watched() is None
    assert models.loaded() == []
    assert models.acquire("k", Model).value is not None


def test_a_hold_that_is_forgotten_is_released(models: SharedModels) -> None:
    held = models.acquire("k", Model)
    watched = weakref.ref(held.value)
    cycle: list[Any] = [held]
    cycle.append(cycle)
    del held, cycle
    gc.collect()
    assert watched() is None
    assert models.loaded() == []


@pytest.mark.timeout(30)
def test_garbage_collected_while_the_lock_is_held(models: SharedModels) -> None:
    held = models.acquire("k", Model)
    with models._lock:
        del held  # in this very thread
    other = models.acquire("other", Model)
    assert models.loaded() == [LoadedModel("other", 1, models.loaded()[0].seconds)]
    with models._lock, ThreadPoolExecutor(1) as pool:
        pool.submit(other.release).result(10)  # in another one
    assert models.loaded() == []


@pytest.mark.timeout(60)
def test_garbage_collected_anywhere(models: SharedModels) -> None:
    """Cycles are collected within the locked parts too, since those allocate."""

    def use(number: int) -> None:
        for turn in range(300):
            held = models.acquire((number + turn) % 3, Model)
            assert isinstance(held.value, Model)
            cycle: list[Any] = [held]
            cycle.append(cycle)
            if turn % 2:
                held.release()

    before = gc.get_threshold()
    gc.set_threshold(10, 2, 2)
    try:
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(use, number) for number in range(4)]:
                done.result(50)
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert models.loaded() == []
    assert models._entries == {}


def test_an_unload_that_fails_is_logged(
    models: SharedModels, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> None:
        raise RuntimeError("no such device")

    with caplog.at_level(logging.WARNING):
        models.acquire("k", Model, unload=fails).release()
    assert "After dropping the model 'k', its unload failed." in caplog.text
    assert "no such device" in caplog.text


def test_unload_and_clear_forget_but_take_nothing_away(models: SharedModels) -> None:
    old = models.acquire("k", Model)
    assert models.unload("k")
    assert not models.unload("k")
    new = models.acquire("k", Model)
    assert old.value is not new.value
    old.release()
    assert [each.users for each in models.loaded()] == [1]
    another = models.acquire("another", Model)
    assert models.clear() == 2
    assert models.loaded() == []
    assert isinstance(new.value, Model)
    assert isinstance(another.value, Model)


def test_what_is_loaded(models: SharedModels) -> None:
    def slow() -> Model:
        time.sleep(0.02)
        return Model()

    held = [models.acquire(key, slow) for key in ("a", "b", "a")]
    loaded = models.loaded()
    assert [(each.key, each.users) for each in loaded] == [("a", 2), ("b", 1)]
    assert all(0.02 <= each.seconds < 10 for each in loaded)
    assert len(held) == 3


# -- fork ------------------------------------------------------------------------------------


def in_child(check: Callable[[], bool]) -> int:
    """Return how a forked process ended in which ``check`` ran."""
    pid = os.fork()
    if pid == 0:
        code = 2
        try:
            code = 0 if check() else 1
        finally:
            os._exit(code)
    until = time.monotonic() + 20
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    raise AssertionError("the child hangs")


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


@forks
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_has_what_its_parent_had_loaded(models: SharedModels) -> None:
    load = Load()
    load.go.set()
    held = models.acquire("k", load)

    def check() -> bool:
        mine = models.acquire("k", load)
        same = mine.value is held.value and load.calls == 1
        mine.release()
        held.release()
        return same and models.loaded() == []

    assert in_child(check) == 0
    assert [each.users for each in models.loaded()] == [1]


@forks
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_loads_what_its_parent_was_loading(models: SharedModels) -> None:
    load = Load()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(models.acquire, "k", load)
        assert load.started.wait(20)

        def check() -> bool:
            load.go.set()
            return isinstance(models.acquire("k", load).value, Model) and load.calls == 2

        assert in_child(check) == 0
        load.go.set()
        assert isinstance(asked.result(20).value, Model)
    assert load.calls == 1


@forks
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_of_a_busy_parent_does_not_hang(models: SharedModels) -> None:
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            models.acquire("busy", Model).release()
            assert held.value is not None

    held = models.acquire("k", Model)
    with ThreadPoolExecutor(2) as pool:
        working = [pool.submit(busy) for _ in range(2)]
        try:
            for _ in range(10):
                assert in_child(lambda: models.acquire("k", Model).value is held.value) == 0
        finally:
            stop.set()
        for each in working:
            each.result(20)
