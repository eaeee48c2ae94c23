"""Making the embedded corpus: who says what, and the processes that say it.

Each of the splits `train`, `dev-seen` and `dev-unseen` holds

- `manifest.csv`: fileid, path (relative to the split's folder), num_samples, speaker;
- `alignment.txt`: `fileid onset offset phone` lines without gaps, in seconds;
- `transcripts.csv`: fileid, text;
- `triphone.item`: the items of an ABX task, in the columns of the field's tools;
- one folder of 16 kHz mono 16-bit WAV files per speaker.

The dev sentences occur nowhere in train; nor do the speakers of `dev-unseen`.
"""

import importlib.util
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from spidr_jax.toy.folder import SPLITS, being_made, is_made, lock
from spidr_jax.toy.phones import Segment
from spidr_jax.toy.speaker import SAMPLE_RATE, Task
from spidr_jax.toy.tables import Spoken, Utterance, write_tables
from spidr_jax.toy.text import sentences

TRAIN_SPEAKERS = tuple(f"es{number:02d}" for number in range(10))
SEEN_SPEAKERS = ("es00", "es03", "es05")
UNSEEN_SPEAKERS = ("es10", "es11")
SPEAKERS = TRAIN_SPEAKERS + UNSEEN_SPEAKERS

_VERSION = 1  # to be raised with every change that changes a byte
_SECONDS_PER_UTTERANCE, _SECONDS_PER_SPEAKER = 0.015, 0.3


def make_corpus(
    folder: str | os.PathLike[str],
    *,
    train_utterances_per_speaker: int = 60,
    dev_sentences: int = 20,
    jobs: int = 2,
    seed: int = 0,
) -> None:
    """Make the corpus in `folder`, or leave it alone if it is there already.

    Ten training speakers and two unseen ones. The bytes depend on nothing but the two counts and
    the seed. The folder appears when all is written, not before; several processes may ask for the
    same one at the same time.

    Args:
        folder: where it goes; its parent is made if need be.
        train_utterances_per_speaker: sentences of each training speaker, all distinct.
        dev_sentences: held-out sentences, said by three seen and by both unseen speakers.
        jobs: processes at a time.
        seed: of text, voices and recording.

    Raises:
        FileExistsError: the folder holds something else, or a corpus of other parameters.
        ImportError: espeakng_loader is not installed.
        OSError: it cannot be written there, or espeak-ng fails.
        ValueError: a count below 1.
    """
    counts = {
        "train_utterances_per_speaker": train_utterances_per_speaker,
        "dev_sentences": dev_sentences,
    }
    for name, value in {**counts, "jobs": jobs}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    target = Path(folder).absolute()
    parameters = {"version": _VERSION, **counts, "seed": seed}
    if is_made(target, parameters):
        return
    _require_engine()
    try:
        with lock(target):
            if not is_made(target, parameters):
                _make(target, parameters, jobs)
    except OSError as error:
        raise OSError(f"cannot make the corpus in {target}: {error.strerror or error}") from error


def _require_engine() -> None:
    if importlib.util.find_spec("espeakng_loader") is None:
        raise ImportError(
            "the embedded corpus needs the package espeakng_loader: "
            'pip install "spidr_jax[demo]" brings it'
        )


def _make(target: Path, parameters: dict[str, int], jobs: int) -> None:
    plan = _plan(**parameters)
    guess = len(plan) * _SECONDS_PER_UTTERANCE + len(SPEAKERS) * _SECONDS_PER_SPEAKER
    print(f"making the speech corpus in {target}: about {guess / jobs:.0f} s", flush=True)
    started = time.monotonic()
    with being_made(target, parameters) as work:
        spoken = _speak(work, plan, parameters["seed"], jobs)
        for split in SPLITS:
            write_tables(work / split, [s for s in spoken if s.utterance.split == split])
    hours = sum(s.num_samples for s in spoken) / SAMPLE_RATE / 3600
    seconds = time.monotonic() - started
    print(f"made {hours:.2f} h of speech, {len(spoken)} utterances, in {seconds:.0f} s", flush=True)


def _plan(
    *, train_utterances_per_speaker: int, dev_sentences: int, seed: int, **_: int
) -> list[Utterance]:
    text = sentences(seed)
    dev = list(itertools.islice(text, dev_sentences))
    plan = [
        Utterance("train", speaker, f"{speaker}-t{index:04d}", sentence)
        for speaker in TRAIN_SPEAKERS
        for index, sentence in enumerate(itertools.islice(text, train_utterances_per_speaker))
    ]
    for split, speakers in (("dev-seen", SEEN_SPEAKERS), ("dev-unseen", UNSEEN_SPEAKERS)):
        plan += [
            Utterance(split, speaker, f"{speaker}-d{index:04d}", sentence)
            for speaker in speakers
            for index, sentence in enumerate(dev)
        ]
    return plan


def _speak(work: Path, plan: Sequence[Utterance], seed: int, jobs: int) -> list[Spoken]:
    """Have each speaker say its part in a fresh process: the engine's state must not leak."""
    for utterance in plan:
        (work / utterance.split / utterance.speaker).mkdir(parents=True, exist_ok=True)
    parts = [[u for u in plan if u.speaker == speaker] for speaker in SPEAKERS]
    tasks = [
        Task(name, index % 2 == 1, seed, [(str(work / u.split / u.path), u.text) for u in part])
        for index, (name, part) in enumerate(zip(SPEAKERS, parts, strict=True))
    ]
    executor = ThreadPoolExecutor(jobs)
    try:
        results = list(executor.map(_run, tasks))
    finally:
        executor.shutdown(cancel_futures=True)
    spoken = {
        utterance: Spoken(utterance, num_samples, [Segment(*segment) for segment in segments])
        for part, result in zip(parts, results, strict=True)
        for utterance, (num_samples, segments) in zip(part, result, strict=True)
    }
    return [spoken[utterance] for utterance in plan]


def _run(task: Task) -> Any:
    # Not by fork, since the caller may have jax's threads; nor by multiprocessing's spawn, which
    # imports the caller's main module anew for each speaker.
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", "from spidr_jax.toy.speaker import main; main()"],
        input=json.dumps(task._asdict()),
        env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        return json.loads(done.stdout)
    reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    raise OSError(f"speaker {task.speaker}: {reason}")
