"""`manifest write`: the audio files of a folder or an uncompressed tar, from their headers."""

import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import soundfile

from spidr_jax.data import audio, parallel, storage, tables
from spidr_jax.data.corpus import Row, open_manifest

EXTENSIONS = (".flac", ".wav", ".ogg", ".mp3")
_UNSURE = 1 << 16  # a WAV header within it of 2 or 4 GB is of a writer that could not know
_MAX_LINKS = 8  # from one to the next
_Member = tuple[str, int, int]  # name, offset and size


class Listing(NamedTuple):
    """Audio files, in the order of their names.

    Attributes:
        root: absolute folder, or the tar.
        in_archive: whether `root` is a tar.
        names: relative paths, or names of members.
        spans: (offset, size) of each in the tar; empty for a folder.
        problems: one line for each folder or file that could not be looked at.
    """

    root: str
    in_archive: bool
    names: list[str]
    spans: list[tuple[int, int]]
    problems: list[str]

    def row(self, index: int) -> Row:
        """Give file `index` as a row of unknown length."""
        name = self.names[index]
        if self.in_archive:
            return Row("", name, 0, self.root, *self.spans[index])
        return Row("", os.path.join(self.root, name), 0)


class Summary(NamedTuple):
    """What a command did: one line, and one for each file with a problem."""

    line: str
    problems: list[str]


def find_audio(source: str, extensions: Sequence[str] = EXTENSIONS) -> Listing:
    """List the files of a folder (links followed) or an uncompressed tar that end so.

    Raises:
        FileNotFoundError: where there is no `source`.
        ValueError: neither folder nor uncompressed tar, or it holds no such file.
    """
    if storage.is_remote(source):
        raise ValueError(f"{source}: a URL; only a folder or tar on this machine can be listed")
    endings = tuple(ending.lower() for ending in extensions)
    root = os.path.abspath(source)
    problems: list[str] = []
    if os.path.isdir(root):
        names = sorted(n for n in _walk(root, problems) if n.lower().endswith(endings))
        listing = Listing(root, False, names, [], problems)
    elif os.path.exists(root):
        members = _members(root, endings, problems)
        spans = [(offset, size) for _, offset, size in members]
        listing = Listing(root, True, [name for name, _, _ in members], spans, problems)
    else:
        raise FileNotFoundError(f"{source}: there is no such folder or tar")
    if not listing.names:
        raise ValueError(f"{source}: holds no file that ends in {', '.join(endings)}")
    return listing


def _walk(root: str, problems: list[str]) -> Iterator[str]:
    seen = set()

    def report(error: OSError) -> None:
        problems.append(f"{storage.printable(error.filename)}: cannot be listed: {error.strerror}")

    for folder, inside, files in os.walk(root, onerror=report, followlinks=True):
        stat = os.stat(folder)
        if (stat.st_dev, stat.st_ino) in seen:
            inside.clear()  # a link back up, or a second one to the same folder
            continue
        seen.add((stat.st_dev, stat.st_ino))
        prefix = os.path.relpath(folder, root)
        yield from files if prefix == "." else (os.path.join(prefix, name) for name in files)


def _members(path: str, endings: tuple[str, ...], problems: list[str]) -> list[_Member]:
    """Members that end so, each where `tar -x` would take it from: the last of a name, and links.

    What has no bytes of its own in the tar becomes a problem.
    """
    files: dict[str, _Member] = {}
    links: dict[str, tuple[str, str]] = {}  # name and target
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                name = inside(member.name)
                files.pop(name, None)
                links.pop(name, None)
                if member.isreg() and not member.issparse():
                    files[name] = member.name, member.offset_data, member.size
                elif member.islnk():
                    links[name] = member.name, inside(member.linkname)
                    if source := files.get(links[name][1]):  # as it is now
                        files[name] = member.name, *source[1:]
                elif member.issym():
                    target = os.path.join(os.path.dirname(name), member.linkname)
                    links[name] = member.name, inside(target)
                elif not member.isdir():
                    links[name] = member.name, ""
    except tarfile.TarError as error:
        raise ValueError(
            f"{path}: neither a folder nor a whole uncompressed tar ({error}); unpack it first"
        ) from None
    for name, (said, target) in links.items():
        for _ in range(_MAX_LINKS):
            target = links[target][1] if target in links and target not in files else target
        if name not in files and target in files:
            files[name] = said, *files[target][1:]
        elif name not in files and name.lower().endswith(endings):
            name = storage.printable(said)
            problems.append(f"{path}:{name}: no plain file, nor a link to one of the tar; left out")
    return sorted(m for m in files.values() if m[0].lower().endswith(endings))


def inside(name: str) -> str:
    """Normalise a member's name, which is never outside the folder that a tar is unpacked in."""
    return os.path.normpath("/" + name).lstrip("/")


