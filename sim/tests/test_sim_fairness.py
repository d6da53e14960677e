"""Who pays for an overload: weights, guarantees, and neighbours that flood."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from hyperflexis_common.step_time import SEEDS
from hyperflexis_scheduler.core.dispatch_policy import EarliestFirstToken
from hyperflexis_sim.cluster import Cluster
from hyperflexis_sim.request import SimRequest
from hyperflexis_sim.tiers import Promise, promise
from hyperflexis_sim.worker_kind import WorkerKind
from hyperflexis_sim.workload import Workload
from hyperflexis_worker.steps.slo_policy import SloPolicy
from hyperflexis_worker.steps.worth import Worth, WorthRules

CHAT, SUMMARISE = promise("chat", 500, 50), promise("summarise", 15_000, 150)
PROMPTS = {"chat": (1_500, 100), "summarise": (3_000, 200), "instant": (500, 400)}
"""Mean prompt and output tokens."""
SECONDS, SCORED_S = 240.0, (100.0, 220.0)
"""A request of the loose tier may be served 15 s after it came: shares settle slowly, and the last ones meet nobody."""


def workload(rates: Mapping[tuple[str, str], float], seed: int = 0) -> Workload:
    """Poisson arrivals at so many requests a second of each (tier, tenant)."""
    random = np.random.default_rng(seed)
    rows = []
    for (tier, tenant), rate in rates.items():
        prompt, output = PROMPTS[tier]
        for at_s in np.sort(random.uniform(0, SECONDS, int(rate * SECONDS))).tolist():
            rows.append(
                (at_s, int(prompt * random.uniform(0.3, 1.7)), int(output * random.uniform(0.2, 1.8)), tier, tenant)
            )
    rows.sort()
    at_s, prompts, outputs, tiers, tenants = zip(*rows, strict=True)
    return Workload(np.array(at_s), np.array(prompts), np.array(outputs), list(tiers), list(tenants))


def attained(
    rates: Mapping[tuple[str, str], float],
    promises: Mapping[str, Promise] | None = None,
    rules: WorthRules | None = None,
) -> dict[tuple[str, str], float]:
    """By (tier, tenant), on one H200."""
    promises = promises or {"chat": CHAT, "summarise": SUMMARISE}
    requests = workload(rates).requests(promises)
    model = SEEDS["h200/llama-3.1-8b/tp1"]
    cluster = Cluster(
        [WorkerKind(model, 400_000)],
        EarliestFirstToken(),
        lambda model: SloPolicy(model, 8_192, 512, worth=Worth(rules)),
    )
    cluster.run(requests, (SECONDS + 60) * 1e6)
    scored = [request for request in requests if SCORED_S[0] <= request.arrival_us / 1e6 < SCORED_S[1]]
    return {key: _share([r for r in scored if (r.tier, r.tenant) == key]) for key in rates}


def _share(requests: list[SimRequest]) -> float:
    return sum(request.attained for request in requests) / len(requests)


def test_a_tenant_that_floods_takes_nothing_from_one_within_its_share() -> None:
    alone = attained({("chat", "small"): 4.0})["chat", "small"]
    flooded = attained({("chat", "small"): 4.0, ("chat", "big"): 60.0})
    assert flooded["chat", "small"] >= alone - 0.02
    assert flooded["chat", "big"] < 0.6


def test_a_tier_gains_nothing_by_the_number_of_its_tenants() -> None:
    promises = {"chat": CHAT, "summarise": replace(SUMMARISE, weight=6.0)}
    one = attained({("chat", ""): 40.0, ("summarise", ""): 8.0}, promises)
    many = attained({("summarise", ""): 8.0} | {("chat", f"t{number}"): 0.2 for number in range(200)}, promises)
    assert many["summarise", ""] >= one["summarise", ""] - 0.03


def test_a_loose_tier_that_floods_takes_no_more_than_its_weight() -> None:
    """With work over worth alone the victim is the dearest; a weight says how much dearer a chat may be."""
    promises = {"chat": replace(CHAT, weight=4.0), "summarise": SUMMARISE}
    calm = attained({("chat", ""): 6.0, ("summarise", ""): 2.0}, promises)
    flooded = attained({("chat", ""): 6.0, ("summarise", ""): 40.0}, promises)
    assert calm["chat", ""] >= 0.98
    assert flooded["chat", ""] >= calm["chat", ""] - 0.03
    assert flooded["summarise", ""] < 0.5


@pytest.mark.parametrize(("tier", "other"), [("chat", "summarise"), ("summarise", "chat")])
def test_weights_move_tiers_the_way_they_say(tier: str, other: str) -> None:
    rates = {("chat", ""): 30.0, ("summarise", ""): 20.0}
    promises = {"chat": CHAT, "summarise": SUMMARISE}
    even = attained(rates, promises)
    favoured = attained(rates, {**promises, tier: replace(promises[tier], weight=3.0)})
    assert favoured[tier, ""] > even[tier, ""] + 0.05
    assert favoured[other, ""] < even[other, ""]


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_a_feasible_guarantee_is_met(share: float) -> None:
    """Of the dearer tier, at the expense of the other; without one it has less."""
    rates = {("chat", ""): 30.0, ("summarise", ""): 20.0}
    promises = {"chat": replace(CHAT, weight=2.0), "summarise": SUMMARISE}
    assert attained(rates, promises)["summarise", ""] < share - 0.1
    kept = attained(rates, promises, WorthRules({"summarise": share}))
    assert kept["summarise", ""] == pytest.approx(share, abs=0.03)


def test_a_tier_whose_promise_no_step_can_keep_takes_nothing_from_others() -> None:
    """2 ms a token, where a step takes 6 with nothing but decodes in it: once it was late, nothing was prefilled."""
    promises = {"chat": CHAT, "instant": promise("instant", 500, 2)}
    alone = attained({("chat", ""): 6.0}, promises)
    beside = attained({("chat", ""): 6.0, ("instant", ""): 0.5}, promises)
    assert beside["chat", ""] >= alone["chat", ""] - 0.02
    assert beside["instant", ""] == 0.0
