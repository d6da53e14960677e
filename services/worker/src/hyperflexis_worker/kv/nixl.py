"""Reads over NIXL with its UCX backend: RDMA, TCP, shared memory, CUDA IPC, whatever UCX finds between two processes.

The wheels are nixl-cu12 and nixl-cu13 (modules nixl_cu12, nixl_cu13); `nixl` only picks one of them. Either serves
host memory as well.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import structlog

from hyperflexis_worker.kv.tcp_bytes import most_received_since, received
from hyperflexis_worker.kv.transport import LinkError, Progress, Storage

log = structlog.get_logger(__name__)

MODULES = ("nixl_cu13", "nixl_cu12", "nixl")
PROGRESS_POLL_US = 10_000
"""NIXL's progress thread sleeps on UCX's events at most so long. NIXL's own 0 makes it spin: a core for each process,
and every transfer waits for a time slice where cores are few (4 to 16 ms instead of 0.2)."""
SETTLE_S = 1.0
"""After an error, before it counts as over: other pieces of the same transfer may still be on their way."""
SAME_HOST_FILE = Path("/proc/sys/kernel/random/boot_id")
RDMA_DEVICES = Path("/sys/class/infiniband")

_creating = threading.Lock()


class _Card(msgspec.Struct, frozen=True):
    """A NIXL transport's metadata."""

    agent: bytes
    address: int
    total: int
    block_bytes: int
    device: int
    host: str


@dataclass(slots=True)
class _Peer:
    card: _Card
    blocks: Any
    """Prepared descriptors of its pool."""
    tcp_before: dict[str, int]
    read_bytes: int = 0


@dataclass(slots=True)
class _Reading:
    peer: str
    size: int
    handle: Any
    failed_at: float = 0.0
    """0 = it has not."""


class NixlTransport:
    """A Transport. Raises LinkError at once where there is no NIXL here, or where it cannot take the pool."""

    name = "nixl"

    def __init__(self, engine_name: str, storage: Storage) -> None:
        self._api = _api()
        self._storage = storage
        self._memory = "DRAM" if storage.device < 0 else "VRAM"
        self._device = max(storage.device, 0)
        self._peers: dict[str, _Peer] = {}
        self._readings: dict[int, _Reading] = {}
        self._unreleased: list[Any] = []
        self._handles = 0
        self._host = _host()
        try:
            self._agent = _agent(self._api, engine_name)
            pool = [(storage.address, storage.total * storage.block_bytes, self._device, "")]
            self._pool = self._agent.register_memory(pool, self._memory)
            self._blocks = self._agent.prep_xfer_dlist("NIXL_INIT_AGENT", _rows(storage, self._device), self._memory)
            self._agent_metadata: bytes = self._agent.get_agent_metadata()
        except self._errors as error:
            raise LinkError(f"NIXL cannot take the pool: {_text(error)}") from error

    @property
    def _errors(self) -> tuple[type[Exception], ...]:
        # NIXL's own errors have no base of theirs.
        return (RuntimeError, ValueError, KeyError, OSError, *_nixl_errors(self._api))

    def metadata(self) -> bytes:
        storage = self._storage
        return msgspec.msgpack.encode(
            _Card(self._agent_metadata, storage.address, storage.total, storage.block_bytes, storage.device, self._host)
        )

    def connect(self, peer: str, metadata: bytes) -> None:
        if peer in self._peers:
            return
        try:
            card = msgspec.msgpack.decode(metadata, type=_Card)
            named = self._agent.add_remote_agent(card.agent)
            named = named.decode() if isinstance(named, bytes) else named
            if named != peer:
                self._agent.remove_remote_agent(named)
                raise LinkError(f"its agent is called {named}")
            self._agent.make_connection(peer)
            memory = "DRAM" if card.device < 0 else "VRAM"
            blocks = self._agent.prep_xfer_dlist(peer, _rows(card, max(card.device, 0)), memory)
        except msgspec.DecodeError as error:
            raise LinkError(f"not the metadata of a NIXL transport: {error}") from error
        except self._errors as error:
            with contextlib.suppress(*self._errors):
                self._agent.remove_remote_agent(peer)
            raise LinkError(_text(error)) from error
        self._peers[peer] = _Peer(card, blocks, received())

    def disconnect(self, peer: str) -> None:
        gone = self._peers.pop(peer, None)
        if gone is not None:
            with contextlib.suppress(*self._errors):
                self._agent.release_dlist_handle(gone.blocks)
            with contextlib.suppress(*self._errors):
                self._agent.remove_remote_agent(peer)

    def post(self, peer: str, lease_id: int, remote: Rows[int], local: Rows[int]) -> int:
        link = self._peers.get(peer)
        if link is None:
            raise LinkError(f"no link to {peer}")
        try:
            handle = self._agent.make_prepped_xfer("READ", self._blocks, list(local), link.blocks, list(remote))
        except self._errors as error:
            raise LinkError(_text(error)) from error
        reading = _Reading(peer, len(local) * self._storage.block_bytes, handle)
        try:
            if self._agent.transfer(handle) == "ERR":
                reading.failed_at = time.monotonic()
        except self._errors:
            # Some of its pieces may have been posted, so it is not as if nothing had begun.
            reading.failed_at = time.monotonic()
        self._handles += 1
        self._readings[self._handles] = reading
        return self._handles

    def poll(self, handle: int) -> Progress:
        reading = self._readings[handle]
        if not reading.failed_at:
            try:
                state = self._agent.check_xfer_state(reading.handle)
            except self._errors as error:
                log.warning("a NIXL transfer failed", peer=reading.peer, error=_text(error))
                state = "ERR"
            if state == "PROC":
                return Progress.PENDING
            if state == "DONE":
                del self._readings[handle]
                self._release(reading)
                if (link := self._peers.get(reading.peer)) is not None:
                    link.read_bytes += reading.size
                return Progress.DONE
            reading.failed_at = time.monotonic()
        if time.monotonic() - reading.failed_at < SETTLE_S:
            return Progress.PENDING
        del self._readings[handle]
        self._release(reading)
        return Progress.FAILED

    def used(self, peer: str) -> str:
        """Counted where it was TCP; else what UCX takes between two such pools."""
        link = self._peers.get(peer)
        if link is None or not link.read_bytes:
            return ""
        if most_received_since(link.tcp_before) >= link.read_bytes // 2:
            return "tcp"
        if link.card.host == self._host:
            return "cuda_ipc" if self._storage.device >= 0 and link.card.device >= 0 else "shm"
        return "rdma" if RDMA_DEVICES.is_dir() and any(RDMA_DEVICES.iterdir()) else ""

    def close(self) -> None:
        """Nothing may be under way."""
        for peer in list(self._peers):
            self.disconnect(peer)
        with contextlib.suppress(*self._errors):
            self._agent.release_dlist_handle(self._blocks)
            self._agent.deregister_memory(self._pool)

    def _release(self, reading: _Reading) -> None:
        """Only what is over: a released read that is still in flight writes into whoever has the block next."""
        try:
            self._agent.release_xfer_handle(reading.handle)
        except self._errors as error:
            log.warning("NIXL keeps a transfer that is over", peer=reading.peer, error=_text(error))
            self._unreleased.append(reading.handle)


