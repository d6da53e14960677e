"""What was sent to a worker and is not in its reports yet."""

from __future__ import annotations

from collections import deque

import numpy as np

from hyperflexis_common.turns import TURNS_US
from hyperflexis_scheduler.core.loads import Ints, counts_before


class Ledger:
    """Charges of commands beyond the report's `applied_seq`: they stay added to the reported load."""

    def __init__(self) -> None:
        self._charges: deque[tuple[int, str, int, Ints]] = deque()
        self.applied_seq = 0
        self.tokens = 0
        """Tokens to prefill that were sent since."""
        self.before_us: Ints = np.zeros(len(TURNS_US) + 1, np.int64)
        """The time they take, as in WorkerLoads.queue; whole numbers, so that sums come back to zero."""

    def __len__(self) -> int:
        return len(self._charges)

    def charge(self, seq: int, request_id: str, tokens: int, prefill_us: int, turn_us: float) -> None:
        """A Run was sent as command `seq`, with its turn that long from now."""
        before_us = prefill_us * counts_before(turn_us)
        self._charges.append((seq, request_id, tokens, before_us))
        self.tokens += tokens
        self.before_us += before_us

    def apply(self, applied_seq: int) -> None:
        """A report reflects every command up to `applied_seq`."""
        self.applied_seq = max(self.applied_seq, applied_seq)
        while self._charges and self._charges[0][0] <= self.applied_seq:
            _, _, tokens, before_us = self._charges.popleft()
            self.tokens -= tokens
            self.before_us -= before_us

    def restart(self) -> None:
        """A new session: its commands count from 1, and its Snapshot tells of everything before."""
        self._charges.clear()
        self.applied_seq = self.tokens = 0
        self.before_us[:] = 0

    def in_flight(self, request_id: str) -> bool:
        """The Run of this request is not known to have been applied."""
        return any(charge[1] == request_id for charge in self._charges)
