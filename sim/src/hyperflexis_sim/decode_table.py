"""All requests of one simulated worker that decode, one column each, so that a step costs a few vector operations."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hyperflexis_common.output_lengths import OutputLengths
from hyperflexis_sim.request import SimRequest
from hyperflexis_worker.steps.step_policy import Decodes

Floats = npt.NDArray[np.float64]

FIELDS = 15
DUE, TOKEN_DUE, TPOT, PROMISED, CONTEXT, MADE, PAST_END = range(7)
PAUSE_END, GAP, CREDIT, LAST, WORST, LATE, EXPECTED, LIMIT = range(7, FIELDS)
"""TOKEN_DUE: when the next token is due by arrival + TTFT + k TPOT as promised at first; LATE: tokens that missed it;
PAST_END: tokens beyond its last one, below 0 until that is made; EXPECTED: output tokens that its tier makes on
average, as known when it began to decode; LIMIT: and at most. In this order what a step adds to is side by side."""
_DUES, _EACH, _TOKENS = slice(DUE, TPOT), slice(TPOT, CONTEXT), slice(CONTEXT, PAUSE_END)


class DecodeTable:
    """Rows are fields, columns requests; the first `count` columns are in use."""

    def __init__(self, capacity: int = 64) -> None:
        self._table = np.zeros((FIELDS, capacity))
        self.requests: list[SimRequest] = []
        self.context_tokens = 0.0

    @property
    def count(self) -> int:
        return len(self.requests)

    def view(self) -> Decodes:
        """What a policy sees: valid until the table changes."""
        used = self._table[:, : self.count]
        return Decodes(used[DUE], used[PAUSE_END], used[TPOT], self.context_tokens, used[CREDIT], used[TOKEN_DUE])

    def least_left(self) -> int:
        """Steps until the first of them ends."""
        return -int(self._table[PAST_END, : self.count].max())

    def add(self, request: SimRequest, now_us: float, expected_tokens: float) -> None:
        """Its newest token came at `now_us`; at least one more will."""
        at = self.count
        if at == self._table.shape[1]:
            self._table = np.concatenate([self._table, np.zeros_like(self._table)], axis=1)
        context = request.computed
        self._table[:, at] = (
            request.first_us + request.made * request.tpot_us,
            request.arrival_us + request.promised_ttft_us + request.made * request.promised_tpot_us,
            request.tpot_us,
            request.promised_tpot_us,
            context,
            request.made,
            request.made - request.output_tokens,
            now_us + max(request.tpot_us, request.max_gap_us),
            max(request.tpot_us, request.max_gap_us),
            0.0,
            now_us,
            request.worst_gap_us,
            request.late_tokens,
            expected_tokens,
            request.max_tokens,
        )
        self.requests.append(request)
        self.context_tokens += context

    def advance(self, ends_us: Floats, who: np.ndarray | None = None) -> list[SimRequest]:
        """Steps that ended at these times gave each of them (or of `who`) a token each; returns those that are done.

        Nobody may end before the last of the steps.
        """
        used = self._table[:, : self.count]
        steps = len(ends_us)
        if who is not None and not who.all():
            self._advance_some(used, float(ends_us[0]), who)
        else:
            first, last = float(ends_us[0]), float(ends_us[-1])
            late, worst, came = used[LATE], used[WORST], used[LAST]
            gap = np.subtract(first, came, out=came)
            if steps > 1:
                np.maximum(gap, float(np.diff(ends_us).max()), out=gap)
                deadlines = used[TOKEN_DUE] + np.arange(steps)[:, None] * used[PROMISED]
                late += (ends_us[:, None] > deadlines).sum(axis=0)
            else:
                late += used[TOKEN_DUE] < first
            np.maximum(worst, gap, out=worst)
            came.fill(last)
            dues, tokens = used[_DUES], used[_TOKENS]
            dues += used[_EACH] if steps == 1 else steps * used[_EACH]
            tokens += steps
            np.add(used[GAP], last, out=used[PAUSE_END])
            self.context_tokens += steps * self.count
        if used[PAST_END].max() < 0:
            return []
        return [self.remove(int(at)) for at in np.flatnonzero(used[PAST_END] >= 0)[::-1]]

    def _advance_some(self, used: np.ndarray, now_us: float, who: np.ndarray) -> None:
        step = who.astype(np.float64)
        used[LATE] += who & (used[TOKEN_DUE] < now_us)
        used[WORST] = np.where(who, np.maximum(used[WORST], now_us - used[LAST]), used[WORST])
        used[LAST] = np.where(who, now_us, used[LAST])
        used[_DUES] += step * used[_EACH]
        used[PAUSE_END] = used[LAST] + used[GAP]
        used[_TOKENS] += step
        self.context_tokens += float(step.sum())

    def remove(self, at: int) -> SimRequest:
        """Takes one out and writes what the table knows back to it."""
        request = self.requests[at]
        column = self._table[:, at]
        request.made = int(column[MADE])
        request.last_us = float(column[LAST])
        request.worst_gap_us = float(column[WORST])
        request.late_tokens = int(column[LATE])
        request.computed = int(column[CONTEXT])
        self.context_tokens -= column[CONTEXT]
        last = self.count - 1
        if at != last:
            self._table[:, at] = self._table[:, last]
            self.requests[at] = self.requests[last]
        self.requests.pop()
        return request

    def __contains__(self, request: SimRequest) -> bool:
        return any(other is request for other in self.requests)

    def place(self, request: SimRequest) -> int:
        """Raises ValueError where it is not here."""
        return self.requests.index(request)

    def context_of(self, request: SimRequest) -> int:
        return int(self._table[CONTEXT, self.place(request)])

    def most_slack(self) -> int:
        """The one that can best wait: the one to preempt."""
        used = self._table[:, : self.count]
        return int(used[DUE].argmax())

    def contexts(self) -> Floats:
        """[count]"""
        found: Floats = self._table[CONTEXT, : self.count]
        return found

    def made(self) -> Floats:
        """[count]"""
        found: Floats = self._table[MADE, : self.count]
        return found

    def limits(self) -> Floats:
        """[count] Output tokens at most."""
        found: Floats = self._table[LIMIT, : self.count]
        return found

    def growth(self) -> Floats:
        """[count] Tokens that each is expected to grow by: OutputLengths.remaining."""
        used = self._table[:, : self.count]
        return OutputLengths.remaining_of(used[EXPECTED], used[MADE], used[LIMIT])
