"""`manifest check`: decode a whole corpus and report what is wrong or odd in it."""

from collections import Counter
from typing import NamedTuple

import numpy as np

from spidr_jax.data import audio, parallel
from spidr_jax.data.corpus import Row, open_manifest
from spidr_jax.data.scan import promised_samples

_SILENT_PEAK = 33  # of 32,768: -60 dB
_CLIPPED_SHARE = 0.001  # of the samples at full scale
_BARS = 12


class _Finding(NamedTuple):
    kind: str  # "" where all is well
    text: str
    bad: bool  # cannot be trained on


class Report(NamedTuple):
    """Result of `check_manifest`.

    Attributes:
        lines: statistics to print.
        bad: lines on utterances that cannot be trained on.
        odd: lines on silent, clipped and too short ones.
    """

    lines: list[str]
    bad: list[str]
    odd: list[str]


def check_manifest(manifest: str, *, min_samples: int = 2000, jobs: int = 0) -> Report:
    """Decode every utterance of a manifest.

    Args:
        manifest: .csv, .jsonl or .tsv.
        min_samples: shorter utterances are reported.
        jobs: threads; 0 for one a core.

    Raises:
        FileNotFoundError: where there is no such manifest.
        ValueError: the manifest itself is malformed.
    """
    corpus = open_manifest(manifest)
    findings = parallel.each(
        lambda index: _examine(corpus.row(index), min_samples),
        len(corpus),
        jobs=jobs,
        title="decoding",
    )
    kinds: Counter[str] = Counter()
    bad: list[str] = []
    odd: list[str] = []
    for finding in findings:
        if finding.kind:
            kinds[finding.kind] += 1
            (bad if finding.bad else odd).append(finding.text)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    lines = [
        *_histogram(corpus.num_samples / audio.SAMPLE_RATE),
        f"{manifest}: {len(corpus)} utterances, "
        f"{corpus.num_samples.sum() / audio.SAMPLE_RATE / 3600:.2f} h; "
        f"{len(bad)} bad, {len(odd)} odd{': ' if counts else ''}{counts}",
    ]
    return Report(lines, bad, odd)


def _examine(row: Row, min_samples: int) -> _Finding:
    try:
        with audio.open_sound(row) as sound:
            audio.check_format(row.place, sound.samplerate, sound.channels)
            audio.check_single(row, sound)
            promised = promised_samples(sound)
            pcm = audio.decode(sound, row.place)
            exact = sound.format != "MP3"
    except audio.AudioError as error:
        return _Finding(error.kind, str(error), bad=True)
    samples = len(pcm)
    if samples != row.num_samples or (exact and samples != promised):
        text = (
            f"{row.place}: {samples} samples in it, {promised} by its header, "
            f"{row.num_samples} by the manifest"
        )
        short = samples < max(row.num_samples, promised)
        # Training reads a longer file; the reference's manifests are now and then one short.
        return _Finding("truncated" if short else "longer than said", text, bad=short)
    return _examine_sound(row, pcm, min_samples)


def _examine_sound(row: Row, pcm: np.ndarray, min_samples: int) -> _Finding:
    if len(pcm) < max(min_samples, 1):
        text = f"{row.place}: too short: {len(pcm)} samples of at least {min_samples}"
        return _Finding("too short", text, bad=False)
    peak = max(int(pcm.max()), -int(pcm.min()))
    if peak < _SILENT_PEAK:
        return _Finding("silent", f"{row.place}: silent: peak {peak} of 32768", bad=False)
    clipped = np.count_nonzero((pcm == 32767) | (pcm == -32768)) / len(pcm)
    if clipped > _CLIPPED_SHARE:
        return _Finding("clipped", f"{row.place}: {clipped:.1%} of it at full scale", bad=False)
    return _Finding("", "", bad=False)


def _histogram(seconds: np.ndarray) -> list[str]:
    counts, edges = np.histogram(seconds, _BARS)
    shortest, median, longest = np.percentile(seconds, (0, 50, 100))
    lines = [f"seconds: {shortest:.2f} shortest, {median:.2f} median, {longest:.2f} longest"]
    for count, low, high in zip(counts, edges, edges[1:], strict=False):
        lines.append(
            f"{low:8.2f} - {high:7.2f} {count:9d} {'#' * round(40 * count / counts.max())}"
        )
    return lines
