"""`python bench/engine.py`: the embedded engine against transformers' own `generate`, same model, same run.

Three workloads, each with both engines in turn, several times; medians. Writes build/bench/engine.json.

- one: a single request.
- sixteen: 16 requests of equal lengths, which suits a static batch best.
- traffic: 64 requests of mixed lengths, 16 at once. transformers takes them 16 by 16, in order, each batch padded to
  its longest prompt and run to its longest answer; the engine replaces each request as it ends.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from hyperflexis_common.attempt import NO_ATTEMPT
from hyperflexis_common.step_time import SEEDS
from hyperflexis_worker.embedded.executor import DTYPES, TorchExecutor
from hyperflexis_worker.steps.blocks import BlockPool
from hyperflexis_worker.steps.chunked_policy import ChunkedPolicy
from hyperflexis_worker.steps.planner import StepPlanner
from hyperflexis_worker.steps.sequence import Sampling
from hyperflexis_worker.steps.sequence import Sequence as EngineSequence
from hyperflexis_worker.steps.step_loop import StepLoop

TARGETS = {"one": 1.0, "sixteen": 3.0, "traffic": 3.0}
"""Of the engine's tokens/s over transformers'."""


@dataclass(frozen=True, slots=True)
class Job:
    prompt: list[int]
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Run:
    seconds: float
    steps: int
    tokens: int

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


def workloads(vocab: int, seed: int) -> dict[str, list[Job]]:
    chance = random.Random(seed)

    def job(prompt: int, output: int) -> Job:
        return Job([chance.randrange(3, vocab) for _ in range(prompt)], output)

    mixed = [
        job(min(int(chance.lognormvariate(4.6, 0.8)) + 1, 900), min(int(chance.lognormvariate(4.2, 0.8)) + 1, 400))
        for _ in range(64)
    ]
    return {"one": [job(128, 128)], "sixteen": [job(128, 128) for _ in range(16)], "traffic": mixed}


class Engine:
    """Step loop and executor, as in a worker, without the socket between them."""

    def __init__(self, directory: Path, dtype: str, device: str) -> None:
        self._blocks, self._block_tokens = 2_048, 16
        self._executor = TorchExecutor(directory, self._blocks, self._block_tokens, dtype, device)

    @property
    def vocab_size(self) -> int:
        return self._executor.vocab_size

    def run(self, jobs: Sequence[Job]) -> Run:
        # A pool of its own for each run: the last run's prefixes are no help.
        loop = StepLoop(
            StepPlanner(ChunkedPolicy(SEEDS["test/tiny/tp1"], 512, 16)), BlockPool(self._blocks, self._block_tokens)
        )
        for number, job in enumerate(jobs):
            sequence = EngineSequence(str(number), NO_ATTEMPT, job.prompt, [], Sampling(), job.output_tokens)
            sequence.arrival_us = number
            loop.add(sequence)
        steps, began = 0, time.perf_counter()
        while loop.busy:
            plan = loop.plan(0)
            loop.commit(plan, self._executor.execute(plan.chunks))
            steps += 1
        return Run(time.perf_counter() - began, steps, sum(job.output_tokens for job in jobs))


class Transformers:
    """`generate` with its own cache, greedy, without an end of sequence; batches of 16, padded on the left."""

    def __init__(self, directory: Path, dtype: str, device: str) -> None:
        model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=DTYPES[dtype])
        self._model = model.to(device)
        self._device = device

    def run(self, jobs: Sequence[Job]) -> Run:
        steps, began = 0, time.perf_counter()
        for first in range(0, len(jobs), 16):
            steps += self._batch(jobs[first : first + 16])
        return Run(time.perf_counter() - began, steps, sum(job.output_tokens for job in jobs))

    def _batch(self, jobs: Sequence[Job]) -> int:
        widest, longest = max(len(job.prompt) for job in jobs), max(job.output_tokens for job in jobs)
        ids = torch.tensor([[0] * (widest - len(job.prompt)) + job.prompt for job in jobs], device=self._device)
        mask = torch.tensor(
            [[0] * (widest - len(job.prompt)) + [1] * len(job.prompt) for job in jobs], device=self._device
        )
        with torch.inference_mode():
            self._model.generate(
                ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=longest,
                min_new_tokens=longest,
                pad_token_id=0,
            )
        return longest


def compare(ours: Callable[[], Run], theirs: Callable[[], Run], repeat: int) -> dict[str, Any]:
    """In turn, so that a busy moment meets both; the first of each is left out."""
    pairs = [(ours(), theirs()) for _ in range(repeat + 1)][1:]

    def summary(runs: Sequence[Run]) -> dict[str, float]:
        return {
            "tokens_per_s": round(statistics.median(run.tokens_per_s for run in runs), 1),
            "ms_per_step": round(statistics.median(1e3 * run.seconds / run.steps for run in runs), 3),
            "steps": runs[0].steps,
            "tokens": runs[0].tokens,
        }

    ratios = [a.tokens_per_s / b.tokens_per_s for a, b in pairs]
    return {
        "engine": summary([a for a, _ in pairs]),
        "transformers": summary([b for _, b in pairs]),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/tiny"))
    parser.add_argument("--dtype", default="float32", choices=sorted(DTYPES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", choices=sorted(TARGETS))
    parser.add_argument("--out", type=Path, default=Path("build/bench/engine.json"))
    arguments = parser.parse_args()
    engine = Engine(arguments.model, arguments.dtype, arguments.device)
    transformers = Transformers(arguments.model, arguments.dtype, arguments.device)
    found: dict[str, Any] = {
        "model": str(arguments.model),
        "dtype": arguments.dtype,
        "device": arguments.device,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "repeat": arguments.repeat,
        "workloads": {},
    }
    print(f"{'':10}{'engine':>22}{'transformers':>24}{'ratio':>8}   (range)        wanted")
    for name, jobs in workloads(engine.vocab_size, seed=0).items():
        if arguments.only not in (None, name):
            continue
        one = compare(lambda jobs=jobs: engine.run(jobs), lambda jobs=jobs: transformers.run(jobs), arguments.repeat)  # type: ignore[misc]
        found["workloads"][name] = one | {"target": TARGETS[name]}
        ours, theirs = one["engine"], one["transformers"]
        print(
            f"{name:10}{ours['tokens_per_s']:>9,.0f}/s {ours['ms_per_step']:>6.2f} ms/step"
            f"{theirs['tokens_per_s']:>9,.0f}/s {theirs['ms_per_step']:>6.2f} ms/step{one['ratio']:>7.2f}x"
            f"   ({one['ratio_range'][0]:.2f}-{one['ratio_range'][1]:.2f})   >= {TARGETS[name]:g}x"
        )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"written: {arguments.out}")


if __name__ == "__main__":
    main()
