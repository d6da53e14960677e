"""Section f: a request of a real shape moves between two GPUs, after its prefill and in the middle of its decode; and
the beginning of a prompt is read from the GPU that keeps it.

Fed the same tokens, the logits must be those of an undisturbed run, bit for bit.
"""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
from kv_actor import Actor
from kv_model import BLOCK_TOKENS, LLAMA_8B, TINY, ModelSide
from kv_section import Section

STEPS = 8
"""Decodes that are compared."""
BEFORE = 16
"""Decodes before the pre-copy of a migration begins."""
DURING = 80
"""Decodes while it runs: at least one block fills up meanwhile."""

TAIL = 100
"""Of a prompt, what is computed after the beginning that a peer keeps."""


def handoff(section: Section) -> None:
    """Section f."""
    shape, blocks, lengths = section.pick((LLAMA_8B, 448, (512, 2_048, 8_192)), (TINY, 64, (256,)))
    with (
        section.actor("exporter", ModelSide, section.exporter_gpu) as exporter,
        section.actor("importer", ModelSide, section.importer_gpu) as importer,
    ):
        exporter.ready()
        importer.ready()
        exporter.send("setup", shape=shape, blocks=blocks)
        here = importer.call("setup", shape=shape, blocks=blocks)
        there = exporter.receive()
        same = here["weights_sum"] == there["weights_sum"]
        section.found["setup"] = {name: here[name] for name in ("setup_ms", "block_bytes")} | {"same_weights": same}
        section.say(f"models: {section.found['setup']}")
        if not same:
            raise AssertionError("the two GPUs made other weights of the same seed")
        section.tried("link", importer.call, "link", peer="exporter", metadata=there["metadata"])
        room = Room(exporter, importer, blocks)
        # The first steps pick and load kernels.
        for actor in (exporter, importer):
            actor.call("prefill", text=0, tokens=600, blocks=room.some(10))
            actor.call("decode", text=0, tokens=600, steps=2, blocks=room.some(10))
        for length in lengths:
            section.tried(f"hand_off_{length}", room.hand_off, length)
            section.tried(f"migration_{length}", room.migrate, length)
            section.tried(f"prefix_{length}", room.prefix, length)
    moves = [one for name, one in section.found.items() if name.startswith(("hand_off", "migration", "prefix"))]
    section.found["all_bits_equal"] = len(moves) == 3 * len(lengths) and all(one.get("equal") for one in moves)
    section.say(f"all bits equal: {section.found['all_bits_equal']}")


