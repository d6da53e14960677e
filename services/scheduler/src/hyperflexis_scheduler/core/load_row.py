"""A worker's row of the loads: what dispatch has to know of it, from what it reported and what was sent since."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np

from hyperflexis.scheduler.v1 import worker_session_pb2
from hyperflexis_common.step_time import StepTimeModel
from hyperflexis_common.turns import TURNS_US
from hyperflexis_scheduler.core import loads as columns
from hyperflexis_scheduler.core.ledger import Ledger
from hyperflexis_scheduler.core.loads import WorkerLoads

MOST_US = 10**15
"""A queue that is said to take longer takes as long."""


class LoadRow:
    def __init__(self, loads: WorkerLoads) -> None:
        self.slot = loads.open()
        self._loads = loads
        self._closed = False
        self._tpots_us: frozenset[float] = frozenset()
        self._queued_tokens = 0
        self._queued_us = np.zeros(1)
        """As reported: by turn, as in WorkerLoads.queue, or [1] where the worker does not tell of turns."""

    def close(self) -> None:
        """It is another worker's from now on."""
        self._closed = True
        self._loads.close(self.slot)

    def show(self, field: int, value: float) -> None:
        if not self._closed:
            self._loads.set(self.slot, field, value)

    def show_requests(self, load: worker_session_pb2.WorkerLoad, ledger: Ledger, attempts: int) -> None:
        """Reports lag behind, and do not count what still waits for its Start: the larger view is right."""
        self.show(columns.REQUESTS, max(load.waiting + load.running + len(ledger), attempts))

    def take_queue(self, load: worker_session_pb2.WorkerLoad, model: StepTimeModel) -> None:
        """What waits there, as reported."""
        self._queued_tokens = load.queued_prefill_tokens
        # Whose prompts the tokens are of is not known where the worker does not say how long they take.
        queued_us = load.queued_prefill_us or self._queued_tokens * model.c2_us
        by_turn = len(load.queued_before_us) == len(TURNS_US)
        told = load.queued_before_us if load.queued_prefill_us else [queued_us] * len(TURNS_US)
        self._queued_us = np.minimum([*told, queued_us] if by_turn else [queued_us], MOST_US)

    def show_queue(self, ledger: Ledger) -> None:
        """That, and what was sent since."""
        self.show(columns.QUEUED_TOKENS, self._queued_tokens + ledger.tokens)
        if not self._closed:
            self._loads.queue(self.slot, ledger.before_us[-len(self._queued_us) :] + self._queued_us)

    def show_load(self, load: worker_session_pb2.WorkerLoad) -> None:
        kv = load.kv
        self.show(columns.SHARE, load.prefill_share if 0 < load.prefill_share <= 1 else 1.0)
        self.show(columns.PACE, min(max(load.pace, 0.1), 10.0) if load.pace > 0 else 1.0)
        self._show_tightest()
        self.show(columns.RUNNING, load.running)
        self.show(columns.CONTEXT, load.decode_context_tokens)
        self.show(columns.KV_USED, (kv.total_blocks - kv.free_blocks) * kv.block_tokens)
        self.show(columns.KV_TOKENS, kv.total_blocks * kv.block_tokens)

    def show_model(self, model: StepTimeModel) -> None:
        if not self._closed:
            self._loads.model(self.slot, model)
        self._show_tightest()

    def show_decodes(self, tpots_us: Iterable[float], arriving: Collection[int]) -> None:
        """Those there and on their way there; `arriving`: context tokens of each of the latter."""
        self.show(columns.ARRIVING, len(arriving))
        self.show(columns.ARRIVING_TOKENS, sum(arriving))
        self._tpots_us = frozenset(tpots_us)
        self._show_tightest()

    def _show_tightest(self) -> None:
        if not self._closed:
            self._loads.decodes(self.slot, self._tpots_us)
