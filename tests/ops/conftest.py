"""Which kernels there are, for tests."""

from collections.abc import Callable, Iterator

import pytest

from spidr_jax.ops import dispatch
from spidr_jax.ops.dispatch import Kernel


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, Kernel]], None]]:
    """A function that lets operations have these kernels alone."""

    def forget() -> None:
        dispatch.select_kernel.cache_clear()
        dispatch.say_once.cache_clear()

    def use(found: dict[str, Kernel]) -> None:
        only = {name: (kernel,) for name, kernel in found.items()}
        monkeypatch.setattr(dispatch, "IMPLEMENTATIONS", only)
        forget()

    forget()
    yield use
    forget()
