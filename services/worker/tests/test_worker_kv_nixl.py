"""Engines in processes of their own that read each other's pools over NIXL: shared memory, and TCP."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np
import pytest
from cache_cell import Cell, slow
from engine_rig import SECOND_US, VOCAB, EngineProcess

from hyperflexis_common.tokens import unpack
from hyperflexis_worker.engine import frames
from hyperflexis_worker.engine import kv_frames as kv
from hyperflexis_worker.kv import nixl
from hyperflexis_worker.kv.storage import HostStorage
from hyperflexis_worker.kv.transport import LinkError
from hyperflexis_worker.modelled import reference_tokens

PROMPT = list(range(100, 130))
needs_nixl = pytest.mark.skipif(
    not any(importlib.util.find_spec(name) for name in nixl.MODULES), reason="no NIXL wheel here"
)
TCP = {"UCX_TLS": "tcp"}
PATIENT = 20 * SECOND_US
"""A machine with few cores and much to do may need it."""


@contextmanager
def processes(environment: dict[str, str], *names: str, **changes: Any) -> Iterator[Cell]:
    environment = {**environment, "UCX_LOG_LEVEL": "fatal", "NIXL_LOG_LEVEL": "FATAL"}
    engines = [EngineProcess(slow(name, kv_transports=["nixl", "grpc"], **changes), environment) for name in names]
    try:
        yield Cell(*engines)
    finally:
        for engine in engines:
            engine.stop()


@needs_nixl
@pytest.mark.parametrize(("environment", "wire"), [({}, "shm"), (TCP, "tcp")])
def test_a_sequence_moves_between_processes_and_goes_on(environment: dict[str, str], wire: str) -> None:
    with processes(environment, "a", "b") as both:
        a, b = both.engines
        linked = both.link(b, a)
        assert (linked.transport, linked.wire, linked.error) == ("nixl", wire, "")
        assert linked.gigabytes_per_s > 0 and linked.setup_us < PATIENT
        a.add("r", PROMPT, 200)
        both.until(lambda: len(a.outputs.get("r", [])) >= 3)
        both.move("r", a, b, PROMPT, 200)
        both.until(lambda: "r" in b.ended)
        assert b.outputs["r"] == reference_tokens(PROMPT, 7, 200, VOCAB)


@needs_nixl
def test_a_source_that_is_killed_costs_an_error_and_its_next_life_is_linked_anew() -> None:
    with processes(TCP, "a", "b") as both:
        a, b = both.engines
        assert both.link(b, a).transport == "nixl"
        a.add("r", PROMPT, 900)
        both.until(lambda: len(a.outputs.get("r", [])) >= 3)
        exported = both.export(a, "r")
        assert both.reserve(b, "r", exported.computed).ok
        a.kill()  # type: ignore[attr-defined]
        both.engines.remove(a)
        assert both.pulled(b, both.pull(b, a, "r", exported, within_us=PATIENT)).error
        lost = both.answer(b, kv.Linked)
        assert not lost.transport and "nixl" in lost.error
        both.until(lambda: not b.load.quarantined_blocks)
        b.send(kv.Unreserve("r", 1, 2))
        b.add("r", PROMPT, 50, committed=a.outputs["r"][:3], seq=3)
        both.until(lambda: "r" in b.ended)
        again = EngineProcess(slow("a", kv_transports=["nixl"]), TCP)
        both.engines.append(again)
        try:
            assert both.link(b, again).transport == "nixl"
        finally:
            again.stop()


@needs_nixl
def test_a_source_that_stands_still_costs_its_reader_a_wait_and_no_block() -> None:
    """Over TCP its progress thread has to answer. What comes late comes into quarantine."""
    with processes(TCP, "a", "b", num_blocks=4_096, block_tokens=64) as both:
        a, b = both.engines
        assert both.link(b, a).transport == "nixl"
        prompt = list(range(900)) * 4
        a.add("r", prompt, 400)
        both.until(lambda: a.outputs.get("r"))
        exported = both.export(a, "r")
        assert both.reserve(b, "r", len(prompt) + 400).ok
        pid = a.process.pid  # type: ignore[attr-defined]
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)  # until all of its threads stand
        late = both.pulled(b, both.pull(b, a, "r", exported, within_us=50_000))
        assert "not read within" in late.error
        assert both.until(lambda: b.load.quarantined_blocks) == len(exported.blocks)
        os.kill(pid, signal.SIGCONT)
        both.until(lambda: not b.load.quarantined_blocks)
        last = both.export(a, "r", lease_id=exported.lease_id, final=True)
        assert not both.pulled(b, both.pull(b, a, "r", last, within_us=PATIENT)).error
        b.outputs["r"] = unpack(last.output)
        b.send(frames.Attach(b.add_frame("r", prompt, 400, unpack(last.output), seq=2), last.computed))
        both.until(lambda: "r" in b.ended)
        assert b.outputs["r"] == reference_tokens(prompt, 7, 400, VOCAB)


@needs_nixl
def test_where_nixl_does_not_reach_bytes_go_through_the_shells() -> None:
    with processes({}, "a", "b") as both:
        a, b = both.engines
        card = msgspec.msgpack.decode(a.ready.kv_metadata)
        card["transports"]["nixl"] = b"garbage"
        b.send(kv.LinkPeer(a.name, msgspec.msgpack.encode(card)))
        linked = both.answer(b, kv.Linked)
        assert (linked.transport, linked.error) == ("grpc", "")
        a.add("r", PROMPT, 100)
        both.until(lambda: len(a.outputs.get("r", [])) >= 3)
        both.move("r", a, b, PROMPT, 100)
        both.until(lambda: "r" in b.ended)
        assert b.outputs["r"] == reference_tokens(PROMPT, 7, 100, VOCAB)


def test_without_a_wheel_it_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nixl, "MODULES", ("no_such_nixl",))
    storage = HostStorage(np.zeros((4, 64), np.uint8), b"x")
    with pytest.raises(LinkError, match="install nixl-cu13 or nixl-cu12"):
        nixl.NixlTransport("e", storage)
