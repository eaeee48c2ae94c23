"""A fingerprint is the same everywhere, and changes with any bit."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spidr_jax.ops.fingerprint import fingerprint, fingerprint_host


def expected(x: np.ndarray) -> int:
    """The definition in Python's integers."""
    total = 0
    for place, word in enumerate(x.ravel().view(f"uint{8 * x.itemsize}").tolist()):
        h = place
        h = ((h ^ (h >> 16)) * 0x21F0AAAD) % 2**32
        h = ((h ^ (h >> 15)) * 0x735A2D97) % 2**32
        total += word * ((h ^ (h >> 15)) | 1)
    return total % 2**32


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint32, jnp.bfloat16, np.int8])
@pytest.mark.parametrize("shape", [(), (7,), (3, 5, 4), (0, 2)])
def test_it_is_as_defined_in_jax_and_numpy(shape: tuple[int, ...], dtype: type) -> None:
    x = (1000 * np.random.default_rng(0).standard_normal(shape)).astype(dtype)
    assert fingerprint_host(np.asarray(x)) == expected(np.asarray(x))
    assert int(fingerprint(jnp.asarray(x))) == expected(np.asarray(x))


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 59), st.integers(0, 31))
def test_any_bit_changes_it(place: int, bit: int) -> None:
    words = np.random.default_rng(1).integers(0, 2**32, (3, 5, 4), np.uint32)
    other = words.copy()
    other.ravel()[place] ^= np.uint32(1 << bit)
    assert fingerprint_host(other) != fingerprint_host(words)
