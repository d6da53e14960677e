"""What one request of a replay went through, as its client saw it."""

from __future__ import annotations

from dataclasses import dataclass

from hyperflexis.common.v1 import sampling_pb2, slo_pb2
from hyperflexis_cli.plan import Planned
from hyperflexis_client import Finished, FinishReason, Notice, Slo, Verdict
from hyperflexis_common.verdict import Outcome, verdict


@dataclass(slots=True)
class Record:
    """Times are seconds after the start of the replay, by the client's clock."""

    planned: Planned
    request_id: str = ""
    sent_s: float = 0.0
    first_token_s: float | None = None
    last_token_s: float | None = None
    ended_s: float | None = None
    output_tokens: int = 0
    slo: Slo | None = None
    finished: Finished | None = None
    downgraded: bool = False
    downgrade: Notice | None = None
    """What its client was told of the first one."""
    reconnections: int = 0
    repeated_tokens: int = 0
    missing_tokens: int = 0
    """Indices that the stream skipped, or that the router counted and never sent."""
    error: str = ""
    """Why there is no Finished."""

    @property
    def tier(self) -> str:
        return self.planned.tier or (self.slo.tier if self.slo else "") or "default"

    @property
    def late_s(self) -> float:
        """How much later than planned it was sent."""
        return max(0.0, self.sent_s - self.planned.at_s)

    @property
    def ttft_ms(self) -> float | None:
        return None if self.first_token_s is None else (self.first_token_s - self.sent_s) * 1e3

    @property
    def tpot_ms(self) -> float | None:
        """Mean time per output token after the first; None with fewer than two."""
        if self.first_token_s is None or self.last_token_s is None or self.output_tokens < 2:
            return None
        return (self.last_token_s - self.first_token_s) / (self.output_tokens - 1) * 1e3

    @property
    def refused(self) -> bool:
        return self.finished is not None and self.finished.reason is FinishReason.REFUSED

    @property
    def predicted_ttft_us(self) -> int:
        """What its client was told when it was refused or downgraded; 0 = nothing."""
        refused_us = self.finished.predicted_ttft_us if self.finished is not None else 0
        return refused_us or (self.downgrade.predicted_ttft_us if self.downgrade is not None else 0)

    @property
    def complete(self) -> bool:
        return self.finished is not None and self.finished.reason.complete

    @property
    def failed(self) -> bool:
        """Ended in an error, or with none of the ends that a request may have."""
        return self.ended_s is not None and not self.complete and not self.refused

    @property
    def lost_tokens(self) -> int:
        """Tokens that a request which ran to its length should have delivered and did not."""
        if self.finished is not None and self.finished.reason is FinishReason.LENGTH:
            return max(0, self.planned.output_tokens - self.output_tokens)
        return self.missing_tokens

    @property
    def verdict(self) -> Verdict:
        """The shared verdict over the client's own measurement, network and client included."""
        if self.slo is None or self.ended_s is None or self.missing_tokens or self.repeated_tokens:
            return Verdict.MISSED
        outcome = Outcome(
            reason=_reason(self.finished),
            output_tokens=self.output_tokens,
            first_token_us=_us(self.sent_s, self.first_token_s),
            last_token_us=_us(self.sent_s, self.last_token_s),
            ended_us=_us(self.sent_s, self.ended_s) or 0,
            downgraded=self.downgraded,
        )
        return Verdict.of(verdict(outcome, slo_pb2.Slo(ttft_us=self.slo.ttft_us, tpot_us=self.slo.tpot_us)))

    @property
    def attained(self) -> bool:
        return self.verdict is Verdict.ATTAINED


def _us(since_s: float, at_s: float | None) -> int | None:
    return None if at_s is None else round((at_s - since_s) * 1e6)


def _reason(finished: Finished | None) -> int:
    if finished is None:
        return sampling_pb2.FINISH_REASON_ERROR
    return sampling_pb2.FinishReason.Value(f"FINISH_REASON_{finished.reason.name}")
