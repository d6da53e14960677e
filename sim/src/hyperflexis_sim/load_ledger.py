"""The rows of WorkerLoads as a scheduler keeps them: the last report of each worker, and what was sent since."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from hyperflexis_common.step_time import StepTimeModel
from hyperflexis_scheduler.core import loads as columns
from hyperflexis_scheduler.core.loads import WorkerLoads
from hyperflexis_sim.engine_report import EngineReport


class LoadLedger:
    def __init__(self, models: Sequence[StepTimeModel], kv_tokens: Sequence[int]) -> None:
        """`models`: what is believed of each worker."""
        self.loads = WorkerLoads(max(len(models), 1))
        self._charges: list[deque[tuple[int, float, float]]] = [deque() for _ in models]
        self._sent = [0] * len(models)
        for index, (model, tokens) in enumerate(zip(models, kv_tokens, strict=True)):
            slot = self.loads.open()
            assert slot == index
            for column, value in zip(
                (columns.C0, columns.C1, columns.C2, columns.C3, columns.C4, columns.C5),
                (model.c0_us + model.host_us, model.c1_us, model.c2_us, model.c3_us, model.c4_us, model.c5_us),
                strict=True,
            ):
                self.loads.set(slot, column, value)
            self.loads.set(slot, columns.KV_TOKENS, tokens)

    def charge(self, slot: int, tokens: float, prefill_us: float) -> None:
        """So much was sent there."""
        self._sent[slot] += 1
        self._charges[slot].append((self._sent[slot], prefill_us, tokens))
        self.loads.add(slot, columns.REQUESTS, 1)
        self.loads.add(slot, columns.QUEUED_TOKENS, tokens)
        self.loads.add(slot, columns.QUEUED_US, prefill_us)

    def report(self, slot: int, report: EngineReport) -> None:
        """What the report does not know of yet stays charged."""
        charges = self._charges[slot]
        while charges and charges[0][0] <= report.applied:
            charges.popleft()
        loads = self.loads
        loads.set(slot, columns.REQUESTS, report.waiting + report.running + len(charges))
        loads.set(slot, columns.QUEUED_TOKENS, report.queued_tokens + sum(charge[2] for charge in charges))
        loads.set(slot, columns.QUEUED_US, report.queued_us + sum(charge[1] for charge in charges))
        loads.set(slot, columns.SHARE, report.prefill_share)
        loads.set(slot, columns.PACE, report.pace)
        loads.set(slot, columns.RUNNING, report.running)
        loads.set(slot, columns.CONTEXT, report.context_tokens)
        loads.set(slot, columns.KV_USED, report.kv_used)
