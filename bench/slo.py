"""`python bench/slo.py`: our scheduling against the baselines, in the simulator, from easy loads to 3 times capacity.

Writes build/bench/slo.json as it goes and slo.html at the end, then says which targets hold. Capacity, load 1, is the
rate at which round robin with FCFS keeps half of the promises, found first for each environment.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import slo_kept
from slo_bounds import bound_jobs, bounds, fluid_verdicts
from slo_environments import LEAD_IN_S, LEAD_OUT_S, MIX_CV, PROFILES, Environment, capacity
from slo_selection import Job, default_jobs, disaggregated_jobs, full_jobs, narrowed, quick_jobs
from slo_targets import verdicts

from hyperflexis_cli.load_report import NOTES, render_load_report
from hyperflexis_sim.wires import NVLINK_GBPS

WRITE_EVERY_S = 10.0
SELECTIONS = {
    "default": default_jobs,
    "quick": quick_jobs,
    "disaggregated": disaggregated_jobs,
    "full": full_jobs,
}


class Results:
    """What has come so far, in the order of the jobs, in a file that is never half written."""

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self._path = path
        self._about = about
        self._written_s = 0.0
        self.capacities: dict[Environment, dict[str, Any]] = {}
        self.bounds: list[dict[str, Any]] = []
        self._rows: dict[int, list[dict[str, Any]]] = {}

    def know(self, kept: Mapping[str, Any], jobs: Sequence[Job]) -> None:
        """Capacities and bounds found before, of those environments."""
        rates = {(found["trace"], found["profile"], found["workers"]): found for found in kept["capacities"]}
        places = {job.environment: _place(job.environment) for job in jobs}
        self.capacities = {environment: rates[place] for environment, place in places.items() if place in rates}
        self.bounds = list(kept["bounds"])

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [row for number in sorted(self._rows) for row in self._rows[number]]

    def add(self, number: int, rows: list[dict[str, Any]]) -> None:
        self._rows[number] = rows
        if time.monotonic() - self._written_s > WRITE_EVERY_S:
            self.write()

    def write(self, **more: Any) -> None:
        document = {**self._about, "capacities": list(self.capacities.values()), "bounds": self.bounds}
        document |= {**more, "rows": self.rows}
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        partial.replace(self._path)
        self._written_s = time.monotonic()


def simulate(job: Job, directory: Path, rate: float) -> tuple[list[dict[str, Any]], float]:
    """In a process of the pool: the rows, and the seconds they took."""
    began = time.perf_counter()
    rows = job.environment.experiment(directory, job.policy, rate * job.load, job.load, job.seed).run()
    return rows, time.perf_counter() - began


def find_capacities(pool: ProcessPoolExecutor, jobs: Sequence[Job], directory: Path, results: Results) -> None:
    unknown = (job.environment for job in jobs if job.environment not in results.capacities)
    environments = list(dict.fromkeys(unknown))
    # The longest first, so that none is left to run alone.
    ordered = sorted(environments, key=lambda environment: -environment.workers)
    waiting = {pool.submit(capacity, environment, directory): environment for environment in ordered}
    for future in as_completed(waiting):
        found, environment = future.result(), waiting[future]
        results.capacities[environment] = found
        print(f"capacity of {environment.name}: {found['rate_rps']:.1f} requests/s", flush=True)


def run_jobs(pool: ProcessPoolExecutor, jobs: Sequence[Job], directory: Path, results: Results) -> None:
    numbers: dict[Future[tuple[list[dict[str, Any]], float]], int] = {}
    for number, job in enumerate(jobs):
        rate = results.capacities[job.environment]["rate_rps"]
        numbers[pool.submit(simulate, job, directory, rate)] = number
    began, total, done = time.monotonic(), sum(job.cost for job in jobs), 0.0
    for count, future in enumerate(as_completed(numbers), start=1):
        number = numbers[future]
        job, (rows, took_s) = jobs[number], future.result()
        results.add(number, rows)
        done += job.cost
        left_s = (time.monotonic() - began) * (total - done) / done
        line = f"{count}/{len(jobs)}, {left_s / 60:.1f} min left: {job.environment.name} load {job.load:g} {job.policy}"
        print(f"{line} seed {job.seed}: {rows[-1]['attainment']:.3f} ({took_s:.1f} s)", flush=True)


def find_bounds(pool: ProcessPoolExecutor, jobs: Sequence[Job], directory: Path, results: Results) -> None:
    known = {(bound["trace"], bound["profile"], bound["workers"], bound["load"]) for bound in results.bounds}
    asked = [job for job in bound_jobs(jobs) if (*_place(job.environment), job.load) not in known]
    rates = [results.capacities[job.environment]["rate_rps"] for job in asked]
    for job, found in zip(asked, pool.map(bounds, asked, [directory] * len(asked), rates), strict=True):
        results.bounds.append(found)
        line = f"bounds of {job.environment.name} load {job.load:g}"
        print(f"{line}: fluid {found['fluid']:.3f}, clairvoyant {found['clairvoyant']:.3f}", flush=True)


def print_verdicts(found: Sequence[Mapping[str, Any]]) -> None:
    print()
    for verdict in found:
        word = {True: "holds", False: "MISSES", None: "no data"}[verdict["holds"]]
        print(f"{word:8}{verdict['target']}")
        if verdict["worst"]:
            counts = (
                f"{verdict['points']} points, {verdict['missed']} missed, {verdict['unsure']} within their interval"
            )
            print(f"{'':8}  {counts}; worst: {verdict['worst']}")


def parsed() -> tuple[argparse.Namespace, list[Job]]:
    """The arguments, and what they select; ends with status 2 where they cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_const", dest="selection", const="quick", help="about three minutes")
    size.add_argument("--full", action="store_const", dest="selection", const="full", help="every combination: hours")
    size.add_argument(
        "--disaggregated", action="store_const", dest="selection", const="disaggregated", help="splits: half an hour"
    )
    parser.add_argument("--only", type=_words, default=[], help="environments like mix_poisson or mix_poisson/h200/4")
    parser.add_argument("--policies", type=_words, default=[], help="with commas; `hyperflexis simulate --policy list`")
    parser.add_argument("--seeds", type=int, help="for every policy; default: by selection")
    parser.add_argument("--loads", type=_numbers, default=[], help="with commas, of those that the selection has")
    parser.add_argument("--slice", type=float, help="seconds for which requests arrive; default: by selection")
    parser.add_argument("--gbps", type=float, default=NVLINK_GBPS, help="of the links on which KV moves")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--traces", type=Path, default=Path("../shared/traces"))
    parser.add_argument("--out", type=Path, default=Path("build/bench/slo.json"))
    parser.add_argument(
        "--into", type=Path, metavar="FILE", help="kept results: what is run again is replaced there, the rest holds"
    )
    parser.set_defaults(selection="default")
    arguments = parser.parse_args()
    if not arguments.traces.is_dir():
        parser.error(f"--traces: {arguments.traces} is no directory")
    if arguments.processes < 1 or (arguments.seeds is not None and arguments.seeds < 1):
        parser.error("--processes and --seeds must be at least 1")
    try:
        jobs = narrowed(SELECTIONS[arguments.selection](), arguments.only, arguments.policies, arguments.seeds)
    except ValueError as error:
        parser.error(str(error))
    if arguments.loads:
        jobs = [job for job in jobs if job.load in arguments.loads] or parser.error("--loads: none of the selection's")
    if arguments.into and (arguments.selection != "default" or arguments.slice or arguments.gbps != NVLINK_GBPS):
        parser.error("--into: what is kept there was run by the default selection, in slices as they are")
    changes: dict[str, Any] = {"gbps": arguments.gbps}
    if arguments.slice is not None:
        if arguments.slice <= LEAD_IN_S + LEAD_OUT_S and any(job.environment.trace in MIX_CV for job in jobs):
            parser.error(f"--slice: of a mix nothing is scored in the first {LEAD_IN_S:g} and last {LEAD_OUT_S:g} s")
        changes |= {"slice_s": arguments.slice, "cut_traces": True}
    return arguments, [replace(job, environment=replace(job.environment, **changes)) for job in jobs]


