"""Batches of audio, decoded in grain's threads and put on the device ahead of the step.

b rows of this process, S samples of each.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from grain.experimental import ThreadPrefetchIterDataset

from spidr_jax.data import audio
from spidr_jax.data.corpus import Row
from spidr_jax.data.plan import Plan
from spidr_jax.data.sources import Rows, Source

_STAND_INS = 8  # tried in turn for one bad row
_MIN_ROWS = 1000  # so that one bad file in the first rows is not yet too large a share
_PROBES = 8
_ENDLESS = 2**62
_log = logging.getLogger(__name__)


class _Failure(NamedTuple):
    """What the map gives instead of a batch: grain must never see an exception in it."""

    error: Exception


class BadDataError(RuntimeError):
    """Too many utterances cannot be read."""


class BadRows:
    """Counts of the utterances that could not be read; each file is logged once.

    Attributes:
        rows_read: utterances asked for.
        bad_rows: those of them that a stand-in replaced.
    """

    def __init__(self, max_share: float) -> None:
        """Allow `max_share` of the rows read (of 1,000 while fewer are read)."""
        self.rows_read = 0
        self.bad_rows = 0
        self._max_share = max_share
        self._by_file: Counter[str] = Counter()
        self._lock = threading.Lock()

    def count(self, rows_read: int) -> None:
        """Add to the rows read."""
        with self._lock:
            self.rows_read += rows_read

    def add(self, row: Row, error: Exception) -> None:
        """Count a bad row, and log its file if it is the first time."""
        with self._lock:
            self.bad_rows += 1
            self._by_file[row.place] += 1
            first = self._by_file[row.place] == 1
        if first:
            _log.warning("bad row %s, replaced by a stand-in: %s", row.fileid, error)

    def worst_files(self, count: int = 5) -> list[tuple[str, int]]:
        """List the files that failed most often, and how often."""
        with self._lock:
            return self._by_file.most_common(count)

    def check(self) -> None:
        """Stop where there are too many.

        Raises:
            BadDataError: naming the worst files.
        """
        if self.bad_rows > self._max_share * max(self.rows_read, _MIN_ROWS):
            worst = ", ".join(f"{name} ({times} x)" for name, times in self.worst_files())
            raise BadDataError(
                f"{self.bad_rows} of {self.rows_read} rows could not be read, more than "
                f"data.max_bad_share {self._max_share:g}; worst files: {worst}; "
                "`python -m spidr_jax.data.manifest check` lists all of them"
            )


class Batches(Iterator[Any]):
    """An endless (or `stop`-ped) row of batches on the device; `batches` makes one.

    Attributes:
        bad: counts of unreadable utterances of this process.
        data_wait: seconds that the last `next` waited for its batch.
    """

    def __init__(self, dataset: grain.IterDataset, bad: BadRows, stopping: threading.Event) -> None:
        """Start reading ahead."""
        self.bad = bad
        self.data_wait = 0.0
        self._stopping = stopping
        self._iterator: Any = iter(dataset)
        self._iterator.start_prefetch()

    def __next__(self) -> Any:
        """Give the next batch, as `put` returned it.

        Raises:
            BadDataError: an utterance is bad and so are all that could stand in for it.
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


