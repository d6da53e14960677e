"""Measures how long the steps of a model take on this machine and fits the step-time model to them.

    python -m hyperflexis_worker.embedded.profile --model DIR [--device cuda:0] [--dtype bfloat16] [--out FILE]

The file's `coefficients` are what `worker.profile` takes. The error it states is over shapes that the fit never saw.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hyperflexis_common.attempt import NO_ATTEMPT
from hyperflexis_common.step_time import SEEDS, StepShape, StepTimeModel, load_profile
from hyperflexis_common.step_time_fit import COLD_STEPS, StepTimeFit
from hyperflexis_worker.embedded.executor import DTYPES, TorchExecutor
from hyperflexis_worker.steps.sequence import Sampling, Sequence
from hyperflexis_worker.steps.step_plan import Chunk

HELD_OUT = 0.25
"""Share of the shapes that only test the fit."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a swept step may be, at most."""

    context: int
    tokens: int
    sequences: int


def sweep(limits: Limits, chance: random.Random) -> list[StepShape]:
    """Prefill chunks, decode batches and mixtures of both, over the whole range, in random order; each once."""
    shapes = {shape for shape in _grid(limits) if 0 < shape.tokens <= limits.tokens}
    ordered = sorted(shapes, key=lambda shape: (shape.prefill_chunks, shape.decodes, shape.decode_context_tokens))
    chance.shuffle(ordered)
    return ordered


def _grid(limits: Limits) -> Iterator[StepShape]:
    contexts = [context for context in (16, 64, 256, 1_024, 4_096, 16_384) if context < limits.context]
    chunks = [chunk for chunk in (8, 32, 64, 128, 256, 512, 1_024, 2_048, 4_096) if chunk < limits.context]
    batches = [batch for batch in (1, 2, 4, 8, 12, 16, 32, 64, 128, 256) if batch <= limits.sequences]
    for batch in batches:
        for context in contexts:
            yield StepShape((), batch, batch * context)
    for chunk in chunks:
        for before in (0, *contexts):
            if chunk + before <= limits.context:
                yield StepShape(((chunk, before),))
                for batch in batches[1::2]:
                    yield StepShape(((chunk, before),), batch, batch * contexts[(batch + before) % len(contexts)])


