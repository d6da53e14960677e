"""One request as its client sees it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from hyperflexis_common.tokens import unpack
from hyperflexis_router.core import effects as router_effects
from hyperflexis_worker.modelled import reference_tokens

if TYPE_CHECKING:
    from virtual_router import Router

VOCAB = 1_000


TOPICS = 6


def some_prompt(chance: random.Random) -> list[int]:
    """A few begin like others, so that caches are worth reading."""
    begin = 100 * chance.randrange(TOPICS)
    prompt = list(range(begin, begin + chance.randrange(8, 56))) if chance.random() < 0.5 else []
    return prompt + [chance.randrange(VOCAB) for _ in range(chance.randrange(1, 60 - len(prompt)))]


class Client:
    """One request as its client sees it. `tokens` only ever grows, by exactly the next index."""

    def __init__(self, request_id: str, prompt: list[int], max_tokens: int, seed: int, router: Router) -> None:
        self.request_id = request_id
        self.prompt = prompt
        self.max_tokens = max_tokens
        self.seed = seed
        self.tokens: list[int] = []
        self.router = router
        self.ended: router_effects.Ended | None = None
        self.cancelled = False
        self.gen = 1
        """Which take-over it is at. Never 0, which stands for an owner that is not known."""

    @property
    def reference(self) -> list[int]:
        return reference_tokens(self.prompt, self.seed, self.max_tokens, VOCAB)

    def take(self, start: int, packed: bytes) -> None:
        assert self.ended is None, f"{self.request_id}: tokens after the end"
        assert start == len(self.tokens), f"{self.request_id}: index {start} where {len(self.tokens)} was due"
        self.tokens += unpack(packed)
        assert self.tokens == self.reference[: len(self.tokens)], f"{self.request_id}: spliced at {start}"

    def end(self, ended: router_effects.Ended) -> None:
        assert self.ended is None, f"{self.request_id}: ended twice"
        self.ended = ended
