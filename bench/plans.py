"""`python bench/plans.py`: what it takes to plan one engine step, by how many wait and whether there is room for them.

The GPU idles meanwhile. Worker core alone: planner, step loop and block pool as the engine process runs them, steps of
30 ms that compute nothing. Best effort stays in the queue however long it is; prompts due in 15 s cannot all be kept,
and the policy chooses its victims. Writes build/bench/plans.json.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from windows import median, percentile

from hyperflexis_common.attempt import Attempt
from hyperflexis_common.output_lengths import OutputLengths
from hyperflexis_common.step_time import SEEDS
from hyperflexis_worker.modelled import ModelledExecutor, ModelledPool
from hyperflexis_worker.steps.blocks import BlockPool
from hyperflexis_worker.steps.planner import StepPlanner
from hyperflexis_worker.steps.sequence import Sampling
from hyperflexis_worker.steps.sequence import Sequence as EngineSequence
from hyperflexis_worker.steps.slo_policy import SloPolicy
from hyperflexis_worker.steps.step_loop import StepLoop

MODEL = SEEDS["h200/llama-3.1-8b/tp1"]
BLOCK_TOKENS, MAX_TOKENS, MAX_SEQUENCES, VOCAB = 16, 8_192, 256, 1_000
STEP_US, WARM_UPS = 30_000, 20
QUEUES = (10, 100, 1_000, 5_000)
KINDS = {"best effort": 3_600_000_000, "due in 15 s": 15_000_000}
POOLS = {"roomy": 25_000, "full": 4_000}
"""Blocks: for all who may run at once, and for about half of them."""


class Stage:
    """One engine, and as many who wait as there is room for in its queue."""

    def __init__(self, waiting: int, ttft_us: int, blocks: int) -> None:
        self._waiting, self._ttft_us = waiting, ttft_us
        self._chance = random.Random(1)
        self._number = self._now_us = 0
        lengths = OutputLengths()
        self._planner = StepPlanner(SloPolicy(MODEL, MAX_TOKENS, MAX_SEQUENCES, lengths), lengths)
        self._loop = StepLoop(self._planner, BlockPool(blocks, BLOCK_TOKENS), lengths)
        pool = ModelledPool(blocks, BLOCK_TOKENS)
        self._executor = ModelledExecutor(VOCAB, MODEL, pool, sleep=lambda seconds: None)
        for _ in range(waiting):
            self._arrive()

    def step(self) -> float:
        """Microseconds that its plan took."""
        for _ in range(min(self._waiting - len(list(self._loop.waiting)), 3)):
            self._arrive()
        began = time.perf_counter()
        plan = self._loop.plan(self._now_us)
        took_us = (time.perf_counter() - began) * 1e6
        sampled = self._executor.execute(plan.chunks)
        self._planner.stepped(plan, STEP_US, STEP_US, MODEL)
        self._loop.commit(plan, sampled)
        self._now_us += STEP_US
        return took_us

    @property
    def running(self) -> int:
        return len(list(self._loop.running))

    def _arrive(self) -> None:
        self._number += 1
        prompt = [self._chance.randrange(VOCAB) for _ in range(self._chance.randrange(200, 1_500))]
        self._loop.add(
            EngineSequence(
                str(self._number),
                Attempt(1, self._number),
                prompt,
                [],
                Sampling(),
                300,
                arrival_us=self._now_us,
                ttft_us=self._ttft_us,
                tpot_us=50_000,
                tier="chat",
            )  # fmt: skip
        )


def measure(waiting: int, kind: str, pool: str, steps: int) -> dict[str, Any]:
    stage = Stage(waiting, KINDS[kind], POOLS[pool])
    took_us = [stage.step() for _ in range(WARM_UPS + steps)]
    plan_us = {"p50": round(median(took_us[WARM_UPS:])), "p99": round(percentile(took_us[WARM_UPS:], 0.99))}
    found = {"waiting": waiting, "kind": kind, "pool": pool, "running": stage.running, "plan_us": plan_us}
    print(f"{waiting:>8}  {kind:<12}{pool:<7}{stage.running:>8}{plan_us['p50']:>10}{plan_us['p99']:>8}", flush=True)
    return found


def main(out: Path, steps: int, queues: Sequence[int]) -> None:
    print(f"{'waiting':>8}  {'':<12}{'pool':<7}{'running':>8}{'plan p50':>10}{'p99 us':>8}")
    rows = [measure(waiting, kind, pool, steps) for kind in KINDS for pool in POOLS for waiting in queues]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"steps": steps, "rows": rows}, indent=2) + "\n", encoding="utf-8")
    print(f"all of it in {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help="measured ones of each case (%(default)s)")
    parser.add_argument("--waiting", default=",".join(map(str, QUEUES)), help="how many wait (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("build/bench/plans.json"), help="where the numbers go")
    options = parser.parse_args()
    main(options.out, options.steps, [int(part) for part in options.waiting.split(",")])
