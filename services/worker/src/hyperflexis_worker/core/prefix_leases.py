"""Prefixes that peers read out of this worker's cache: the source's side of a pull. It only answers what they ask.

Nothing but time, its reader and the engine's end ends such a lease, so that it is known here, too, how long it lasts at
least: a reader that gives it back hears at once that it was held, and does not wait for the engine's step.
"""

from __future__ import annotations

from hyperflexis.common.v1 import movement_pb2
from hyperflexis.worker.v1 import worker_service_pb2
from hyperflexis_common import tokens as packing
from hyperflexis_worker.core.departures import HOLDER_MARGIN_US
from hyperflexis_worker.core.effects import AnswerExport, AnswerRelease, Effect, EndLease, ExportPrefix
from hyperflexis_worker.core.move_event import Exported

LEASE_US = 1_000_000
"""What the reader is told: it waits for a fraction of that, and one that dies is to pin nothing for long."""


class PrefixLeases:
    """Questions carry the shell's numbers."""

    def __init__(self, effects: list[Effect], incarnation: int) -> None:
        self._effects = effects
        self._incarnation = incarnation
        self._asked: dict[int, int] = {}
        """When each question came."""
        self._until_us: dict[int, int] = {}
        """Of each lease, how long it lasts at least."""

    def ask(self, number: int, ask: worker_service_pb2.ExportPrefixRequest, can: bool, now_us: int) -> None:
        """`can`: an engine serves here whose caches move."""
        if ask.incarnation != self._incarnation:
            return self._refuse(number, "another life of this worker was meant")
        if not can:
            return self._refuse(number, "no cache can be read here now")
        self._asked[number] = now_us
        self._effects.append(ExportPrefix(number, ask.hashes, LEASE_US + HOLDER_MARGIN_US))

    def exported(self, export: Exported) -> None:
        """The engine's answer, to be passed on; it may be about something else."""
        asked_us = self._asked.pop(export.number, None)
        if asked_us is None:
            return
        if export.error:
            return self._refuse(export.number, export.error, export.full)
        self._until_us[export.lease_id] = asked_us + LEASE_US + HOLDER_MARGIN_US
        part = movement_pb2.RankPart(
            block_ids=packing.pack(export.blocks), generations=packing.pack(g & 0xFFFFFFFF for g in export.generations)
        )
        response = worker_service_pb2.ExportPrefixResponse(
            lease_id=export.lease_id, lease_us=LEASE_US, parts=[part], engine=export.engine
        )
        self._effects.append(AnswerExport(export.number, response))

    def release(self, number: int, lease_id: int, now_us: int) -> bool:
        """Answers who gives it back; False where it is no lease of these, or may be over."""
        if self._until_us.pop(lease_id, 0) <= now_us:
            return False
        self._effects.append(AnswerRelease(number, held=True))
        self._effects.append(EndLease(lease_id))
        return True

    def tick(self, now_us: int) -> None:
        for lease_id in [lease_id for lease_id, until_us in self._until_us.items() if until_us <= now_us]:
            del self._until_us[lease_id]

    def engine_lost(self) -> None:
        for number in self._asked:
            self._refuse(number, "the engine ended")
        self._asked.clear()
        self._until_us.clear()

    def _refuse(self, number: int, why: str, full: bool = False) -> None:
        self._effects.append(AnswerExport(number, None, why, full))
