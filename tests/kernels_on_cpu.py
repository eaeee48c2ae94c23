"""Kernels for GPUs as JAX interprets them on a CPU, and how far results are from the truth."""

from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from spidr_jax.ops.dispatch import IMPLEMENTATIONS, Kernel


def interpreted(
    operation: str, platform: str = "cpu", dtypes: Sequence[Any] = ("float32", "bfloat16")
) -> Kernel:
    """An operation's kernel, which JAX interprets."""
    module: Any = IMPLEMENTATIONS[operation][0].module
    names = [name for name in ("attention", "forward", "gradients") if hasattr(module, name)]
    found = {name: partial(getattr(module, name), interpret=True) for name in (*names, "self_test")}
    fake: Any = SimpleNamespace(**found)
    return Kernel(fake, platform, tuple(map(np.dtype, dtypes)))


def errors(found: Sequence[jax.Array], truth: Sequence[jax.Array]) -> list[float]:
    """The error of each array, relative to its norm."""
    pairs = [[np.asarray(x, np.float64) for x in pair] for pair in zip(found, truth, strict=True)]
    return [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs]
