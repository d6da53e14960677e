"""Room for requests in a block pool, as a step policy asks for it."""

from __future__ import annotations

from collections.abc import Sequence as Rows

from hyperflexis_common.output_lengths import OutputLengths
from hyperflexis_worker.steps.blocks import BlockPool
from hyperflexis_worker.steps.peak_use import PeakUse
from hyperflexis_worker.steps.prefill_queue import Waiting
from hyperflexis_worker.steps.sequence import Sequence
from hyperflexis_worker.steps.step_policy import Offer


def cached_blocks(sequence: Sequence, pool: BlockPool) -> list[int]:
    """What the prefix cache has of it. Its last token is always computed, as its logits are wanted: the block of that
    is never a shared one."""
    if not pool.prefix_cache:
        return []
    whole = (sequence.num_tokens - 1) // pool.block_tokens
    return pool.find(sequence.hashes(whole, pool.block_tokens))


class PoolRoom:
    """One choice at a time. `free`: blocks left when the decodes have theirs."""

    def __init__(
        self,
        pool: BlockPool,
        lengths: OutputLengths,
        decoding: Rows[Sequence],
        begun: Rows[Sequence],
        free: int,
        *,
        admits: bool,
    ) -> None:
        self._pool = pool
        self._lengths = lengths
        self.kv_tokens = pool.usable * pool.block_tokens
        self._free = free
        self._admits = admits
        own = sum(max(pool.blocks_for(s.computed + 1), len(s.blocks)) for s in decoding)
        self._tokens = (free + own + sum(len(s.blocks) for s in begun)) * pool.block_tokens
        """In the blocks of those who run, those taken in this step among them, and in free ones."""
        self._running = [(s, self._held(s.computed + 1)) for s in decoding]
        self._running += [(s, self._held(s.num_tokens)) for s in begun]
        self._peak: PeakUse | None = None
        """Of those who run, those taken in this step too; None = not asked yet."""
        self._cached: dict[Sequence, tuple[int, ...]] = {}

    def offer(self, request: Waiting) -> Offer | None:
        assert isinstance(request, Sequence)
        pool = self._pool
        if request.blocks:
            # As much of what it needs as there is: it was admitted when the rest was there.
            tokens = (len(request.blocks) + self._free) * pool.block_tokens - request.computed
            return Offer(request.computed, min(tokens, request.to_compute)) if tokens > 0 else None
        if not self._admits:
            return None  # a step that preempted has no room for anybody new
        cached = cached_blocks(request, pool)
        needed = self._needed(request, cached)
        if needed > self._free:
            return None
        if self._running and not self._fits(request, self._use(request, cached)):
            return None
        self._cached[request] = tuple(cached)
        start = len(cached) * pool.block_tokens
        return Offer(start, request.num_tokens - start)

    def take(self, request: Waiting) -> None:
        assert isinstance(request, Sequence)
        if request.blocks:
            # One that was attached may have more blocks than it needs yet: they are no others'.
            more = max(self._pool.blocks_for(request.num_tokens) - len(request.blocks), 0)
            self._free = max(self._free - more, 0)
            return
        cached = list(self._cached[request])
        self._free -= self._needed(request, cached)
        self._running.append((request, self._use(request, cached)))
        if self._peak is not None:
            self._peak.add_requests([request], [self._running[-1][1]])

    def start(self, sequence: Sequence) -> tuple[int, tuple[int, ...]]:
        """Where the chunk of one that was taken begins, and the cached blocks before it."""
        cached = self._cached.get(sequence, ())
        return (sequence.computed, ()) if sequence.blocks else (len(cached) * self._pool.block_tokens, cached)

    def _needed(self, sequence: Sequence, cached: list[int]) -> int:
        return self._pool.blocks_for(sequence.num_tokens) - len(cached) + self._pool.idle(cached)

    def _use(self, sequence: Sequence, cached: list[int]) -> float:
        """What it would hold that nobody else owns."""
        shared = (len(cached) - self._pool.idle(cached)) * self._pool.block_tokens
        return self._held(sequence.num_tokens - shared)

    def _held(self, tokens: int) -> float:
        """Tokens in its blocks, the last one of which may be nearly empty at any moment."""
        return float(tokens + self._pool.block_tokens - 1)

    def _fits(self, sequence: Sequence, held: float) -> bool:
        """Whether it can run beside the others to its end."""
        if self._peak is None:
            self._peak = PeakUse(self._lengths)
            self._peak.add_requests([s for s, _ in self._running], [held for _, held in self._running])
        return self._peak.fits(sequence.tier, held, sequence.made, sequence.max_tokens, self._tokens)
