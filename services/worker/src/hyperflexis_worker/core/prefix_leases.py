"""Prefixes that peers read out of this worker's cache: the source's side of a pull. It only answers what they ask."""

from __future__ import annotations

from hyperflexis.common.v1 import movement_pb2
from hyperflexis.worker.v1 import worker_service_pb2
from hyperflexis_common import tokens as packing
from hyperflexis_worker.core.departures import HOLDER_MARGIN_US
from hyperflexis_worker.core.effects import AnswerExport, Effect, ExportPrefix
from hyperflexis_worker.core.move_event import Exported

LEASE_US = 1_000_000
"""What the reader is told: it waits for a fraction of that, and one that dies is to pin nothing for long."""


class PrefixLeases:
    """Questions carry the shell's numbers."""

    def __init__(self, effects: list[Effect], incarnation: int) -> None:
        self._effects = effects
        self._incarnation = incarnation
        self._asked: set[int] = set()

    def ask(self, number: int, ask: worker_service_pb2.ExportPrefixRequest, can: bool) -> None:
        """`can`: an engine serves here whose caches move."""
        if ask.incarnation != self._incarnation:
            return self._refuse(number, "another life of this worker was meant")
        if not can:
            return self._refuse(number, "no cache can be read here now")
        self._asked.add(number)
        self._effects.append(ExportPrefix(number, ask.hashes, LEASE_US + HOLDER_MARGIN_US))

    def exported(self, export: Exported) -> None:
        """The engine's answer, to be passed on; it may be about something else."""
        if export.number not in self._asked:
            return
        self._asked.discard(export.number)
        if export.error:
            return self._refuse(export.number, export.error, export.full)
        part = movement_pb2.RankPart(
            block_ids=packing.pack(export.blocks), generations=packing.pack(g & 0xFFFFFFFF for g in export.generations)
        )
        response = worker_service_pb2.ExportPrefixResponse(
            lease_id=export.lease_id, lease_us=LEASE_US, parts=[part], engine=export.engine
        )
        self._effects.append(AnswerExport(export.number, response))

    def engine_lost(self) -> None:
        for number in self._asked:
            self._refuse(number, "the engine ended")
        self._asked.clear()

    def _refuse(self, number: int, why: str, full: bool = False) -> None:
        self._effects.append(AnswerExport(number, None, why, full))
