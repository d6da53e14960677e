"""`python bench/fidelity.py`: the same requests live on this machine and in the simulator, side by side.

Each load gets a stack of its own (two workers, the real router and scheduler); then the simulator serves the requests
again as they were sent, on engines as that run measured them. Writes build/bench/fidelity.json as it goes and
fidelity.html at the end. An engine left out by --engine keeps its last results.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import fidelity_live
from fidelity_compare import compared, tally
from fidelity_live import POLICIES, TIERS, WORKERS, LiveRun, Setting
from fidelity_page import print_point, print_verdict, render
from fidelity_twin import Twin, live_outcomes, simulated_outcomes, twins

from hyperflexis_cli.console import out
from hyperflexis_cli.machine import describe_machine
from hyperflexis_cli.mix import draw_mix
from hyperflexis_cli.sample import ensure_sample_model
from hyperflexis_cli.stack_settings import SAMPLE_MODEL
from hyperflexis_cli.workload import Workload, built_in_workload
from hyperflexis_common.server import run
from hyperflexis_sim.experiment import Experiment
from hyperflexis_sim.tiers import FOUR_TASKS
from hyperflexis_sim.workload import from_trace

ENGINES = ("embedded", "modelled")
LEAD_IN_S = 5.0
"""What arrives before it is served and not compared."""
NOISE_SEEDS = range(5)
WORKLOAD_SEED = 0
PACE_PROFILE, PACE_WORKERS, PACE_SECONDS = "h200/llama-3.1-8b/tp1", 4, 60.0
PACE_RATES = (30.0, 60.0, 120.0)
PACE_TARGET = 100.0


class Results:
    """The document, in a file that is never half written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self.document.setdefault("engines", {})

    def write(self, **more: Any) -> None:
        self.document |= more
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(self.document, indent=1) + "\n", encoding="utf-8")
        partial.replace(self._path)


async def measure(engine: str, arguments: argparse.Namespace, directory: Path, results: Results) -> None:
    """Every policy and load on one engine."""
    workload = built_in_workload(WORKLOAD_SEED)
    out.print(f"{engine}: capacity, with requests of the workload open at any time")
    capacity = await fidelity_live.capacity(engine, workload, arguments.model, directory / f"{engine}-capacity")
    out.print(f"  {capacity.requests_per_s:.1f} requests/s, {capacity.tokens_per_s:,.0f} tokens/s")
    points: list[dict[str, Any]] = []
    found = results.document["engines"][engine] = {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seconds": arguments.seconds,
        "capacity_rps": capacity.requests_per_s,
        "capacity_tokens_per_s": capacity.tokens_per_s,
        "points": points,
    }
    for policy in POLICIES:
        for load in arguments.loads:
            points.append(
                await _point(Setting(engine, policy, load), workload, capacity.requests_per_s, arguments, directory)
            )
            print_point(out, points[-1])
            found["targets"] = tally(row for point in points for row in point["rows"])
            results.write()


async def _point(
    setting: Setting, workload: Workload, capacity_rps: float, arguments: argparse.Namespace, directory: Path
) -> dict[str, Any]:
    rate = capacity_rps * setting.load
    out.print(f"{setting.name}: {rate:.1f} requests/s for {arguments.seconds:g} s, live")
    run_directory = directory / setting.name.replace(" ", "-")
    live = await fidelity_live.serve(setting, workload, rate, arguments.seconds, arguments.model, run_directory, out)
    about = {"engine": setting.engine, "policy": setting.policy, "load": setting.load, "rate_rps": rate}
    return about | twinned(setting, live)


def twinned(setting: Setting, live: LiveRun) -> dict[str, Any]:
    """The same in the simulator, compared; and with what it is told of the live run taken away again."""
    real = live_outcomes(live.records, LEAD_IN_S)
    stages: dict[str, list[dict[str, Any]]] = {}
    paces: list[float] = []
    told = twins(live)
    for name, twin in told.items():
        simulated = []
        for seed in NOISE_SEEDS:
            requests, pace = twin.run(live.records, POLICIES[setting.policy], seed)
            simulated.append(simulated_outcomes(requests, LEAD_IN_S))
            paces.append(pace)
        stages[name] = compared(real, simulated)
    *_, (whole, twin) = told.items()
    return {
        "failed": sum(record.failed for record in live.records),
        "rows": stages[whole],
        "stages": [{"told": name, **rows[-1]["simulated"]} for name, rows in stages.items()],
        "measured": _measured(live, twin),
        "times_real_time": median(paces),
    }


