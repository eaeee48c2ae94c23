"""Manifests: `open_manifest`, and the commands that write and check them and prepare audio.

    python -m spidr_jax.data.manifest write SOURCE OUT [--ext .flac,.wav,.ogg,.mp3] [--jobs N]
    python -m spidr_jax.data.manifest check MANIFEST [--min-samples N] [--jobs N]
    python -m spidr_jax.data.manifest prepare SOURCE OUT_DIR [--ext ...] [--jobs N]

Exit code: 0 where all is well, 1 where some files are not (each listed on stderr), 2 where the
command could not be carried out.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence

from spidr_jax.data.check import check_manifest
from spidr_jax.data.corpus import Corpus, Row, open_manifest
from spidr_jax.data.prepare import EXTENSIONS as ANY_AUDIO
from spidr_jax.data.prepare import prepare
from spidr_jax.data.scan import EXTENSIONS, Summary, write_manifest

__all__ = ["Corpus", "Row", "main", "open_manifest"]


def _extensions(text: str) -> tuple[str, ...]:
    return tuple("." + part.strip().lstrip(".") for part in text.split(",") if part.strip())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m spidr_jax.data.manifest")
    commands = parser.add_subparsers(dest="command", required=True)
    write = commands.add_parser("write", help="manifest of a folder or an uncompressed tar")
    write.add_argument("source", help="folder or uncompressed tar")
    write.add_argument("output", help=".csv, .jsonl or fairseq .tsv")
    write.add_argument("--ext", type=_extensions, default=EXTENSIONS, help="such as .flac,.wav")
    check = commands.add_parser("check", help="decode everything and report")
    check.add_argument("manifest", help=".csv, .jsonl or .tsv")
    check.add_argument("--min-samples", type=int, default=2000, help="shorter is reported")
    convert = commands.add_parser("prepare", help="any audio to 16 kHz mono FLAC; may be repeated")
    convert.add_argument("source", help="folder or uncompressed tar")
    convert.add_argument("output", help="folder for the FLAC files and their manifest.csv")
    convert.add_argument("--ext", type=_extensions, default=ANY_AUDIO, help="such as .m4a,.mp3")
    for command in (write, check, convert):
        command.add_argument("--jobs", type=int, default=0, help="threads (default: one a core)")
    return parser


def _list(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr)


def _run(args: argparse.Namespace) -> int:
    if args.jobs < 0:
        raise ValueError(f"--jobs {args.jobs}: allowed is 1 or more threads, or 0 for one a core")
    if args.command == "check":
        report = check_manifest(args.manifest, min_samples=args.min_samples, jobs=args.jobs)
        _list([*report.odd, *report.bad])
        print("\n".join(report.lines))
        return int(bool(report.bad))
    make = write_manifest if args.command == "write" else prepare
    summary: Summary = make(args.source, args.output, extensions=args.ext, jobs=args.jobs)
    _list(summary.problems)
    print(summary.line)
    return int(bool(summary.problems))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the commands above and give its exit code."""
    args = _parser().parse_args(arguments)
    try:
        return _run(args)
    except (ValueError, OSError, ImportError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
