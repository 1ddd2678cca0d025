"""What a Prometheus server reads of embedders, with the real client."""

import gc
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from ragopt import CachedEmbedder, EmbeddingBatch, HashingEmbedder, TransformersEmbedder
from ragopt._runtime import Runtime
from ragopt.embedders.base import BaseEmbedder
from ragopt.embedders.batching import BatchingEmbedder
from ragopt.embedders.health import EmbedderStats
from ragopt.errors import InvalidInput
from ragopt.metrics import Histogram
from ragopt.types import EmbedderSpec, Output, Role

TEXTS = ["How do I open a file?", "Bananas are yellow.", "a"]


def scraped(registry: CollectorRegistry, embedder: str = "minilm") -> dict[str, float]:
    """Return what a Prometheus server reads of an embedder: sample, further labels -> value."""
    return {
        " ".join([sample.name, *(v for k, v in sample.labels.items() if k != "embedder")]): (
            sample.value
        )
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
        if sample.labels["embedder"] == embedder
    }


def check_growth(registry: CollectorRegistry, work: Callable[[], Any], **growth: float) -> None:
    """Check by how much samples of ``ragopt_embedder_*`` grow, and that work is what does it."""
    before = scraped(registry)
    work()
    after = scraped(registry)
    for name, by in growth.items():
        full = f"ragopt_embedder_{name}"
        assert after[full] - before.get(full, 0.0) == by, full


# -- a real model ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> TransformersEmbedder:
    return TransformersEmbedder.minilm(device="cpu", batch_size=2, long_text="refuse")


def test_prometheus_reads_what_a_model_does(model: TransformersEmbedder) -> None:
    registry = CollectorRegistry()
    model.stats.register(registry, embedder="minilm")
    check_growth(
        registry,
        lambda: model.embed([*TEXTS, TEXTS[0]]),
        requests_total=1,
        successes_total=1,
        texts_total=4,
        computed_total=3,
        passes_total=2,
        out_of_memory_total=0,
        seconds_count=1,
    )
    said, known = scraped(registry), model.stats.snapshot()
    assert said["ragopt_embedder_tokens_total"] == known["tokens"] > 9
    assert said["ragopt_embedder_mean_batch_size"] == known["mean_batch_size"] == 1.5
    assert said["ragopt_embedder_tokens_per_second"] == known["tokens_per_second"] > 0
    assert said["ragopt_embedder_seconds_sum"] == pytest.approx(known["mean_seconds"])
    assert said["ragopt_embedder_seconds_bucket +Inf"] == 1


def test_prometheus_reads_failures_by_their_class(model: TransformersEmbedder) -> None:
    registry = CollectorRegistry()
    model.stats.register(registry, embedder="minilm")

    def fail() -> None:
        with pytest.raises(InvalidInput):
            model.embed(["long " * 1_000])

    check_growth(registry, fail, requests_total=1, successes_total=0, seconds_count=0)
    assert scraped(registry)["ragopt_embedder_failures_total InvalidInput"] == 1


def test_control_a_figure_that_does_not_move_is_seen(model: TransformersEmbedder) -> None:
    registry = CollectorRegistry()
    model.stats.register(registry, embedder="minilm")
    check_growth(registry, lambda: model.embed(["a"]), requests_total=1)
    with pytest.raises(AssertionError, match="requests_total"):
        check_growth(registry, lambda: None, requests_total=1)


def test_each_figure_is_that_of_its_own_event() -> None:
    stats, registry = EmbedderStats(), CollectorRegistry()
    stats.register(registry, embedder="minilm")
    check_growth(registry, stats.shrank, out_of_memory_total=1, requests_total=0)
    check_growth(registry, lambda: stats.passed(3, 40), computed_total=3, tokens_total=40)
    check_growth(registry, lambda: stats.succeeded(5, 0.5), texts_total=5, seconds_sum=0.5)
    assert scraped(registry)["ragopt_embedder_tokens_per_second"] == 80
    for error in (ValueError(), ValueError(), MemoryError()):
        stats.failed(error)
    said = scraped(registry)
    assert said["ragopt_embedder_failures_total ValueError"] == 2
    assert said["ragopt_embedder_failures_total MemoryError"] == 1
    assert said["ragopt_embedder_requests_total"] == 4
    assert said["ragopt_embedder_successes_total"] == 1


