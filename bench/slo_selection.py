"""Which simulations the bench runs: all of them take hours, the default half an hour, `--quick` minutes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from slo_environments import LONG, TRACES, Environment, all_environments

from hyperflexis_cli.load_plots import OURS
from hyperflexis_sim.policies import POLICIES, policy_of

LOADS = (0.5, 0.85, 1.0, 1.25, 1.5, 2.0, 3.0)
"""Times the capacity."""
FEW_LOADS = (0.85, 1.0, 1.5, 2.0)
SEEDS = 5
RIVALS = ("round_robin+fcfs2048", "jsq+qoserve")
NAMED = (*RIVALS, "jsq+qoserve_literal", "jsq+scorpio", "llmd_headroom+fcfs512", "polyserve+fcfs512")
"""What the targets speak of by name."""
QUICK_POLICIES = (OURS, "round_robin+fcfs2048", "jsq+qoserve", "jsq+scorpio", "polyserve+fcfs512")
QUICK_SLICE_S = 60.0
SPLITS = ("1p3d", "2p2d", "3p1d")
STATIC = "jsq+fcfs2048"
"""In front of and behind a static split: DistServe's and Splitwise's."""
ADAPTIVE = f"{OURS}@adaptive"
DISAGGREGATED = (OURS, ADAPTIVE, *(f"{OURS}@{split}" for split in SPLITS))
DISAGGREGATED_BASELINES = (STATIC, *(f"{STATIC}@{split}" for split in SPLITS))
DISAGGREGATED_LOADS = (0.85, 1.0, 1.5, 2.0)
DISAGGREGATED_SEEDS = 3


@dataclass(frozen=True, slots=True)
class Job:
    environment: Environment
    policy: str
    load: float
    seed: int

    @property
    def cost(self) -> float:
        """Seconds it may take, for the estimate of what is left."""
        base = 8.0 if self.environment.trace in LONG else 5.0
        base *= 0.3 if "fcfs" in self.policy else 2.0 if "@" in self.policy else 1.0
        if self.environment.trace not in TRACES:
            base *= self.load * self.environment.workers / 4 * (0.3 if self.environment.gpu == "a100" else 1.0)
        return base * max(1.0, float(self.load**0.5)) * (self.environment.slice_s or 120.0) / 120.0


def default_jobs() -> list[Job]:
    """The mix with five seeds on both GPUs; the traces with five of ours and its rivals; a look at bursts and at 16."""
    jobs = []
    for environment in all_environments():
        trace, gpu, workers = environment.trace, environment.gpu, environment.workers
        if (trace, workers) == ("mix_poisson", 4):
            jobs += _jobs(environment, LOADS, (OURS, *NAMED), SEEDS)
            jobs += _jobs(environment, FEW_LOADS, _others(NAMED), 1)
        elif (trace, gpu, workers) == ("mix_gamma3", "h200", 4):
            jobs += _jobs(environment, FEW_LOADS, (OURS, *RIVALS), 3)
            jobs += _jobs(environment, FEW_LOADS, [name for name in NAMED if name not in RIVALS], 1)
        elif (trace, gpu, workers) == ("mix_poisson", "h200", 16):
            jobs += _jobs(environment, (1.0, 2.0), (OURS, *NAMED), 1)
        elif trace in TRACES and (gpu, workers) == ("h200", 4):
            loads = FEW_LOADS if trace in LONG else LOADS
            jobs += _jobs(environment, loads, (OURS, *RIVALS), SEEDS)
            jobs += _jobs(environment, FEW_LOADS, _others(RIVALS), 1)
    return jobs


def quick_jobs() -> list[Job]:
    """One seed, two loads, a minute each."""
    jobs = []
    for environment in all_environments():
        mix_on_a100 = environment.trace == "mix_poisson" and environment.gpu == "a100"
        if environment.workers == 4 and (environment.gpu == "h200" or mix_on_a100):
            short = replace(environment, slice_s=QUICK_SLICE_S, cut_traces=True)
            jobs += _jobs(short, (1.0, 2.0), QUICK_POLICIES, 1)
    return jobs


def disaggregated_jobs() -> list[Job]:
    """Splits into prefill and decode, static and adaptive, beside workers that do both; a minute each, three seeds."""
    jobs = []
    for environment in all_environments():
        if environment.workers == 4:
            short = replace(environment, slice_s=QUICK_SLICE_S, cut_traces=True)
            jobs += _jobs(short, DISAGGREGATED_LOADS, DISAGGREGATED, DISAGGREGATED_SEEDS)
            jobs += _jobs(short, DISAGGREGATED_LOADS, DISAGGREGATED_BASELINES, 1)
    return jobs


def full_jobs() -> list[Job]:
    return [
        job
        for environment in all_environments()
        for job in _jobs(environment, LOADS, (OURS, *_others(())), SEEDS)
    ]  # fmt: skip


def narrowed(jobs: Iterable[Job], only: Sequence[str], policies: Sequence[str], seeds: int | None) -> list[Job]:
    """`only`: environments, or their first parts such as mix_poisson or mix_poisson/h200. Raises ValueError."""
    known = sorted({environment.name for environment in all_environments()})
    for wanted in only:
        if not any(_is(wanted, name) for name in known):
            raise ValueError(f"unknown environment {wanted!r}; known: {', '.join(known)}")
    for policy in policies:
        policy_of(policy)
    kept = []
    for job in jobs:
        if only and not any(_is(wanted, job.environment.name) for wanted in only):
            continue
        if policies and job.policy not in policies:
            continue
        if seeds is None:
            kept.append(job)
        elif job.seed == 0:
            kept += [replace(job, seed=seed) for seed in range(seeds)]
    if not kept:
        raise ValueError("this selection holds no such environment or policy; --full has all of them")
    # A run that is cut short has seen everything once before anything twice.
    return sorted(kept, key=lambda job: job.seed)


def _is(wanted: str, name: str) -> bool:
    return name == wanted or name.startswith(wanted + "/")


def _others(policies: Sequence[str]) -> list[str]:
    """The baselines but these; ours behind another dispatcher is none."""
    return [name for name in POLICIES if OURS not in name and name not in policies]


def _jobs(environment: Environment, loads: Sequence[float], policies: Sequence[str], seeds: int) -> list[Job]:
    return [Job(environment, policy, load, seed) for load in loads for policy in policies for seed in range(seeds)]
