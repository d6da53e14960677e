"""Which worker gets a request. One class a policy; each says why and with which numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from hyperflexis_scheduler.core.request import RequestState
from hyperflexis_scheduler.core.worker import WorkerState, work_due_us


class Choice(NamedTuple):
    worker: WorkerState
    reason: str
    numbers: Mapping[str, float]


class DispatchPolicy(Protocol):
    def choose(self, request: RequestState, candidates: Sequence[WorkerState]) -> Choice:
        """One of the candidates, of which there is at least one."""
        ...

    def hold_key(self, request: RequestState) -> int:
        """Order in the hold queue, smallest first; equal keys go in order of arrival."""
        ...


class RoundRobin:
    """Each worker in turn."""

    def __init__(self) -> None:
        self._turn = 0

    def choose(self, request: RequestState, candidates: Sequence[WorkerState]) -> Choice:
        worker = candidates[self._turn % len(candidates)]
        self._turn += 1
        return Choice(worker, "round_robin", {"candidates": len(candidates)})

    def hold_key(self, request: RequestState) -> int:
        return 0


class LeastRequests:
    """The worker with the fewest requests waiting or running; ties go in turn."""

    def __init__(self) -> None:
        self._turn = 0

    def choose(self, request: RequestState, candidates: Sequence[WorkerState]) -> Choice:
        counts = [worker.requests for worker in candidates]
        least = min(counts)
        ties = [worker for worker, count in zip(candidates, counts, strict=True) if count == least]
        worker = ties[self._turn % len(ties)]
        self._turn += 1
        return Choice(worker, "least_requests", {"candidates": len(candidates), "requests": least})

    def hold_key(self, request: RequestState) -> int:
        return 0


class EdfByTier:
    """The worker with the least work due before this request's deadline: a tight tier sees past the long
    queue of a loose one, as the workers themselves run by deadline. Ties go to the least queued work."""

    def choose(self, request: RequestState, candidates: Sequence[WorkerState]) -> Choice:
        deadline_us = request.deadline_us
        dues = work_due_us(candidates, deadline_us)
        best_due = min(dues)
        best = min((worker for worker, due in zip(candidates, dues, strict=True) if due == best_due), key=_rank)
        numbers = {
            "candidates": len(candidates),
            "due_prefill_us": best_due,
            "own_prefill_us": request.prefill_tokens * best.us_per_token,
            "queued_tokens": best.ledger.queued_tokens,
            "requests": best.requests,
        }
        return Choice(best, "least_due_work", numbers)

    def hold_key(self, request: RequestState) -> int:
        return request.deadline_us


def _rank(worker: WorkerState) -> tuple[float, int]:
    return (worker.ledger.queued_tokens * worker.us_per_token, worker.requests)


POLICIES: dict[str, type[RoundRobin] | type[LeastRequests] | type[EdfByTier]] = {
    "round_robin": RoundRobin,
    "least_requests": LeastRequests,
    "edf_by_tier": EdfByTier,
}