def test_what_is_scraped_is_of_one_moment() -> None:
    stats = EmbedderStats()
    stats.succeeded(1, 0.5)
    samples = stats._samples()
    stats.succeeded(1, 0.5)  # while the server reads
    latency = samples["ragopt_embedder_seconds"]
    assert isinstance(latency, Histogram)
    assert samples["ragopt_embedder_requests"] == latency.count == 1


# -- several embedders -------------------------------------------------------------------------


def test_embedders_stand_side_by_side_under_one_name() -> None:
    registry = CollectorRegistry()
    one, other = EmbedderStats(), EmbedderStats()
    one.register(registry, embedder="one")
    other.register(registry, embedder="other")
    one.shrank()
    assert scraped(registry, "one")["ragopt_embedder_out_of_memory_total"] == 1
    assert scraped(registry, "other")["ragopt_embedder_out_of_memory_total"] == 0
    text = generate_latest(registry).decode()
    assert text.count("# TYPE ragopt_embedder_out_of_memory_total counter") == 1


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize(("same", "name"), [(True, "a"), (True, "b"), (False, "a")])
def test_registering_twice_is_a_sentence(described: bool, same: bool, name: str) -> None:
    registry = CollectorRegistry(auto_describe=described)
    stats = EmbedderStats()
    stats.register(registry, embedder="a")
    other = stats if same else EmbedderStats()
    with pytest.raises(InvalidInput, match="has statistics of the embedder 'a' already"):
        other.register(registry, embedder=name)
    stats.shrank()
    assert scraped(registry, "a")["ragopt_embedder_out_of_memory_total"] == 1
    stats.unregister(registry)
    assert scraped(registry, "a") == {}
    other.register(registry, embedder=name)  # the control: now it goes
    assert "ragopt_embedder_requests_total" in scraped(registry, name)


def test_unregistering_what_is_not_there_changes_nothing() -> None:
    registry = CollectorRegistry()
    one, other = EmbedderStats(), EmbedderStats()
    one.unregister(registry)
    one.register(registry, embedder="one")
    other.unregister(registry)
    assert scraped(registry, "one")


def test_one_embedder_in_two_registries() -> None:
    stats = EmbedderStats()
    stats.shrank()
    for registry in (CollectorRegistry(), CollectorRegistry()):
        stats.register(registry, embedder="a")
        assert scraped(registry, "a")["ragopt_embedder_out_of_memory_total"] == 1


def test_the_global_registry() -> None:
    from prometheus_client import REGISTRY

    stats = EmbedderStats()
    stats.register(embedder="global")
    labels = {"embedder": "global"}
    assert REGISTRY.get_sample_value("ragopt_embedder_requests_total", labels) == 0
    stats.unregister()
    assert REGISTRY.get_sample_value("ragopt_embedder_requests_total", labels) is None


def test_a_registry_keeps_no_embedder_alive() -> None:
    registry = CollectorRegistry()
    first, second = BatchingEmbedder(HashingEmbedder(8)), BatchingEmbedder(HashingEmbedder(8))
    first.register(registry, embedder="a")
    assert scraped(registry, "a")
    del first
    gc.collect()
    assert scraped(registry, "a") == {}
    second.register(registry, embedder="a")  # the name is free again
    assert scraped(registry, "a")


