"""Latency and throughput of the control plane on modelled workers: `make bench-control`, or `--quick` for a minute.

The targets are in the table; bench/README.md says what each number means and what it does not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bare_server import __file__ as BARE_SERVER
from decisions import decisions, queued
from load import Load
from modelled_cell import H200, INSTANT, L40S, Engine, ModelledCell, cpu_s
from windows import Window, load_average, mean_shares, median, percentile

from hyperflexis_cli.child import Child
from hyperflexis_common.server import run
from hyperflexis_scheduler.core.dispatch_policy import POLICIES

TTFT_P99_TARGET_MS = 8.0
WORKERS, QUEUED = 1_000, 10_000
STREAMS = 128


@dataclass(frozen=True, slots=True)
class Regime:
    """An engine's pace, and the bare server's to match it: token ids a delta, milliseconds between deltas."""

    engine: Engine
    tokens: int
    period_ms: float


REGIMES = (Regime(L40S, 1, 43.0), Regime(H200, 2, 17.0))


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything: the default takes under five minutes, the quick one."""

    repetitions: int = 3
    rates_rps: tuple[int, ...] = (20, 50, 100, 200)
    samples: int = 200
    """First tokens per rate and repetition at least, in at least `seconds`."""
    seconds: float = 4.0
    decisions: int = 1_000
    regimes: tuple[Regime, ...] = REGIMES
    fleet: int = 24


QUICK = Plan(1, (20, 100), 100, 3.0, 500, REGIMES[:1], 8)


def say(text: str) -> None:
    print(text, flush=True)


# --- the scheduler's core alone ---------------------------------------------------------------------------


def bench_decisions(plan: Plan) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for policy in POLICIES:
        stage = queued(policy, WORKERS, QUEUED, seed=1)
        runs = [decisions(stage, plan.decisions) for _ in range(plan.repetitions)]
        found[policy] = {
            kind: {share: median((percentile(run[name], p) for run in runs), 1) for share, p in SHARES.items()}
            for kind, name in (
                ("decision_us", "submit_us"), ("decision_cpu_us", "submit_cpu_us"),
                ("finish_report_us", "report_us"), ("tick_us", "tick_us"),
            )
        }  # fmt: skip
        per_s = median((len(run["submit_us"]) / sum(run["submit_us"]) * 1e6 for run in runs), 0)
        per_cpu_s = median((len(run["submit_cpu_us"]) / sum(run["submit_cpu_us"]) * 1e6 for run in runs), 0)
        found[policy] |= {"placements_per_s": int(per_s), "placements_per_cpu_s": int(per_cpu_s)}
        found[policy] |= {"workers": WORKERS, "queued": QUEUED}
        found[policy]["samples"] = plan.decisions * plan.repetitions
        wall, cpu = found[policy]["decision_us"], found[policy]["decision_cpu_us"]
        say(f"  {policy:<15} p50 {wall['p50']:7.0f} us  p99 {wall['p99']:7.0f} us  (CPU alone {cpu['p50']:.0f}, "
            f"{cpu['p99']:.0f})  {per_s:.0f} placements/s ({per_cpu_s:.0f})")  # fmt: skip
    return found


SHARES = {"p50": 0.5, "p99": 0.99}


# --- first tokens -----------------------------------------------------------------------------------------


@asynccontextmanager
async def bare_server(directory: Path, tokens: int = 1, period_ms: float = 25.0) -> AsyncIterator[Child]:
    command = [sys.executable, BARE_SERVER, "--tokens", str(tokens), "--period-ms", str(period_ms)]
    child = Child("bare", command, directory / "bare.log", os.environ)
    await child.start(30)
    try:
        yield child
    finally:
        await child.stop()


