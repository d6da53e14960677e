"""Requests to simulate: a trace or a mix, brought to a rate, with a promise for each request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hyperflexis_sim.request import SimRequest
from hyperflexis_sim.tiers import Promise

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Row(Protocol):
    """One line of a trace (hyperflexis_cli.trace.TraceRow is one)."""

    @property
    def arrival_s(self) -> float: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int: ...
    @property
    def tier(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Workload:
    """Columns of equal length, in order of arrival."""

    arrival_s: Floats
    prompt_tokens: Integers
    output_tokens: Integers
    tier: list[str]
    tenant: list[str]
    prefixes: Sequence[tuple[bytes, ...]] = ()
    """Of each prompt, the names of its full blocks (`prefix_cache`); none = nothing is known to begin alike."""

    @property
    def rate(self) -> float:
        """Requests a second."""
        span_s = float(self.arrival_s[-1] - self.arrival_s[0])
        return (len(self.arrival_s) - 1) / span_s if span_s > 0 else float("inf")

    def at_rate(self, rate: float) -> Workload:
        """The same, closer together or further apart in time."""
        factor = self.rate / rate
        arrival_s = (self.arrival_s - self.arrival_s[0]) * factor
        return replace(self, arrival_s=arrival_s)

    def within(self, seconds: float) -> Workload:
        """What arrives in the first `seconds` of it."""
        end = int(np.searchsorted(self.arrival_s, seconds, "left"))
        columns = (self.arrival_s[:end], self.prompt_tokens[:end], self.output_tokens[:end])
        return Workload(*columns, self.tier[:end], self.tenant[:end], self.prefixes[:end])

    def requests(self, promises: Mapping[str, Promise]) -> list[SimRequest]:
        """Made anew at each call: a simulation writes to them."""
        made = []
        columns = (self.arrival_s.tolist(), self.prompt_tokens.tolist(), self.output_tokens.tolist())
        for number, (at_s, prompt, output) in enumerate(zip(*columns, strict=True)):
            kept = promises[self.tier[number]]
            made.append(
                SimRequest(
                    number,
                    at_s * 1e6,
                    kept.tier,
                    self.tenant[number],
                    max(prompt, 1),
                    max(output, 1),
                    kept.ttft_us,
                    kept.tpot_us,
                    kept.max_gap_us,
                    kept.weight,
                    max_tokens=max(MAX_TOKENS, output),
                    on_violation=kept.on_violation,
                    prefix=self.prefixes[number] if self.prefixes else (),
                )
            )
        return made


MAX_TOKENS = 4_096
"""What clients ask for at most: they do not know how long an answer gets, and so tell nothing."""


def draw_mix(
    lengths: Mapping[str, Sequence[tuple[int, int]]],
    promises: Mapping[str, Promise],
    rate: float,
    seconds: float,
    seed: int,
    cv: float = 1.0,
) -> Workload:
    """Tasks by their shares, lengths drawn from each one's table, arrivals Gamma with this CV (1 = Poisson)."""
    random = np.random.default_rng((seed, 1))
    count = max(2, int(rate * seconds))
    gaps_s = random.gamma(1 / cv**2, cv**2 / rate, count)
    names = list(promises)
    shares = np.array([promises[name].share for name in names])
    kinds = random.choice(len(names), count, p=shares / shares.sum())
    prompts, outputs = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
    for kind, name in enumerate(names):
        table = np.asarray(lengths[name], dtype=np.int64)
        of_kind = np.flatnonzero(kinds == kind)
        drawn = table[random.integers(len(table), size=len(of_kind))]
        prompts[of_kind], outputs[of_kind] = drawn[:, 0], drawn[:, 1]
    return Workload(np.cumsum(gaps_s), prompts, outputs, [names[kind] for kind in kinds], [""] * count)


def from_trace(
    rows: Sequence[Row],
    promises: Mapping[str, Promise],
    seed: int,
    *,
    jitter: bool = False,
    prefixes: Sequence[tuple[bytes, ...]] = (),
) -> Workload:
    """A trace as it is. Rows without a tier get one by the promises' shares. `jitter` spreads arrivals that share a
    timestamp over the time until the next one: some traces are rounded to seconds. `prefixes`: of each row, the names
    of its blocks. Raises ValueError for a tier that nobody promised."""
    random = np.random.default_rng((seed, 2))
    names = list(promises)
    shares = np.array([promises[name].share for name in names])
    drawn = random.choice(len(names), len(rows), p=shares / shares.sum())
    arrival_s = np.array([row.arrival_s for row in rows])
    if jitter:
        moments, first = np.unique(arrival_s, return_inverse=True)
        gaps_s = np.append(np.diff(moments), 0.0)
        arrival_s = arrival_s + random.random(len(rows)) * gaps_s[first]
    order = np.argsort(arrival_s, kind="stable")
    tiers = []
    for place in order.tolist():
        tier = rows[place].tier or names[drawn[place]]
        if tier not in promises:
            raise ValueError(f"the trace names tier {tier!r}; promised are {', '.join(names)}")
        tiers.append(tier)
    prompts = np.array([rows[place].prompt_tokens for place in order], dtype=np.int64)
    outputs = np.array([rows[place].output_tokens for place in order], dtype=np.int64)
    named = [prefixes[place] for place in order] if prefixes else ()
    return Workload(arrival_s[order], prompts, outputs, tiers, [""] * len(rows), named)
