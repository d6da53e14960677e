"""What Prometheus sees: the core's own counters, read when scraped, and the time decisions take."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hyperflexis_scheduler.core.scheduler import SchedulerCore

_BUCKETS_S = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 1)


class Metrics:
    def __init__(self, core: SchedulerCore, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "hyperflexis_scheduler_decision_seconds",
            "Time to handle one message of a router or worker.",
            ["message"],
            buckets=_BUCKETS_S,
            registry=registry,
        )
        registry.register(_CoreCollector(core))

    @contextmanager
    def timed(self, message: str | None) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._seconds.labels(message or "none").observe(time.perf_counter() - started)


class _CoreCollector(Collector):
    """Counts start anew with each time as leader, like every counter after a restart."""

    def __init__(self, core: SchedulerCore) -> None:
        self._core = core

    def collect(self) -> Iterable[Metric]:
        cell = self._core.cell
        prefix = "hyperflexis_scheduler_"
        yield GaugeMetricFamily(prefix + "leader", "1 while this scheduler leads.", value=float(cell is not None))
        if cell is None:
            return
        tally = cell.tally
        counters = {
            ("placements", "Attempts granted."): tally.placements,
            ("refusals", "Requests refused."): tally.refusals,
            ("lost_attempts", "Attempts that ended unfinished."): tally.lost,
            ("role_flips", "Roles that followed the load."): tally.flips,
            ("moves_begun", "Running requests that set out for another worker."): tally.moves_begun,
            ("moves_done", "Those that arrived."): tally.moves_done,
            ("moves_failed", "Those that did not, by why."): tally.moves_failed,
        }
        for (name, text), counts in counters.items():
            family = CounterMetricFamily(prefix + name, text, labels=["reason"])
            for reason, count in list(counts.items()):
                family.add_metric([reason], count)
            yield family
        yield GaugeMetricFamily(prefix + "held_requests", "Requests that wait for a worker.", value=len(cell.hold))
        yield GaugeMetricFamily(prefix + "active_requests", "Requests held or placed.", value=cell.book.active)
        yield GaugeMetricFamily(prefix + "workers", "Workers known.", value=len(cell.fleet.by_id))
