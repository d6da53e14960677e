"""Whole engines of one process behind their sockets, and what their shells would do between them."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import msgspec
from memory_wire import MemoryTransport, MemoryWire

from hyperflexis_common.clock import SystemClock
from hyperflexis_common.config import ModelSettings
from hyperflexis_common.tokens import pack, unpack
from hyperflexis_worker.config import WorkerSettings
from hyperflexis_worker.engine import frames
from hyperflexis_worker.engine.__main__ import SETTINGS_VARIABLE
from hyperflexis_worker.engine.command_socket import CommandSocket
from hyperflexis_worker.engine.factory import BuiltEngine, build_engine
from hyperflexis_worker.engine.loop import EngineLoop
from hyperflexis_worker.kv.mover_thread import MoverThread
from hyperflexis_worker.steps.sequence import Sampling

Frame = TypeVar("Frame", bound=frames.FromEngine)
VOCAB = 1_000
SECOND_US = 1_000_000


def modelled_settings(worker_id: str, **changes: Any) -> WorkerSettings:
    values: dict[str, Any] = {
        "worker_id": worker_id,
        "models": [ModelSettings(name="m", vocab_size=VOCAB, context_length=4_096)],
        "engine": "modelled",
        "engine_mode": "thread",
        "num_blocks": 256,
        "block_tokens": 4,
        "profile": "test/tiny/tp1",
        "time_scale": 0.0,
        "policy": "fcfs",
        "kv_transports": ["grpc"],
    }
    return WorkerSettings(**{**values, **changes})


def on_wire(settings: WorkerSettings, wire: MemoryWire, engine_name: str = "") -> BuiltEngine:
    """An engine whose only transport is the wire."""
    built = build_engine(settings)
    name = engine_name or built.ready.kv_name
    mover = MoverThread(
        name, built.storage, lambda _: [MemoryTransport(name, built.storage, wire)], SystemClock(), settings.kv_reads
    )
    ready = msgspec.structs.replace(built.ready, kv_name=name, kv_metadata=mover.metadata.encode())
    return replace(built, mover=mover, ready=ready)


class EngineEnd:
    """The shell's end of an engine, and everything that it has said."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.ready = frames.EngineReady(b"", 0, 0, [], 0, 0)
        self.said: list[frames.FromEngine] = []
        self.outputs: dict[str, list[int]] = {}
        self.logprobs: dict[str, list[Any]] = {}
        self.ended: dict[str, frames.EndedSequence] = {}
        self.load = frames.EngineLoad()
        self.error = ""
        self._buffer = bytearray()
        self._adds = 0

    @property
    def name(self) -> str:
        return self.ready.kv_name

    def send(self, *messages: frames.ToEngine) -> None:
        for message in messages:
            self.sock.sendall(frames.encode(message))

    def add_frame(
        self,
        name: str,
        prompt: list[int],
        max_tokens: int,
        committed: list[int] | None = None,
        seq: int = 1,
        **rules: Any,
    ) -> frames.Add:
        self._adds += 1
        sampling = rules.pop("sampling", None) or Sampling(seed=rules.pop("seed", 7))
        return frames.Add(
            number=self._adds,
            request_id=name,
            leader_epoch=1,
            seq=seq,
            prompt=pack(prompt),
            committed=pack(committed or []),
            max_tokens=max_tokens,
            sampling=sampling,
            arrival_us=self._adds,
            ttft_us=10**15,
            tpot_us=10**6,
            weight=1.0,
            tier="",
        )

    def add(self, name: str, prompt: list[int], max_tokens: int, **more: Any) -> None:
        self.send(self.add_frame(name, prompt, max_tokens, **more))

    def receive(self) -> list[frames.FromEngine]:
        """What can be read now."""
        data = self.sock.recv(1 << 20)
        if not data:
            raise EOFError(self.error or "the engine has left")
        self._buffer += data
        came, header = [], frames.HEADER.size
        while len(self._buffer) >= header:
            (length,) = frames.HEADER.unpack_from(self._buffer)
            if len(self._buffer) < header + length:
                break
            came.append(frames.decode_from_engine(bytes(self._buffer[header : header + length])))
            del self._buffer[: header + length]
        for message in came:
            self._note(message)
        return came

    def _note(self, message: frames.FromEngine) -> None:
        self.said.append(message)
        if isinstance(message, frames.Stepped):
            self.load = message.load
            for new in message.tokens:
                made = self.outputs.setdefault(new.request_id, [])
                made[new.start_index :] = unpack(new.packed)
                self.logprobs.setdefault(new.request_id, []).extend(new.logprobs)
            for end in message.ended:
                self.ended[end.request_id] = end


class EngineRig(EngineEnd):
    """One engine in a thread."""

    def __init__(self, built: BuiltEngine) -> None:
        ours, self._theirs = socket.socketpair()
        super().__init__(ours)
        self.built = built
        self.ready = built.ready
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Raises what the engine raised, a block that leaked included."""
        if self._thread.is_alive():
            self.send(frames.Stop())
        self._thread.join(10)
        self.sock.close()
        assert not self._thread.is_alive()
        assert not self.error, self.error

    def _run(self) -> None:
        try:
            EngineLoop(self.built, CommandSocket(self._theirs), SystemClock()).run()
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"
        finally:
            self._theirs.close()


class EngineProcess(EngineEnd):
    """One engine in a process of its own, with this environment beside ours."""

    def __init__(self, settings: WorkerSettings, environment: Mapping[str, str] = {}) -> None:
        ours, theirs = socket.socketpair()
        super().__init__(ours)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hyperflexis_worker.engine", str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            env={**os.environ, **environment, SETTINGS_VARIABLE: settings.model_dump_json()},
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        while not self.ready.kv_name:
            for message in self.receive():
                assert isinstance(message, frames.EngineReady), message
                self.ready = message

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self.send(frames.Stop())
        self.sock.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
