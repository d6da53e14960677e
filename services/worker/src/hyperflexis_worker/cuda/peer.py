"""The transport between GPUs of one host: the peer's pool is mapped here, and a kernel reads blocks out of it.

Why not NIXL here too: at 64 KiB pieces it moves 7 GB/s between two GPUs, a gather 365.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hyperflexis_worker.cuda.descriptor_socket import receive_descriptor
from hyperflexis_worker.cuda.driver import CudaError
from hyperflexis_worker.cuda.gather import Gather, Grid, Ids, Passage
from hyperflexis_worker.cuda.pool_export import PoolAddress, PoolExport, boot_id
from hyperflexis_worker.cuda.vmm import DeviceMemory
from hyperflexis_worker.kv.transport import LinkError, Progress, Storage


@dataclass(frozen=True, slots=True)
class _Link:
    memory: DeviceMemory
    """The peer's, mapped here."""
    base: int
    """Address of its block 0 here."""
    total: int
    gigabytes_per_s: float


class PeerTransport:
    """See kv.transport.Transport. Where two engines share a GPU it works as well."""

    name = "peer"

    def __init__(
        self,
        storage: Storage,
        memory: DeviceMemory,
        grid: Grid | None = None,
        directory: Path | None = None,
        timeout_s: float = 2.0,
    ) -> None:
        """`memory` holds the blocks of `storage` and is closed by its owner, after this. `directory`: for the socket,
        shared between containers; `timeout_s`: for a peer to answer. Raises CudaError, OSError, ValueError,
        ImportError."""
        self._storage = storage
        self._timeout_s = timeout_s
        self.gather = Gather(memory.device, storage.block_bytes, storage.total, grid)
        self._export = PoolExport(storage, memory, directory)
        self._links: dict[str, _Link] = {}
        self._handles = itertools.count(1)
        self._under_way: dict[int, tuple[str, Passage]] = {}

    def metadata(self) -> bytes:
        return self._export.address.encode()

    def connect(self, peer: str, metadata: bytes) -> None:
        """Maps the peer's pool and reads from it once; a link that is there is made anew."""
        self.disconnect(peer)
        address = PoolAddress.decode(metadata)
        self._check(address)
        descriptor = receive_descriptor(address.socket, bytes.fromhex(address.token), self._timeout_s)
        try:
            memory = DeviceMemory.adopt(descriptor, address.size, self._storage.device)
        except CudaError as error:
            raise LinkError(f"the pool of {peer} cannot be mapped: {error}") from error
        base = memory.address + address.offset
        try:
            rate = self.gather.measure(base, address.total)
        except RuntimeError as error:
            if self.gather.idle:  # else what began may still read from it
                memory.close()
            raise LinkError(f"the pool of {peer} cannot be read: {error}") from error
        self._links[peer] = _Link(memory, base, address.total, rate)

    def disconnect(self, peer: str) -> None:
        link = self._links.get(peer)
        if link is None:
            return
        # Unmapping under a running kernel would fail the whole device.
        if any(name == peer and not passage.over for name, passage in self._under_way.values()):
            raise LinkError(f"a transfer from {peer} is under way")
        del self._links[peer]
        link.memory.close()

    def post(self, peer: str, lease_id: int, remote: Rows[int], local: Rows[int]) -> int:
        """The local blocks are idle: kernels that used them have ended. `lease_id` is the caller's to check after."""
        link = self._links.get(peer)
        if link is None:
            raise LinkError(f"there is no link to {peer}")
        # Checked here, since an address outside the mapping would fail the whole device.
        theirs, ours = _ids(remote, link.total), _ids(local, self._storage.total)
        if len(theirs) != len(ours) or not 0 < len(ours) <= self._storage.total:
            raise LinkError(f"{len(theirs)} blocks cannot be read into {len(ours)}")
        passage = self.gather.start(link.base, self._storage.address, theirs, ours)
        handle = next(self._handles)
        self._under_way[handle] = peer, passage
        return handle

    def poll(self, handle: int) -> Progress:
        """Raises KeyError for a handle that is not under way."""
        _, passage = self._under_way[handle]
        try:
            if not passage.over:
                return Progress.PENDING
        except RuntimeError:  # the device has failed: nothing of it can arrive
            del self._under_way[handle]
            return Progress.FAILED
        del self._under_way[handle]
        self.gather.recycle(passage)
        return Progress.DONE

    def used(self, peer: str) -> str:
        return "cuda_vmm" if peer in self._links else ""

    def gigabytes_per_s(self, peer: str) -> float:
        """As the warm-up transfer measured it. Raises KeyError where there is no link."""
        return self._links[peer].gigabytes_per_s

    def close(self) -> None:
        """Waits for what is under way, then unmaps all peers."""
        self._export.close()
        self.gather.wait()
        self._under_way.clear()
        for link in self._links.values():
            link.memory.close()
        self._links.clear()

    def _check(self, address: PoolAddress) -> None:
        ours = self._export.address
        if not address.boot_id or address.boot_id != boot_id():
            raise LinkError("the peer is on another host")
        if (address.block_bytes, address.layout) != (ours.block_bytes, ours.layout):
            raise LinkError("the peer's blocks have another layout")


def _ids(blocks: Rows[int], total: int) -> Ids:
    """Raises LinkError for one outside the pool."""
    if not len(blocks):
        return np.empty(0, dtype=np.int32)
    found = np.asarray(blocks, dtype=np.int64)
    if found.min() < 0 or found.max() >= total:
        raise LinkError(f"block {int(found.max())} or {int(found.min())} is outside a pool of {total}")
    return found.astype(np.int32)