async def first_tokens(cell: ModelledCell, rate: int, plan: Plan, directory: Path) -> dict[str, Any]:
    """Through the cell and straight to the bare server in turn, so that both see the same machine."""
    seconds = max(plan.seconds, plan.samples / rate)
    ours, bare, windows = [], [], []
    async with bare_server(directory) as child:
        loads = Load(cell.router, INSTANT.model), Load(child.address, "bare")
        for load in loads:
            await load.arrivals(rate, 0.5, seed=0)
        for repetition in range(plan.repetitions):
            window = Window(cell.cpu_s)
            ours.append(await loads[0].arrivals(rate, seconds, repetition + 1))
            windows.append(window.close())
            bare.append(await loads[1].arrivals(rate, seconds / 2, repetition + 1))
        for load in loads:
            await load.close()
    found: dict[str, Any] = {"rate_rps": rate, "samples": sum(len(seen.ttft_ms) for seen in ours)}
    found["failed"] = sum(seen.failed for seen in [*ours, *bare])
    for share, p in SHARES.items():
        found[share] = median(percentile(seen.ttft_ms, p) for seen in ours)
        found[f"bare_{share}"] = median(percentile(seen.ttft_ms, p) for seen in bare)
        found[f"generator_late_{share}"] = median(percentile(seen.late_ms, p) for seen in ours)
    found["p50_of_bare"] = round(found["p50"] / found["bare_p50"], 1)
    found["best_repetition"] = {
        share: round(min(percentile(seen.ttft_ms, p) for seen in ours), 2) for share, p in SHARES.items()
    }
    found |= {"cpu_percent": mean_shares(windows), "others_cores": median(w.others_cores for w in windows)}
    say(f"  {rate:>4}/s  p50 {found['p50']:6.2f} ms  p99 {found['p99']:6.2f} ms   bare {found['bare_p50']:.2f} / "
        f"{found['bare_p99']:.2f}   {found['samples']} samples, {found['failed']} failed, "
        f"others took {found['others_cores']:.2f} cores")  # fmt: skip
    return found


# --- streamed tokens --------------------------------------------------------------------------------------


async def streamed(cell: ModelledCell, regime: Regime, plan: Plan, directory: Path) -> dict[str, Any]:
    ours, bare, engine = [], [], regime.engine
    async with bare_server(directory, regime.tokens, regime.period_ms) as child:
        assert child.pid is not None
        pid = child.pid
        for _ in range(plan.repetitions):
            ours.append(await _stretch(Load(cell.router, engine.model), Window(cell.cpu_s), plan.seconds))
            window = Window(lambda: {"router": cpu_s(pid), "generator": time.process_time()})
            bare.append(await _stretch(Load(child.address, "bare"), window, plan.seconds))
    windows = [stretch.window for stretch in ours]
    found: dict[str, Any] = {
        "engine": engine.model, "streams": STREAMS, "broken": sum(s.broken for s in ours),
        "tokens_per_s": median((s.tokens / s.window.seconds for s in ours), 0),
        "tokens_per_delta": median(s.tokens / s.deltas for s in ours),
        "tokens_per_s_core": median((s.per_core for s in ours), 0),
        "best_repetition": round(max(s.per_core for s in ours)),
        "router_us_per_delta": median(s.window.cpu_s["router"] / s.deltas * 1e6 for s in ours),
        "bare_tokens_per_s_core": median((s.per_core for s in bare), 0),
        "bare_us_per_delta": median(s.window.cpu_s["router"] / s.deltas * 1e6 for s in bare),
        "generator_us_per_delta": median(s.window.cpu_s["generator"] / s.deltas * 1e6 for s in ours),
        "cpu_percent": mean_shares(windows), "others_cores": median(w.others_cores for w in windows),
    }  # fmt: skip
    found["cost_of_bare"] = round(found["router_us_per_delta"] / found["bare_us_per_delta"], 2)
    say(f"  {engine.model:<5} {STREAMS} streams  {found['tokens_per_s']:6.0f} tokens/s, "
        f"{found['tokens_per_delta']} a delta  ->  {found['tokens_per_s_core']:6.0f} a router core   "
        f"bare {found['bare_tokens_per_s_core']:.0f}   CPU % {found['cpu_percent']}")  # fmt: skip
    return found


@dataclass(slots=True)
class Stretch:
    window: Window
    tokens: int
    deltas: int
    broken: int

    @property
    def per_core(self) -> float:
        return self.tokens / self.window.cpu_s["router"]


async def _stretch(load: Load, window: Window, seconds: float) -> Stretch:
    """Opens the streams, lets them settle, and looks at them for that long."""
    try:
        await load.open_streams(STREAMS)
        await asyncio.sleep(0.5)
        tokens, deltas = load.tokens, load.deltas
        window = window.again()
        await asyncio.sleep(seconds)
        return Stretch(window.close(), load.tokens - tokens, load.deltas - deltas, load.broken)
    finally:
        await load.close()
        await asyncio.sleep(0.5)


# --- all of it --------------------------------------------------------------------------------------------


