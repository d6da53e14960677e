"""Was the promise kept? One function, used by the router, the clients, the simulator and the benches."""

from __future__ import annotations

from dataclasses import dataclass

from hyperflexis.common.v1 import sampling_pb2, slo_pb2

_COMPLETE = frozenset(
    {
        sampling_pb2.FINISH_REASON_STOP_TOKEN,
        sampling_pb2.FINISH_REASON_STOP_STRING,
        sampling_pb2.FINISH_REASON_LENGTH,
    }
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened to one request, in microseconds from the moment the full request was received."""

    reason: int
    """A FinishReason."""
    output_tokens: int
    first_token_us: int | None
    """None = no token was ever sent."""
    last_token_us: int | None
    ended_us: int
    downgraded: bool = False

    @property
    def tpot_us(self) -> int:
        """Mean time per output token after the first; 0 with fewer than two."""
        if self.first_token_us is None or self.last_token_us is None or self.output_tokens < 2:
            return 0
        return (self.last_token_us - self.first_token_us) // (self.output_tokens - 1)


def verdict(outcome: Outcome, slo: slo_pb2.Slo) -> slo_pb2.Verdict.ValueType:
    """Attained: complete, first token within TTFT, mean TPOT within the objective (met with one token).

    Refused, downgraded, failed and unfinished requests are missed. One that its client cancelled before
    the deadline of what it was waiting for is excluded: cancelled before its first token was due, or, with
    a first token in time, at a moment when its tokens so far kept the objective.
    """
    if outcome.reason == sampling_pb2.FINISH_REASON_CANCELLED:
        if outcome.first_token_us is None:
            kept = outcome.ended_us <= slo.ttft_us
        else:
            kept = outcome.first_token_us <= slo.ttft_us and outcome.tpot_us <= slo.tpot_us
        return slo_pb2.VERDICT_EXCLUDED if kept else slo_pb2.VERDICT_MISSED
    if outcome.reason not in _COMPLETE or outcome.downgraded:
        return slo_pb2.VERDICT_MISSED
    if outcome.first_token_us is None or outcome.first_token_us > slo.ttft_us:
        return slo_pb2.VERDICT_MISSED
    return slo_pb2.VERDICT_ATTAINED if outcome.tpot_us <= slo.tpot_us else slo_pb2.VERDICT_MISSED
