"""Order and chance as hashes: the same on any machine, NumPy and thread count."""

import zlib

import numpy as np

_BLOCK = 1 << 20
_GOLDEN = 0x9E3779B97F4A7C15


def salt(*parts: int | str) -> int:
    """Fold numbers and words into one 64-bit seed."""
    state = 0
    for part in parts:
        value = zlib.crc32(part.encode()) if isinstance(part, str) else part
        state = int(_mix(np.array([state ^ (value & (2**64 - 1))], np.uint64))[0])
    return state


def _mix(values: np.ndarray) -> np.ndarray:
    """Hash uint64 in place (the finaliser of splitmix64, Steele et al. 2014)."""
    values += np.uint64(_GOLDEN)
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def uniform(seed: int, items: np.ndarray, below: np.ndarray | int) -> np.ndarray:
    """Draw for each item [n] an integer in 0 .. below - 1, a function of seed and item alone."""
    hashed = _mix(_mix(items.astype(np.uint64)) ^ np.uint64(seed))
    return (hashed % np.asarray(below).astype(np.uint64)).astype(np.int64)


def permutation(seed: int, size: int) -> np.ndarray:
    """Shuffle 0 .. size - 1, as the smallest unsigned integers that hold them."""
    index_bits = np.uint64(max(size - 1, 1).bit_length())
    index_mask = (np.uint64(1) << index_bits) - np.uint64(1)
    keys = np.empty(size, np.uint64)
    for start in range(0, size, _BLOCK):  # in blocks that stay in the cache
        index = np.arange(start, min(start + _BLOCK, size), dtype=np.uint64)
        hashed = _mix(_mix(index.copy()) ^ np.uint64(seed))
        keys[start : start + _BLOCK] = (hashed & ~index_mask) | index
    # Key and index in one word: a plain sort, twice as fast as an argsort, and never a tie.
    keys.sort()
    keys &= index_mask
    return keys.astype(np.min_scalar_type(max(size - 1, 0)))
