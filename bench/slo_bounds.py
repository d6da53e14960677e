"""The upper bounds beside the results of our policy: sim's bound.py says what they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from slo_environments import PROFILES
from slo_selection import Job

from hyperflexis_cli.load_plots import OURS
from hyperflexis_sim.bound import clairvoyant_bound, fluid_bound
from hyperflexis_sim.profiles import worker_kind

FLUID_SHARE = {"mix_poisson": 0.98, "azure_2023_conv": 0.95}
"""Of the fluid bound, what is to be reached where arrivals are about steady."""


def bounds(job: Job, directory: Path, rate: float) -> dict[str, Any]:
    """The job's own requests. The fluid bound is of those that are scored, the clairvoyant one of all."""
    environment = job.environment
    experiment = environment.experiment(directory, OURS, rate * job.load, job.load, job.seed)
    requests = experiment.workload.requests(environment.promises)
    model = worker_kind(PROFILES[environment.gpu]).model
    first_s, last_s = experiment.scored_s or (0.0, float(experiment.workload.arrival_s[-1]))
    scored = [r for r in requests if first_s * 1e6 <= r.arrival_us <= last_s * 1e6]
    return {
        "trace": environment.trace,
        "profile": PROFILES[environment.gpu],
        "workers": environment.workers,
        "load": job.load,
        "seed": job.seed,
        "fluid": fluid_bound(scored, model, environment.workers, last_s - first_s),
        "clairvoyant": clairvoyant_bound(requests, model, environment.workers),
    }


def bound_jobs(jobs: Iterable[Job]) -> list[Job]:
    """One seed of each point of ours: the bounds hardly move between seeds, and take longer than the simulation."""
    return [job for job in jobs if job.policy == OURS and job.seed == 0]


def fluid_verdicts(rows: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """As slo_targets' verdicts: one for each workload that FLUID_SHARE names."""
    key = ("trace", "profile", "workers", "load")
    ours: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        if row["policy"] == OURS and row["tier"] == "all":
            ours.setdefault(tuple(row[name] for name in key), []).append(row["attainment"])
    verdicts = []
    for trace, share in FLUID_SHARE.items():
        margins = []
        for bound in found:
            point = tuple(bound[name] for name in key)
            if bound["trace"] == trace and point in ours:
                reached = fmean(ours[point]) / bound["fluid"]
                where = f"{trace}/{bound['profile'].partition('/')[0]}/{bound['workers']} at {bound['load']:g}"
                margins.append((reached - share, f"{where}: {reached:.3f} of {bound['fluid']:.3f}"))
        verdicts.append(
            {
                "target": f">= {share:.0%} of the steady-state fluid bound on {trace}",
                "holds": all(margin >= 0 for margin, _ in margins) if margins else None,
                "points": len(margins),
                "missed": sum(margin < 0 for margin, _ in margins),
                "unsure": 0,
                "worst": min(margins)[1] if margins else None,
            }
        )
    return verdicts
