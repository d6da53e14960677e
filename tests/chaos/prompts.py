"""Requests whose output is known beforehand: short ones, long ones, and a few that outlast every grace."""

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


async def prompts_for(cell: ChaosCell, seed: int) -> list[Prompt]:
    chance = random.Random(seed)
    longest = LONGEST_TOKENS[cell.engine]
    if cell.engine == "modelled":
        counts = [chance.choice([1, 2, chance.randrange(3, 60), chance.randrange(60, 200)]) for _ in range(62)]
        return [_modelled(chance, number, count) for number, count in enumerate([*counts, LONG_TOKENS, longest])]
    counts = [*(chance.randrange(1, 60) for _ in range(14)), LONG_TOKENS, 4 * LONG_TOKENS, longest]
    async with AsyncClient(cell.router_addresses()) as client:
        made = []
        for number, count in enumerate(counts):
            ids = [chance.randrange(2_000) for _ in range(chance.randrange(1, 60))]
            made += [await reference_of(client, ids, number, count, temperature) for temperature in TEMPERATURES]
        return made


def _modelled(chance: random.Random, number: int, count: int) -> Prompt:
    ids = tuple(chance.randrange(32_000) for _ in range(chance.randrange(1, 300)))
    return Prompt(ids, number, tuple(reference_tokens(ids, number, count, 32_000)))
