"""The batch plan: which utterances make up batch number `step`, cropped where and to what length.

A pure function of (lengths, buckets, seed, step): every host computes the same plan and takes its
own rows of the same batch, the position in training is one integer, and the number of hosts may
change between runs. B rows of a global batch, S samples of each.

An epoch holds as much audio as all sources together. Each source gives its share of it, the next
utterances of an endless row of passes, so that with one source an epoch is one pass.
"""

import hashlib
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from spidr_jax.data import epochs, shuffle
from spidr_jax.data.buckets import SHORTEST, histogram, mix, place_filled_buckets
from spidr_jax.data.sources import Source

_LAYOUT = 1  # raise it when the same arguments come to give other batches
_MAX_PASSES = 1000
_MUCH_LOST = 0.25
_log = logging.getLogger(__name__)
_ahead = ThreadPoolExecutor(1, thread_name_prefix="next-epoch")


class Batch(NamedTuple):
    """A global batch.

    Attributes:
        num_samples: S, one of the plan's buckets.
        rows: int64 [B], utterances, numbered through all sources.
        offsets: int64 [B], first sample of each crop.
        epoch: the epoch that the batch belongs to.
    """

    num_samples: int
    rows: np.ndarray
    offsets: np.ndarray
    epoch: int


class _Epoch(NamedTuple):
    tables: list[np.ndarray]  # by bucket: utterances [B, batches]
    order: np.ndarray  # of the batches