def unique_ids(names: Sequence[str]) -> list[str]:
    """Give each file its stem as id, or where stems repeat the shortest path that is unique."""
    whole = list(names)
    for ids in (
        [os.path.splitext(os.path.basename(n))[0] for n in names],
        [os.path.splitext(n)[0] for n in names],
    ):
        if len(set(ids)) == len(ids):
            return ids
    return whole


def promised_samples(sound: soundfile.SoundFile) -> int:
    """Say how many samples the header promises, which for a truncated WAV libsndfile corrects."""
    data = re.search(r"^data : (\d+) \(should be \d+\)", sound.extra_info, re.MULTILINE)
    if not data or not sound.frames:
        return int(sound.frames)
    if any(abs(int(data[1]) - size) <= _UNSURE for size in (1 << 31, 1 << 32)):
        return int(sound.frames)
    corrected = int(re.search(r"should be (\d+)", data[0])[1])  # type: ignore[index]
    return round(sound.frames * int(data[1]) / corrected)


def header_samples(row: Row) -> int:
    """Read the length of a 16 kHz mono file from its header; of MP3, which has none, by decoding.

    Raises:
        AudioError: unreadable, truncated, empty, or not 16 kHz mono.
    """
    with audio.open_sound(row) as sound:
        audio.check_format(row.place, sound.samplerate, sound.channels)
        frames, promised = int(sound.frames), promised_samples(sound)
        if sound.format == "MP3":
            frames = promised = len(audio.decode(sound, row.place))
    if frames < promised:
        raise audio.AudioError(
            f"{row.place}: truncated: the header promises {promised} samples, {frames} are there"
        )
    if not frames:
        raise audio.AudioError(f"{row.place}: holds no sample")
    return frames


def write_manifest(
    source: str, output: str, *, extensions: Sequence[str] = EXTENSIONS, jobs: int = 0
) -> Summary:
    """Write the manifest of a folder or tar, reading headers only, and compile it.

    Files that cannot be trained on are left out and listed.

    Args:
        source: folder or uncompressed tar.
        output: .csv, .jsonl or (of a folder) fairseq .tsv.
        extensions: suffixes of the files to take, in any case.
        jobs: threads; 0 for one a core.

    Raises:
        FileNotFoundError: where there is no `source`, or no folder for `output`.
        ValueError: a wrong `source` or `output`, or not one usable file.
    """
    suffix = os.path.splitext(output)[1]
    if suffix not in tables.UNWRITABLE:
        raise ValueError(f"{output}: a manifest ends in one of {', '.join(tables.UNWRITABLE)}")
    if not os.path.isdir(folder := storage.parent(output)):
        raise FileNotFoundError(f"{output}: there is no folder {folder}")
    return write_listing(find_audio(source, extensions), output, jobs=jobs)


def write_listing(listing: Listing, output: str, *, jobs: int = 0) -> Summary:
    """Write the manifest of listed files: see `write_manifest`."""
    suffix = os.path.splitext(output)[1]
    if listing.in_archive and suffix == ".tsv":
        raise ValueError(f"{output}: a .tsv cannot name members of a tar: write .csv or .jsonl")

    def measure(index: int) -> int | str:
        row = listing.row(index)
        name = row.archive + row.path
        if wrong := [char for char in tables.UNWRITABLE[suffix] if char in name]:
            held = f"a {suffix} cannot hold the {wrong[0]!r} in its name"
            return f"{row.place}: {held}; rename it, or write a .jsonl"
        if name != name.encode(errors="replace").decode():
            return f"{row.place}: its name is not UTF-8; rename it"
        try:
            return header_samples(row)
        except audio.AudioError as error:
            return str(error)

    count = len(listing.names)
    samples = np.zeros(count, np.int64)
    problems = listing.problems
    for index, result in enumerate(parallel.each(measure, count, jobs=jobs, title="headers")):
        if isinstance(result, str):
            problems.append(result)
        else:
            samples[index] = result
    kept = np.flatnonzero(samples).tolist()
    if not kept:
        raise ValueError(f"{listing.root}: none of {count} files is usable; {problems[0]}")
    ids = unique_ids([listing.names[index] for index in kept])
    names = tables.REQUIRED + (tables.IN_ARCHIVE if listing.in_archive else ())
    rows = (
        (fileid, *_place(listing, at, int(samples[at])))
        for fileid, at in zip(ids, kept, strict=True)
    )
    tables.write_table(output, listing.root, names, rows)
    open_manifest(output)
    line = (
        f"{output}: {len(kept)} files, {samples.sum() / audio.SAMPLE_RATE / 3600:.2f} h; "
        f"{len(problems)} left out"
    )
    return Summary(line, problems)


def _place(listing: Listing, index: int, samples: int) -> tuple[object, ...]:
    row = listing.row(index)
    if listing.in_archive:
        return row.path, samples, row.archive, row.byte_offset, row.byte_size
    return row.path, samples
