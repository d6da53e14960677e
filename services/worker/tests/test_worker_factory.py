from __future__ import annotations

from typing import Any

import pytest

from hyperflexis_common.config import ModelSettings, TierSettings
from hyperflexis_worker.config import WorkerSettings
from hyperflexis_worker.core.policy_planner import PolicyPlanner
from hyperflexis_worker.core.slo_policy import SloPolicy
from hyperflexis_worker.engine.factory import build_engine

TIERS = [
    TierSettings(name="chat", ttft_ms=500, tpot_ms=50, guarantee=0.6),
    TierSettings(name="code", ttft_ms=500, tpot_ms=30),
]


def settings(**changes: Any) -> WorkerSettings:
    model = ModelSettings(name="m", context_length=128, vocab_size=300)
    return WorkerSettings(models=[model], tiers=TIERS, engine="modelled", profile="test/tiny/tp1", **changes)


def test_guarantees_and_the_reserve_reach_the_policy() -> None:
    planner = build_engine(settings(long_prompt_tokens=3_000, long_prompt_share=0.2)).planner
    assert isinstance(planner, PolicyPlanner)
    policy = planner.policy
    assert isinstance(policy, SloPolicy)
    rules = policy.worth.rules
    assert (dict(rules.guarantees), rules.long_prompt_tokens, rules.long_prompt_share) == ({"chat": 0.6}, 3_000, 0.2)


@pytest.mark.parametrize("half", [{"long_prompt_tokens": 3_000}, {"long_prompt_share": 0.2}])
def test_half_a_reserve_is_refused(half: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"long_prompt_tokens and worker\.long_prompt_share make a reserve together"):
        settings(**half).check()