def _api() -> Any:
    """The module of the wheel that is here. Raises LinkError."""
    tried = []
    for name in MODULES:
        try:
            with _quiet():
                return importlib.import_module(f"{name}._api")
        except ImportError as error:
            tried.append(f"{name}: {error}")
    raise LinkError("no NIXL here, install nixl-cu13 or nixl-cu12 (" + "; ".join(tried) + ")")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """NIXL logs every agent to stdout, where the worker's own lines are, and its module sets up logging as it loads."""
    os.environ.setdefault("NIXL_LOG_LEVEL", "WARN")
    raises = logging.raiseExceptions
    try:
        yield
    finally:
        logging.raiseExceptions = raises
        logging.getLogger("nixl").setLevel(logging.WARNING)


def _agent(api: Any, name: str) -> Any:
    """An agent whose progress thread sleeps when nothing moves; NIXL's Python cannot be asked for that."""
    bindings = api.nixlBind
    make = bindings.nixlAgent

    def patient(agent_name: str, config: Any) -> Any:
        config.pthrDelay = PROGRESS_POLL_US
        return make(agent_name, config)

    config = api.nixl_agent_config(sync_mode=api.nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT)
    with _creating:
        bindings.nixlAgent = patient
        try:
            return api.nixl_agent(name, config)
        finally:
            bindings.nixlAgent = make


def _nixl_errors(api: Any) -> tuple[type[Exception], ...]:
    return tuple(one for one in vars(api.nixlBind).values() if isinstance(one, type) and issubclass(one, Exception))


def _rows(pool: Storage | _Card, device: int) -> Any:
    """[total, 3]: address, bytes and device of each block."""
    rows = np.full((pool.total, 3), device, dtype=np.uint64)
    rows[:, 0] = pool.address + np.arange(pool.total, dtype=np.uint64) * np.uint64(pool.block_bytes)
    rows[:, 1] = pool.block_bytes
    return rows


def _host() -> str:
    try:
        return SAME_HOST_FILE.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
