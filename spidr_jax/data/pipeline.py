"""Batches loaded in grain's threads and put on the device ahead of the step.

B rows of a global batch, b of them of this process.
"""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grain
import numpy as np
from grain.experimental import ThreadPrefetchIterDataset

_ENDLESS = 2**62
Shapes = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]  # of a global batch


class _Failure(NamedTuple):
    """What the map gives instead of a batch: grain must never see an exception in it."""

    error: Exception


class BadDataError(RuntimeError):
    """Too many utterances cannot be read."""


class Batches(Iterator[Any]):
    """An endless (or `stop`-ped) row of batches on the device; `batches` makes one.

    Attributes:
        data_wait: seconds that the last `next` waited for its batch.
    """

    def __init__(self, dataset: grain.IterDataset, stopping: threading.Event) -> None:
        """Start reading ahead."""
        self.data_wait = 0.0
        self._stopping = stopping
        self._iterator: Any = iter(dataset)
        self._iterator.start_prefetch()

    def __next__(self) -> Any:
        """Give the next batch, as `put` returned it.

        Raises:
            BadDataError: an utterance is bad and so are all that could replace it.
            StopIteration: after batch `stop` - 1.
        """
        start = time.perf_counter()
        batch = next(self._iterator)
        self.data_wait = time.perf_counter() - start
        return batch

    def close(self) -> None:
        """Stop the threads."""
        self._stopping.set()
        self._iterator.close()
        self._iterator = iter(())  # grain's own, left to the interpreter's end, complains

    def __enter__(self) -> "Batches":
        """Give the iterator itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the threads."""
        self.close()


class Data:
    """Batches as a function of their number, so that a run resumes anywhere, on any processes.

    Attributes:
        fingerprint: text that changes with anything that changes the batches.
        num_batches: batches of a set; None for endless ones.
        num_threads: threads that load batches.
    """

    fingerprint: str = ""
    num_batches: int | None = None
    num_threads: int = 2

    def load(self, number: int, process_index: int, process_count: int) -> dict[str, np.ndarray]:
        """Load this process's rows [b, ...] of batch `number`; called from several threads.

        Raises:
            BadDataError: it cannot be loaded.
        """
        raise NotImplementedError

    def shapes(self, start: int, stop: int) -> list[Shapes]:
        """Kinds of global batches from `start` to before `stop`, in the order of their need."""
        return [{name: (x.shape, x.dtype) for name, x in self.load(start, 0, 1).items()}]

    def name_batch(self, number: int) -> str:
        """What a message about batch `number` calls it."""
        return f"batch {number}"

    def bad_rows(self) -> int:
        """Rows of this process that could not be read and were replaced."""
        return 0

    def check(self) -> None:
        """Stop where too much could not be read.

        Raises:
            BadDataError: naming the worst files.
        """


def batches(
    data: Data,
    *,
    put: Callable[[dict[str, np.ndarray]], Any] = lambda batch: batch,
    start: int = 0,
    stop: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    device_prefetch: int = 2,
) -> Batches:
    """Read the batches `start`, `start` + 1, ..., this process's rows of each, ahead of their use.

    Args:
        data: batches to read.
        put: brings a batch to the device; called in a thread of its own, in order.
        start: first batch.
        stop: one past the last; None for no end.
        process_index: number of this process.
        process_count: processes in all.
        device_prefetch: batches kept ready on the device.
    """
    stopping = threading.Event()

    def load(number: int) -> dict[str, np.ndarray] | _Failure:
        try:
            if stopping.is_set():
                raise RuntimeError("the pipeline was closed")
            return data.load(number, process_index, process_count)
        except Exception as error:
            return _Failure(error)

    def put_or_raise(batch: dict[str, np.ndarray] | _Failure) -> Any:
        if isinstance(batch, _Failure):
            raise batch.error
        return put(batch)

    threads = data.num_threads
    reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    steps = grain.MapDataset.range(start, _ENDLESS if stop is None else stop)
    dataset = steps.map(load).to_iter_dataset(reading).map(put_or_raise)
    ahead = ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=device_prefetch)
    return Batches(ahead, stopping)
