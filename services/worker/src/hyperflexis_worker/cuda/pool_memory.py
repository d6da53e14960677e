"""Memory for a KV pool on a GPU that peers may map."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperflexis_worker.cuda.vmm import DeviceMemory


class PoolMemory:
    """An embedded.kv_pool.Allocate for one pool. `shared` is what a PeerTransport takes."""

    def __init__(self, rdma: bool = False) -> None:
        """`rdma`: see DeviceMemory.create."""
        self._rdma = rdma
        self.shared: DeviceMemory | None = None
        """None before the allocation."""

    def __call__(self, nbytes: int, device: torch.device) -> Tensor:
        """Raises CudaError; ValueError where it was called before."""
        if self.shared is not None:
            raise ValueError("this memory is another pool's already")
        torch.cuda.init()
        index = torch.cuda.current_device() if device.index is None else device.index
        self.shared = DeviceMemory.create(nbytes, index, rdma=self._rdma)
        return self.shared.tensor()

    def close(self) -> None:
        """Once nothing uses the pool."""
        if self.shared is not None:
            self.shared.close()
