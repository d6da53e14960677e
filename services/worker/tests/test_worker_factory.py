from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hyperflexis_common.config import ModelSettings, load_settings
from hyperflexis_worker.config import WorkerSettings
from hyperflexis_worker.engine.factory import build_engine
from hyperflexis_worker.steps.planner import StepPlanner
from hyperflexis_worker.steps.slo_policy import SloPolicy

YAML = """
models: [{name: m, context_length: 128, vocab_size: 300}]
tiers:
- {name: chat, ttft_ms: 500, tpot_ms: 50, guarantee: 0.6}
- {name: code, ttft_ms: 500, tpot_ms: 30}
worker: {engine: modelled, profile: test/tiny/tp1, long_prompt_tokens: 3000, long_prompt_share: 0.2, patience: 0.5}
"""


def settings(**changes: Any) -> WorkerSettings:
    model = ModelSettings(name="m", context_length=128, vocab_size=300)
    return WorkerSettings(models=[model], engine="modelled", profile="test/tiny/tp1", **changes)


def test_guarantees_and_the_reserve_reach_the_policy(tmp_path: Path) -> None:
    config = tmp_path / "stack.yaml"
    config.write_text(YAML)
    planner = build_engine(load_settings(WorkerSettings, config=config)).planner
    assert isinstance(planner, StepPlanner)
    policy = planner.policy
    assert isinstance(policy, SloPolicy)
    assert policy.rules.patience == 0.5
    rules = policy.worth.rules
    assert (dict(rules.guarantees), rules.long_prompt_tokens, rules.long_prompt_share) == ({"chat": 0.6}, 3_000, 0.2)


@pytest.mark.parametrize("half", [{"long_prompt_tokens": 3_000}, {"long_prompt_share": 0.2}])
def test_half_a_reserve_is_refused(half: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"long_prompt_tokens and worker\.long_prompt_share make a reserve together"):
        settings(**half).check()
