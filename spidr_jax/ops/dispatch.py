"""Whether a kernel of ours may stand in for what XLA makes: it must run here, and be right."""

from collections.abc import Callable, Hashable, Sequence
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from spidr_jax.ops import platform as backend

_RIGHT = 0.02  # of a result's norm; the rounding of 16 bits gives 0.003


def may_run(dtype: Any) -> bool:
    """Whether programs are for a GPU, in a type that its tensor cores take at full rate."""
    return backend.kind() == "gpu" and dtype in (jnp.bfloat16, jnp.float16)


@cache
def load(name: str, module: str, dtype: Any, *arguments: Hashable) -> ModuleType | None:
    """The module of a kernel, if it runs on this machine and computes what it should.

    Imported only here, as what kernels are written in will leave JAX one day. One line says why
    it is not taken, where there is a GPU.

    Args:
        name: of what the kernel does.
        module: in this package; its `largest_error` runs the kernel on noise and gives the
            largest relative error of its results.
        dtype: of the kernel's arguments.
        arguments: of `largest_error`, after the type.
    """
    if not may_run(dtype):
        return None
    try:
        kernel = import_module(f"spidr_jax.ops.kernels.{module}")
        if backend.is_described():
            return kernel  # nothing can run
        error = kernel.largest_error(dtype, *arguments)
    except Exception as problem:  # whatever a version, device or shape lacks
        report(f"{name} without a kernel of its own", problem)
        return None
    if not error < _RIGHT:
        report(f"{name} without a kernel of its own", f"its results are off by {error:.2g}")
        return None
    return kernel


def report(what: str, why: object) -> None:
    """Say in one line what is not as it could be."""
    text = str(why) or repr(why)
    print(f"{what}: {text.splitlines()[0]}", flush=True)


def difference(found: Sequence[jax.Array], expected: Sequence[jax.Array]) -> jax.Array:
    """The largest of the arrays' differences, each relative to its norm; a float32 scalar."""

    def norm(x: jax.Array) -> jax.Array:
        return jnp.linalg.norm(x.astype(jnp.float32).ravel())

    pairs = zip(found, expected, strict=True)
    return jnp.stack([norm(a - b) / norm(b) for a, b in pairs]).max()


def run_now(function: Callable[..., jax.Array], *arrays: Any) -> float:
    """A function's result, also while another is traced, which a call would become part of."""
    return float(jax.jit(function).lower(*arrays).compile()(*arrays))
