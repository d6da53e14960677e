"""Which policies can be compared: a dispatcher and an engine scheduler each, by name.

`fcfs512` is Sarathi-Serve's scheduler, first come first served with chunked prefill in steps of 512 tokens; `fcfs2048`
is the same with vLLM v1's default step. Baselines run up to 256 sequences, vLLM's default, and leave no room in the
KV pool for growth, as none of them does: they preempt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from hyperflexis_common.step_time import StepTimeModel
from hyperflexis_scheduler.core.dispatch_policy import (
    DispatchPolicy,
    EarliestFirstToken,
    RoundRobin,
    least_queued_tokens,
    least_requests,
)
from hyperflexis_sim.disaggregation import Plan
from hyperflexis_sim.dispatch_baselines import DynamoKvCost, LlmdDefault, LlmdHeadroom, PowerOfTwo
from hyperflexis_sim.plans import plan_of
from hyperflexis_sim.qoserve_policy import QoServePolicy
from hyperflexis_sim.slo_dispatch_baselines import LlumnixSlo, PolyServe
from hyperflexis_sim.tier_partition import TierPartition
from hyperflexis_sim.whole_queue import WholeQueue
from hyperflexis_worker.steps.admission_policy import AdmissionPolicy
from hyperflexis_worker.steps.chunked_policy import ChunkedPolicy
from hyperflexis_worker.steps.scorpio_policy import ScorpioPolicy
from hyperflexis_worker.steps.slo_policy import SloPolicy
from hyperflexis_worker.steps.slo_rules import SloRules
from hyperflexis_worker.steps.step_policy import StepPolicy
from hyperflexis_worker.steps.worth import Worth, WorthRules

_OURS = "hyperflexis"
SEQUENCES = 256
STEP_TOKENS = 512
"""Of the baselines that bound a step by tokens, unless their name says otherwise."""

ADMISSION_TOKENS = (512, 1024, 2048, 8192)
"""In a step of an engine that fills them itself: as it is configured."""

Dispatch = Callable[[int], DispatchPolicy]
"""Makes a dispatcher of a seed."""
Step = Callable[[StepTimeModel], StepPolicy]


@dataclass(frozen=True, slots=True)
class Policy:
    dispatch: Dispatch
    step: Step
    """Makes one for each worker."""
    reserve_growth: bool
    """Whether admission leaves room in the KV pool for what all who run will grow by."""
    description: str
    plan: Plan | None = None
    """Roles and moves, where its name asks for them after an @."""


def _chunked(max_tokens: int, order: str = "fcfs") -> Step:
    return lambda model: ChunkedPolicy(model, max_tokens, SEQUENCES, order)


def _hyperflexis(rules: SloRules | None = None, worth: WorthRules | None = None) -> Step:
    return lambda model: SloPolicy(model, max_tokens=8192, max_sequences=512, worth=Worth(worth), rules=rules)


def _admission(tokens: int, rules: SloRules | None = None, worth: WorthRules | None = None) -> Step:
    return lambda model: AdmissionPolicy(model, tokens, max_sequences=512, worth=Worth(worth), rules=rules)


def _scorpio(model: StepTimeModel) -> StepPolicy:
    return ScorpioPolicy(model, STEP_TOKENS, SEQUENCES)


def _qoserve(model: StepTimeModel) -> StepPolicy:
    return QoServePolicy(model, SEQUENCES, "first_token")


def _qoserve_literal(model: StepTimeModel) -> StepPolicy:
    return QoServePolicy(model, SEQUENCES, "literal")


def _round_robin(seed: int) -> DispatchPolicy:
    return RoundRobin()


def _jsq(seed: int) -> DispatchPolicy:
    return least_queued_tokens()


def _llmd_headroom(seed: int) -> DispatchPolicy:
    return LlmdHeadroom(STEP_TOKENS, "least", seed)


_FCFS512 = _chunked(STEP_TOKENS)
_FCFS2048 = _chunked(2048)

POLICIES = {
    "hyperflexis": Policy(
        lambda seed: EarliestFirstToken(), _hyperflexis(), True, "earliest first token, then steps by slack and worth"
    ),
    "tiers_apart+hyperflexis": Policy(
        lambda seed: TierPartition(), _hyperflexis(), True, "workers divided among the TPOTs, in front of our steps"
    ),
    "whole_queue+hyperflexis": Policy(
        lambda seed: WholeQueue(), _hyperflexis(), True, "all that is queued counts as ahead, in front of our steps"
    ),
    "harmless+hyperflexis": Policy(
        lambda seed: EarliestFirstToken(harm_us=0.0),
        _hyperflexis(),
        True,
        "earliest first token, whatever the decodes, in front of our steps",
    ),
    "round_robin+hyperflexis": Policy(_round_robin, _hyperflexis(), True, "round robin in front of our steps"),
    **{
        f"{_OURS}+admission{tokens}": Policy(
            lambda seed: EarliestFirstToken(),
            _admission(tokens),
            True,
            f"ours, for engines that fill steps of {tokens:,} tokens themselves",
        )
        for tokens in ADMISSION_TOKENS
    },
    "round_robin+fcfs2048": Policy(_round_robin, _FCFS2048, False, "round robin in front of vLLM v1's default"),
    "round_robin+fcfs512": Policy(_round_robin, _FCFS512, False, "round robin in front of Sarathi-Serve"),
    "least_requests+fcfs2048": Policy(
        lambda seed: least_requests(), _FCFS2048, False, "fewest requests, in front of vLLM v1's default"
    ),
    "jsq+fcfs2048": Policy(_jsq, _FCFS2048, False, "shortest queue in tokens, in front of vLLM v1's default"),
    "jsq+edf512": Policy(
        _jsq, _chunked(STEP_TOKENS, "edf"), False, "shortest queue in tokens, earliest deadline first"
    ),
    "jsq+srpf512": Policy(
        _jsq, _chunked(STEP_TOKENS, "srpf"), False, "shortest queue in tokens, shortest remaining prefill first"
    ),
    "jsq+scorpio": Policy(_jsq, _scorpio, False, "shortest queue in tokens, SCORPIO with steps of 512"),
    "jsq+qoserve_literal": Policy(
        _jsq, _qoserve_literal, False, "shortest queue in tokens, QoServe with TBT counted as its code does"
    ),
    "jsq+qoserve": Policy(
        _jsq, _qoserve, False, "shortest queue in tokens, QoServe with TPOT counted from the first token made"
    ),
    "power_of_two+fcfs512": Policy(PowerOfTwo, _FCFS512, False, "the less loaded of two, in front of Sarathi-Serve"),
    "llmd+fcfs512": Policy(LlmdDefault, _FCFS512, False, "llm-d's default scorers, in front of Sarathi-Serve"),
    "llmd_headroom+fcfs512": Policy(
        _llmd_headroom, _FCFS512, False, "llm-d's least predicted headroom, in front of Sarathi-Serve"
    ),
    "llmd_headroom+qoserve": Policy(
        _llmd_headroom, _qoserve, False, "llm-d's least predicted headroom, in front of QoServe"
    ),
    "dynamo+fcfs512": Policy(DynamoKvCost, _FCFS512, False, "Dynamo's KV router, in front of Sarathi-Serve"),
    "polyserve+fcfs512": Policy(
        lambda seed: PolyServe(STEP_TOKENS), _FCFS512, False, "PolyServe (reconstructed), in front of Sarathi-Serve"
    ),
    "llumnix+fcfs512": Policy(
        lambda seed: LlumnixSlo(STEP_TOKENS), _FCFS512, False, "Llumnix (reconstructed), in front of Sarathi-Serve"
    ),
}


def policy_of(name: str, worth: WorthRules | None = None) -> Policy:
    """By its name; `hyperflexis:work_order=0:give_up=false` is ours with some of SloRules changed. `worth`: guarantees
    and reserves, which only ours has. After an @ come roles and moves (hyperflexis_sim.plans).

    Raises ValueError where there is none of this name, or no such rule.
    """
    name, at, roles = name.partition("@")
    policy = _collocated(name, worth)
    if not at:
        return policy
    return replace(policy, plan=plan_of(roles, None if _OURS in name else SEQUENCES))


def _collocated(name: str, worth: WorthRules | None) -> Policy:
    name, *changes = name.split(":")
    try:
        policy = POLICIES[name]
    except KeyError:
        raise ValueError(f"unknown policy {name!r}; known: {', '.join(POLICIES)}") from None
    if _OURS not in name and not changes:
        return policy
    if _OURS not in name:
        raise ValueError(f"{name!r} has no rules to change; only those with {_OURS} have")
    rules = SloRules(**dict(map(_rule, changes)))
    _, own, tokens = name.partition("+admission")
    return replace(policy, step=_admission(int(tokens), rules, worth) if own else _hyperflexis(rules, worth))


def _rule(change: str) -> tuple[str, Any]:
    name, _, value = change.partition("=")
    kinds = {field.name: str(field.type) for field in fields(SloRules)}
    if name not in kinds:
        raise ValueError(f"unknown rule {name!r}; known: {', '.join(kinds)}")
    try:
        found = _KINDS[kinds[name]](value)
    except (ValueError, KeyError):
        raise ValueError(f"rule {name} is of type {kinds[name]}, not {value!r}") from None
    if not found >= 0:
        raise ValueError(f"rule {name} cannot be {value}")
    return name, found


_KINDS: dict[str, Callable[[str], Any]] = {
    "bool": lambda text: {"true": True, "false": False}[text],
    "int": int,
    "float": float,
}
