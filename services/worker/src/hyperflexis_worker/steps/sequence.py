"""One attempt as the engine sees it: tokens, how many of them are in the KV pool, and the promise."""

from __future__ import annotations

from dataclasses import dataclass, field

from hyperflexis_common import tokens as packing
from hyperflexis_common.attempt import Attempt
from hyperflexis_common.prefix import extend_hash


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. Token i is drawn from the counter-based stream (seed, i)."""

    temperature: float = 0.0
    """0 = greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 = off."""
    min_p: float = 0.0
    """Least probability, as a share of the likeliest token's. 0 = off."""
    repetition_penalty: float = 1.0
    """Divides the positive logits of tokens seen in prompt or output, multiplies the negative ones. 1 = off."""
    presence_penalty: float = 0.0
    """Taken from the logit of every token in the output."""
    frequency_penalty: float = 0.0
    """The same, once for each time it is there."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, what is added to its logit)"""
    logprobs: int | None = None
    """How many of the likeliest tokens are told with each token; 0 = the chosen one's alone, None = nothing."""
    seed: int = 0
    min_tokens: int = 0
    """Output tokens before any stop token may be drawn."""
    stop_token_ids: frozenset[int] = frozenset()
    """Including the model's end-of-sequence ids unless the request ignores them."""

    @property
    def penalised(self) -> bool:
        """Its draws depend on which tokens came before."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


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
    max_gap_us: int = 250_000
    weight: float = 1.0
    tier: str = ""
    tenant: str = ""
    number: int = 0
    """Counts the sequences of an engine, in the order in which they came."""
    committed: int = 0
    """Output tokens that came with the Start."""
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    published: int = 0
    """Of `blocks`, the first that can be found by their hash."""
    cached_tokens: int = 0
    """Of the prompt, found in the prefix cache when it was first admitted."""
    foreseen: int = 0
    """Of its tokens, what the prefix cache had when it was queued; 0 from when it is admitted, and it is known."""
    started: bool = False
    """A chunk of it has run at least once: no longer revocable."""
    next_due_us: int | None = None
    """When its next token is due, while it decodes, and after it lost its blocks in the middle of that."""
    _hashes: list[bytes] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + len(self.output)

    @property
    def to_compute(self) -> int:
        """Tokens whose keys and values are not in the pool yet, as far as is known; 1 while decoding."""
        return self.num_tokens - (self.computed or self.foreseen)

    @property
    def decoding(self) -> bool:
        return self.to_compute == 1 and self.computed > 0 and self.made > 0

    @property
    def first_token_due_us(self) -> int:
        return self.arrival_us + self.ttft_us

    @property
    def due_us(self) -> int:
        """When its next token is due."""
        return self.first_token_due_us if self.next_due_us is None else self.next_due_us

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt)

    @property
    def made(self) -> int:
        """Output tokens, committed ones included."""
        return len(self.output)

    def hashes(self, blocks: int, block_tokens: int) -> list[bytes]:
        """Chained hashes of the first `blocks` full blocks of prompt and output (common.prefix)."""
        while len(self._hashes) < blocks:
            block = packing.pack(self.tokens(len(self._hashes) * block_tokens, block_tokens))
            self._hashes.append(extend_hash(self._hashes[-1] if self._hashes else b"", block))
        return self._hashes[:blocks]

    def tokens(self, start: int, length: int) -> list[int]:
        """Token ids [start, start + length) of prompt and output together."""
        split = len(self.prompt)
        end = start + length
        if end <= split:
            return self.prompt[start:end]
        if start >= split:
            return self.output[start - split : end - split]
        return self.prompt[start:] + self.output[: end - split]