async def live(plan: Plan, directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    async with ModelledCell(directory, [INSTANT, L40S, H200]) as cell:
        await cell.add_workers(INSTANT, 2)
        for regime in plan.regimes:
            await cell.add_workers(regime.engine, 1)
        say("first tokens, one router, engines that take no time")
        await first_tokens(cell, 50, Plan(1, samples=0, seconds=1.0), directory)
        say("  (that was to warm up)")
        rates = [await first_tokens(cell, rate, plan, directory) for rate in plan.rates_rps]
        say("streamed tokens")
        streams = [await streamed(cell, regime, plan, directory) for regime in plan.regimes]
        say(f"{plan.fleet} workers")
        fleet = await bench_fleet(cell, plan, directory)
    good = [r for r in rates if r["p99"] <= TTFT_P99_TARGET_MS and not r["failed"]]
    at = good[-1] if good else rates[0]
    router = {
        "rate_rps": good[-1]["rate_rps"] if good else 0,
        "added_ttft_ms": {**{share: at[share] for share in SHARES}, "at_rate_rps": at["rate_rps"]},
        "tokens_per_s_core": streams[0]["tokens_per_s_core"],
        "rates": rates,
        "streams": streams,
    }
    return router, fleet


async def bench_fleet(cell: ModelledCell, plan: Plan, directory: Path) -> dict[str, Any]:
    """The same first tokens with more workers, and what workers cost that do nothing."""
    began = time.perf_counter()
    await cell.add_workers(INSTANT, plan.fleet - 2 - len(plan.regimes))
    took = time.perf_counter() - began
    window = Window(cell.cpu_s)
    await asyncio.sleep(plan.seconds)
    idle = window.close()
    found: dict[str, Any] = {"count": plan.fleet, "started_s": round(took, 1)}
    found["memory_mb_each"] = round(cell.memory_mb("worker"), 1)
    found["idle_cpu_percent_each"] = round(idle.shares["worker"] / plan.fleet, 2)
    found["idle_cpu_percent"] = idle.shares
    say(f"  {found['memory_mb_each']} MB and {found['idle_cpu_percent_each']} % of a core each while idle")
    found["first_tokens"] = await first_tokens(cell, 50, plan, directory)
    return found


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cores": os.cpu_count(), "cpu": models[0] if models else platform.machine(), "kernel": platform.release(),
        "python": platform.python_version(), "load_average_before": load_average(),
        **{name: version(name) for name in ("grpcio", "protobuf", "uvloop")},
    }  # fmt: skip


def table(found: dict[str, Any]) -> str:
    router, ours, fleet = found["router"], found["scheduler"]["hyperflexis"], found["workers"]
    added, stream = router["added_ttft_ms"], router["streams"][0]
    rows = [
        (f"added to TTFT at {added['at_rate_rps']}/s, p50", f"{added['p50']:.2f} ms", "2 ms"),
        (f"added to TTFT at {added['at_rate_rps']}/s, p99", f"{added['p99']:.2f} ms", "8 ms"),
        ("highest rate within 8 ms p99", f"{router['rate_rps']}/s", "500/s"),
        ("streamed a router core, 1 token a delta", f"{stream['tokens_per_s_core']:.0f} tokens/s", "20,000 tokens/s"),
        ("  a bare server, same messages", f"{stream['bare_tokens_per_s_core']:.0f} tokens/s", ""),
        (f"decision p99 ({WORKERS} workers, {QUEUED} queued)", f"{ours['decision_us']['p99'] / 1e3:.2f} ms", "1 ms"),
        ("workers live", str(fleet["count"]), "200"),
    ]
    head = f"{'':<46}{'measured':>18}{'target':>18}"
    return "\n".join([head, *(f"{name:<46}{value:>18}{target:>18}" for name, value, target in rows)])


async def bench(plan: Plan, out: Path) -> None:
    began = time.perf_counter()
    found: dict[str, Any] = {
        "machine": machine(), "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "command": " ".join(sys.argv),
        "repetitions": plan.repetitions,
    }  # fmt: skip
    say(f"{found['machine']}\nthe scheduler's core alone, {WORKERS} workers, {QUEUED} requests queued")
    found["scheduler"] = bench_decisions(plan)
    with tempfile.TemporaryDirectory(prefix="hyperflexis-bench-") as directory:
        found["router"], found["workers"] = await live(plan, Path(directory))
    found["seconds"] = round(time.perf_counter() - began)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    say(f"\n{table(found)}\n\nmedians of {plan.repetitions}; {found['seconds']} s; all of it in {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one repetition of less, in about a minute")
    parser.add_argument("--decisions", action="store_true", help="the scheduler's core alone; nothing is written")
    parser.add_argument("--out", type=Path, default=Path("build/bench/control.json"), help="where the numbers go")
    options = parser.parse_args()
    if options.decisions:
        bench_decisions(QUICK if options.quick else Plan())
        sys.exit()
    run(lambda: bench(QUICK if options.quick else Plan(), options.out))
