"""The worker's Prometheus metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from hyperflexis_worker.engine import frames, kv_frames


class WorkerMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.tokens = Counter("hyperflexis_worker_output_tokens", "Output tokens made.", registry=registry)
        self.steps = Histogram(
            "hyperflexis_worker_step_seconds",
            "Duration of engine steps.",
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
            registry=registry,
        )
        self.waiting = Gauge("hyperflexis_worker_waiting", "Requests that wait on this worker.", registry=registry)
        self.running = Gauge("hyperflexis_worker_running", "Requests that run on this worker.", registry=registry)
        self.free_blocks = Gauge("hyperflexis_worker_kv_blocks_free", "Free KV blocks.", registry=registry)
        self.cached_blocks = Gauge(
            "hyperflexis_worker_kv_blocks_cached", "KV blocks that can be found by prefix.", registry=registry
        )
        self.prefix_hit_tokens = Counter(
            "hyperflexis_worker_prefix_hit_tokens",
            "Tokens of ended requests found in the prefix cache.",
            registry=registry,
        )
        self.step_time_error = Gauge(
            "hyperflexis_worker_step_time_error",
            "Mean absolute relative error of recent step-time predictions.",
            registry=registry,
        )
        self.held_blocks = Gauge(
            "hyperflexis_worker_kv_blocks_held",
            "KV blocks held for requests that come from, or go to, other workers.",
            ["held_as"],
            registry=registry,
        )
        self.moved_bytes = Counter(
            "hyperflexis_worker_kv_read_bytes",
            "Bytes of caches read from other workers.",
            ["transport"],
            registry=registry,
        )
        self.failed_reads = Counter(
            "hyperflexis_worker_kv_reads_failed", "Reads of caches that failed.", ["transport"], registry=registry
        )
        self.engine_restarts = Counter(
            "hyperflexis_worker_engine_restarts", "Lives of the engine lost.", registry=registry
        )

    def stepped(self, event: frames.Stepped) -> None:
        if event.duration_us:
            self.steps.observe(event.duration_us / 1e6)
            self.tokens.inc(len(event.tokens))
        self.waiting.set(event.load.waiting)
        self.running.set(event.load.running)
        self.free_blocks.set(event.load.free_blocks)
        self.cached_blocks.set(event.load.cached_blocks)
        for held, blocks in (
            ("leased", event.load.leased_blocks),
            ("reserved", event.load.reserved_blocks),
            ("quarantined", event.load.quarantined_blocks),
        ):
            self.held_blocks.labels(held).set(blocks)
        self.prefix_hit_tokens.inc(sum(ended.cached_tokens for ended in event.ended))
        if event.step_time is not None:
            self.step_time_error.set(event.step_time.errors.mean)

    def pulled(self, event: kv_frames.Pulled) -> None:
        """A read is over; one that never began has no transport."""
        transport = event.transport or "none"
        if event.error:
            self.failed_reads.labels(transport).inc()
        else:
            self.moved_bytes.labels(transport).inc(event.bytes)


class PullOutcomes(Collector):
    """Counted by the core; read when scraped."""

    def __init__(self, outcomes: Mapping[str, int]) -> None:
        self._outcomes = outcomes

    def collect(self) -> Iterable[Metric]:
        text = "Requests that waited for a prefix of a peer, by what came of it."
        family = CounterMetricFamily("hyperflexis_worker_prefix_pulls", text, labels=["outcome"])
        for outcome, count in list(self._outcomes.items()):
            family.add_metric([outcome], count)
        yield family
