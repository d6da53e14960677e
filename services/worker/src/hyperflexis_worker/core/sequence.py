"""One attempt as the engine sees it: tokens, how many of them are in the KV pool, and the promise."""

from __future__ import annotations

from dataclasses import dataclass, field

from hyperflexis_common.attempt import Attempt


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. Token i is drawn from the counter-based stream (seed, i)."""

    temperature: float = 0.0
    """0 = greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 = off."""
    seed: int = 0
    min_tokens: int = 0
    """Output tokens before any stop token may be drawn."""
    stop_token_ids: frozenset[int] = frozenset()
    """Including the model's end-of-sequence ids unless the request ignores them."""


@dataclass(slots=True, eq=False)
class Sequence:
    """A request's tokens on this worker. `computed` of them have their keys and values in `blocks`."""

    request_id: str
    attempt: Attempt
    prompt: list[int]
    output: list[int]
    """All output tokens, those committed before this attempt included."""
    sampling: Sampling
    max_tokens: int
    """Output tokens at most, committed ones included."""
    arrival_us: int = 0
    """On this worker's clock: when the full request was received by the router."""
    ttft_us: int = 1_000_000
    tpot_us: int = 100_000
    weight: float = 1.0
    tier: str = ""
    committed: int = 0
    """Output tokens that came with the Start."""
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    started: bool = False
    """A chunk of it has run at least once: no longer revocable."""

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + len(self.output)

    @property
    def to_compute(self) -> int:
        """Tokens whose keys and values are not in the pool yet; 1 while decoding."""
        return self.num_tokens - self.computed

    @property
    def decoding(self) -> bool:
        return self.to_compute == 1 and self.computed > 0

    @property
    def first_token_due_us(self) -> int:
        return self.arrival_us + self.ttft_us

    def tokens(self, start: int, length: int) -> list[int]:
        """Token ids [start, start + length) of prompt and output together."""
        split = len(self.prompt)
        end = start + length
        if end <= split:
            return self.prompt[start:end]
        if start >= split:
            return self.output[start - split : end - split]
        return self.prompt[start:] + self.output[: end - split]
