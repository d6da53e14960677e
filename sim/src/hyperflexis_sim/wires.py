"""What KV travels on: between any two workers a link of some rate; a worker's reads queue, and so do those from it."""

from __future__ import annotations

from dataclasses import dataclass

NVLINK_GBPS = 330.0
"""Between two GPUs of one host, fragmented blocks (docs: measured 346 to 371, 292 to 327 beside load)."""
NETWORK_GBPS = 25.0


@dataclass(frozen=True, slots=True)
class WireRules:
    gbps: float = NVLINK_GBPS
    """Between workers of one host."""
    between_gbps: float = NETWORK_GBPS
    """Between hosts."""
    host_workers: int = 8
    """So many workers after one another share a host."""
    setup_us: float = 1_000.0
    """Of each read: request, grant, launch, and the word that it is complete."""
    bytes_per_token: float = 131_072.0

    def rate(self, source: int, target: int) -> float:
        """GB/s."""
        same = source // self.host_workers == target // self.host_workers
        return self.gbps if same else self.between_gbps


class Wires:
    def __init__(self, rules: WireRules) -> None:
        self.rules = rules
        self._out_us: dict[int, float] = {}
        self._in_us: dict[int, float] = {}

    def read(self, source: int, target: int, tokens: float, now_us: float) -> float:
        """When the target has them. The set-up of a read goes on beside the reads before it."""
        rules = self.rules
        begin_us = max(now_us, self._out_us.get(source, 0.0), self._in_us.get(target, 0.0))
        took_us = tokens * rules.bytes_per_token / (rules.rate(source, target) * 1e3)
        self._out_us[source] = self._in_us[target] = begin_us + took_us
        return max(begin_us + took_us, now_us + rules.setup_us + took_us)