class Bench:
    """Runs steps of given shapes on an executor; every block holds random keys and values."""

    def __init__(self, executor: TorchExecutor, blocks: int, chance: random.Random) -> None:
        self._executor = executor
        self._blocks = blocks
        self._chance = chance
        self._cuda = executor.pool.tensor.is_cuda
        executor.pool.tensor.normal_()

    def chunks(self, shape: StepShape) -> list[Chunk]:
        """Decodes share blocks where the pool is too small: their content decides no time."""
        each = shape.decode_context_tokens // max(shape.decodes, 1)
        made = [self._chunk(each, 1) for _ in range(shape.decodes)]
        return made + [self._chunk(context, length) for length, context in shape.prefill_chunks]

    def run(self, chunks: list[Chunk]) -> float:
        """Microseconds of one step, the tokens back on the host."""
        began = time.perf_counter()
        self._executor.execute(chunks)
        if self._cuda:
            torch.cuda.synchronize()
        return (time.perf_counter() - began) * 1e6

    def _chunk(self, context: int, length: int) -> Chunk:
        tokens = [self._chance.randrange(self._executor.vocab_size) for _ in range(context + length)]
        count = -(-len(tokens) // self._executor.pool.block_tokens)
        blocks = [1 + self._chance.randrange(self._blocks - 1) for _ in range(count)]
        sequence = Sequence("profile", NO_ATTEMPT, tokens, [], Sampling(), 1, computed=context, blocks=blocks)
        return Chunk(sequence, context, length)


def measure(bench: Bench, shapes: list[StepShape], repeat: int) -> Iterator[tuple[StepShape, list[float]]]:
    """Each shape's times, its first run (allocations, kernels' choice) left out; progress on stderr."""
    for number, shape in enumerate(shapes, 1):
        chunks = bench.chunks(shape)
        bench.run(chunks)
        yield shape, [bench.run(chunks) for _ in range(repeat)]
        if number % 10 == 0 or number == len(shapes):
            end = "" if number < len(shapes) else "\n"
            print(f"\r{number}/{len(shapes)} shapes", end=end, file=sys.stderr, flush=True)


def fit(measured: list[tuple[StepShape, list[float]]], seed: StepTimeModel, chance: random.Random) -> StepTimeFit:
    """As the worker fits its own steps, one after another."""
    fitted = StepTimeFit(seed)
    steps = [(shape, took) for shape, times in measured for took in times]
    chance.shuffle(steps)
    for shape, took in [*steps[:COLD_STEPS], *steps]:
        fitted.observe(shape, took)
    fitted.refresh()
    return fitted


def errors(model: StepTimeModel, measured: list[tuple[StepShape, list[float]]]) -> dict[str, float]:
    """Of the predictions, against each shape's median time; relative."""
    ranked = sorted(abs(model.predict_us(shape) / statistics.median(times) - 1) for shape, times in measured)
    return {
        "mean": statistics.fmean(ranked),
        "p50": ranked[len(ranked) // 2],
        "p95": ranked[int(len(ranked) * 0.95)],
        "worst": ranked[-1],
    }


def profile(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the file holds."""
    chance = random.Random(arguments.seed)
    executor = TorchExecutor(
        arguments.model, arguments.num_blocks, arguments.block_tokens, arguments.dtype, arguments.device
    )
    limits = Limits(min(arguments.context, executor.context_length), arguments.max_num_tokens, arguments.max_num_seqs)
    shapes = sweep(limits, chance)
    print(f"{arguments.model}: {len(shapes)} step shapes, {arguments.repeat} runs of each", file=sys.stderr)
    measured = list(measure(Bench(executor, arguments.num_blocks, chance), shapes, arguments.repeat))
    split = int(len(measured) * (1 - HELD_OUT))
    fitted = fit(measured[:split], load_profile(arguments.start), chance)
    spread = [statistics.pstdev(times) / statistics.fmean(times) for _, times in measured if len(times) > 1]
    device = torch.cuda.get_device_name(arguments.device) if arguments.device.startswith("cuda") else platform.machine()
    return {
        "model": str(arguments.model),
        "device": device,
        "dtype": arguments.dtype,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "coefficients": asdict(fitted.model),
        "error_held_out": errors(fitted.model, measured[split:]),
        "error_fitted": errors(fitted.model, measured[:split]),
        "noise_of_a_shape": statistics.median(spread) if spread else 0.0,
        "shapes": len(shapes),
        "steps": [
            {
                **asdict(shape),
                "us": [round(took, 1) for took in times],
                "predicted_us": round(fitted.model.predict_us(shape), 1),
            }
            for shape, times in measured
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face directory")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=sorted(DTYPES))
    parser.add_argument("--num-blocks", type=int, default=1_024)
    parser.add_argument("--block-tokens", type=int, default=16)
    parser.add_argument("--context", type=int, default=32_768, help="longest context swept, within the model's")
    parser.add_argument("--max-num-tokens", type=int, default=512, help="tokens of a step at most")
    parser.add_argument("--max-num-seqs", type=int, default=64, help="decodes of a step at most")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", default="cpu/tiny/tp1", help=f"profile to start from: a file or {', '.join(SEEDS)}")
    parser.add_argument("--out", type=Path, default=Path("build/profile.json"))
    arguments = parser.parse_args()
    try:
        found = profile(arguments)
    except (ValueError, OSError) as error:
        raise SystemExit(f"cannot profile {arguments.model}: {error}") from error
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    held_out, coefficients = found["error_held_out"], found["coefficients"]
    print("coefficients (us): " + ", ".join(f"{name[:-3]} {value:.4g}" for name, value in coefficients.items()))
    print(
        f"error on {len(found['steps']) - int(len(found['steps']) * (1 - HELD_OUT))} shapes held out: mean "
        f"{held_out['mean']:.1%}, median {held_out['p50']:.1%}, p95 {held_out['p95']:.1%}; "
        f"a shape's own spread is {found['noise_of_a_shape']:.1%}"
    )
    print(f"written: {arguments.out}   use it: worker.profile: {arguments.out}")


if __name__ == "__main__":
    main()
