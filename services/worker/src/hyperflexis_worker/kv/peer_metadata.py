"""What one engine tells another so that they can link: EngineReady.kv_metadata, opaque to everybody else."""

from __future__ import annotations

import msgspec


class PeerMetadata(msgspec.Struct, frozen=True):
    name: str
    """Of one life of an engine."""
    layout: bytes
    """Storage.layout of its pool."""
    block_bytes: int
    transports: dict[str, bytes]
    """By name, what each transport's `connect` needs."""

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> PeerMetadata:
        """Raises ValueError for anything else."""
        try:
            return msgspec.msgpack.decode(data, type=cls)
        except msgspec.DecodeError as error:
            raise ValueError(f"not the metadata of an engine: {error}") from error

    def difference(self, other: PeerMetadata) -> str:
        """Why blocks of the other mean nothing here; empty where they do."""
        if self.block_bytes != other.block_bytes:
            return f"blocks there have {other.block_bytes} bytes, here {self.block_bytes}"
        if self.layout != other.layout:
            return "another KV layout there: model, weights, dtype, block size or engine version differ"
        return ""
