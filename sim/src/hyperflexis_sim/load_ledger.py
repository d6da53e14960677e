"""The rows of WorkerLoads as a scheduler keeps them: the last report of each worker, and what was sent since."""

from __future__ import annotations

from collections.abc import Sequence

from hyperflexis_common.step_time import StepTimeModel
from hyperflexis_scheduler.core import loads as columns
from hyperflexis_scheduler.core.ledger import Ledger
from hyperflexis_scheduler.core.loads import WorkerLoads
from hyperflexis_sim.engine_report import EngineReport
from hyperflexis_worker.steps.queue_load import QueueLoad


class LoadLedger:
    def __init__(self, models: Sequence[StepTimeModel], kv_tokens: Sequence[int]) -> None:
        """`models`: what is believed of each worker."""
        self.loads = WorkerLoads(max(len(models), 1))
        self._charges = [Ledger() for _ in models]
        self._sent = [0] * len(models)
        self._requests = [0] * len(models)
        self._queued = [QueueLoad(0, 0, [])] * len(models)
        for index, (model, tokens) in enumerate(zip(models, kv_tokens, strict=True)):
            slot = self.loads.open()
            assert slot == index
            self.loads.model(slot, model)
            self.loads.set(slot, columns.KV_TOKENS, tokens)

    def charge(self, slot: int, tokens: int, prefill_us: float, turn_us: float) -> None:
        """So much was sent there, with its turn that long from now."""
        self._sent[slot] += 1
        self._charges[slot].charge(self._sent[slot], "", tokens, int(prefill_us), turn_us)
        self._show(slot)

    def report(self, slot: int, report: EngineReport) -> None:
        """What the report does not know of yet stays charged."""
        self._charges[slot].apply(report.applied)
        self._requests[slot] = report.waiting + report.running
        self._queued[slot] = report.queued
        self._show(slot)
        loads = self.loads
        loads.set(slot, columns.SHARE, report.prefill_share)
        loads.set(slot, columns.PACE, report.pace)
        loads.set(slot, columns.RUNNING, report.running)
        loads.set(slot, columns.CONTEXT, report.context_tokens)
        loads.set(slot, columns.KV_USED, report.kv_used)

    def _show(self, slot: int) -> None:
        """What was reported, and what was sent since."""
        charges, queued = self._charges[slot], self._queued[slot]
        self.loads.set(slot, columns.REQUESTS, self._requests[slot] + len(charges))
        self.loads.set(slot, columns.QUEUED_TOKENS, queued.tokens + charges.tokens)
        if queued.before_us:
            self.loads.queue(slot, charges.before_us + [*queued.before_us, queued.prefill_us])
        else:
            self.loads.queue(slot, charges.before_us[-1] + queued.prefill_us)
