"""`python kv_exporter.py BYTES BLOCK_BYTES SEED`: exports memory until its standard input closes, or it is killed.

Prints the metadata once. No torch: it starts in a second, and a hundred of them die in section d. Word w of block b
is word_of(seed, b), the same for all w.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "services/worker/src"))


def word_of(seed: int, block: int) -> int:
    """31 bits that differ between blocks and, mostly, between seeds."""
    return (block * 2_654_435_761 + seed * 40_503) & 0x7FFFFFFF


def main() -> None:
    from dataclasses import dataclass

    from hyperflexis_worker.cuda.driver import call, primary_context
    from hyperflexis_worker.cuda.pool_export import PoolExport
    from hyperflexis_worker.cuda.vmm import DeviceMemory

    @dataclass
    class Blocks:
        total: int
        block_bytes: int
        address: int
        device: int = 0
        layout: bytes = b"kv-check"

    nbytes, block_bytes, seed = map(int, sys.argv[1:4])
    memory = DeviceMemory.create(nbytes, 0)
    blocks = Blocks(nbytes // block_bytes, block_bytes, memory.address)
    with primary_context(0):
        for block in range(blocks.total):
            call("cuMemsetD32", memory.address + block * block_bytes, word_of(seed, block), block_bytes // 4)
        call("cuCtxSynchronize")
    export = PoolExport(blocks, memory)  # type: ignore[arg-type]
    print(export.address.encode().hex(), flush=True)
    sys.stdin.read()
    export.close()
    memory.close()
    os._exit(0)


if __name__ == "__main__":
    main()
