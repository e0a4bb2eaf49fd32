"""Randomness that depends on nothing but a seed and a position."""

from __future__ import annotations

_WORD = 2**64 - 1
_ROUNDS = 10
_MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
_KEY_STEPS = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B


def choice_key(seed: int, choice: int) -> int:
    """The 128-bit key of one of the `n` outputs of a request; output 0 has the seed itself."""
    return seed | choice << 64


def uniform(key: int, position: int) -> float:
    """A number in [0, 1) that is a function of key and position.

    The first 53 bits that Philox4x64-10 (Salmon et al., SC 2011) gives for the key and the counter
    `position + 1`: the first number of `numpy.random.Philox(key=key, counter=position)`.
    """
    x0, x1, x2, x3 = position + 1, 0, 0, 0
    k0, k1 = key & _WORD, key >> 64
    for _ in range(_ROUNDS):
        left, right = _MULTIPLIERS[0] * x0, _MULTIPLIERS[1] * x2
        x0, x1, x2, x3 = right >> 64 ^ x1 ^ k0, right & _WORD, left >> 64 ^ x3 ^ k1, left & _WORD
        k0, k1 = k0 + _KEY_STEPS[0] & _WORD, k1 + _KEY_STEPS[1] & _WORD
    return (x0 >> 11) * 2.0**-53
