"""How a run is asked to stop, so that all its processes stop after the same step."""

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from spidr_jax.train import distributed as processes

_interrupted: list[bool] = []


def raise_interrupt(*_: Any) -> None:
    """SIGINT's handler before training; where the exception is lost, training knows of it.

    In a callback of the garbage collector, as JAX has one, Python only prints exceptions.
    """
    _interrupted.append(True)
    raise KeyboardInterrupt


class Stop:
    """Asked of one process, followed by all.

    In a group (`processes.start`) JAX catches SIGTERM in any of its processes and agrees with all
    on a step that none has passed; SIGINT and `request` take the same way.

    Attributes:
        interrupted: whether SIGINT came to this process.
        error: with which this process shall end after the stop.
    """

    def __init__(self) -> None:
        """Nothing is asked yet."""
        self.interrupted = False
        self.error: Exception | None = None
        self._requested = False

    def request(self, error: Exception | None = None) -> None:
        """Ask all processes to stop, because of `error` if there is one; only the first counts."""
        if self._requested:
            return
        self._requested, self.error = True, error
        if jax.distributed.is_initialized():
            os.kill(os.getpid(), signal.SIGTERM)

    @contextlib.contextmanager
    def because_of(self, *kinds: type[Exception]) -> Iterator[None]:
        """Take errors of these kinds as requests: this process goes on until all stop."""
        try:
            yield
        except kinds as error:
            self.request(error)

    def reached(self, step: int) -> bool:
        """Whether all processes stop after this step; to be called after each."""
        if jax.distributed.is_initialized():
            reached = multihost_utils.reached_preemption_sync_point(step)
        else:
            reached = self._requested
        if reached:
            processes.say(f"asked to stop: saving after this step, {step}")
        return reached


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Take SIGINT as a request to stop; a second one acts at once.

    Raises:
        KeyboardInterrupt: one came before, and was lost: see `raise_interrupt`.
    """
    if _interrupted:
        raise KeyboardInterrupt
    stop = Stop()

    def note(number: int, _: Any) -> None:
        signal.signal(number, previous)
        print("SIGINT: stopping as soon as all can; once more ends at once", flush=True)
        stop.interrupted = True
        stop.request()

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, previous)
