"""Random numbers that are functions of their arguments: no state to save, none to disturb.

Everything random about the data hangs on these three functions, so a resumed run, another number of workers
or a second process cannot change it. They use their own arithmetic rather than a library's generator, whose
numbers may change from one release to the next.
"""

import hashlib
from collections.abc import Sequence
from operator import index

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def derive(seed: int, *parts: int | str) -> int:
    """A new seed for one purpose: the first 63 bits of BLAKE2b over ``seed`` and ``parts``.

    The same in every process, on every machine and in every version. ``derive(0, 1)`` and ``derive(0, "1")``
    differ, and so do ``derive(0, "ab")`` and ``derive(0, "a", "b")``.
    """
    words = [f"s{part}" if isinstance(part, str) else f"i{index(part)}" for part in (seed, *parts)]
    text = "".join(f"{len(word)}:{word}" for word in words)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def _scramble(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of SplitMix64 (Steele, Lea and Flood 2014, doi 10.1145/2660193.2660195)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _words(keys: Sequence[int], *counters: NDArray[np.int64], draws: int) -> NDArray[np.uint64]:
    # Arrays throughout: numpy wraps around silently for arrays, but warns about overflow for scalars.
    # The keys are scrambled first: 1 ^ counter and 2 ^ counter would run through the same numbers.
    state = _scramble(np.array(keys, dtype=np.uint64)[:, None] + _GOLDEN)
    for counter in counters:
        state = _scramble((state ^ counter.astype(np.uint64)) + _GOLDEN)
    steps = np.arange(1, draws + 1, dtype=np.uint64) * _GOLDEN
    return _scramble(state[..., None] + steps)


def uniforms(key: int, *counters: NDArray[np.int64], draws: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), a function of the key and of each element's own counters only.

    Args:
        key: a non-negative 63-bit number, from :func:`derive`.
        counters: integer arrays [B], such as epochs and sample indices.
        draws: how many numbers each element gets.

    Returns:
        float64 [B, draws], multiples of 2^-53.
    """
    return (_words([key], *counters, draws=draws)[0] >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(key: int, count: int) -> NDArray[np.int64]:
    """The numbers from 0 to ``count`` - 1 in an order that depends on ``key`` only, int64 [count]."""
    return permutations([key], count)[0]


def permutations(keys: Sequence[int], count: int) -> NDArray[np.int64]:
    """The :func:`permutation` of each key, int64 [keys, count]: many small ones cost little more than one."""
    words = _words(keys, np.arange(count, dtype=np.int64), draws=1)[..., 0]
    return np.argsort(words, axis=-1, kind="stable").astype(np.int64, copy=False)
