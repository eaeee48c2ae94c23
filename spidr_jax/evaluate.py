"""What the layers of a checkpoint are worth: unit quality and ABX in one table; runnable.

    python -m spidr_jax.evaluate --checkpoint C --manifest M [--alignment A] [--item I]
        [--layers all|5,6] [--kinds features,codebooks,units] [--kmeans K] [--mfcc] [--out F.json]
        [--kmeans-manifest M] [--context within|any] [--max-size-group N] [--max-x-across N]
        [--seed N] [--precision float32|bfloat16] [--batch-seconds N] [--model-type spidr|dinosr]
        [--register FILE.py]

Units are measured against the phones of the alignment (PNMI, purities, perplexity, bitrate), and
all outputs by ABX on the items, within and across speakers: features and codebook probabilities by
angle, units by identity. `--kmeans` adds units by k-means of each layer's features, `--mfcc` the
same of MFCC, which needs no checkpoint.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from spidr_jax.data import audio
from spidr_jax.data.corpus import Corpus, open_manifest
from spidr_jax.eval import abx, items
from spidr_jax.eval.results import Measured, as_dict, table
from spidr_jax.inference import model as inference
from spidr_jax.inference import outputs as measure
from spidr_jax.inference.datasets import open_set
from spidr_jax.inference.forward import KINDS, layers_of, make_joint_forward
from spidr_jax.inference.outputs import AbxOptions, EvaluationSet
from spidr_jax.model.config import ModelConfig
from spidr_jax.weights import register
from spidr_jax.weights.reference_config import MODEL_TYPES

_Found = tuple[list[Measured], dict[str, int]]  # numbers, and counts of the items


def wanted_layers(
    config: ModelConfig, kinds: Sequence[str], layers: Sequence[int] | None
) -> dict[str, tuple[int, ...]]:
    """Which layers to ask for each kind: of those given (None: all), the ones that have it.

    Raises:
        ValueError: a layer does not exist, or none of them has a kind.
    """
    every = layers_of(config, "features")
    for layer in layers or ():
        if layer not in every:
            raise ValueError(f"--layers {layer}: allowed is {every[0]} to {every[-1]}")
    wanted = {}
    for kind in kinds:
        there = layers_of(config, kind)
        wanted[kind] = tuple(layer for layer in layers or every if layer in there)
        if not wanted[kind]:
            raise ValueError(f"--layers: {kind} are there for layers {there[0]} to {there[-1]}")
    return wanted


def _evaluated(
    args: argparse.Namespace,
    evaluation: EvaluationSet,
    run: Any,
    asked: Mapping[str, tuple[Any, ...]],
    clustered: tuple[Any, ...],
    num_units: Mapping[str, int],
) -> _Found:
    """Measure what `run(corpus, layers)` gives of the layers asked for, and k-means of others."""
    layers = dict(asked)
    if args.kmeans:
        layers["features"] = clustered
    with contextlib.ExitStack() as stack:
        outputs = stack.enter_context(measure.collected(run(evaluation.corpus, layers), layers))
        if args.kmeans:
            fitted_on = outputs
            if args.kmeans_manifest:
                layers = {"features": clustered}
                others = run(open_manifest(args.kmeans_manifest), layers)
                fitted_on = stack.enter_context(measure.collected(others, layers))
            outputs = measure.with_kmeans(outputs, fitted_on, args.kmeans, args.seed)
        arrays = {
            (kind, layer): array
            for (kind, layer), array in outputs.arrays.items()
            if kind == "kmeans" or layer in asked.get(kind, ())
        }
        options = AbxOptions(args.context, args.max_size_group, args.max_x_across, args.seed)
        rows = measure.measure(evaluation, outputs._replace(arrays=arrays), num_units, options)
        if evaluation.items is None:
            return rows, {}
        spans = items.locate(evaluation.items, outputs.files)
        count = len(spans.length)
        return rows, {"items": count, "items_clipped": spans.clipped, "items_empty": spans.empty}


def _kinds(args: argparse.Namespace, config: ModelConfig) -> tuple[str, ...]:
    """The kinds asked for, or those that can be measured and that a layer has."""
    if args.kinds:
        return tuple(args.kinds)
    found = [
        kind
        for kind in (KINDS if args.item else ("units",))
        if not args.layers or set(args.layers) & set(layers_of(config, kind))
    ]
    return tuple(found) if found or args.kmeans else ("units",)


def _of_checkpoint(
    args: argparse.Namespace, evaluation: EvaluationSet, found: inference.SpeechModel
) -> _Found:
    config = found.config
    asked = wanted_layers(config, _kinds(args, config), args.layers)
    seconds = args.batch_seconds or (20 if jax.default_backend() == "cpu" else 240)

    def run(corpus: Corpus, layers: Mapping[str, tuple[int, ...]]) -> Any:
        forward = make_joint_forward(config, inference.DTYPES[args.precision], layers)
        batch_samples = round(seconds * audio.SAMPLE_RATE)
        return measure.of_model(forward, found.params, config, corpus, batch_samples)

    clustered = wanted_layers(config, ["features"], args.layers)["features"]
    num_units = {"units": config.codebook_size, "kmeans": args.kmeans}
    return _evaluated(args, evaluation, run, asked, clustered, num_units)


def _of_mfcc(args: argparse.Namespace, evaluation: EvaluationSet) -> _Found:
    asked = {} if evaluation.items is None else {"features": (measure.MFCC,)}
    return _evaluated(
        args,
        evaluation,
        lambda corpus, _: measure.of_mfcc(corpus),
        asked,
        (measure.MFCC,),
        {"kmeans": args.kmeans},
    )


def _names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in KINDS:
            raise argparse.ArgumentTypeError(f"{name!r}: allowed is {', '.join(KINDS)}")
    return names


def _layers(text: str) -> tuple[int, ...] | None:
    try:
        return None if text == "all" else tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: allowed is all, or such as 5,6") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m spidr_jax.evaluate")
    add = parser.add_argument
    add("--checkpoint", help="run, checkpoint, .pt or .safetensors")
    add("--manifest", required=True, help=".csv, .jsonl or .tsv of 16 kHz mono files")
    add("--alignment", help="phones of all its files: lines `fileid onset offset phone`")
    add("--item", help="ABX items of its files, triphones or phonemes")
    add("--layers", type=_layers, help="all (default), or such as 5,6, counted from 1")
    add("--kinds", type=_names, help="of features,codebooks,units (default: what is measured)")
    add("--kmeans", type=int, metavar="K", help="units of K clusters of the features")
    add("--kmeans-manifest", help="files that the clusters are fitted on (default: --manifest)")
    add("--mfcc", action="store_true", help="MFCC and their deltas, for comparison")
    add("--context", choices=abx.CONTEXTS, default="within", help="of A, B and X")
    add("--max-size-group", type=int, help="items of a phone, speaker and context (default: all)")
    add("--max-x-across", type=int, help="speakers of X for each A and B (default: all)")
    add("--seed", type=int, default=0, help="of k-means and of what is left out of ABX")
    add("--precision", choices=list(inference.DTYPES), default="float32")
    add("--batch-seconds", type=float, help="of a batch (default: 20 on a CPU, else 240)")
    add("--model-type", choices=MODEL_TYPES, help="for a .pt file that does not say it")
    add("--out", type=Path, metavar="F.json", help="the same numbers, and more")
    register.add_option(parser)
    return parser


def _check(args: argparse.Namespace) -> None:
    if not (args.alignment or args.item):
        raise ValueError("nothing to measure by: give --alignment, --item or both")
    if not (args.checkpoint or args.mfcc):
        raise ValueError("nothing to measure: give --checkpoint, --mfcc or both")
    if args.kmeans is not None and args.kmeans < 1:
        raise ValueError(f"--kmeans {args.kmeans}: allowed is 1 or more clusters")
    if args.kmeans_manifest and not args.kmeans:
        raise ValueError(f"--kmeans-manifest {args.kmeans_manifest}: needs --kmeans K")
    if not args.item:
        for kind in args.kinds or ():
            if kind != "units":
                raise ValueError(f"--kinds {kind}: needs --item; an alignment measures units")
        if args.mfcc and not args.kmeans:
            raise ValueError("--mfcc: needs --kmeans K or --item; an alignment measures units")
    if args.out and not args.out.parent.is_dir():
        raise ValueError(f"--out {args.out}: there is no folder {args.out.parent}")


def _run(args: argparse.Namespace) -> None:
    _check(args)
    args.kmeans = args.kmeans or 0
    evaluation = open_set("", args.manifest, args.alignment, args.item)
    if args.kmeans_manifest:
        open_manifest(args.kmeans_manifest)  # else refused only after the pass over --manifest
    rows: list[Measured] = []
    counts: dict[str, int] = {}
    step = None
    if args.checkpoint:
        found = inference.load(args.checkpoint, model_type=args.model_type, dtype=args.precision)
        rows, counts = _of_checkpoint(args, evaluation, found)
        step = found.step
    if args.mfcc:
        more, counts = _of_mfcc(args, evaluation)
        rows += more
    print(table(rows, args.kmeans))
    if counts.get("items_clipped") or counts.get("items_empty"):
        print(
            f"of {counts['items']} items {counts['items_clipped']} end after the last frame of "
            f"their file and are clipped; {counts['items_empty']} have no frame and are left out"
        )
    if args.out:
        told = {name: value for name, value in vars(args).items() if name != "out"}
        told |= {"step": step, **counts, "results": [as_dict(row) for row in rows]}
        args.out.write_text(json.dumps(told, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command above and give its exit code: 0, or 2 with one line on stderr."""
    args = _parser().parse_args(arguments)
    try:
        _run(args)
    except (ValueError, OSError, ImportError, audio.AudioError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
