"""What a worker has to do: its last report, plus our commands that the report does not know of yet."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from itertools import accumulate

from hyperflexis.scheduler.v1 import worker_session_pb2


class Ledger:
    """Charges of commands beyond the report's `applied_seq` stay added to the reported load."""

    def __init__(self) -> None:
        self._charges: deque[tuple[int, str, int]] = deque()
        self._reported_requests = 0
        self._reported_tokens = 0
        self._charged_tokens = 0
        self.applied_seq = 0
        self.requests = 0
        """Requests waiting or running, charges included."""
        self.queued_tokens = 0
        """Tokens to prefill, charges included."""

    def charge(self, seq: int, request_id: str, tokens: int) -> None:
        """A Run was sent as command `seq`."""
        self._charges.append((seq, request_id, tokens))
        self._charged_tokens += tokens
        self._sum()

    def apply(self, applied_seq: int, load: worker_session_pb2.WorkerLoad | None) -> None:
        """A Report: `load` reflects every command up to `applied_seq`."""
        self.applied_seq = max(self.applied_seq, applied_seq)
        while self._charges and self._charges[0][0] <= self.applied_seq:
            self._charged_tokens -= self._charges.popleft()[2]
        if load is not None:
            self._reported_requests = load.waiting + load.running
            self._reported_tokens = load.queued_prefill_tokens
        self._sum()

    def restart(self) -> None:
        """A new session: its commands count from 1, and its Snapshot tells of everything before."""
        self._charges.clear()
        self._charged_tokens = 0
        self.applied_seq = 0
        self._sum()

    def in_flight(self, request_id: str) -> bool:
        """The Run of this request is not known to have been applied."""
        return any(charge[1] == request_id for charge in self._charges)

    def _sum(self) -> None:
        self.requests = self._reported_requests + len(self._charges)
        self.queued_tokens = self._reported_tokens + self._charged_tokens


class DueWork:
    """Prefill tokens of one worker's requests in order of deadline."""

    def __init__(self) -> None:
        self.deadlines: list[int] = []
        self._tokens: list[int] = []
        self._ids: list[str] = []
        self._by_id: dict[str, int] = {}
        self.sums = [0]
        """Tokens of the first 0, 1, 2, ... of them; empty = changed since (they are asked for more often)."""
        self.total = 0

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, request_id: str, deadline_us: int, tokens: int) -> None:
        """Adds a request, or moves it if it is there."""
        self.remove(request_id)
        at = bisect_right(self.deadlines, deadline_us)
        self.deadlines.insert(at, deadline_us)
        self._tokens.insert(at, tokens)
        self._ids.insert(at, request_id)
        self._by_id[request_id] = deadline_us
        self.total += tokens
        self.sums = []

    def remove(self, request_id: str) -> None:
        """Removes a request; nothing happens where it is not there."""
        deadline_us = self._by_id.pop(request_id, None)
        if deadline_us is None:
            return
        at = self._ids.index(request_id, bisect_left(self.deadlines, deadline_us))
        self.total -= self._tokens[at]
        self.sums = []
        del self.deadlines[at], self._tokens[at], self._ids[at]

    def sum(self) -> list[int]:
        """Makes `sums` anew."""
        self.sums = list(accumulate(self._tokens, initial=0))
        return self.sums
