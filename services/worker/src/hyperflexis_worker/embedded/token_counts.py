"""Which tokens the penalised sequences have seen, on the device: what their penalties are computed from."""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from hyperflexis_worker.steps.sequence import Sequence


class TokenCounts:
    """A row of counts for each penalised sequence that is under way; only what is new to a row is ever counted."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._counts = torch.zeros((0, 2, vocab_size), dtype=torch.int32, device=device)
        """[slot, prompt | output, token]"""
        self._slots: dict[Sequence, int] = {}
        self._taken: dict[Sequence, int] = {}
        self._unused: list[int] = []

    def __len__(self) -> int:
        return len(self._slots)

    def of(self, sequences: Rows[Sequence]) -> tuple[Tensor, Tensor]:
        """How often each token is in prompt and in output: two times int32 [sequences, vocabulary]."""
        slots = [self._slot(sequence) for sequence in sequences]
        places: list[tuple[int, int, int]] = []
        for sequence, slot in zip(sequences, slots, strict=True):
            taken, split = self._taken[sequence], len(sequence.prompt)
            fresh = sequence.tokens(taken, sequence.num_tokens - taken)
            places += [(slot, int(taken + i >= split), token) for i, token in enumerate(fresh)]
            self._taken[sequence] = sequence.num_tokens
        device = self._counts.device
        if places:
            where = torch.tensor(places, dtype=torch.int64).to(device).unbind(1)
            one = torch.ones((), dtype=torch.int32, device=device)
            self._counts.index_put_(where, one, accumulate=True)
        prompt, output = self._counts[torch.tensor(slots, dtype=torch.int64).to(device)].unbind(1)
        return prompt, output

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended; harmless where it never was penalised."""
        slot = self._slots.pop(sequence, None)
        if slot is not None:
            del self._taken[sequence]
            self._unused.append(slot)

    def _slot(self, sequence: Sequence) -> int:
        slot = self._slots.get(sequence)
        if slot is None:
            if not self._unused:
                self._grow()
            slot = self._slots[sequence] = self._unused.pop()
            self._taken[sequence] = 0
            self._counts[slot].zero_()
        return slot

    def _grow(self) -> None:
        before = self._counts.shape[0]
        more = max(before, 4)
        self._counts = torch.cat([self._counts, self._counts.new_zeros((more, *self._counts.shape[1:]))])
        self._unused.extend(range(before, before + more))
