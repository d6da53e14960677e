"""`python tests/gpu/engine_check.py --out DIR`: the torch engine on a CUDA device, against transformers on the same.

- tokens: every odd little model, float64, greedy, mixed batches and chunks: all tokens equal.
- logits: real shapes of the three families with random weights in bfloat16, teacher-forced through prefill chunks and
  decodes. The reference is transformers in float32 with the very same weights; transformers in bfloat16 beside it tells
  how far rounding alone goes.
- speed: what the plain torch path takes for decodes and prefill chunks (its kernels are yet to come), and the fit of
  the step-time model.

Writes engine_check.json. Needs torch with CUDA, transformers, safetensors, protobuf; nothing of the services.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from oracle_models import MODELS, continuation, make_model, random_prompt, save
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from hyperflexis_common.attempt import NO_ATTEMPT
from hyperflexis_common.step_time import SEEDS
from hyperflexis_worker.embedded.batch import pack
from hyperflexis_worker.embedded.executor import TorchExecutor
from hyperflexis_worker.embedded.profile import Bench, Limits, errors, fit, measure, sweep
from hyperflexis_worker.steps.blocks import BlockPool
from hyperflexis_worker.steps.chunked_policy import ChunkedPolicy
from hyperflexis_worker.steps.planner import StepPlanner
from hyperflexis_worker.steps.sequence import Sampling, Sequence
from hyperflexis_worker.steps.step_loop import StepLoop
from hyperflexis_worker.steps.step_plan import Chunk

DEVICE = "cuda:0"
BLOCK_TOKENS = 64
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8_192,
}
YARN = {"rope_type": "yarn", "rope_theta": 1_000_000.0, "factor": 4.0, "original_max_position_embeddings": 32_768}


def shapes() -> dict[str, Any]:
    """As published: Llama 3.2 1B, Llama 3.1 8B, Qwen2.5 7B with its yarn setting, Qwen3 0.6B."""
    return {
        "llama-3.2-1b": lambda: LlamaForCausalLM(
            LlamaConfig(
                vocab_size=128_256, hidden_size=2_048, intermediate_size=8_192, num_hidden_layers=16,
                num_attention_heads=32, num_key_value_heads=8, head_dim=64, max_position_embeddings=131_072,
                rope_parameters=LLAMA3 | {"factor": 32.0}, tie_word_embeddings=True,
            )
        ),
        "qwen3-0.6b": lambda: Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=151_936, hidden_size=1_024, intermediate_size=3_072, num_hidden_layers=28,
                num_attention_heads=16, num_key_value_heads=8, head_dim=128, max_position_embeddings=40_960,
                rope_parameters={"rope_type": "default", "rope_theta": 1e6}, tie_word_embeddings=True,
            )
        ),
        "qwen2.5-7b-yarn": lambda: Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=152_064, hidden_size=3_584, intermediate_size=18_944, num_hidden_layers=28,
                num_attention_heads=28, num_key_value_heads=4, max_position_embeddings=131_072, rope_parameters=YARN,
            )
        ),
        "llama-3.1-8b": lambda: LlamaForCausalLM(
            LlamaConfig(
                vocab_size=128_256, hidden_size=4_096, intermediate_size=14_336, num_hidden_layers=32,
                num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=131_072, rope_parameters=LLAMA3,
            )
        ),
    }  # fmt: skip


def check_tokens(scratch: Path) -> dict[str, Any]:
    """All little models: greedy tokens in float64, 16 at once, several chunk budgets."""
    cases = wrong = 0
    for name in MODELS:
        chance = random.Random(name)
        model: Any = make_model(name)
        model.to(DEVICE)
        lengths = [1, 2, 600, *chance.choices(range(1, 300), k=13)]
        prompts = [random_prompt(length, n) for n, length in enumerate(lengths)]
        expected = [continuation(model, prompt, 16) for prompt in prompts]
        directory = save(model, scratch / name)
        for budget in (23, 256):
            executor = TorchExecutor(directory, 256, 16, "float64", DEVICE)
            loop = StepLoop(StepPlanner(ChunkedPolicy(SEEDS["test/tiny/tp1"], budget, 16)), BlockPool(256, 16))
            members = [Sequence(str(n), NO_ATTEMPT, prompt, [], Sampling(), 16) for n, prompt in enumerate(prompts)]
            for one in members:
                loop.add(one)
            while loop.busy:
                plan = loop.plan(0)
                loop.commit(plan, executor.execute(plan.chunks))
            cases += len(members)
            wrong += sum(one.output != tokens for one, tokens in zip(members, expected, strict=True))
    return {"models": len(MODELS), "cases": cases, "wrong": wrong}


def forced_logits(executor: TorchExecutor, texts: list[list[int]], prompt: int) -> Iterator[torch.Tensor]:
    """[texts, vocabulary] at each position from prompt - 1 on: the prompt in chunks, then decodes of given tokens."""
    blocks = -(-len(texts[0]) // BLOCK_TOKENS)
    members = [Sequence(str(n), NO_ATTEMPT, text[:prompt], [], Sampling(), 1) for n, text in enumerate(texts)]
    for n, one in enumerate(members):
        one.blocks = list(range(1 + n * blocks, 1 + (n + 1) * blocks))
    with torch.inference_mode():
        half = prompt // 2
        executor.execute([Chunk(one, 0, half) for one in members])
        for position in range(prompt, len(texts[0]) + 1):
            start = half if position == prompt else position - 1
            for one, text in zip(members, texts, strict=True):
                one.prompt = text[:position]
            chunks = [Chunk(one, start, position - start) for one in members]
            yield executor._decoder.forward(pack(chunks, BLOCK_TOKENS, torch.device(DEVICE))).float()


def check_logits(name: str, directory: Path, reference: Any, texts: list[list[int]], prompt: int) -> dict[str, Any]:
    """Ours and transformers' bfloat16 logits against transformers' in float32, position by position."""
    ids = torch.tensor(texts, device=DEVICE)
    with torch.inference_mode():
        rounded = reference(ids).logits[:, prompt - 1 :].float()
        exact = reference.float()(ids).logits[:, prompt - 1 :]
    executor = TorchExecutor(directory, 64, BLOCK_TOKENS, "bfloat16", DEVICE)
    ours = torch.stack(list(forced_logits(executor, texts, prompt)), dim=1)
    spread = exact.std().item()

    def against(found: torch.Tensor) -> dict[str, float]:
        return {
            "mean_error": (found - exact).abs().mean().item() / spread,
            "worst_error": (found - exact).abs().max().item() / spread,
            "same_argmax": (found.argmax(-1) == exact.argmax(-1)).float().mean().item(),
        }

    engine, other = against(ours), against(rounded)
    return {
        "positions": ours.shape[0] * ours.shape[1],
        "engine": engine,
        "transformers_bf16": other,
        # As near to float32 as the same arithmetic in another order is.
        "ok": engine["mean_error"] <= 1.05 * other["mean_error"],
    }


def speed(directory: Path, name: str) -> dict[str, Any]:
    """Median times of whole steps, host included, and the step-time model fitted to a sweep."""
    began = time.perf_counter()
    blocks = 2_048
    executor = TorchExecutor(directory, blocks, BLOCK_TOKENS, "bfloat16", DEVICE)
    loaded_s = time.perf_counter() - began
    chance = random.Random(0)
    bench = Bench(executor, blocks, chance)
    found = list(measure(bench, sweep(Limits(16_384, 2_048, 64), chance)[:120], 5))
    split = len(found) * 3 // 4
    fitted = fit(found[:split], SEEDS["h100/llama-3.1-8b/tp1"], chance)
    medians = {
        f"{shape.decodes} decodes at {shape.decode_context_tokens // max(shape.decodes, 1)}, "
        f"chunks {list(shape.prefill_chunks)}": round(statistics.median(times) / 1e3, 3)
        for shape, times in found
    }
    return {
        "load_s": round(loaded_s, 2),
        "weights_gb": round(sum(entry.length for entry in executor.weight_manifest) / 1e9, 3),
        "step_time_error_held_out": errors(fitted.model, found[split:]),
        "ms": medians,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/gpu"))
    parser.add_argument("--only", nargs="*", help="of the real shapes")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.backends.cuda.matmul.allow_tf32 = False
    found: dict[str, Any] = {"device": torch.cuda.get_device_name(0), "torch": torch.__version__, "shapes": {}}

    def keep() -> None:  # after each part: a run that is cut short has still told something
        (arguments.out / "engine_check.json").write_text(json.dumps(found, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as scratch:
        found["tokens_float64"] = check_tokens(Path(scratch))
        print("tokens", found["tokens_float64"], flush=True)
        keep()
        for name, build in shapes().items():
            if arguments.only is not None and name not in arguments.only:
                continue
            began = time.perf_counter()
            directory = Path(scratch) / name
            torch.manual_seed(1)
            with torch.device(DEVICE):
                model: Any = build()
            model.to(torch.bfloat16)
            model.save_pretrained(directory, max_shard_size="4GB")
            del model
            model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
            model.to(DEVICE)
            chance = random.Random(name)
            texts = [[chance.randrange(model.config.vocab_size) for _ in range(160)] for _ in range(4)]
            found["shapes"][name] = one = {"logits": check_logits(name, directory, model, texts, prompt=96)}
            del model
            gc.collect()
            torch.cuda.empty_cache()
            one["speed"] = speed(directory, name)
            shutil.rmtree(directory)
            gc.collect()
            torch.cuda.empty_cache()
            print(f"{name}, {time.perf_counter() - began:.0f} s", one["logits"], one["speed"]["load_s"], flush=True)
            keep()
    bad = [name for name, one in found["shapes"].items() if not one["logits"]["ok"]]
    if bad or found["tokens_float64"]["wrong"]:
        raise SystemExit(f"wrong: {found['tokens_float64']['wrong']} token cases, logits of {bad}")


if __name__ == "__main__":
    main()
