"""The kind of device that programs are made for: JAX's own, or one that is only described."""

import contextlib
from collections.abc import Iterator

import jax

_described: list[str] = []


def kind() -> str:
    """What a program that is traced now will run on: "cpu", "gpu" or "tpu"."""
    return _described[-1] if _described else jax.default_backend()


def is_described() -> bool:
    """Whether that is a device which is not there: programs for it are compiled, but cannot run."""
    return bool(_described)


@contextlib.contextmanager
def made_for(described: str) -> Iterator[None]:
    """Let `kind` give another kind than JAX's own, while programs for such a device are made.

    A process should make programs for one kind only: which kernels are taken, is decided once.
    """
    _described.append(described)
    try:
        yield
    finally:
        _described.pop()
