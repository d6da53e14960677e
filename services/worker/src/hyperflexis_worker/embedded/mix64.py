"""The splitmix64 finaliser on torch tensors: a bijection of 64-bit words in which every bit depends on every bit.

Integer arithmetic only, so the result is the same on every device. Weights' checksums and the samplers' random
streams are made of it.
"""

from __future__ import annotations

from torch import Tensor

MASK = (1 << 64) - 1


def signed(word: int) -> int:
    """An unsigned 64-bit word (a larger one modulo 2**64) as torch's int64."""
    word &= MASK
    return word - (1 << 64) if word >> 63 else word


GOLDEN = signed(0x9E3779B97F4A7C15)
_FIRST = signed(0xBF58476D1CE4E5B9)
_SECOND = signed(0x94D049BB133111EB)


def shift_right(words: Tensor, bits: int) -> Tensor:
    """Logical shift; torch's own drags the sign along."""
    return (words >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def mix64(words: Tensor) -> Tensor:
    """int64 in, int64 of the same shape out; the argument is overwritten."""
    words ^= shift_right(words, 30)
    words *= _FIRST
    words ^= shift_right(words, 27)
    words *= _SECOND
    words ^= shift_right(words, 31)
    return words
