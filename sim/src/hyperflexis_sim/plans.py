"""What follows the @ of a policy's name: roles, and which running requests move.

    hyperflexis@mixed        all workers do both; decodes stay where they were prefilled
    hyperflexis@2p2d         two PREFILL workers, two DECODE
    hyperflexis@1p3m         one PREFILL worker; the others do both
    hyperflexis@adaptive     as many PREFILL workers as pay at the moment
    jsq+fcfs2048@2p2d        DistServe's and Splitwise's static split: every decode goes to the least loaded

Options follow with colons: `move=none` or `move=drain+role` (which triggers of Migration; both by default) and
`short=false` (short prompts do not go straight to where they will decode, as they do where roles adapt).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hyperflexis_scheduler.core.decode_placement import Decode, Placed
from hyperflexis_scheduler.core.links import Links
from hyperflexis_scheduler.core.loads import (
    ARRIVING,
    ARRIVING_TOKENS,
    DECODE,
    KV_TOKENS,
    KV_USED,
    MIXED,
    PREFILL,
    RUNNING,
    Slots,
    WorkerLoads,
)
from hyperflexis_scheduler.core.migration import TRIGGERS
from hyperflexis_sim.disaggregation import Plan

ROLES = {"p": PREFILL, "d": DECODE, "m": MIXED}
_WORDS = {"true": True, "false": False}
_SPLIT = re.compile(r"(?:\d+[pdm])+")


class LeastDecodes:
    """A static split's rule: every decode goes to the decode worker with the fewest, whatever is promised there."""

    def __init__(self, sequences: int) -> None:
        self._sequences = sequences

    def choose(self, decode: Decode, source: int, loads: WorkerLoads, among: Slots, links: Links) -> Placed:
        used = loads.of(KV_USED, among) + loads.of(ARRIVING_TOKENS, among)
        decodes = loads.of(RUNNING, among) + loads.of(ARRIVING, among)
        fits = (used + decode.context_tokens <= loads.of(KV_TOKENS, among)) & (decodes < self._sequences)
        if not fits.any():
            return Placed(None, "no_room", {"candidates": float(len(among))})
        at = int(np.where(fits, decodes, np.inf).argmin())
        return Placed(int(among[at]), "least_decodes", {"decodes": float(decodes[at])})


def plan_of(text: str, sequences: int | None = None) -> Plan:
    """Of what follows the @. `sequences`: of a baseline's worker at most; None = ours. Raises ValueError."""
    roles, *options = text.split(":")
    plan = Plan(roles=_roles(roles), adaptive=roles == "adaptive", short=roles == "adaptive")
    if sequences is not None:
        if plan.adaptive or options:
            raise ValueError(f"@{text}: only hyperflexis has roles that adapt, and options")
        return replace(plan, placement=lambda kv_bytes: LeastDecodes(sequences), triggers=frozenset())
    for option in options:
        plan = _changed(plan, option)
    return plan


def _roles(text: str) -> Sequence[int]:
    if text in ("mixed", "adaptive"):
        return ()
    if not _SPLIT.fullmatch(text):
        raise ValueError(f"@{text}: roles are mixed, adaptive, or counts like 2p2d, 1p3m")
    roles = [ROLES[role] for count, role in re.findall(r"(\d+)([pdm])", text) for _ in range(int(count))]
    if all(role == DECODE for role in roles) or all(role == PREFILL for role in roles):
        raise ValueError(f"@{text}: somebody must prefill, and somebody decode")
    return roles


def _changed(plan: Plan, option: str) -> Plan:
    name, _, value = option.partition("=")
    if name == "move":
        triggers = frozenset(value.split("+")) if value != "none" else frozenset()
        if unknown := triggers - set(TRIGGERS):
            raise ValueError(f"unknown trigger {min(unknown)!r}; known: none, {', '.join(TRIGGERS)}")
        return replace(plan, triggers=triggers)
    if name == "short" and value in _WORDS:
        return replace(plan, short=_WORDS[value])
    raise ValueError(f"unknown option {option!r} of @; known: move=<triggers>, short=true|false")