def test_a_registry_that_was_emptied_by_hand() -> None:
    registry = CollectorRegistry()
    one, other = EmbedderStats(), EmbedderStats()
    one.register(registry, embedder="one")
    for collector in list(registry._collector_to_names):
        registry.unregister(collector)
    assert scraped(registry, "one") == {}
    other.register(registry, embedder="other")
    assert scraped(registry, "other")
    assert scraped(registry, "one") == {}
    one.register(registry, embedder="one")
    assert scraped(registry, "one")


def test_a_metric_of_somebody_else_with_this_name() -> None:
    registry = CollectorRegistry()
    Counter("ragopt_embedder_requests", "Not ours", ["embedder"], registry=registry)
    for _ in range(2):
        with pytest.raises(InvalidInput, match="ragopt_embedder_requests from elsewhere"):
            EmbedderStats().register(registry, embedder="a")


# -- batching ----------------------------------------------------------------------------------


class Gated(BaseEmbedder):
    """A model that computes nothing before it is let go."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

    @property
    def spec(self) -> EmbedderSpec:
        return HashingEmbedder(8).spec

    async def _embed(
        self, io: Runtime, texts: list[str], role: Role, outputs: frozenset[Output]
    ) -> EmbeddingBatch:
        self.begun.set()
        assert self.go.wait(30)
        return HashingEmbedder(8).embed(texts, role=role, outputs=outputs)


def test_prometheus_reads_the_queue_of_a_batching_embedder() -> None:
    model, registry = Gated(), CollectorRegistry()
    embedder = BatchingEmbedder(model, max_batch=4, max_queue=5)
    embedder.register(registry, embedder="minilm")
    with ThreadPoolExecutor(3) as pool:
        try:
            first = pool.submit(embedder.embed, ["a"])
            assert model.begun.wait(30)
            assert scraped(registry)["ragopt_batching_queue_length"] == 0
            second = pool.submit(embedder.embed, ["b", "c", "d"])
            while embedder.stats.queued < 3:
                assert not second.done()
                time.sleep(0.001)
            third = pool.submit(embedder.embed, ["e", "f", "g"])  # for whom there is no room
            while not embedder.stats.waits:
                assert not third.done()
                time.sleep(0.001)
            said = scraped(registry)
            assert said["ragopt_batching_queue_length"] == 3
            assert said["ragopt_batching_queue_limit"] == 5
            assert said["ragopt_batching_waits_total"] == 1
        finally:
            model.go.set()
        for future in (first, second, third):
            future.result(30)
    embedder.embed(list("hijkl"))
    said = scraped(registry)
    assert said["ragopt_batching_queue_length"] == 0
    assert said["ragopt_batching_calls_total"] == 3
    assert said["ragopt_batching_passed_total"] == 1
    assert said["ragopt_batching_texts_total"] == 7
    assert said["ragopt_batching_batches_total"] == embedder.stats.batches
    assert said["ragopt_batching_mean_batch_size"] == embedder.stats.mean_batch


def test_a_model_and_its_queue_share_a_registry_and_a_name(model: TransformersEmbedder) -> None:
    registry = CollectorRegistry()
    batching = BatchingEmbedder(model)
    batching.register(registry, embedder="minilm")
    model.stats.register(registry, embedder="minilm")
    said = scraped(registry)
    assert "ragopt_batching_calls_total" in said
    assert "ragopt_embedder_requests_total" in said


# -- the cache ---------------------------------------------------------------------------------


def test_the_hit_rate_of_a_cached_embedder_is_that_of_its_cache() -> None:
    registry = CollectorRegistry()
    embedder = CachedEmbedder(HashingEmbedder(8))
    embedder.cache.stats.register(registry)
    assert embedder.hit_rate == 0
    embedder.embed(["a", "b", "c"])
    embedder.embed(["a"])
    assert embedder.hit_rate == 0.25
    assert embedder.cache.stats.snapshot()["embedding"]["hit_rate"] == 0.25
    labels = {"part": "embedding", "event": "hit"}
    assert registry.get_sample_value("ragopt_cache_events_total", labels) == 1
