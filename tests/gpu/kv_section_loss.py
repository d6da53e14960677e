"""Section d: exporters that are killed or stopped in mid-gather. The importer must live, and all memory come back."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kv_actor import Actor
from kv_exporter import word_of
from kv_machine import memory_used_mib
from kv_section import Section
from kv_side import SLICE_WORDS, Side, milliseconds

from hyperflexis_worker.kv.transport import LinkError, Progress

KEPT_MIB = 64
"""More than that in use than before is memory that did not return."""
AHEAD = 6
"""Exporters that start while others die."""


class LossSide(Side):
    """The importer."""

    def meet(self, metadata: bytes, seed: int, pid: int, kill: int, wait_ms: float) -> dict[str, Any]:
        """Links to an exporter, starts gathers, sends the exporter a signal while they run, and sees them end."""
        assert self.transport is not None
        total = self.blocks.total
        self.wipe()
        began = time.perf_counter()
        self.transport.connect("exporter", metadata)
        link_ms = milliseconds(began)
        chance = np.random.default_rng(seed)
        remote, local = chance.permutation(total), chance.permutation(total)
        handles = [
            self.transport.post("exporter", 0, remote, local)  # type: ignore[arg-type]
            for _ in range(24)
        ]
        until = time.perf_counter() + wait_ms / 1e3
        while time.perf_counter() < until:
            pass
        os.kill(pid, kill)
        running = sum(not self.transport._under_way[handle][1].over for handle in handles)
        # What begins after its owner's death must end well too: the memory is still mapped here.
        handles.append(self.transport.post("exporter", 0, remote, local))  # type: ignore[arg-type]
        give_up = time.monotonic() + 10
        failed = 0
        for handle in handles:
            while (progress := self.transport.poll(handle)) is Progress.PENDING:
                if time.monotonic() > give_up:
                    raise TimeoutError("a gather is not over 10 s after its exporter was lost")
            failed += progress is Progress.FAILED
        wrong = self._wrong(remote, local, seed)
        refused_ms = 0.0
        if kill == signal.SIGSTOP and seed % 20 == 2:
            refused_ms = self._refused(metadata)
        self.transport.disconnect("exporter")
        return {
            "link_ms": link_ms,
            "running_at_the_signal": running,
            "failed": failed,
            "wrong_blocks": wrong,
            "refused_ms": refused_ms,
        }

    def free_mib(self) -> int:
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(self.device)[0] >> 20)

    def _refused(self, metadata: bytes) -> float:
        """A second link to a stopped process must fail, and in its time."""
        assert self.transport is not None
        began = time.perf_counter()
        try:
            self.transport.connect("another life", metadata)
        except LinkError:
            return milliseconds(began)
        self.transport.disconnect("another life")
        raise AssertionError("a stopped process answered")

    def _wrong(self, remote: np.ndarray, local: np.ndarray, seed: int) -> int:
        words = self.blocks.block_bytes // 4
        expected = np.empty(self.blocks.total, dtype=np.int32)
        expected[local] = [word_of(seed, int(block)) for block in remote]
        right = torch.as_tensor(expected, device=self.words.device).unsqueeze(1)
        pool = self.words[: self.blocks.total * words].view(-1, words)
        each = max(1, SLICE_WORDS * 4 // words)
        bad = torch.zeros((), dtype=torch.int64, device=self.words.device)
        for first in range(0, self.blocks.total, each):
            bad += (pool[first : first + each] != right[first : first + each]).any(1).sum()
        return int(bad)


class Exporters:
    """Processes that start ahead of their use."""

    def __init__(self, gpu: int, nbytes: int, block_bytes: int) -> None:
        self._gpu, self._nbytes, self._block_bytes = gpu, nbytes, block_bytes
        self._waiting: deque[tuple[int, subprocess.Popen[bytes]]] = deque()
        self._dead: list[subprocess.Popen[bytes]] = []
        self._seed = 0

    def start(self) -> None:
        self._seed += 1
        command = [sys.executable, str(Path(__file__).with_name("kv_exporter.py"))]
        process = subprocess.Popen(
            [*command, str(self._nbytes), str(self._block_bytes), str(self._seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": str(self._gpu)},
        )
        self._waiting.append((self._seed, process))

    def take(self) -> tuple[int, subprocess.Popen[bytes], bytes]:
        """The oldest: its seed, itself, its metadata. Raises RuntimeError where it did not start."""
        seed, process = self._waiting.popleft()
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"exporter {seed} ended with {process.wait()} before it said anything")
        return seed, process, bytes.fromhex(line.decode())

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """Kills it, and waits later: its GPU takes a while with the dead."""
        process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._dead.append(process)

    def close(self) -> None:
        for _, process in self._waiting:
            self.end(process)
        self._waiting.clear()
        for process in self._dead:
            process.wait(20)


def loss(section: Section) -> None:
    """Section d."""
    block = section.pick(1 << 20, 65_536)
    nbytes, rounds = section.pick((1 << 30, 100), (1 << 18, 4))
    gpus = sorted({section.exporter_gpu, section.importer_gpu})
    before = {gpu: memory_used_mib(gpu) for gpu in gpus}
    exporters = Exporters(section.exporter_gpu, nbytes, block)
    with section.actor("importer", LossSide, section.importer_gpu) as importer:
        for _ in range(min(AHEAD, rounds)):
            exporters.start()
        importer.ready()
        importer.call("make", nbytes=nbytes)
        importer.call("open", block_bytes=block)
        try:
            _rounds(section, importer, exporters, rounds)
        finally:
            exporters.close()
    after = before
    for _ in range(section.pick(10, 1)):  # the driver takes its time with the dead
        time.sleep(0.3)
        after = {gpu: memory_used_mib(gpu) for gpu in gpus}
        if all((after[gpu] or 0) - (before[gpu] or 0) < KEPT_MIB for gpu in gpus):
            break
    section.found["memory_used_mib"] = {"before": before, "after": after}
    told = None not in (*before.values(), *after.values())
    section.found["memory_returned"] = told and all((after[gpu] or 0) - (before[gpu] or 0) < KEPT_MIB for gpu in gpus)
    section.say(f"memory in use, MiB: before {before}, after {after}")


def _rounds(section: Section, importer: Actor, exporters: Exporters, rounds: int) -> None:
    chance = random.Random(4)
    met: list[dict[str, Any]] = []
    kinds = {"killed": 0, "stopped": 0}
    free = []
    for number in range(rounds):
        if section.left_s < 12:
            section.errors.append(f"out of time after {number} of {rounds}")
            break
        exporters.start()
        kind, kill = (("killed", signal.SIGKILL), ("stopped", signal.SIGSTOP))[number % 2]
        seed, process, metadata = exporters.take()
        try:
            arguments = {"metadata": metadata, "seed": seed, "pid": process.pid, "kill": int(kill)}
            met.append(importer.call("meet", timeout_s=20, wait_ms=chance.uniform(0, 40), **arguments))
        finally:
            exporters.end(process)
        kinds[kind] += 1
        if number % 10 == 9:
            free.append(importer.call("free_mib"))
            section.say(f"{number + 1} exporters lost; last: {met[-1]}; free on the importer {free[-1]} MiB")
    seed, process, metadata = exporters.take()
    try:
        last = importer.call("meet", metadata=metadata, seed=seed, pid=process.pid, kill=0, wait_ms=0.0)
    finally:
        exporters.end(process)
    section.found |= {
        "exporters": kinds,
        "with_gathers_running_at_the_signal": sum(one["running_at_the_signal"] > 0 for one in met),
        "gathers_failed": sum(one["failed"] for one in met),
        "wrong_blocks": sum(one["wrong_blocks"] for one in met),
        "link_ms_median": sorted(one["link_ms"] for one in met)[len(met) // 2] if met else None,
        "links_to_stopped_refused_ms": [one["refused_ms"] for one in met if one["refused_ms"]],
        "importer_free_mib": free,
        "a_new_exporter_afterwards": last,
    }
    section.say(f"{kinds}, {section.found}")
