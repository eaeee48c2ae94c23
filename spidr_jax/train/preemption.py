"""One run at a time in a folder, and how it is asked to stop: all processes after the same step."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from weakref import WeakValueDictionary

import jax
from jax.experimental import multihost_utils

from spidr_jax.data import files
from spidr_jax.train import distributed

_interrupted: list[bool] = []
_locks: "WeakValueDictionary[Path, FolderLock]" = WeakValueDictionary()


class FolderLock:
    """Holds a run's folder for as long as it, or its process, is there."""

    def __init__(self, file: BinaryIO) -> None:
        """Hold a locked file."""
        self._file = file

    def __del__(self) -> None:
        self._file.close()


def lock_folder(folder: Path) -> FolderLock | None:
    """Lock a run's folder against other processes, in the first of the run's own.

    Raises:
        ValueError: another process holds it; the message says which.
    """
    path = folder.absolute()
    if not distributed.is_first() or path in _locks:
        return _locks.get(path)
    try:
        lock = _locks[path] = FolderLock(files.lock(path / ".lock"))
    except BlockingIOError as error:
        raise ValueError(
            f"config.workdir = {str(folder)!r}: {error}; let it end, or choose another folder"
        ) from None
    return lock


def raise_interrupt(*_: Any) -> None:
    """SIGINT's handler before training; where the exception is lost, training knows of it.

    In a callback of the garbage collector, as JAX has one, Python only prints exceptions.
    """
    _interrupted.append(True)
    raise KeyboardInterrupt


class Stop:
    """A request to stop: of a signal, or of an error after which this process can go on.

    Attributes:
        signal: signal that came to this process, 0 for none.
        error: error with which this process shall end after the stop.
    """

    def __init__(self) -> None:
        """Nothing is asked yet."""
        self.signal = 0
        self.error: Exception | None = None

    @contextlib.contextmanager
    def because_of(self, *kinds: type[Exception]) -> Iterator[None]:
        """Take errors of these kinds as requests: this process goes on until all stop."""
        try:
            yield
        except kinds as error:
            self.error = self.error or error

    def reached(self, step: int, agree: bool) -> bool:
        """Whether all processes stop after this step; to be called after each.

        Of several processes JAX catches SIGTERM and agrees on a step that none has passed.

        Args:
            step: just finished.
            agree: ask the other processes for their errors too, which waits for them.
        """
        if jax.distributed.is_initialized():
            reached = multihost_utils.reached_preemption_sync_point(step)
            if agree and not reached:
                reached = any(distributed.all_gather_int(self.error is not None))
        else:
            reached = bool(self.signal or self.error)
        if reached:
            distributed.print0(f"asked to stop: saving after this step, {step}")
        return reached


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Take SIGINT and SIGTERM as requests to stop; a second one acts at once.

    Raises:
        KeyboardInterrupt: one came before, and was lost: see `raise_interrupt`.
    """
    if _interrupted:
        raise KeyboardInterrupt
    stop, several = Stop(), jax.distributed.is_initialized()

    def note(number: int, _: Any) -> None:
        signal.signal(number, previous[signal.Signals(number)])
        stop.signal = number
        with contextlib.suppress(OSError):  # print is not made for handlers of signals
            os.write(2, b"asked to stop: as soon as all can; once more ends at once\n")
        if several:  # what JAX takes for all
            signal.raise_signal(signal.SIGTERM)

    numbers: list[int] = [signal.SIGINT] if several else [signal.SIGINT, signal.SIGTERM]
    previous = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        for number in numbers:
            signal.signal(number, previous[number])
