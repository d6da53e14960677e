"""A pool as others on this host see it: how they find its memory, and what they must agree on to read it.

Needs the driver, no torch: memory can be exported by a process that computes nothing.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from hyperflexis_worker.cuda.descriptor_socket import TOKEN_BYTES, DescriptorServer
from hyperflexis_worker.cuda.driver import uuid
from hyperflexis_worker.cuda.vmm import DeviceMemory
from hyperflexis_worker.kv.transport import LinkError, Storage

VERSION = 1
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Of this host's running kernel; containers share it, no other host has it. Empty where there is none."""
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class PoolAddress:
    """What a peer must know to map a pool."""

    boot_id: str
    socket: str
    token: str
    """Hexadecimal."""
    device: str
    """UUID of the GPU, hexadecimal."""
    size: int
    """Bytes of the memory, to the byte what its owner allocated."""
    offset: int
    """Of block 0 in it."""
    block_bytes: int
    total: int
    """Blocks."""
    layout: str
    """Storage.layout, hexadecimal."""

    def encode(self) -> bytes:
        return json.dumps({"version": VERSION, **asdict(self)}).encode()

    @classmethod
    def decode(cls, data: bytes) -> PoolAddress:
        """Raises LinkError for anything that `encode` of this version would not have made."""
        try:
            fields = json.loads(data)
            if not isinstance(fields, dict) or fields.pop("version", None) != VERSION:
                raise ValueError(f"not version {VERSION}")
            found = cls(**fields)
            for name, kind in cls.__annotations__.items():
                if type(getattr(found, name)).__name__ != kind:
                    raise ValueError(f"{name} is no {kind}")
            if len(bytes.fromhex(found.token)) != TOKEN_BYTES:
                raise ValueError("the token has another length")
            if min(found.offset, found.block_bytes - 1, found.total - 1) < 0:
                raise ValueError("sizes below zero")
            if found.offset + found.block_bytes * found.total > found.size:
                raise ValueError("more blocks than memory")
        except (ValueError, TypeError, RecursionError) as error:
            raise LinkError(f"metadata of a mapped pool cannot be read: {error}") from error
        return found


class PoolExport:
    """Hands the pool's memory to those who were told its address."""

    def __init__(self, storage: Storage, memory: DeviceMemory, directory: Path | None = None) -> None:
        """`storage` lies in `memory`, which outlives this. `directory`: see DescriptorServer. Raises OSError,
        CudaError; ValueError where the storage is not in the memory."""
        token = secrets.token_bytes(TOKEN_BYTES)
        offset = storage.address - memory.address
        if offset < 0 or offset + storage.total * storage.block_bytes > memory.size:
            raise ValueError("the blocks do not lie in this memory")
        device = uuid(memory.device).hex()
        self._server = DescriptorServer(memory.export, token, directory)
        self.address = PoolAddress(
            boot_id=boot_id(),
            socket=self._server.address,
            token=token.hex(),
            device=device,
            size=memory.size,
            offset=offset,
            block_bytes=storage.block_bytes,
            total=storage.total,
            layout=storage.layout.hex(),
        )

    def close(self) -> None:
        """No one else gets the memory; those who have it keep it."""
        self._server.close()
