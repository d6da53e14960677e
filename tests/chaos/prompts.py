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
    """`documents`: so many are there; 0 = no prompt shares its beginning with another."""
    chance = random.Random(seed)
    vocabulary, longest = (32_000 if cell.engine == "modelled" else 2_000), LONGEST_TOKENS[cell.engine]
    beginnings = [_ids(chance, vocabulary, *DOCUMENT_TOKENS) for _ in range(documents)]
    if cell.engine == "modelled":
        counts = [chance.choice([1, 2, chance.randrange(3, 60), chance.randrange(60, 200)]) for _ in range(62)]
        made = []
        for number, count in enumerate([*counts, LONG_TOKENS, longest]):
            ids = _beginning(chance, beginnings, count < longest) + _ids(chance, vocabulary, 1, 300)
            made.append(Prompt(ids, number, tuple(reference_tokens(ids, number, count, vocabulary))))
        return made
    counts = [*(chance.randrange(1, 60) for _ in range(14)), LONG_TOKENS, 4 * LONG_TOKENS, longest]
    async with AsyncClient(cell.router_addresses()) as client:
        made = []
        for number, count in enumerate(counts):
            ids = _beginning(chance, beginnings, count < longest) + _ids(chance, vocabulary, 1, 60)
            made += [await reference_of(client, ids, number, count, temperature) for temperature in TEMPERATURES]
        return made


def _ids(chance: random.Random, vocabulary: int, least: int, most: int) -> tuple[int, ...]:
    return tuple(chance.randrange(vocabulary) for _ in range(chance.randrange(least, most)))


def _beginning(chance: random.Random, documents: list[tuple[int, ...]], wanted: bool) -> tuple[int, ...]:
    return chance.choice(documents) if documents and wanted and chance.random() < 0.5 else ()
