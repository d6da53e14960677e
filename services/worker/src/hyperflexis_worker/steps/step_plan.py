"""What one engine step does: an executor computes the chunks, a step loop applies the rest."""

from __future__ import annotations

from dataclasses import dataclass, field

from hyperflexis.common.v1 import slo_pb2
from hyperflexis_common.step_time import StepShape
from hyperflexis_worker.steps.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Chunk:
    """`length` tokens of one sequence from `start` on; the last chunk of what it has samples a token."""

    sequence: Sequence
    start: int
    length: int
    cached: tuple[int, ...] = ()
    """Blocks of the prefix [0, start) that others computed, where the sequence is admitted with some."""

    @property
    def samples(self) -> bool:
        return self.start + self.length == self.sequence.num_tokens


@dataclass(slots=True)
class StepPlan:
    """One step: who computes what, who loses its blocks first, who is given up and why."""

    chunks: list[Chunk] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)
    given_up: list[tuple[Sequence, slo_pb2.Decision]] = field(default_factory=list)

    @property
    def shape(self) -> StepShape:
        decodes = [chunk for chunk in self.chunks if chunk.length == 1 and chunk.samples]
        return StepShape(
            prefill_chunks=tuple((c.length, c.start) for c in self.chunks if not (c.length == 1 and c.samples)),
            decodes=len(decodes),
            decode_context_tokens=sum(chunk.start for chunk in decodes),
        )
