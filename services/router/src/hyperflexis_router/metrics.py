"""What the router counts. Labels are bounded: tiers come from the configuration, reasons from the protocol."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from hyperflexis.common.v1 import sampling_pb2, slo_pb2
from hyperflexis.router.v1 import inference_service_pb2
from hyperflexis_common.metrics import LATENCY_BUCKETS_S

REQUESTS = Counter("hyperflexis_router_requests", "Requests accepted", ["tier"])
REJECTED = Counter("hyperflexis_router_rejected", "Requests refused before Accepted", ["code"])
FINISHED = Counter("hyperflexis_router_finished", "Requests ended", ["reason"])
VERDICTS = Counter("hyperflexis_router_verdicts", "Verdicts over ended requests", ["tier", "verdict"])
TTFT = Histogram("hyperflexis_router_ttft_seconds", "Time to first token", ["tier"], buckets=LATENCY_BUCKETS_S)
TPOT = Histogram("hyperflexis_router_tpot_seconds", "Mean time per output token", ["tier"], buckets=LATENCY_BUCKETS_S)
IN_FLIGHT = Gauge("hyperflexis_router_in_flight", "Requests held and not ended")
JOURNAL_LAG = Gauge("hyperflexis_router_journal_lag_tokens", "Committed tokens not yet in Redis")


def count_finished(tier: str, finished: inference_service_pb2.Finished) -> None:
    FINISHED.labels(sampling_pb2.FinishReason.Name(finished.reason)).inc()
    VERDICTS.labels(tier, slo_pb2.Verdict.Name(finished.verdict)).inc()
    if finished.output_tokens:
        TTFT.labels(tier).observe(finished.ttft_us / 1e6)
    if finished.output_tokens > 1:
        TPOT.labels(tier).observe(finished.tpot_us / 1e6)
