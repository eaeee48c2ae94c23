"""SpidR speech pretraining in JAX."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spidr_jax.inference.model import load as load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """Import what `load` needs only where it is asked for: manifests and flags need no JAX."""
    if name == "load":
        from spidr_jax.inference.model import load

        return load
    raise AttributeError(f"module 'spidr_jax' has no attribute {name!r}")
