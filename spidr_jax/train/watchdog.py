"""Ends a process whose work stands still, with the stacks of all its threads (status 1)."""

import contextlib
import faulthandler
from collections.abc import Iterator

SLOW_SECONDS = 1800  # for what may take longer than a step, as compilation

_seconds: list[float] = []  # between two signs of life; empty where nothing watches


@contextlib.contextmanager
def watch(seconds: float) -> Iterator[None]:
    """End this process where `beat` is not called for `seconds`; 0: never."""
    if not seconds:
        yield
        return
    _seconds.append(seconds)
    beat(SLOW_SECONDS)
    try:
        yield
    finally:
        _seconds.clear()
        faulthandler.cancel_dump_traceback_later()


def beat(seconds: float = 0) -> None:
    """Show a sign of life, and how long what begins may take, if that is longer than usual."""
    if _seconds:
        faulthandler.dump_traceback_later(max(seconds, *_seconds), exit=True)