@dataclass(frozen=True, eq=False)
class Plan:
    """All batches of a run; `make_plan` makes one.

    Attributes:
        buckets: lengths in samples, rising.
        rows: B, by bucket.
        batches: batches in an epoch, by bucket.
        fingerprint: hex text that changes with anything that changes the batches.
        too_short: utterances in no epoch, since they are shorter than the shortest bucket.
        dropped: utterances that are over at the end of an epoch (others in each).
        lost_share: share of an epoch's audio (each utterance up to the maximum length) that
            cropping and dropping leave unused.
        too_long: utterances that are longer than the maximum, of which an epoch has one crop.
        cropped_share: share of all audio that they have beyond one crop each.
        shares: share of the audio, by source.
        epochs_per_source: passes through each source in one epoch.
    """

    buckets: tuple[int, ...]
    rows: dict[int, int]
    batches: dict[int, int]
    fingerprint: str
    too_short: int
    dropped: int
    lost_share: float
    too_long: int
    cropped_share: float
    shares: dict[str, float]
    epochs_per_source: dict[str, float]
    _seed: int
    _num_samples: np.ndarray
    _starts: np.ndarray  # number of each source's first utterance
    _streams: list[list[epochs.Stream]]  # by source, by bucket
    _epochs: dict[int, Future[_Epoch]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def batches_per_epoch(self) -> int:
        """Batches in an epoch, the same number in each."""
        return sum(self.batches.values())

    def batch(self, step: int) -> Batch:
        """Give batch number `step` >= 0, in any order and from any thread."""
        number, position = divmod(step, self.batches_per_epoch)
        epoch = self._epoch(number)
        chosen = int(epoch.order[position])
        for bucket, table in zip(self.buckets, epoch.tables, strict=True):
            if chosen < table.shape[1]:
                rows = table[:, chosen].astype(np.int64)
                return Batch(bucket, rows, self.crop(step, rows, bucket), number)
            chosen -= table.shape[1]
        raise AssertionError("an epoch's order holds its batches")

    def crop(self, step: int, rows: np.ndarray, num_samples: int) -> np.ndarray:
        """Give the first samples int64 [n] of crops of utterances [n], hashed with the step."""
        room = self._num_samples[rows] - num_samples + 1
        return shuffle.uniform(shuffle.salt(self._seed, "crop", step), rows, room)

    def replacement(self, step: int, row: int, num_samples: int, attempt: int) -> int:
        """Give an utterance of the same source and the same or a longer bucket for `row`."""
        source = int(np.searchsorted(self._starts, row, side="right")) - 1
        fitting = [
            stream.members
            for bucket, stream in zip(self.buckets, self._streams[source], strict=True)
            if bucket >= num_samples
        ]
        seed = shuffle.salt(self._seed, "stand-in", step, attempt)
        pick = int(shuffle.uniform(seed, np.array([row]), sum(map(len, fitting)))[0])
        for members in fitting:
            if pick < len(members):
                break
            pick -= len(members)
        return int(members[pick])

    def describe(self) -> str:
        """Say in three lines what the plan does to the audio, for the log."""
        shapes = ", ".join(f"{self.batches[r]} of {self.rows[r]} x {r}" for r in self.buckets)
        sources = ", ".join(
            f"{name} {share:.1%} of the audio ({self.epochs_per_source[name]:.3g} passes an epoch)"
            for name, share in self.shares.items()
        )
        return (
            f"{self.batches_per_epoch} batches an epoch, by rows x samples: {shapes}\n"
            f"sources: {sources}\n"
            f"an epoch leaves {self.lost_share:.1%} of the audio unused; {self.dropped} utterances "
            f"fill no batch of it, {self.too_short} are too short (data.min_samples)"
            + self._describe_cropped()
        )

    def _describe_cropped(self) -> str:
        long = f"\n{self.too_long} utterances are longer than a row and give one crop an epoch: "
        return long + f"{self.cropped_share:.1%} of all audio lies beyond" if self.too_long else ""

    def _epoch(self, number: int) -> _Epoch:
        with self._lock:
            for wanted in (number, number + 1):  # the next one is then there when it begins
                if wanted not in self._epochs:
                    self._epochs[wanted] = _ahead.submit(self._build, wanted)
            for old in [other for other in self._epochs if abs(other - number) > 2]:
                del self._epochs[old]
            epoch = self._epochs[number]
        return epoch.result()

    def _build(self, number: int) -> _Epoch:
        own = [
            np.concatenate([stream.take(number) for stream in bucket])
            for bucket in zip(*self._streams, strict=True)
        ]
        tables = epochs.fill_batches(own, list(self.rows.values()), list(self.batches.values()))
        seed = shuffle.salt(self._seed, "order", number)
        return _Epoch(tables, shuffle.permutation(seed, self.batches_per_epoch))


def make_plan(
    sources: Sequence[Source],
    *,
    min_samples: int,
    max_samples: int,
    num_buckets: int,
    max_batch_samples: int,
    planned_devices: int,
    seed: int,
    warn: bool = True,
) -> Plan:
    """Plan the batches of a run over one or several weighted sources.

    An utterance is cropped to the next shorter bucket. What fills no batch of it goes to the next
    shorter one; what fills no batch of the shortest is dropped for that epoch.

    Args:
        sources: corpora with names and weights.
        min_samples: shorter utterances are left out, and in any case those under 2,640 samples
            (8 frames), the shortest bucket that there can be.
        max_samples: no crop is longer.
        num_buckets: largest number of lengths.
        max_batch_samples: most samples of a batch on one device.
        planned_devices: B is a multiple of it; it comes from the config, never from the live
            devices, so that a run may go on with any number of them.
        seed: another seed gives other batches.
        warn: whether to warn of much audio that stays unused.

    Raises:
        ValueError: an argument out of range, or too little audio for one batch, with the numbers.
    """
    longest = min(max_samples, max_batch_samples)
    _check_range("num_buckets", num_buckets, 1, 255)
    _check_range("planned_devices", planned_devices, 1, 2**20)
    _check_range("max_samples", max_samples, SHORTEST, 2**40)
    _check_range("max_batch_samples", max_batch_samples, SHORTEST, 2**40)
    _check_range("min_samples", min_samples, 0, longest)
    lengths = [source.corpus.num_samples for source in sources]
    histograms = [histogram(each, min_samples, longest) for each in lengths]
    shares, passes = _mix(sources, [float(each.audio.sum()) for each in histograms])
    mixed = mix(histograms, passes)
    buckets = place_filled_buckets(mixed, num_buckets, max_batch_samples, planned_devices)
    rows = [planned_devices * (max_batch_samples // bucket) for bucket in buckets]
    starts = np.cumsum([0, *map(len, lengths)])
    streams = [
        epochs.make_streams(
            lengths[index],
            min_samples=min_samples,
            buckets=buckets,
            passes=passes[index],
            start=int(starts[index]),
            total=int(starts[-1]),
            seed=shuffle.salt(seed, index),
        )
        for index in range(len(sources))
    ]
    draws = [[stream.draws for stream in each] for each in streams]
    batches, dropped = epochs.count_batches([sum(each) for each in zip(*draws, strict=True)], rows)
    used = sum(int(np.prod(each)) for each in zip(buckets, rows, batches, strict=True))
    plan = Plan(
        buckets=buckets,
        rows=dict(zip(buckets, rows, strict=True)),
        batches=dict(zip(buckets, batches, strict=True)),
        fingerprint=_fingerprint(sources, buckets, rows, draws, min_samples, seed),
        too_short=int(starts[-1]) - sum(len(stream.members) for each in streams for stream in each),
        dropped=dropped,
        lost_share=max(0.0, 1 - used / float(mixed.audio.sum())),
        too_long=sum(int((each > longest).sum()) for each in lengths),
        cropped_share=_cropped_share(lengths, longest),
        shares={source.name: share for source, share in zip(sources, shares, strict=True)},
        epochs_per_source={s.name: times for s, times in zip(sources, passes, strict=True)},
        _seed=seed,
        _num_samples=lengths[0] if len(lengths) == 1 else np.concatenate(lengths),
        _starts=starts,
        _streams=streams,
    )
    if warn and plan.lost_share > _MUCH_LOST:
        _log.warning(
            "an epoch leaves %.0f %% of the audio unused: little audio for batches of %d devices x "
            "%d samples; lower data.planned_devices or data.max_batch_samples",
            100 * plan.lost_share,
            planned_devices,
            max_batch_samples,
        )
    if warn and plan.cropped_share > _MUCH_LOST:
        _log.warning(
            "%.0f %% of all audio lies beyond the one crop an epoch that recordings longer than "
            "data.max_samples = %d give; raise it, or cut them into utterances",
            100 * plan.cropped_share,
            longest,
        )
    return plan


def _cropped_share(lengths: Sequence[np.ndarray], longest: int) -> float:
    """The share of all audio that utterances have beyond their first `longest` samples."""
    kept = sum(float(np.minimum(each, longest).sum()) for each in lengths)
    return 1 - kept / sum(float(each.sum()) for each in lengths)


def _check_range(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ValueError(f"data.{name}: {value} is not within {least} .. {most}")


def _mix(sources: Sequence[Source], audio: list[float]) -> tuple[list[float], list[float]]:
    """Give each source's share of the audio, and its passes in an epoch as long as all of them."""
    total = sum(source.weight for source in sources)
    shares = [source.weight / total for source in sources]
    passes = []
    for source, share, samples in zip(sources, shares, audio, strict=True):
        if not samples:
            raise ValueError(
                f"source {source.name}: none of its {len(source.corpus.num_samples)} utterances "
                f"has data.min_samples, and at least {SHORTEST}, samples"
            )
        passes.append(share * sum(audio) / samples if len(sources) > 1 else 1.0)
        if passes[-1] > _MAX_PASSES:
            raise ValueError(
                f"source {source.name}: its weight makes {share:.1%} of the audio from "
                f"{samples / 57_600_000:.3g} h, {passes[-1]:.0f} passes through it an epoch "
                f"(at most {_MAX_PASSES}): lower its weight"
            )
    return shares, passes


def _fingerprint(sources: Sequence[Source], *numbers: object) -> str:
    digest = hashlib.sha256(repr((_LAYOUT, numbers)).encode())
    for source in sources:
        digest.update(source.corpus.fingerprint.encode())
        digest.update(np.ascontiguousarray(source.corpus.num_samples, "<i8").data)
    return digest.hexdigest()[:32]
