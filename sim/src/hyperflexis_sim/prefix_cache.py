"""The prefix cache of a simulated worker: the worker core's own block pool, in blocks as long as the trace's.

Everything else in the room is counted in tokens (`EngineRoom`); blocks without a name stand for it here, so that what
runs pushes cached blocks out, least recently used first, exactly when the pool has no room for both.
"""

from __future__ import annotations

from hyperflexis_sim.request import SimRequest
from hyperflexis_worker.steps.blocks import BlockPool, CacheEvents

BLOCK_TOKENS = 512
"""Mooncake's traces name prompts in these. Whoever shares less than a block shares nothing."""


class PrefixCache:
    """`filled`, wherever it is asked for: tokens in the room, those that several share counted for each of them."""

    def __init__(self, kv_tokens: int) -> None:
        self.pool = BlockPool(max(kv_tokens // BLOCK_TOKENS, 1) + 1, BLOCK_TOKENS)
        self._owned: dict[int, list[int]] = {}
        """Of each request that began, by number: its first full blocks of prompt."""
        self._owners = 0
        """Blocks in there, with repeats."""
        self._nameless: list[int] = []

    @property
    def saved_tokens(self) -> int:
        """What the room counts more than once."""
        distinct = self.pool.usable - self.pool.free - len(self._nameless)
        return (self._owners - distinct) * BLOCK_TOKENS

    def cached_tokens(self, request: SimRequest) -> int:
        """Of its prompt, what is here. The last token is always computed: its logits are wanted."""
        return len(self._found(request)) * BLOCK_TOKENS

    def shared_tokens(self, request: SimRequest) -> int:
        """Of those, what takes no more room, as others that run own it."""
        found = self._found(request)
        return (len(found) - self.pool.idle(found)) * BLOCK_TOKENS

    def begin(self, request: SimRequest) -> int:
        """It owns what is here of its prompt; returns how many tokens that is."""
        found = self._found(request)
        self.pool.share(found)
        self._owned[request.number] = found
        self._owners += len(found)
        return len(found) * BLOCK_TOKENS

    def computed(self, request: SimRequest, filled: float) -> None:
        """More of its prompt is there than before: full blocks can be found from now on."""
        owned = self._owned[request.number]
        whole = min(request.computed // BLOCK_TOKENS, len(request.prefix))
        if whole <= len(owned):
            return
        first = len(owned)
        self._owners += whole - first
        self.fit(filled)
        blocks = self.pool.allocate(whole - first)
        if blocks is None:  # tokens fit where blocks, of which each request has a part left over, do not
            self._owners -= whole - first
            self.fit(filled)
            return
        owned += blocks
        for block, digest in zip(blocks, request.prefix[first:whole], strict=True):
            self.pool.publish(block, digest)

    def store(self, prefix: tuple[bytes, ...], filled: float) -> None:
        """These blocks have come from elsewhere, as far as there is room; nobody owns them yet."""
        self.fit(filled)
        found = self.pool.find(prefix)
        self.pool.share(found)
        came = self.pool.allocate(min(len(prefix) - len(found), self.pool.free)) or []
        for block, digest in zip(came, prefix[len(found) :], strict=False):
            self.pool.publish(block, digest)
        self.pool.release(found + came)

    def release(self, request: SimRequest) -> None:
        """It has lost its blocks, or needs them no more: they stay until their room is wanted."""
        owned = self._owned.pop(request.number, [])
        self._owners -= len(owned)
        self.pool.release(owned)

    def fit(self, filled: float) -> None:
        """Cached blocks leave where what runs has grown."""
        wanted = max(-(-int(filled - self._owners * BLOCK_TOKENS) // BLOCK_TOKENS), 0)
        more = wanted - len(self._nameless)
        if more > 0:
            self._nameless += self.pool.allocate(min(more, self.pool.free)) or []
        elif more < 0:
            self.pool.release(self._nameless[wanted:])
            del self._nameless[wanted:]

    def take_events(self) -> CacheEvents:
        return self.pool.take_events()

    def check_integrity(self) -> None:
        """Raises AssertionError where a block has other owners than it should."""
        self.pool.check_integrity([*self._nameless, *(block for owned in self._owned.values() for block in owned)])

    def _found(self, request: SimRequest) -> list[int]:
        whole = (request.prompt_tokens - 1) // BLOCK_TOKENS
        return self.pool.find(request.prefix[:whole])
