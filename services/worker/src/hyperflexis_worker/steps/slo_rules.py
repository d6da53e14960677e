"""What the SLO step policy is tuned by."""

from __future__ import annotations

from dataclasses import dataclass

from hyperflexis_common.turns import WORK_ORDER


@dataclass(frozen=True, slots=True)
class SloRules:
    """What the policy is tuned by. None of it knows a trace or a GPU; docs/scheduling.md has their sensitivities."""

    slack_share: float = 0.95
    """Of the tightest decode's slack, what a step may use ..."""
    margin_us: float = 3_000.0
    """... less this, or a tenth of the tightest TPOT where that is less: the slack not trusted."""
    floor_share: float = 0.7
    """Of the tightest TPOT: no late decode makes steps shorter than this, or it would freeze prefill."""
    longest_share: float = 1.0
    """Of the tightest TPOT, however much slack there is: longer steps gain nothing, and are pauses for all. Only a
    prompt that would be late otherwise may have longer ones ..."""
    longest_us: float = 150_000.0
    """... up to this, as steps without decodes may."""
    unhurried_us: float = 35_000.0
    """Nor longer than this, or than twice what it takes with no prompt in it, if the floor allows, while steps of that
    length leave all who wait ..."""
    ample: float = 2.0
    """... so many times the prefill time that they need to be on time."""
    work_order: float = WORK_ORDER
    least_chunk: int = 32
    """Smaller chunks are not worth their overhead, unless they end a prompt."""
    share_memory_us: float = 500_000.0
    """Time constant of the measured share of time that prefill gets."""
    least_share: float = 0.12
    pace_rate: float = 0.03
    """Weight of one step in the means of actual over predicted step time, and of how long a step with decodes is."""
    size_weight: bool = True
    """Victims by size and worth (Moore-Hodgson); else only the hopeless are given up."""
    patience: float = 0.1
    """Share of its TTFT that a request left behind waits for a better turn before it is given up."""
    give_up: bool = True
    first_in_time: bool = True
    """A step ends before the first tokens that it makes are due."""
    reachable: bool = True
    """A decode that is late already, of a TPOT shorter than a step of nothing but decodes, holds no prefill back: what
    was promised there nobody can keep. Of its pauses the longest still counts."""
    budget: bool = True
    """Chunks set by the decodes' slack; else `max_tokens` alone bounds a step."""
