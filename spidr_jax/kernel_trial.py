"""Whether a kernel of ours runs on this machine, and rightly."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_RIGHT = 0.02  # of a kernel's results: 16 bits' rounding gives 0.003


def passes(what: str, dtype: Any, largest_error: Callable[[], float]) -> bool:
    """Try a kernel; where it fails on a GPU, say so in a line.

    Args:
        what: computes with it.
        dtype: of what it computes with; the kernels are for 16 bits.
        largest_error: runs it and gives the largest relative error of its results.
    """
    if jax.default_backend() != "gpu" or dtype not in (jnp.bfloat16, jnp.float16):
        return False
    try:
        wrong = largest_error()
        if not wrong < _RIGHT:
            raise ArithmeticError(f"its results are off by {wrong:.2g}")
    except Exception as error:  # whatever it lacks: version, shape, device
        text = str(error) or repr(error)
        print(f"{what} without a kernel of its own: {text.splitlines()[0]}", flush=True)
        return False
    return True
