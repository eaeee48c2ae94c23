"""Batches of a plan decoded from audio files; what cannot be read is replaced and counted."""

import logging
import threading
from collections import Counter
from collections.abc import Sequence

import numpy as np

from spidr_jax.data import audio, storage
from spidr_jax.data.corpus import Row
from spidr_jax.data.pipeline import BadDataError, Data, Shapes
from spidr_jax.data.plan import Plan
from spidr_jax.data.sources import Rows, Source

_REPLACEMENTS = 8  # tried in turn for one bad row
_MIN_ROWS = 1000  # so that one bad file in the first rows is not yet too large a share
_PROBES = 8
_LOOKAHEAD = 2_000  # steps of a plan that are searched for the shapes needed next
_log = logging.getLogger(__name__)


class BadRows:
    """Counts of the utterances that could not be read; each file is logged once.

    Attributes:
        rows_read: utterances asked for.
        bad_rows: those of them that another utterance replaced.
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
            name = storage.printable(row.fileid)
            _log.warning("bad row %s, replaced by another utterance: %s", name, error)

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


class PlannedAudio(Data):
    """The batches of a plan: int16 `waveforms` [B, S], `mean` and `inv_std` float32 [B].

    `(waveforms - mean) * inv_std` are the crops of standardised utterances.

    Attributes:
        plan: utterances and crops of each batch.
        bad: counts of unreadable utterances of this process.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        plan: Plan,
        *,
        num_batches: int | None = None,
        num_threads: int = 2,
        max_bad_share: float = 0.01,
    ) -> None:
        """Read nothing yet.

        Args:
            sources: sources that the plan was made for.
            plan: plan of their batches.
            num_batches: batches of a set; None for endless epochs.
            num_threads: threads that decode, each a whole batch.
            max_bad_share: share of the rows read, beyond which `check` raises.
        """
        self.plan, self.fingerprint = plan, plan.fingerprint
        self.num_batches, self.num_threads = num_batches, num_threads
        self.bad = BadRows(max_bad_share)
        self._rows = Rows(sources)

    def load(self, number: int, process_index: int, process_count: int) -> dict[str, np.ndarray]:
        """See `Data.load`; each process reads an equal, contiguous part of the rows."""
        batch = self.plan.batch(number)
        share = len(batch.rows) // process_count
        mine = slice(process_index * share, (process_index + 1) * share)
        waveforms = np.empty((share, batch.num_samples), np.int16)
        mean, inv_std = np.empty(share, np.float32), np.empty(share, np.float32)
        pairs = zip(batch.rows[mine].tolist(), batch.offsets[mine].tolist(), strict=True)
        for place, (utterance, offset) in enumerate(pairs):
            pcm, offset = self._read(number, utterance, offset, batch.num_samples)
            waveforms[place] = pcm[offset : offset + batch.num_samples]
            mean[place], inv_std[place] = audio.standardisation(pcm)
        self.bad.count(share)
        return {"waveforms": waveforms, "mean": mean, "inv_std": inv_std}

    def _read(
        self, number: int, utterance: int, offset: int, num_samples: int
    ) -> tuple[np.ndarray, int]:
        """Decode an utterance, or where it is bad the replacement that the plan names for it."""
        row = self._rows[utterance]
        try:
            return audio.read_pcm(row), offset
        except audio.AudioError as error:
            self.bad.add(row, error)
            last = error
        for attempt in range(_REPLACEMENTS):
            other = self.plan.replacement(number, utterance, num_samples, attempt)
            try:
                pcm = audio.read_pcm(self._rows[other])
            except audio.AudioError as error:
                last = error
                continue
            return pcm, int(self.plan.crop(number, np.array([other]), num_samples)[0])
        raise BadDataError(
            f"{row.place}: bad, and so are {_REPLACEMENTS} replacements; the last: {last}"
        )

    def shapes(self, start: int, stop: int) -> list[Shapes]:
        """See `Data.shapes`; those of the near steps first, then all others of the plan."""
        plan, near = self.plan, min(stop, start + _LOOKAHEAD)
        lengths = dict.fromkeys(plan.batch(step).num_samples for step in range(start, near))
        if stop > near:
            lengths |= dict.fromkeys(length for length, number in plan.batches.items() if number)
        return [audio_shapes(plan.rows[length], length) for length in lengths]

    def name_batch(self, number: int) -> str:
        """Name the utterances of a batch."""
        batch = self.plan.batch(number)
        names = storage.printable(", ".join(self._rows[i].fileid for i in batch.rows.tolist()))
        return f"{len(batch.rows)} x {batch.num_samples} samples, epoch {batch.epoch}: {names}"

    def bad_rows(self) -> int:
        """See `Data.bad_rows`."""
        return self.bad.bad_rows

    def check(self) -> None:
        """See `Data.check`."""
        self.bad.check()


def audio_shapes(rows: int, samples: int) -> Shapes:
    """Shapes and types of a batch of `PlannedAudio`."""
    scalars = ((rows,), np.dtype(np.float32))
    return {
        "waveforms": ((rows, samples), np.dtype(np.int16)),
        "mean": scalars,
        "inv_std": scalars,
    }


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
