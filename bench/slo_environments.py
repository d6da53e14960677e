"""The bench's environments: a workload, workers of one kind, and the rate that counts as load 1."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hyperflexis_cli.trace import TraceRow, read_trace
from hyperflexis_sim.experiment import Experiment
from hyperflexis_sim.tiers import FOUR_TASKS, LONG_CONTEXT, Promise
from hyperflexis_sim.wires import NVLINK_GBPS, WireRules
from hyperflexis_sim.workload import Workload, draw_mix, from_trace

TASKS = {
    "chat": "task_sharegpt_sarathi8k.csv",
    "code": "task_humaneval.csv",
    "math": "task_gsm8k_test.csv",
    "summarise": "task_arxiv_summ_vidur4k.csv",
}
CLIPPED_OUTPUT = {"summarise": 512}
MIX_CV = {"mix_poisson": 1.0, "mix_gamma3": 3.0}
TRACES = ("azure_2023_conv", "azure_2023_code", "mooncake_conversation")
JITTERED = {"mooncake_conversation"}
"""Rounded to seconds by those who published it."""
LONG = {"mooncake_conversation"}
PROFILES = {"h200": "h200/llama-3.1-8b/tp1", "a100": "a100/llama-3.1-8b/tp1"}
FLEETS = (4, 16)

LEAD_IN_S, LEAD_OUT_S = 20.0, 10.0
"""Of a mix: what arrives before it has settled, or as it ends, is served and not scored."""
CAPACITY_POLICY = "round_robin+fcfs2048"
CAPACITY_ATTAINMENT = 0.5
GUESSES = {
    ("mix_poisson", "h200"): 90.0,
    ("mix_gamma3", "h200"): 88.0,
    ("mix_poisson", "a100"): 27.0,
    ("mix_gamma3", "a100"): 27.0,
    ("azure_2023_conv", "h200"): 100.0,
    ("azure_2023_code", "h200"): 53.0,
    ("mooncake_conversation", "h200"): 12.0,
    ("azure_2023_conv", "a100"): 30.0,
    ("azure_2023_code", "a100"): 16.0,
    ("mooncake_conversation", "a100"): 3.0,
}
"""Requests a second of four workers: where the search for the capacity starts, and no more than that."""
TOLERANCE = 1.02
"""The capacity is known to this factor."""


@dataclass(frozen=True, slots=True)
class Environment:
    trace: str
    gpu: str
    workers: int
    slice_s: float | None = 120.0
    """Of a mix, how long requests arrive; a trace is cut there where `cut_traces` says so."""
    cut_traces: bool = False
    gbps: float = NVLINK_GBPS
    """Of the links on which KV moves."""

    @property
    def name(self) -> str:
        return f"{self.trace}/{self.gpu}/{self.workers}"

    @property
    def promises(self) -> Mapping[str, Promise]:
        return LONG_CONTEXT if self.trace in LONG else FOUR_TASKS

    @property
    def guess(self) -> float:
        return GUESSES[self.trace, self.gpu] * self.workers / 4

    def workload(self, directory: Path, rate: float, seed: int) -> Workload:
        """At `rate` requests a second. Raises ValueError where a trace cannot be read."""
        if self.trace in MIX_CV:
            assert self.slice_s is not None
            return draw_mix(_lengths(directory), self.promises, rate, self.slice_s, seed, MIX_CV[self.trace])
        rows = _trace(directory, self.trace)
        workload = from_trace(rows, self.promises, seed, jitter=self.trace in JITTERED).at_rate(rate)
        return workload.within(self.slice_s) if self.cut_traces and self.slice_s else workload

    def experiment(self, directory: Path, policy: str, rate: float, load: float, seed: int) -> Experiment:
        scored_s = None
        if self.trace in MIX_CV:
            assert self.slice_s is not None
            scored_s = (LEAD_IN_S, self.slice_s - LEAD_OUT_S)
        workload = self.workload(directory, rate, seed)
        profile = PROFILES[self.gpu]
        return Experiment(
            self.trace, workload, self.promises, profile, self.workers, policy, load, seed, scored_s=scored_s,
            wires=WireRules(gbps=self.gbps),
        )  # fmt: skip


def all_environments() -> Iterator[Environment]:
    for trace in (*MIX_CV, *TRACES):
        for gpu in PROFILES:
            for workers in FLEETS:
                yield Environment(trace, gpu, workers)


def capacity(environment: Environment, directory: Path) -> dict[str, Any]:
    """The rate at which round robin and FCFS keep half of the promises, by bisection on its logarithm, seed 0."""
    tried: dict[float, float] = {}

    def attains(rate: float) -> bool:
        rows = environment.experiment(directory, CAPACITY_POLICY, rate, 1.0, 0).run()
        tried[rate] = rows[-1]["attainment"]
        return tried[rate] >= CAPACITY_ATTAINMENT

    low = high = environment.guess
    if attains(low):
        while attains(high := high * 1.3):
            low = high
    else:
        while not attains(low := low / 1.3):
            high = low
    while high / low > TOLERANCE:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if attains(middle) else (low, middle)
    rate = (low * high) ** 0.5
    return {
        "trace": environment.trace,
        "profile": PROFILES[environment.gpu],
        "workers": environment.workers,
        "rate_rps": rate,
        "policy": CAPACITY_POLICY,
        "tried": [{"rate_rps": rate, "attainment": share} for rate, share in sorted(tried.items())],
    }


@cache
def _trace(directory: Path, name: str) -> list[TraceRow]:
    return read_trace(directory / f"{name}.csv")


@cache
def _lengths(directory: Path) -> dict[str, Sequence[tuple[int, int]]]:
    """(prompt, output) tokens of each task. Raises ValueError."""
    found: dict[str, Sequence[tuple[int, int]]] = {}
    for task, name in TASKS.items():
        longest = CLIPPED_OUTPUT.get(task, 1 << 30)
        try:
            with (directory / name).open(encoding="utf-8", newline="") as lines:
                rows = list(csv.DictReader(lines))
            found[task] = [(int(row["prompt_tokens"]), min(int(row["output_tokens"]), longest)) for row in rows]
        except (OSError, KeyError, ValueError) as error:
            raise ValueError(f"{directory / name} is no table of prompt_tokens,output_tokens: {error!r}") from error
    return found
