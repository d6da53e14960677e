"""Names for token prefixes: a chain of hashes, one for each full block, the same in every process.

hash[i] = BLAKE2b-128(hash[i-1] + packed block i), so equal hashes mean equal prefixes. Routers compute them for the
prompt, workers for what lies in their KV pool, the scheduler compares.
"""

from __future__ import annotations

import hashlib

from hyperflexis_common.tokens import TOKEN_BYTES

HASH_BYTES = 16


def extend_hash(previous: bytes, block: bytes) -> bytes:
    """The next hash of a chain; `block` is one block's packed tokens, `previous` is empty for the first."""
    return hashlib.blake2b(previous + block, digest_size=HASH_BYTES).digest()


def prefix_hashes(packed: bytes, block_tokens: int) -> bytes:
    """Chained hashes of the full blocks, HASH_BYTES each; empty where blocks have no size."""
    if block_tokens <= 0:
        return b""
    size = block_tokens * TOKEN_BYTES
    hashes = []
    previous = b""
    for start in range(0, len(packed) - size + 1, size):
        previous = extend_hash(previous, packed[start : start + size])
        hashes.append(previous)
    return b"".join(hashes)
