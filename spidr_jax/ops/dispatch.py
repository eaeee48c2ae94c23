"""Which implementation of an operation a program takes; nothing else decides it.

Another kernel is a file in `kernels/` and an entry in `IMPLEMENTATIONS`. Where none of an
operation's is taken, XLA compiles the operation as it is written beside this module.
"""

from collections.abc import Hashable
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import jax.numpy as jnp

from spidr_jax.ops import platform
from spidr_jax.ops.kernels import cudnn_attention

_LARGEST_ERROR = 0.02  # of a result's norm; the rounding of 16 bits gives 0.003


class Kernel(NamedTuple):
    """An implementation for one kind of device.

    Attributes:
        module: has the functions that the operation calls, and `self_test`, which runs them on
            noise and gives the largest relative error of their results, from the type and whatever
            else `select_kernel` is asked for.
        platform: the kind of device, "cpu", "gpu" or "tpu".
        dtypes: types of arrays that it takes; by default those of 16 bits, which a GPU's tensor
            cores take at full rate.
        needs_device: whether it cannot be compiled for a device that is only described.
    """

    module: ModuleType
    platform: str = "gpu"
    dtypes: tuple[Any, ...] = (jnp.bfloat16, jnp.float16)
    needs_device: bool = False


# Of each operation the best first.
IMPLEMENTATIONS: dict[str, tuple[Kernel, ...]] = {
    "attention without dropout": (Kernel(cudnn_attention, needs_device=True),),
}
_not_imported = ""
try:
    from spidr_jax.ops.kernels import attention, first_layer, grouped_conv, norms

    IMPLEMENTATIONS |= {
        "attention": (Kernel(attention),),
        "first layer": (Kernel(first_layer),),
        "grouped convolution": (Kernel(grouped_conv),),
        "norms": (Kernel(norms),),
    }
except ImportError as error:  # Pallas' backend for Triton is deprecated, and will be removed
    _not_imported = str(error)


@cache
def select_kernel(operation: str, dtype: Any, *shape: Hashable) -> Any:
    """The module of the first kernel that runs here and computes what it should.

    Args:
        operation: a name in `IMPLEMENTATIONS`.
        dtype: type of the operation's arrays.
        shape: what else its kernels' `self_test` takes.

    Returns:
        None if XLA is to compile the operation. Where a kernel could run and is not taken, a line
        says why, once.
    """
    kind = platform.kind()
    if kind == "gpu" and _not_imported:
        say_once("no kernels of our own", _not_imported)
    for kernel in IMPLEMENTATIONS.get(operation, ()):
        if kernel.platform != kind or dtype not in kernel.dtypes:
            continue
        if platform.is_described() and not kernel.needs_device:
            return kernel.module  # nothing can run
        try:
            error = kernel.module.self_test(dtype, *shape)
        except Exception as problem:  # whatever a version, device or shape lacks
            say_once(f"no kernel for {operation}", str(problem) or repr(problem))
            continue
        if error < _LARGEST_ERROR:
            return kernel.module
        say_once(f"no kernel for {operation}", f"its results are off by {error:.2g}")
    return None


@cache
def say_once(what: str, why: str) -> None:
    """Say in one line what is not as it could be, and why."""
    print(f"{what}: {why.splitlines()[0]}", flush=True)
