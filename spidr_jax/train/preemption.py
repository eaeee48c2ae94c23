"""One run at a time in a folder, and how it is asked to stop: all processes after the same step."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn
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
        """Take over a locked file, as a number: a collector might end a file object first."""
        with file:
            self._number = os.dup(file.fileno())

    def __del__(self) -> None:
        os.close(self._number)


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
        self._save: Callable[[], None] | None = None
        self._lock = threading.Lock()
        self._over = threading.Event()

    @contextlib.contextmanager
    def because_of(self, *kinds: type[Exception]) -> Iterator[None]:
        """Take errors of these kinds as requests: this process goes on until all stop."""
        try:
            yield
        except kinds as error:
            self.error = self.error or error

    @contextlib.contextmanager
    def slow(self, save: Callable[[], None]) -> Iterator[None]:
        """Do what may take longer than a stop may wait: a signal in it saves and ends the process.

        Where Python stands still, as in a compilation, no handler of signals runs.
        """
        self._save = save
        try:
            yield
        finally:
            with self._lock:  # where a save has begun, it ends the process
                self._save = None

    def leave(self, number: int, save: Callable[[], None]) -> NoReturn:
        """Save and end this process at once, whatever its other threads do."""
        try:
            save()
        except BaseException as error:
            distributed.tell(f"warning: {error}")
            os._exit(1)
        os._exit(130 if number == signal.SIGINT else 0)

    def watch(self, reader: int) -> None:
        """Wait for a signal's number in a pipe, then for something slow; runs in a thread."""
        number = next(filter({signal.SIGINT, signal.SIGTERM}.__contains__, _read(reader)), 0)
        while number and not self._over.wait(0.2):
            with self._lock:
                if self._save:
                    self.leave(number, self._save)

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


def _read(reader: int) -> Iterator[int]:
    while number := os.read(reader, 1):
        yield number[0]
    os.close(reader)


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
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer)
    if not several:  # of several, none can save alone
        threading.Thread(target=stop.watch, args=(reader,), daemon=True).start()
    try:
        yield stop
    finally:
        stop._over.set()
        signal.set_wakeup_fd(before)
        os.close(writer)
        for number in numbers:
            signal.signal(number, previous[number])
