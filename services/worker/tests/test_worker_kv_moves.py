"""Sequences that move between engines while they run: whole engines behind their sockets."""

from __future__ import annotations

import msgspec
import pytest
from cache_cell import cell, slow
from engine_rig import VOCAB
from memory_wire import MemoryWire

from hyperflexis_common.tokens import unpack
from hyperflexis_worker.engine import frames
from hyperflexis_worker.modelled import reference_tokens

PROMPT = list(range(100, 130))


@pytest.mark.parametrize("over", ["wire", "shells"])
@pytest.mark.parametrize("policy", ["fcfs", "hyperflexis", "scorpio"])
def test_a_moved_sequence_goes_on_as_if_nothing_had_been(over: str, policy: str) -> None:
    wire = MemoryWire() if over == "wire" else None
    settings = [slow(name, policy=policy) for name in "ab"]
    with cell(*settings, wire=wire) as both:
        a, b = both.engines
        a.add("r", PROMPT, 40)
        both.until(lambda: len(a.outputs.get("r", [])) >= 5)
        last = both.move("r", a, b, PROMPT, 40)
        assert last.computed == len(PROMPT) + len(unpack(last.output)) - 1
        both.until(lambda: "r" in b.ended)
        assert b.outputs["r"] == reference_tokens(PROMPT, 7, 40, VOCAB)
        prefilled = [m for m in b.said if isinstance(m, frames.Stepped) and m.load.queued_prefill_tokens]
        assert not prefilled, "nothing had to be computed again"
        both.until(lambda: a.load.running == 0 and a.load.leased_blocks == 0)


def test_it_moves_as_often_as_anybody_likes() -> None:
    with cell(slow("a"), slow("b"), wire=MemoryWire()) as both:
        a, b = both.engines
        a.add("r", PROMPT, 150)
        for seq in range(1, 8):
            source, target = (a, b) if seq % 2 else (b, a)
            both.until(lambda source=source, seq=seq: len(source.outputs.get("r", [])) >= 15 * seq)
            both.move("r", source, target, PROMPT, 150, seq=seq)
        both.until(lambda: "r" in b.ended)
        assert b.outputs["r"] == reference_tokens(PROMPT, 7, 150, VOCAB)


@pytest.mark.parametrize("after", [0, 1])
def test_it_moves_in_the_middle_of_its_prompt_and_before_it_began(after: int) -> None:
    prompt = list(range(60))
    with cell(slow("a", max_num_tokens=7), slow("b", max_num_tokens=9), wire=MemoryWire()) as both:
        a, b = both.engines
        a.add("r", prompt, 10)
        both.until(lambda: sum(isinstance(said, frames.Stepped) for said in a.said) >= after)
        last = both.move("r", a, b, prompt, 10)
        assert last.computed < len(prompt) and not last.output
        both.until(lambda: "r" in b.ended)
        assert b.outputs["r"] == reference_tokens(prompt, 7, 10, VOCAB)


def test_both_ends_keep_the_prefix() -> None:
    with cell(slow("a"), slow("b"), wire=MemoryWire()) as both:
        a, b = both.engines
        a.add("r", PROMPT, 40)
        both.until(lambda: len(a.outputs.get("r", [])) >= 3)
        both.move("r", a, b, PROMPT, 40)
        both.until(lambda: "r" in b.ended and a.load.leased_blocks == 0)
        for engine in (a, b):
            engine.add("same", PROMPT, 2)
            both.until(lambda engine=engine: "same" in engine.ended)
            assert engine.ended["same"].cached_tokens == 28
            assert engine.outputs["same"] == reference_tokens(PROMPT, 7, 2, VOCAB)


def test_what_was_not_read_is_computed_again_whatever_the_shell_believes() -> None:
    with cell(slow("a"), slow("b"), wire=MemoryWire()) as both:
        a, b = both.engines
        a.add("r", PROMPT, 20)
        both.until(lambda: len(a.outputs.get("r", [])) >= 3)
        last = both.export(a, "r", final=True)
        assert both.reserve(b, "r", last.computed).ok
        part = msgspec.structs.replace(last, blocks=last.blocks[:5])
        assert not both.pulled(b, both.pull(b, a, "r", part)).error
        b.outputs["r"] = unpack(last.output)
        b.send(frames.Attach(b.add_frame("r", PROMPT, 20, unpack(last.output), seq=2), last.computed))
        both.until(lambda: "r" in b.ended)
        assert b.outputs["r"] == reference_tokens(PROMPT, 7, 20, VOCAB)
        b.send(frames.Attach(b.add_frame("none", PROMPT, 5, seq=2), 20))  # without any reservation
        both.until(lambda: "none" in b.ended)
        assert b.outputs["none"] == reference_tokens(PROMPT, 7, 5, VOCAB)
