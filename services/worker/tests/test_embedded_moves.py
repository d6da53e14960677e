"""Torch engines that hand sequences over: in float64 exactly the tokens and logprobs of an undisturbed run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cache_cell import cell
from engine_rig import modelled_settings
from memory_wire import MemoryWire
from oracle_models import VOCAB, make_model, random_prompt, save

from hyperflexis_common.config import ModelSettings
from hyperflexis_worker.config import WorkerSettings
from hyperflexis_worker.steps.sequence import Sampling

LENGTH = 300
RULES = {
    "greedy": Sampling(),
    "seeded": Sampling(0.8, seed=1),
    "filtered": Sampling(1.5, top_k=20, top_p=0.9, min_p=0.05, seed=2**64 - 1),
    "penalised": Sampling(1.0, repetition_penalty=1.4, frequency_penalty=0.5, presence_penalty=0.2, seed=4),
    "logprobs": Sampling(1.0, logit_bias=((5, 3.0),), logprobs=2, seed=6),
    "greedy and penalised": Sampling(0.0, frequency_penalty=1.5, logprobs=1, logit_bias=((3, 4.0), (7, -9.0))),
    "stop": Sampling(1.3, seed=7, min_tokens=250, stop_token_ids=frozenset(range(0, VOCAB, 9))),
}
PROMPTS = {name: random_prompt(20 + 7 * at, at) for at, name in enumerate(RULES)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make_model("qwen3-group-4"), tmp_path_factory.mktemp("model"))


def torch_settings(worker_id: str, model: Path, **changes: Any) -> WorkerSettings:
    served = ModelSettings(name="m", path=str(model), vocab_size=VOCAB, context_length=1_024)
    defaults = {"models": [served], "engine": "embedded", "dtype": "float64", "block_tokens": 8, "num_blocks": 1_000}
    return modelled_settings(worker_id, **{**defaults, **changes})


@pytest.fixture(scope="module")
def undisturbed(model: Path) -> dict[str, tuple[list[int], list[Any]]]:
    with cell(torch_settings("alone", model)) as alone:
        [engine] = alone.engines
        for name, rules in RULES.items():
            engine.add(name, PROMPTS[name], LENGTH, sampling=rules)
        alone.until(lambda: engine.ended.keys() == RULES.keys(), 50)
        return {name: (engine.outputs[name], engine.logprobs[name]) for name in RULES}


@pytest.mark.parametrize("over", ["wire", "shells"])
def test_moved_tokens_and_logprobs_are_those_of_an_undisturbed_run(
    model: Path, undisturbed: dict[str, tuple[list[int], list[Any]]], over: str
) -> None:
    """All at once, in chunks on one side, moved at different places; back again where there is time."""
    settings = [torch_settings("a", model, max_num_tokens=16), torch_settings("b", model, policy="hyperflexis")]
    with cell(*settings, wire=MemoryWire() if over == "wire" else None) as both:
        a, b = both.engines
        for name, rules in RULES.items():
            a.add(name, PROMPTS[name], LENGTH, sampling=rules)
        for at, (name, rules) in enumerate(RULES.items()):
            both.until(lambda name=name, at=at: len(a.outputs.get(name, [])) >= at, 50)
            both.move(name, a, b, PROMPTS[name], LENGTH, sampling=rules)
        for name in ("greedy", "penalised"):
            both.move(name, b, a, PROMPTS[name], LENGTH, seq=2, sampling=RULES[name])
        both.until(lambda: a.ended.keys() | b.ended.keys() == RULES.keys(), 50)
        for name, (tokens, logprobs) in undisturbed.items():
            last = a if name in a.ended else b
            assert last.outputs[name] == tokens, name
            told = a.logprobs.get(name, []) + b.logprobs.get(name, [])
            assert [one.chosen for one in told] == pytest.approx([one.chosen for one in logprobs], abs=1e-9), name
            assert [[token for token, _ in one.top] for one in told] == [[t for t, _ in one.top] for one in logprobs]