def _measured(live: LiveRun, twin: Twin) -> dict[str, Any]:
    """What the twin was told."""
    workers = []
    for kind, error in zip(twin.kinds, live.mean_errors, strict=True):
        factors = [factor for _, factor in kind.steps]
        slowest = sorted(factors)[-max(len(factors) // 100, 1)]
        workers.append(
            {
                "steps": len(factors),
                "step_over_model": sum(factors) / len(factors),
                "step_over_model_p99": slowest,
                "reported_mean_error": error,
                "between_steps_us": kind.host_us,
            }
        )
    delays = twin.delays
    return {
        "workers": workers,
        "to_router_p50_us": median(delays.submits_us),
        "to_engine_p50_us": delays.dispatch_us,
        "first_token_p50_us": median(first_us for first_us, _ in delays.returns_us),
        "last_token_p50_us": median(last_us for _, last_us in delays.returns_us),
    }


def paces() -> list[dict[str, float]]:
    """Simulated seconds in one of CPU, four workers."""
    found = []
    for rate in PACE_RATES:
        rows = draw_mix(round(rate * PACE_SECONDS), Random(WORKLOAD_SEED))
        workload = from_trace(rows, FOUR_TASKS, WORKLOAD_SEED).at_rate(rate)
        experiment = Experiment("mix", workload, FOUR_TASKS, PACE_PROFILE, PACE_WORKERS, "hyperflexis")
        times_us: list[float] = []
        began = time.process_time()
        row = experiment.run(times_us.append)[-1]
        took_s = time.process_time() - began
        pace = times_us[-1] / 1e6 / took_s
        found.append({"rate_rps": rate, "attainment": row["attainment"], "times_real_time": pace})
        out.print(
            f"simulator, {PACE_WORKERS} workers, {rate:g} requests/s: {found[-1]['times_real_time']:.0f} x real time"
        )
    return found


async def bench(arguments: argparse.Namespace) -> None:
    results = Results(arguments.out)
    results.write(
        machine=describe_machine(),
        workers=WORKERS,
        tiers=[tier.model_dump() for tier in TIERS],
        pace={"profile": PACE_PROFILE, "workers": PACE_WORKERS, "target": PACE_TARGET, "rates": paces()},
    )
    if "embedded" in arguments.engine:
        await ensure_sample_model(arguments.model)
    with tempfile.TemporaryDirectory(prefix="hyperflexis-fidelity-") as directory:
        for engine in arguments.engine:
            await measure(engine, arguments, Path(directory), results)
    page = arguments.out.with_suffix(".html")
    page.write_text(render(results.document), encoding="utf-8")
    print_verdict(out, results.document)
    out.print(f"written: {arguments.out}, {page}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=_engines, default=list(ENGINES), help="embedded, modelled, or both by a comma")
    parser.add_argument("--loads", type=_numbers, default=[0.7, 1.0, 1.5], help="times the capacity, with commas")
    parser.add_argument("--seconds", type=float, default=40.0, help="of load, the first 5 not compared")
    parser.add_argument("--model", type=Path, default=SAMPLE_MODEL)
    parser.add_argument("--out", type=Path, default=Path("build/bench/fidelity.json"))
    arguments = parser.parse_args()
    if arguments.seconds <= LEAD_IN_S or min(arguments.loads) <= 0:
        parser.error(f"--seconds must be above {LEAD_IN_S:g}, --loads above 0")
    return arguments


def _engines(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if unknown := sorted(set(names) - set(ENGINES)):
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(ENGINES)}")
    return names


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


if __name__ == "__main__":
    # Two engines and all the others on few cores: threads that spin for each other would be what is measured.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    options = parsed()
    run(lambda: bench(options))
