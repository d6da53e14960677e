"""A worker's row of the loads: what dispatch has to know of it, from what it reported and what was sent since."""

from __future__ import annotations

from collections.abc import Collection, Iterable

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

    def show_queue(self, load: worker_session_pb2.WorkerLoad, ledger: Ledger, model: StepTimeModel) -> None:
        tokens = load.queued_prefill_tokens
        self.show(columns.QUEUED_TOKENS, tokens + ledger.tokens)
        # Of whose prompts the tokens are is not known where the worker does not say how long they take.
        queued_us = min(load.queued_prefill_us or tokens * model.c2_us, MOST_US)
        by_turn = len(load.queued_before_us) == len(TURNS_US)
        told = [min(before_us, MOST_US) for before_us in load.queued_before_us]
        reported_us = [*told, queued_us] if by_turn and load.queued_prefill_us else queued_us
        if not self._closed:
            self._loads.queue(self.slot, (ledger.before_us if by_turn else ledger.before_us[-1]) + reported_us)

    def show_load(self, load: worker_session_pb2.WorkerLoad) -> None:
        kv = load.kv
        self.show(columns.SHARE, load.prefill_share if 0 < load.prefill_share <= 1 else 1.0)
        self.show(columns.PACE, load.pace if 0.1 <= load.pace <= 10 else 1.0)
        self._show_tightest()
        self.show(columns.RUNNING, load.running)
        self.show(columns.CONTEXT, load.decode_context_tokens)
        self.show(columns.KV_USED, (kv.total_blocks - kv.free_blocks) * kv.block_tokens)
        self.show(columns.KV_TOKENS, kv.total_blocks * kv.block_tokens)

    def show_model(self, model: StepTimeModel) -> None:
        self.show(columns.C0, model.c0_us + model.host_us)
        for field, value in enumerate((model.c1_us, model.c2_us, model.c3_us, model.c4_us, model.c5_us), columns.C1):
            self.show(field, value)
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