def batches(
    sources: Sequence[Source],
    plan: Plan,
    *,
    put: Callable[[dict[str, np.ndarray]], Any] = lambda batch: batch,
    start: int = 0,
    stop: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 2,
    device_prefetch: int = 2,
    max_bad_share: float = 0.01,
) -> Batches:
    """Read the batches `start`, `start` + 1, ... of a plan, this process's rows of each.

    Each is given as `put({"waveforms": int16 [b, S], "mean": float32 [b], "inv_std":
    float32 [b]})`; `(waveforms - mean) * inv_std` are the crops of standardised utterances.

    Args:
        sources: those that the plan was made for.
        plan: which utterances, what crops.
        put: brings a batch to the device; called in a thread of its own, in order.
        start: first step.
        stop: one past the last step; None for no end.
        process_index: this process; it reads an equal, contiguous part of every batch's rows.
        process_count: all of them.
        num_threads: that decode, each a whole batch.
        device_prefetch: batches kept ready on the device.
        max_bad_share: of the rows read; beyond it `bad.check` raises BadDataError.

    Raises:
        ValueError: B is not divisible by the processes.
    """
    for rung, size in plan.rows.items():
        if size % process_count:
            raise ValueError(
                f"{size} rows of {rung} samples cannot be shared by {process_count} processes: "
                "data.planned_devices must be a multiple of their number"
            )
    bad, stopping = BadRows(max_bad_share), threading.Event()
    rows = Rows(sources)

    def load(step: int) -> dict[str, np.ndarray] | _Failure:
        try:
            return _load_batch(plan, rows, bad, stopping, step, process_index, process_count)
        except Exception as error:
            return _Failure(error)

    def put_or_raise(batch: dict[str, np.ndarray] | _Failure) -> Any:
        if isinstance(batch, _Failure):
            raise batch.error
        return put(batch)

    reading = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    steps = grain.MapDataset.range(start, _ENDLESS if stop is None else stop)
    dataset = steps.map(load).to_iter_dataset(reading).map(put_or_raise)
    ahead = ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=device_prefetch)
    return Batches(ahead, bad, stopping)


def probe(source: Source) -> None:
    """Open a few files of a source, so that a wrong corpus fails before training.

    Raises:
        ValueError: none of them can be trained on; it quotes the first.
        ImportError: with what to install to read the source's URLs.
    """
    count = min(_PROBES, len(source.corpus))
    first: audio.AudioError | None = None
    for index in range(count):
        row = source.corpus.row(index * len(source.corpus) // count)
        try:
            with audio.open_sound(row) as sound:
                audio.check_format(row.place, sound.samplerate, sound.channels)
            return
        except audio.AudioError as error:
            first = first or error
    raise ValueError(f"{source.corpus.manifest}: none of {count} files tried is usable; {first}")


def _load_batch(
    plan: Plan,
    rows: Rows,
    bad: BadRows,
    stopping: threading.Event,
    step: int,
    process_index: int,
    process_count: int,
) -> dict[str, np.ndarray]:
    batch = plan.batch(step)
    share = len(batch.rows) // process_count
    mine = slice(process_index * share, (process_index + 1) * share)
    waveforms = np.empty((share, batch.num_samples), np.int16)
    mean, inv_std = np.empty(share, np.float32), np.empty(share, np.float32)
    pairs = zip(batch.rows[mine].tolist(), batch.offsets[mine].tolist(), strict=True)
    for place, (utterance, offset) in enumerate(pairs):
        if stopping.is_set():
            raise RuntimeError("the pipeline was closed")
        pcm, offset = _read(plan, rows, bad, step, utterance, offset, batch.num_samples)
        waveforms[place] = pcm[offset : offset + batch.num_samples]
        mean[place], inv_std[place] = audio.standardisation(pcm)
    bad.count(share)
    return {"waveforms": waveforms, "mean": mean, "inv_std": inv_std}


def _read(
    plan: Plan, rows: Rows, bad: BadRows, step: int, utterance: int, offset: int, num_samples: int
) -> tuple[np.ndarray, int]:
    """Decode an utterance, or where it is bad the stand-in that the plan names for it."""
    row = rows[utterance]
    try:
        return audio.read_pcm(row), offset
    except audio.AudioError as error:
        bad.add(row, error)
        last = error
    for attempt in range(_STAND_INS):
        other = plan.stand_in(step, utterance, num_samples, attempt)
        try:
            pcm = audio.read_pcm(rows[other])
        except audio.AudioError as error:
            last = error
            continue
        return pcm, int(plan.crop(step, np.array([other]), num_samples)[0])
    raise BadDataError(f"{row.place}: bad, and so are {_STAND_INS} stand-ins; the last: {last}")
