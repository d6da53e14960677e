"""What is seen of a stretch of time: percentiles, CPU shares, and how much of the machine others took meanwhile."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from modelled_cell import CLOCK_TICKS


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that at least that share of all does not exceed. Raises ValueError where there is none."""
    if not values:
        raise ValueError("no samples")
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * int(share * 1_000) // 1_000) - 1)]


def median(values: Iterable[float], digits: int = 2) -> float:
    return round(statistics.median(values), digits)


class Window:
    """A stretch of time: `used` tells CPU seconds so far by process."""

    def __init__(self, used: Callable[[], dict[str, float]]) -> None:
        self._used = used
        self._before, self._busy, self._began = used(), busy_s(), time.perf_counter()
        self.seconds = 0.0
        self.cpu_s: dict[str, float] = {}
        self.others_cores = 0.0
        """Cores' worth of CPU that went to processes not ours: noise."""

    def again(self) -> Window:
        """The same, from now on."""
        return Window(self._used)

    def close(self) -> Window:
        self.seconds = time.perf_counter() - self._began
        after = self._used()
        self.cpu_s = {name: after[name] - self._before.get(name, 0.0) for name in after}
        others = busy_s() - self._busy - sum(self.cpu_s.values())
        self.others_cores = max(0.0, others / self.seconds)
        return self

    @property
    def shares(self) -> dict[str, float]:
        """Percent of one core, by process."""
        return {name: round(100 * used / self.seconds, 1) for name, used in self.cpu_s.items()}


def busy_s() -> float:
    """CPU time that all processes of the machine have used."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    user, nice, system, _idle, _iowait, irq, softirq = fields[:7]
    return (user + nice + system + irq + softirq) / CLOCK_TICKS


def mean_shares(windows: Sequence[Window]) -> dict[str, float]:
    return {name: median((w.shares[name] for w in windows), 1) for name in windows[0].shares}


def load_average() -> float:
    return os.getloadavg()[0]