class Room:
    """Both sides, and blocks at random places of their pools."""

    def __init__(self, exporter: Actor, importer: Actor, blocks: int) -> None:
        self._exporter, self._importer, self._blocks = exporter, importer, blocks
        self._chance = random.Random(11)

    def some(self, count: int) -> list[int]:
        """Block 0 is no one's."""
        return self._chance.sample(range(1, self._blocks), count)

    def _for(self, tokens: int, sets: int = 1) -> list[list[int]]:
        count = -(-tokens // BLOCK_TOKENS)
        all_of_them = self.some(count * sets)
        return [all_of_them[number * count : (number + 1) * count] for number in range(sets)]

    def hand_off(self, tokens: int) -> dict[str, Any]:
        """Prefill there, decode here."""
        (theirs,) = self._for(tokens + STEPS)
        ours, alone = self._for(tokens + STEPS, 2)
        held = -(-tokens // BLOCK_TOKENS)
        prefill_ms = self._exporter.call("prefill", text=tokens, tokens=tokens, blocks=theirs)
        began = time.perf_counter()
        pulled = self._importer.call("pull", remote=theirs[:held], local=ours[:held])
        decode = {"text": tokens, "tokens": tokens, "steps": STEPS}
        moved = self._importer.call("decode", blocks=ours, **decode)
        whole_ms = round((time.perf_counter() - began) * 1e3, 1)
        stayed = self._exporter.call("decode", blocks=theirs, **decode)
        again_ms = self._importer.call("prefill", text=tokens, tokens=tokens, blocks=alone)
        undisturbed = self._importer.call("decode", blocks=alone, **decode)
        return {
            "prefill_ms": prefill_ms,
            "pull": pulled,
            "first_decode_ms": moved["ms"][0],
            "decode_ms": moved["ms"][-1],
            "pull_and_all_decodes_ms": whole_ms,
            "prefill_again_ms": again_ms,
            **_compared(moved["logits"], stayed["logits"], undisturbed["logits"]),
        }

    def prefix(self, tokens: int) -> dict[str, Any]:
        """So many tokens are cached there, whole chunks of them: read here, and the rest of the prompt after them."""
        prompt, text = tokens + TAIL, tokens + 2
        theirs, ours, alone = self._for(prompt + STEPS, 3)
        held = tokens // BLOCK_TOKENS
        self._exporter.call("prefill", text=text, tokens=tokens, blocks=theirs)
        whole_ms = [self._importer.call("prefill", text=text, tokens=prompt, blocks=alone) for _ in range(3)][-1]
        began = time.perf_counter()
        pulled = self._importer.call("pull", remote=theirs[:held], local=ours[:held])
        rest_ms = self._importer.call("prefill", text=text, start=tokens, tokens=prompt, blocks=ours)
        pulled_ms = round((time.perf_counter() - began) * 1e3, 1)
        decode = {"text": text, "tokens": prompt, "steps": STEPS}
        moved = self._importer.call("decode", blocks=ours, **decode)
        undisturbed = self._importer.call("decode", blocks=alone, **decode)
        self._exporter.call("prefill", text=text, start=tokens, tokens=prompt, blocks=theirs)
        stayed = self._exporter.call("decode", blocks=theirs, **decode)
        return {
            "prefill_all_ms": whole_ms,
            "pull": pulled,
            "prefill_rest_ms": rest_ms,
            "pull_and_rest_ms": pulled_ms,
            **_compared(moved["logits"], stayed["logits"], undisturbed["logits"]),
        }

    def migrate(self, length: int) -> dict[str, Any]:
        """Decodes there; its full blocks are copied meanwhile, the rest once it has stopped; decodes on here."""
        prompt = length - BEFORE - DURING - STEPS
        stop = prompt + BEFORE + DURING
        (theirs,) = self._for(length)
        ours, alone = self._for(length, 2)
        text = length + 1
        self._exporter.call("prefill", text=text, tokens=prompt, blocks=theirs)
        quiet = self._exporter.call("decode", text=text, tokens=prompt, steps=BEFORE, blocks=theirs)
        full = (prompt + BEFORE) // BLOCK_TOKENS
        self._exporter.send("decode", text=text, tokens=prompt + BEFORE, steps=DURING, blocks=theirs)
        before = self._importer.call("pull", remote=theirs[:full], local=ours[:full])
        disturbed = self._exporter.receive()
        began = time.perf_counter()
        held = -(-stop // BLOCK_TOKENS)
        rest = self._importer.call("pull", remote=theirs[full:held], local=ours[full:held])
        first = self._importer.call("decode", text=text, tokens=stop, steps=1, blocks=ours)
        pause_ms = round((time.perf_counter() - began) * 1e3, 2)
        later = {"text": text, "tokens": stop + 1, "steps": STEPS - 1}
        moved = np.concatenate([first["logits"], self._importer.call("decode", blocks=ours, **later)["logits"]])
        stayed = self._exporter.call("decode", text=text, tokens=stop, steps=STEPS, blocks=theirs)
        self._importer.call("prefill", text=text, tokens=prompt, blocks=alone)
        undisturbed = self._importer.call(
            "decode", text=text, tokens=prompt, steps=BEFORE + DURING + STEPS, blocks=alone
        )
        return {
            "pre_copy": before,
            "tail": rest,
            "stop_to_first_token_ms": pause_ms,
            "decode_ms": sorted(quiet["ms"])[len(quiet["ms"]) // 2],
            "decode_ms_during_the_copy": sorted(disturbed["ms"])[len(disturbed["ms"]) // 2],
            **_compared(moved, stayed["logits"], undisturbed["logits"][-STEPS:]),
        }


def _compared(moved: np.ndarray, stayed: np.ndarray, undisturbed: np.ndarray) -> dict[str, Any]:
    """Bit for bit, with those that stayed on the source and with a run on the target alone."""
    finite = ((moved & 0x7F80) != 0x7F80).all()
    found: dict[str, Any] = {
        "equal": bool((moved == stayed).all() and (moved == undisturbed).all() and finite),
        "equal_to_source": bool((moved == stayed).all()),
        "equal_to_target_alone": bool((moved == undisturbed).all()),
        "finite": bool(finite),
        "logits_differ_from_each_other": bool((moved[0] != moved[-1]).any()),
    }
    if not found["equal"]:
        found["bits_that_differ"] = int((moved != stayed).sum()), int((moved != undisturbed).sum())
    return found
