"""Section c: what gathers cost the work beside them, on the GPU that gathers and on the one that is read from.

The work is one decode step of a Llama 3.1 8B shape in a CUDA graph (32 sequences at 2,048 tokens: weights and caches
are streamed once, about 24 GB), and beside it a step of large matrix products, as prefill does them.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from kv_actor import Actor
from kv_section import Section
from kv_side import Side

from hyperflexis_worker.cuda.gather import Grid
from hyperflexis_worker.kv.transport import Progress

IN_FLIGHT = 3
HIDDEN, INNER, HEADS, KV_HEADS, DIM = 4_096, 14_336, 32, 8, 128


class DecodeSide(Side):
    """Steps of a model, with or without gathers beside them."""

    def prepare(self, layers: int, batch: int, context: int, matrix: int) -> dict[str, Any]:
        """Weights, caches and the captured graphs, each for a stream of plain and of high priority."""
        began = time.perf_counter()

        def random(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=torch.bfloat16, device=self.words.device).normal_(0, 0.02)

        self.layers = [
            {
                "qkv": random((HEADS + 2 * KV_HEADS) * DIM, HIDDEN),
                "o": random(HIDDEN, HEADS * DIM),
                "gate_up": random(2 * INNER, HIDDEN),
                "down": random(HIDDEN, INNER),
                "keys": random(batch * KV_HEADS, DIM, context),
                "values": random(batch * KV_HEADS, context, DIM),
            }
            for _ in range(layers)
        ]
        self.hidden = random(batch, HIDDEN)
        self.left, self.right = random(matrix, matrix), random(matrix, matrix)
        self.streams = {"plain": torch.cuda.Stream(priority=0), "high": torch.cuda.Stream(priority=-1)}
        torch.cuda.synchronize(self.device)
        work = {"decode": self._decode, "prefill": self._multiply}
        self.graphs = {
            (name, priority): self._captured(step, stream)
            for name, step in work.items()
            for priority, stream in self.streams.items()
        }
        nbytes = sum(tensor.nbytes for layer in self.layers for tensor in layer.values())
        return {"seconds": round(time.perf_counter() - began, 2), "decode_reads_gb": round(nbytes / 1e9, 2)}

    def _captured(self, step: Any, stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
        with torch.cuda.stream(stream), torch.inference_mode():
            for _ in range(2):
                step()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream), torch.inference_mode():
            step()
        torch.cuda.synchronize(self.device)
        return graph

    def _decode(self) -> torch.Tensor:
        hidden = self.hidden
        for layer in self.layers:
            normed = F.rms_norm(hidden, (HIDDEN,))
            qkv = F.linear(normed, layer["qkv"])
            queries = qkv[:, : HEADS * DIM].reshape(-1, HEADS // KV_HEADS, DIM)
            weights = torch.bmm(queries, layer["keys"]).softmax(-1)
            mixed = torch.bmm(weights, layer["values"]).reshape(-1, HEADS * DIM)
            hidden = hidden + F.linear(mixed, layer["o"])
            gate, up = F.linear(F.rms_norm(hidden, (HIDDEN,)), layer["gate_up"]).chunk(2, dim=-1)
            hidden = hidden + F.linear(F.silu(gate) * up, layer["down"])
        return hidden

    def _multiply(self) -> torch.Tensor:
        product = self.left
        for _ in range(5):
            product = product @ self.right
        return product

    def steps(self, work: str, priority: str, count: int, peer: str = "", programs: int = 0) -> dict[str, Any]:
        """Times of `count` steps; with a peer, gathers from it run back to back meanwhile."""
        graph, stream = self.graphs[work, priority], self.streams[priority]
        gathers = Gathers(self, peer, programs) if peer else None
        marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(count + 3)]
        for number, (began, ended) in enumerate(marks):
            if number == 3 and gathers is not None:
                gathers.restart()
            with torch.cuda.stream(stream):
                began.record()
                graph.replay()
                ended.record()
            # The host stays two steps ahead of the device, and keeps gathers under way meanwhile.
            over = False
            while not over:
                over = marks[max(0, number - 2)][1].query()
                if gathers is not None:
                    gathers.keep()
        rate = gathers.end() if gathers is not None else 0.0
        stream.synchronize()
        times = sorted(began.elapsed_time(ended) for began, ended in marks[3:])
        return {
            "step_ms": round(statistics.median(times), 3),
            "step_ms_p95": round(times[int(0.95 * len(times))], 3),
            "gather_gb_s": round(rate, 1),
        }

    def gather_for(self, peer: str, programs: int, seconds: float) -> float:
        """Back to back for that long; GB/s."""
        gathers = Gathers(self, peer, programs)
        gathers.restart()
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up:
            gathers.keep()
        return gathers.end()


class Gathers:
    """Transfers that follow each other without a gap."""

    def __init__(self, side: DecodeSide, peer: str, programs: int) -> None:
        assert side.transport is not None
        self._transport, self._peer = side.transport, peer
        self._transport.gather.grid = replace(self._transport.gather.grid, programs=programs)
        total = side.blocks.total
        chance = np.random.default_rng(1)
        self._remote, self._local = chance.permutation(total)[: total // 2], chance.permutation(total)[: total // 2]
        self._bytes = len(self._remote) * side.blocks.block_bytes
        self._under_way: deque[int] = deque()
        self.restart()

    def restart(self) -> None:
        self._moved, self._began = 0, time.perf_counter()
        self.keep()

    def keep(self) -> None:
        while self._under_way and self._transport.poll(self._under_way[0]) is Progress.DONE:
            self._under_way.popleft()
            self._moved += self._bytes
        while len(self._under_way) < IN_FLIGHT:
            self._under_way.append(
                self._transport.post(self._peer, 0, self._remote, self._local)  # type: ignore[arg-type]
            )

    def end(self) -> float:
        """GB/s since the restart, of those that are over."""
        rate = self._moved / (time.perf_counter() - self._began) / 1e9
        self._transport.gather.wait()
        for handle in self._under_way:
            self._transport.poll(handle)
        return rate


def decode(section: Section) -> None:
    """Section c."""
    pool, block = section.pick((4 << 30, 2 << 20), (1 << 20, 65_536))
    shape = section.pick(
        {"layers": 32, "batch": 32, "context": 2_048, "matrix": 8_192},
        {"layers": 1, "batch": 1, "context": 16, "matrix": 64},
    )
    with (
        section.actor("exporter", DecodeSide, section.exporter_gpu) as exporter,
        section.actor("importer", DecodeSide, section.importer_gpu) as importer,
    ):
        for actor in (exporter, importer):
            actor.ready()
            actor.call("make", nbytes=pool)
        exporter.call("fill")
        card = exporter.call("open", block_bytes=block)
        importer.call("open", block_bytes=block)
        section.tried("link", importer.call, "link", peer="exporter", metadata=card["metadata"])
        exporter.send("prepare", **shape)
        section.tried("prepared", importer.call, "prepare", **shape)
        exporter.receive()
        for work in ("decode", "prefill"):
            section.tried(f"importer_{work}", _importer, section, importer, work)
            section.tried(f"exporter_{work}", _exporter, section, exporter, importer, work)
    slowed = {
        f"{side}_{programs}_{priority}": one["slowed"]
        for side in ("importer_decode", "exporter_decode")
        for priority, grids in section.found.get(side, {}).items()
        if isinstance(grids, dict)
        for programs, one in grids.items()
        if isinstance(one, dict)
    }
    section.found["decode_slowed"] = slowed
    section.found["within_10_percent"] = bool(slowed) and all(
        share <= 0.10 for name, share in slowed.items() if f"_{Grid().programs}_" in name
    )


def _importer(section: Section, importer: Actor, work: str) -> dict[str, Any]:
    count = section.pick(60, 3)
    found: dict[str, Any] = {}
    for priority in ("plain", "high"):
        alone = importer.call("steps", work=work, priority=priority, count=count)
        found[priority] = {"alone": alone["step_ms"], "alone_p95": alone["step_ms_p95"]}
        for programs in (16, 18, 20):
            beside = importer.call(
                "steps", work=work, priority=priority, count=count, peer="exporter", programs=programs
            )
            found[priority][str(programs)] = beside | {"slowed": _slowed(beside, alone)}
    return found


def _exporter(section: Section, exporter: Actor, importer: Actor, work: str) -> dict[str, Any]:
    count, seconds = section.pick((60, 1.2), (3, 0.3))
    alone = exporter.call("steps", work=work, priority="plain", count=count)
    found: dict[str, Any] = {"alone": alone["step_ms"], "alone_p95": alone["step_ms_p95"]}
    for programs in (16, 18, 20):
        importer.send("gather_for", peer="exporter", programs=programs, seconds=seconds)
        time.sleep(0.1)
        beside = exporter.call("steps", work=work, priority="plain", count=count)
        rate = importer.receive()
        found[str(programs)] = beside | {"gather_gb_s": round(rate, 1), "slowed": _slowed(beside, alone)}
    return {"plain": found}


def _slowed(beside: dict[str, Any], alone: dict[str, Any]) -> float:
    return round(float(beside["step_ms"]) / max(float(alone["step_ms"]), 1e-6) - 1, 4)
