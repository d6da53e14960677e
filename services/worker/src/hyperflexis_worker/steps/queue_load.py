"""How much prefill waits, and how much of it by when: what a worker tells those who send it requests."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hyperflexis_common.turns import TURNS_US
from hyperflexis_worker.steps.prefill_queue import PrefillQueue
from hyperflexis_worker.steps.step_policy import StepPolicy


class QueueLoad(NamedTuple):
    tokens: int
    prefill_us: int
    """By the policy's step-time model, in steps that are busy anyway."""
    before_us: list[int]
    """What of it has its turn by each of TURNS_US; empty where the policy serves in another order."""


def queue_load(policy: StepPolicy, queue: PrefillQueue, now_us: float) -> QueueLoad:
    tokens, prefill_us = queue.to_compute, queue.prefill_us(policy.model)
    turns_us = policy.turns_us(queue)
    if turns_us is None:
        return QueueLoad(int(tokens.sum()), int(prefill_us.sum()), [])
    by = np.searchsorted(TURNS_US, turns_us - now_us)
    before_us = np.bincount(by, prefill_us, len(TURNS_US) + 1).cumsum().astype(np.int64)
    return QueueLoad(int(tokens.sum()), int(before_us[-1]), before_us[:-1].tolist())
