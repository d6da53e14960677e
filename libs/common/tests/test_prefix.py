from __future__ import annotations

from hyperflexis_common.prefix import prefix_hashes
from hyperflexis_common.tokens import pack


def test_prefix_hashes_chain() -> None:
    one, other = prefix_hashes(pack(range(8)), 4), prefix_hashes(pack([9, *range(1, 8)]), 4)
    assert len(one) == 32 and one[16:] != other[16:]
    assert prefix_hashes(pack(range(7)), 4) == one[:16]
    assert prefix_hashes(pack(range(7)), 0) == b""


def test_prefix_hashes_are_the_same_in_every_process() -> None:
    assert prefix_hashes(pack([1, 2, 3, 4]), 4).hex() == HASH_OF_1234


HASH_OF_1234 = "5c3887ef44b86da26265cb5c108a056b"
