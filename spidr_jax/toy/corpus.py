"""Make the embedded corpus: the utterances of each speaker, their synthesis, and the tables.

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
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from spidr_jax.data import files, tables
from spidr_jax.toy.espeak import SILENCE, Segment
from spidr_jax.toy.speaker import SAMPLE_RATE, Part
from spidr_jax.toy.text import sentences

TRAIN_SPEAKERS = tuple(f"es{number:02d}" for number in range(10))
SEEN_SPEAKERS = ("es00", "es03", "es05")
UNSEEN_SPEAKERS = ("es10", "es11")
SPLITS = ("train", "dev-seen", "dev-unseen")

_VERSION = 1  # to be raised with every change that changes a byte
_STAMP = "corpus.json"
_ADVICE = "delete it or name another folder"
_ITEM_HEADER = "#file onset offset #phone prev-phone next-phone speaker\n"
_MIN_ITEM = 0.03


@dataclass
class Utterance:
    """What a speaker is to say, in which split; and as it was said, its length and its phones."""

    split: str
    speaker: str
    fileid: str
    text: str
    num_samples: int = 0
    segments: list[Segment] = field(default_factory=list)

    @property
    def path(self) -> str:
        """Path of the WAV file, relative to the split's folder."""
        return f"{self.speaker}/{self.fileid}.wav"


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
        folder: destination; its parent is made if need be.
        train_utterances_per_speaker: sentences of each training speaker, all distinct.
        dev_sentences: held-out sentences, said by three seen and by both unseen speakers.
        jobs: processes at a time.
        seed: seed of text, voices and recording.

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
    if _is_made(target, parameters):
        return
    if importlib.util.find_spec("espeakng_loader") is None:
        raise ImportError(
            "the embedded corpus needs the package espeakng_loader: "
            'pip install "spidr_jax[demo]" brings it'
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with files.lock(target.with_name(f".{target.name}.lock"), wait=True):
            if not _is_made(target, parameters):
                _make(target, parameters, jobs)
    except OSError as error:
        raise OSError(f"cannot make the corpus in {target}: {error.strerror or error}") from error


def _is_made(target: Path, parameters: dict[str, int]) -> bool:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    try:
        found = json.loads((target / _STAMP).read_text(encoding="utf-8"))["parameters"]
    except (OSError, ValueError, KeyError, TypeError):
        raise FileExistsError(f"{target} exists and is no speech corpus: {_ADVICE}") from None
    if found != parameters:
        raise FileExistsError(f"{target} holds a corpus of {found}, not {parameters}: {_ADVICE}")
    return True


def _make(target: Path, parameters: dict[str, int], jobs: int) -> None:
    print(f"making the speech corpus in {target}", flush=True)
    prefix = f".{target.name}.making-"
    for left in target.parent.glob(prefix + "*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    with files.making_folder(target, prefix) as work:
        spoken = _speak(work, parameters, jobs)
        for split in SPLITS:
            _write_tables(work / split, [u for u in spoken if u.split == split])
        stamp = json.dumps({"parameters": parameters}, indent=2)
        (work / _STAMP).write_text(stamp + "\n", encoding="utf-8")
    hours = sum(u.num_samples for u in spoken) / SAMPLE_RATE / 3600
    print(f"made {hours:.2f} h of speech, {len(spoken)} utterances", flush=True)


def _speak(work: Path, parameters: dict[str, int], jobs: int) -> list[Utterance]:
    """Have each speaker say its part in a fresh process: the engine's state must not leak."""
    plan = list(_plan(**parameters))
    parts = []
    for index, utterances in enumerate(plan):
        said = [(str(work / u.split / u.path), u.text) for u in utterances]
        for path, _ in said:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        parts.append(Part(utterances[0].speaker, index % 2 == 1, parameters["seed"], said))
    with ThreadPoolExecutor(jobs) as executor:
        results = itertools.chain.from_iterable(list(executor.map(_run, parts)))
    spoken = list(itertools.chain.from_iterable(plan))
    for utterance, (num_samples, segments) in zip(spoken, results, strict=True):
        utterance.num_samples = num_samples
        utterance.segments = [Segment(*segment) for segment in segments]
    return spoken


def _plan(
    *, train_utterances_per_speaker: int, dev_sentences: int, seed: int, **_: int
) -> Iterator[list[Utterance]]:
    """The utterances of each speaker."""
    text = sentences(seed)
    dev = list(itertools.islice(text, dev_sentences))
    for speaker in TRAIN_SPEAKERS + UNSEEN_SPEAKERS:
        unseen = speaker in UNSEEN_SPEAKERS
        train = [] if unseen else itertools.islice(text, train_utterances_per_speaker)
        own = [("train", "t", each) for each in enumerate(train)]
        if unseen or speaker in SEEN_SPEAKERS:
            split = "dev-unseen" if unseen else "dev-seen"
            own += [(split, "d", each) for each in enumerate(dev)]
        yield [Utterance(s, speaker, f"{speaker}-{c}{i:04d}", line) for s, c, (i, line) in own]


def _run(part: Part) -> list[tuple[int, list[tuple[float, float, str]]]]:
    # Not by fork, since the caller may have jax's threads; nor by multiprocessing's spawn, which
    # imports the caller's main module again for each speaker.
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", "from spidr_jax.toy.speaker import main; main()"],
        input=json.dumps(part._asdict()),
        env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        return json.loads(done.stdout)  # type: ignore[no-any-return]
    reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    raise OSError(f"speaker {part.speaker}: {reason}")


def _write_tables(folder: Path, spoken: Sequence[Utterance]) -> None:
    """Write a split's text files; times are in seconds, to a tenth of a millisecond."""
    manifest = [(u.fileid, u.path, u.num_samples, u.speaker) for u in spoken]
    names = ("fileid", "path", "num_samples", "speaker")
    tables.write_table(str(folder / "manifest.csv"), "", names, manifest)
    texts = [(u.fileid, u.text) for u in spoken]
    tables.write_table(str(folder / "transcripts.csv"), "", ("fileid", "text"), texts)
    alignment = (
        f"{u.fileid} {onset:.4f} {offset:.4f} {phone}\n"
        for u in spoken
        for onset, offset, phone in u.segments
    )
    (folder / "alignment.txt").write_text("".join(alignment), encoding="utf-8", newline="")
    items = _ITEM_HEADER + "".join(line for u in spoken for line in _items(u))
    (folder / "triphone.item").write_text(items, encoding="utf-8", newline="")


def _items(spoken: Utterance) -> Iterator[str]:
    segments = spoken.segments
    for before, here, after in zip(segments, segments[1:], segments[2:], strict=False):
        silent = SILENCE in (before.phone, here.phone, after.phone)
        if not silent and here.offset - here.onset >= _MIN_ITEM:
            times = f"{here.onset:.4f} {here.offset:.4f}"
            phones = f"{here.phone} {before.phone} {after.phone}"
            yield f"{spoken.fileid} {times} {phones} {spoken.speaker}\n"
