"""The kind of device that programs are made for: JAX's own, or one that is only described."""

import contextlib
from collections.abc import Iterator
from typing import TypeVar

import jax

T = TypeVar("T")
_described: list[str] = []


def kind() -> str:
    """What a program that is traced now will run on: "cpu", "gpu" or "tpu"."""
    return _described[-1] if _described else jax.default_backend()


def choose(cpu: T, other: T) -> T:
    """One of two sizes of work: what a CPU's caches hold, or what keeps another device busy."""
    return cpu if kind() == "cpu" else other


def is_described() -> bool:
    """Whether that device is only described: programs for it are compiled, but cannot run."""
    return bool(_described)


@contextlib.contextmanager
def target_platform(described: str) -> Iterator[None]:
    """Let `kind` give the kind of a described device while programs for it are made.

    A process should make programs for one kind only, as kernels are selected once.
    """
    _described.append(described)
    try:
        yield
    finally:
        _described.pop()
