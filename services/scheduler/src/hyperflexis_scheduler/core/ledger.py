"""What was sent to a worker and is not in its reports yet."""

from __future__ import annotations

from collections import deque


class Ledger:
    """Charges of commands beyond the report's `applied_seq`: they stay added to the reported load."""

    def __init__(self) -> None:
        self._charges: deque[tuple[int, str, int, int]] = deque()
        self.applied_seq = 0
        self.tokens = 0
        """Tokens to prefill that were sent since."""
        self.prefill_us = 0
        """The time they take; whole numbers, so that sums come back to zero."""

    def __len__(self) -> int:
        return len(self._charges)

    def charge(self, seq: int, request_id: str, tokens: int, prefill_us: int) -> None:
        """A Run was sent as command `seq`."""
        self._charges.append((seq, request_id, tokens, prefill_us))
        self.tokens += tokens
        self.prefill_us += prefill_us

    def apply(self, applied_seq: int) -> None:
        """A report reflects every command up to `applied_seq`."""
        self.applied_seq = max(self.applied_seq, applied_seq)
        while self._charges and self._charges[0][0] <= self.applied_seq:
            _, _, tokens, prefill_us = self._charges.popleft()
            self.tokens -= tokens
            self.prefill_us -= prefill_us

    def restart(self) -> None:
        """A new session: its commands count from 1, and its Snapshot tells of everything before."""
        self._charges.clear()
        self.applied_seq = self.tokens = self.prefill_us = 0

    def in_flight(self, request_id: str) -> bool:
        """The Run of this request is not known to have been applied."""
        return any(charge[1] == request_id for charge in self._charges)
