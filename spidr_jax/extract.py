"""Features, codebook probabilities or units of a corpus, from a checkpoint; runnable.

    python -m spidr_jax.extract --checkpoint C --manifest M --out DIR --kind units --layers 6
        [--dedup] [--name NAME] [--format npy|pt] [--precision float32|bfloat16]
        [--batch-seconds N] [--jobs N] [--model-type spidr|dinosr] [--force]
        [--register FILE.py]

Units become lines `{"file": id, "audio": id, "units": [...]}` of DIR/units/LAYER/NAME.jsonl (NAME
is the manifest's unless given), in order of length; features and codebooks arrays [frames, dim],
DIR/KIND/LAYER/ID.npy or .pt. The same command started again goes on where it was stopped. DIR/KIND
holds one manifest, as it was then; of units one for each NAME.

Exit code: 0 where all is well, 1 where some files are not (each listed on stderr), 2 where the
command could not be carried out.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from spidr_jax.data import audio, parallel
from spidr_jax.data.corpus import Corpus, Row, open_manifest
from spidr_jax.data.files import local_path
from spidr_jax.inference import model as inference
from spidr_jax.inference import writers as extract_files
from spidr_jax.inference.forward import KINDS
from spidr_jax.ops import platform
from spidr_jax.train import placement
from spidr_jax.weights import register
from spidr_jax.weights.reference_config import MODEL_TYPES


def extract(
    model: inference.SpeechModel,
    corpus: Corpus,
    kind: str,
    layers: tuple[int, ...],
    out: extract_files.Outputs,
    *,
    batch_samples: int,
    jobs: int = 0,
) -> list[str]:
    """Extract from every utterance that has no output yet.

    Args:
        model: model from `inference.load`; its parameters are put on all devices.
        corpus: the utterances.
        kind: "features", "codebooks" or "units".
        layers: the layers' numbers.
        out: destination of the outputs.
        batch_samples: padded samples of a batch on one device.
        jobs: threads that decode; 0 for one a core.

    Returns:
        A line for each file that could not be used.

    Raises:
        ValueError: a layer does not exist.
        OSError: an output cannot be written.
    """
    mesh = placement.make_mesh()
    model.params = jax.device_put(model.params, placement.replicated(mesh))
    order = np.argsort(corpus.num_samples, kind="stable").tolist()
    rows = [row for row in map(corpus.row, order) if row.fileid not in out.done]
    problems: list[str] = []
    outputs = model.stream(
        kind,
        layers,
        _readable(model, rows, problems, jobs),
        batch_samples=batch_samples * mesh.size,
        devices=mesh.size,
        put=lambda array: placement.put_batch({"array": array}, mesh)["array"],
    )
    for fileid, values in outputs:
        out.write(fileid, values)
    return problems


def _readable(
    model: inference.SpeechModel, rows: list[Row], problems: list[str], jobs: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Standardised waveforms of the rows, read ahead by threads; bad ones become problems."""

    def read(index: int) -> np.ndarray | str:
        try:
            pcm = audio.read_pcm(rows[index])
        except audio.AudioError as error:
            return str(error)
        if model.num_frames(len(pcm)) < 1:
            return f"{rows[index].place}: {len(pcm)} samples are too short for a frame"
        return pcm

    found = parallel.each(read, len(rows), jobs=jobs, title="extract")
    for row, pcm in zip(rows, found, strict=True):
        if isinstance(pcm, str):
            problems.append(pcm)
        else:
            yield row.fileid, audio.standardised(pcm)


def _layers(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(int(part) for part in text.split(",")))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m spidr_jax.extract")
    add = parser.add_argument
    add("--checkpoint", required=True, help="run, checkpoint, .pt or .safetensors")
    add("--manifest", required=True, help=".csv, .jsonl or .tsv of 16 kHz mono files")
    add("--out", required=True, type=local_path, help="folder")
    add("--kind", required=True, choices=KINDS)
    add("--layers", required=True, type=_layers, help="such as 6,7, counted from 1")
    add("--dedup", action="store_true", help="repeated units once (units only)")
    add("--name", help="of the units' files (default: the manifest's)")
    add("--format", choices=extract_files.FORMATS, default="npy", help="of arrays")
    add("--precision", choices=list(inference.DTYPES), default="float32")
    add("--batch-seconds", type=float, help="of a batch on one device (default: 20, CPU; else 240)")
    add("--jobs", type=int, default=0, help="threads that decode (default: one a core)")
    add("--model-type", choices=MODEL_TYPES, help="for a .pt file that does not say it")
    add("--force", action="store_true", help="replace what an earlier extraction left")
    register.add_option(parser)
    return parser


def _run(args: argparse.Namespace) -> int:
    if args.dedup and args.kind != "units":
        raise ValueError(f"--dedup: is for --kind units, not {args.kind}")
    seconds = args.batch_seconds or platform.choose(20, 240)
    model = inference.load(args.checkpoint, model_type=args.model_type, dtype=args.precision)
    model.forward(args.kind, args.layers)  # refuses a layer before anything is written
    corpus = open_manifest(args.manifest)
    settings = {
        "checkpoint": str(Path(args.checkpoint).absolute()),
        "step": model.step,
        "precision": args.precision,
    }
    folder = args.out / args.kind
    out: extract_files.Outputs
    if args.kind == "units":
        settings["dedup"] = args.dedup
        name = args.name or Path(args.manifest).stem
        extract_files.settle(folder, settings, corpus, name, force=args.force)
        out = extract_files.UnitFiles(folder, args.layers, name, args.dedup)
    else:
        extract_files.settle(folder, settings, corpus, force=args.force)
        out = extract_files.ArrayFiles(folder, args.layers, args.format, corpus)
    there = len(out.done)
    batch_samples = round(seconds * audio.SAMPLE_RATE)
    with out:
        problems = extract(
            model, corpus, args.kind, args.layers, out, batch_samples=batch_samples, jobs=args.jobs
        )
    for problem in problems:
        print(problem, file=sys.stderr)
    new = len(corpus) - there - len(problems)
    print(f"{folder}: {new} files, {there} there before, {len(problems)} unusable")
    return int(bool(problems))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command above and give its exit code."""
    args = _parser().parse_args(arguments)
    try:
        return _run(args)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
