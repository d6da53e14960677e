"""Requests whose output is known beforehand: short ones, long ones, and a few that outlast every grace. Half of those
that do not may begin with one of a few documents, so that there are prefixes to be read from peers."""

from __future__ import annotations

import random

from chaos_cell import ChaosCell
from client_load import LONG_TOKENS, reference_of
from reading import Prompt

from hyperflexis_client import AsyncClient
from hyperflexis_worker.modelled import reference_tokens

LONGEST_TOKENS = {"modelled": 1_000, "embedded": 1_500}
"""About ten seconds each under load."""
TEMPERATURES = (0.0, 0.8)
"""Greedy, and drawn by a seed."""
COMPARED_WITH = {
    "modelled": "the definition of the engine's output, worked out outside of the cell",
    "embedded": "the output of the same requests, one alone at a time, in the same cell before its first fault",
}
"""Every token of every request, as it comes."""


DOCUMENT_TOKENS = (700, 1_200)


async def prompts_for(cell: ChaosCell, seed: int, documents: int = 0) -> list[Prompt]:
    """`documents`: every second prompt but the longest begins with one of so many, each with about as many as another;
    0 = no prompt shares its beginning with another."""
    chance = random.Random(seed)
    longest = LONGEST_TOKENS[cell.engine]
    if cell.engine == "modelled":
        counts = [chance.choice([1, 2, chance.randrange(3, 60), chance.randrange(60, 200)]) for _ in range(62)]
        texts = _texts(chance, len(counts) + 1, documents, vocabulary=32_000, longest=300)
        lengths = [*counts, LONG_TOKENS]
        return [_modelled(ids, n, count) for n, (ids, count) in enumerate(zip(texts, [*lengths, longest], strict=True))]
    counts = [chance.randrange(1, 60) for _ in range(4 * documents or 14)]
    lengths = [*counts, LONG_TOKENS, 4 * LONG_TOKENS, longest]
    texts = _texts(chance, len(lengths) - 1, documents, vocabulary=2_000, longest=60)
    async with AsyncClient(cell.router_addresses()) as client:
        made = []
        for number, (ids, count) in enumerate(zip(texts, lengths, strict=True)):
            made += [await reference_of(client, ids, number, count, temperature) for temperature in TEMPERATURES]
        return made


def _texts(chance: random.Random, count: int, documents: int, vocabulary: int, longest: int) -> list[tuple[int, ...]]:
    """So many prompts, and one more that has no document before it."""

    def some(least: int, most: int) -> tuple[int, ...]:
        return tuple(chance.randrange(vocabulary) for _ in range(chance.randrange(least, most)))

    beginnings = [some(*DOCUMENT_TOKENS) for _ in range(documents)]
    return [
        (beginnings[number // 2 % documents] if documents and number % 2 and number < count else ()) + some(1, longest)
        for number in range(count + 1)
    ]


def _modelled(ids: tuple[int, ...], number: int, count: int) -> Prompt:
    return Prompt(ids, number, tuple(reference_tokens(ids, number, count, 32_000)))
