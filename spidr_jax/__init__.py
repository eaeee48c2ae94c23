"""SpidR speech pretraining in JAX."""

import os
import signal
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spidr_jax.inference.model import load as load

__all__ = ["load"]


def _tell_interrupt() -> None:
    """Let SIGINT end a command in one line, at once while it imports."""

    def note(*_: Any) -> None:
        if not hasattr(sys.modules["__main__"], "main"):  # an import may lose the exception
            os.write(2, b"interrupted\n")
            os._exit(130)
        raise KeyboardInterrupt

    def tell(kind: type[BaseException], *error: Any) -> None:
        interrupted = issubclass(kind, KeyboardInterrupt)
        print("interrupted", file=sys.stderr) if interrupted else sys.__excepthook__(kind, *error)

    signal.signal(signal.SIGINT, note)
    sys.excepthook = tell


if sys.argv[:1] == ["-m"]:  # python -m spidr_jax.COMMAND begins
    _tell_interrupt()


def __getattr__(name: str) -> Any:
    """Import what `load` needs only where it is asked for: manifests and flags need no JAX."""
    if name == "load":
        from spidr_jax.inference.model import load

        return load
    raise AttributeError(f"module 'spidr_jax' has no attribute {name!r}")