def main() -> None:
    arguments, jobs = parsed()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    about = {"selection": arguments.selection, "slice_s": arguments.slice, "gbps": arguments.gbps}
    results = Results(arguments.out, about)
    kept = None
    if arguments.into:
        try:
            kept = slo_kept.read(arguments.into)
        except ValueError as error:
            sys.exit(f"error: {error}")
        results.know(kept, jobs)
    print(f"{len(jobs)} simulations, {arguments.processes} at a time", flush=True)
    began, finished = time.monotonic(), False
    pool = ProcessPoolExecutor(arguments.processes, multiprocessing.get_context("spawn"), _leave_ctrl_c)
    try:
        find_capacities(pool, jobs, arguments.traces, results)
        run_jobs(pool, jobs, arguments.traces, results)
        find_bounds(pool, jobs, arguments.traces, results)
        finished = True
    except KeyboardInterrupt:
        print("cut short; what has come is kept", file=sys.stderr)
    except ValueError as error:
        sys.exit(f"error: {error}")
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        results.write()
    rows = slo_kept.merged(kept["rows"], results.rows) if kept is not None and finished else results.rows
    found = [*verdicts(rows), *fluid_verdicts(rows, results.bounds)]
    results.write(wall_s=round(time.monotonic() - began, 1), finished=finished, targets=found)
    page = arguments.out.with_suffix(".html")
    if kept is not None and finished:
        capacities = slo_kept.capacities(kept["capacities"], results.capacities.values())
        newly = {"capacities": capacities, "bounds": results.bounds, "targets": found, "rows": rows}
        slo_kept.write(arguments.into, kept | newly)
    html = render_load_report(rows, _about(results, arguments.selection), "Promises kept, by load", _notes(found))
    page.write_text(html, encoding="utf-8")
    print_verdicts(found)
    written = ", ".join(map(str, filter(None, (finished and arguments.into, arguments.out, page))))
    print(f"\n{time.monotonic() - began:.0f} s; written: {written}")


def _place(environment: Environment) -> tuple[str, str, int]:
    """As rows, capacities and bounds name it."""
    return environment.trace, PROFILES[environment.gpu], environment.workers


def _leave_ctrl_c() -> None:
    """To the process that writes: those of the pool end with their simulation."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _about(results: Results, selection: str) -> dict[str, str]:
    rates = [f"{environment.name} {found['rate_rps']:.1f}/s" for environment, found in results.capacities.items()]
    return {"Selection": selection, "Load 1": "; ".join(rates)}


def _notes(found: Sequence[Mapping[str, Any]]) -> list[str]:
    words = {True: "holds", False: "misses", None: "no data"}
    return [*NOTES, *(f"{words[each['holds']]}: {each['target']} (worst: {each['worst']})" for each in found)]


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str) -> list[float]:
    return [float(word) for word in _words(text)]


if __name__ == "__main__":
    main()
