"""The output of one request: the committed prefix, its CRC, and tokens that came before their turn."""

from __future__ import annotations

from typing import NamedTuple

from hyperflexis_common.attempt import Attempt
from hyperflexis_common.tokens import TOKEN_BYTES, count, extend_crc
from hyperflexis_router.core.logprobs import Logprobs


class Early(NamedTuple):
    """Tokens whose predecessors are missing."""

    attempt: Attempt
    packed: bytes
    crc: int
    logprobs: Logprobs


class Output:
    """Committed tokens never change; `take` is the only way in."""

    def __init__(self, committed: bytes, ahead_tokens: int) -> None:
        self.packed = bytearray(committed)
        self.next_index = count(committed)
        self.crc = extend_crc(0, committed)
        self._ahead: dict[int, Early] = {}
        self._ahead_room = self._ahead_limit = ahead_tokens
        self._ahead_end = 0

    @property
    def waiting(self) -> bool:
        """Later tokens are here, an earlier one is missing."""
        return bool(self._ahead)

    def take(self, start: int, packed: bytes, crc: int, until: int | None = None) -> bytes | None:
        """Commits tokens [start, start + n), of which `next_index` must be one, up to index `until`.

        Earlier tokens are dropped. `crc` is the sender's over [0, start + n). Returns what was committed, or
        None where the CRC disagrees: then nothing was.
        """
        fresh = packed[(self.next_index - start) * TOKEN_BYTES :] if start < self.next_index else packed
        if extend_crc(self.crc, fresh) != crc:
            return None
        if until is not None and self.next_index + count(fresh) > until:
            fresh = fresh[: (until - self.next_index) * TOKEN_BYTES]
            crc = extend_crc(self.crc, fresh)
        self.packed += fresh
        self.next_index += len(fresh) // TOKEN_BYTES
        self.crc = crc
        return fresh

    def hold(self, attempt: Attempt, start: int, packed: bytes, crc: int, logprobs: Logprobs = ()) -> None:
        """Keeps tokens beyond next_index for later; beyond the bound they are dropped, a replay brings them."""
        if start in self._ahead or count(packed) > self._ahead_room:
            return
        self._ahead[start] = Early(attempt, packed, crc, logprobs)
        self._ahead_room -= count(packed)
        self._ahead_end = max(self._ahead_end, start + count(packed))

    def next_held(self) -> Early | None:
        """Held tokens that begin at next_index, if any; those that were passed by are forgotten."""
        if not self._ahead:
            return None
        early = self._ahead.pop(self.next_index, None)
        if early is not None:
            self._ahead_room += count(early.packed)
        elif self.next_index >= self._ahead_end:
            self.forget_held()
        return early

    def forget_held(self) -> None:
        self._ahead.clear()
        self._ahead_room = self._ahead_limit
        self._ahead_end = 0
