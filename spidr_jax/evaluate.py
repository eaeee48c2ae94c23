"""Unit metrics and ABX of the layers of a checkpoint in one table; runnable.

    python -m spidr_jax.evaluate --checkpoint C --manifest M [--alignment A] [--item I]
        [--layers all|5,6] [--kinds features,codebooks,units] [--kmeans K] [--mfcc] [--out F.json]
        [--kmeans-manifest M] [--context within|any] [--max-size-group N] [--max-x-across N]
        [--seed N] [--precision float32|bfloat16] [--batch-seconds N] [--model-type spidr|dinosr]
        [--register FILE.py]

Units are compared with the phones of the alignment (PNMI, purities, perplexity, bitrate), and all
outputs by ABX on the items, within and across speakers: features and codebook probabilities by
angle, units by identity. `--kmeans` adds units by k-means of each layer's features, `--mfcc` the
same of MFCC, which needs no checkpoint.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from spidr_jax.data import audio
from spidr_jax.data.corpus import Corpus, open_manifest
from spidr_jax.data.files import local_path
from spidr_jax.eval import abx, results
from spidr_jax.eval.alignment import FRAMES_PER_SECOND
from spidr_jax.inference import model as inference
from spidr_jax.inference import outputs as of_corpus
from spidr_jax.inference.datasets import EvaluationSet, open_set
from spidr_jax.inference.forward import KINDS, layers_of, make_forward
from spidr_jax.inference.scores import count_items, score_abx, score_units
from spidr_jax.model.config import ModelConfig
from spidr_jax.ops import platform
from spidr_jax.weights import register
from spidr_jax.weights.reference_config import MODEL_TYPES

_ABX_OPTIONS = ("context", "max_size_group", "max_x_across", "seed")
_Layers = Mapping[str, tuple[Any, ...]]  # by kind of output
_Run = Callable[[Corpus, _Layers], Any]  # gives the outputs of a corpus


def _wanted(args: argparse.Namespace, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Which layers to score of each kind of output: of those asked for, the ones that have it."""
    every = layers_of(config, "features")
    for layer in args.layers or ():
        if layer not in every:
            raise ValueError(f"--layers {layer}: allowed is {every[0]} to {every[-1]}")
    layers = args.layers or tuple(every)
    kinds = args.kinds or (KINDS if args.item else ("units",))
    wanted = {kind: tuple(k for k in layers if k in layers_of(config, kind)) for kind in kinds}
    if args.kmeans:
        wanted["kmeans"] = layers
    missing = [kind for kind in kinds if not wanted[kind]]
    if missing and (args.kinds or len(missing) == len(wanted)):
        there = layers_of(config, missing[0])
        raise ValueError(f"--layers: {missing[0]} are there for layers {there[0]} to {there[-1]}")
    return {kind: numbers for kind, numbers in wanted.items() if numbers}


def _checkpoint(args: argparse.Namespace, model: inference.SpeechModel) -> tuple[_Run, _Layers]:
    """A forward pass, and the layers of each kind of output to score."""
    seconds = args.batch_seconds or platform.choose(20, 240)

    def run(corpus: Corpus, layers: _Layers) -> Any:
        forward = make_forward(model.config, inference.DTYPES[args.precision], layers)
        samples = round(seconds * audio.SAMPLE_RATE)
        return of_corpus.of_model(forward, model.params, model.config, corpus, samples)

    return run, _wanted(args, model.config)


def _mfcc(args: argparse.Namespace) -> tuple[_Run, _Layers]:
    kinds = {"features": args.item, "kmeans": args.kmeans}
    wanted = {kind: (of_corpus.MFCC,) for kind, asked in kinds.items() if asked}
    return lambda corpus, _: of_corpus.of_mfcc(corpus), wanted


def _score(
    args: argparse.Namespace, evaluation: EvaluationSet, run: _Run, wanted: _Layers, codes: int
) -> tuple[results.Scores, dict[str, int]]:
    """The scores of the wanted layers, and counts of the items."""
    layers = {kind: numbers for kind, numbers in wanted.items() if kind != "kmeans"}
    features = {"features": wanted["kmeans"]} if "kmeans" in wanted else {}
    options = {name: vars(args)[name] for name in _ABX_OPTIONS}
    with contextlib.ExitStack() as stack:

        def collect(corpus: Corpus, layers: _Layers) -> of_corpus.Outputs:
            return stack.enter_context(of_corpus.collected(run(corpus, layers), layers))

        outputs = collect(evaluation.corpus, layers | features)
        if features:
            other = args.kmeans_manifest
            fitted_on = collect(open_manifest(other), features) if other else outputs
            outputs = of_corpus.with_kmeans(outputs, fitted_on, args.kmeans, args.seed)
        sources = [(kind, layer) for kind, numbers in wanted.items() for layer in numbers]
        outputs = outputs._replace(arrays={source: outputs.arrays[source] for source in sources})
        units = score_units(outputs, evaluation, {"units": codes, "kmeans": args.kmeans})
        errors = score_abx(outputs, evaluation.items, wanted, **options)
        scores = {each: units.get(each, {}) | errors.get(each, {}) for each in sources}
        return scores, count_items(outputs, evaluation.items)


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
    parser = argparse.ArgumentParser(
        prog="python -m spidr_jax.evaluate", epilog=results.DEFINITIONS
    )
    add = parser.add_argument
    add("--checkpoint", help="run, checkpoint, .pt or .safetensors")
    add("--manifest", required=True, help=".csv, .jsonl or .tsv of 16 kHz mono files")
    add("--alignment", help="phones of all its files: lines `fileid onset offset phone`")
    add("--item", help="ABX items of its files, triphones or phonemes")
    add("--layers", type=_layers, help="all (default), or such as 5,6, counted from 1")
    add("--kinds", type=_names, help="of features,codebooks,units (default: what can be scored)")
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
    add("--out", type=local_path, metavar="F.json", help="the same scores, and more")
    register.add_option(parser)
    return parser


def _check(args: argparse.Namespace) -> None:
    if not (args.alignment or args.item):
        raise ValueError("nothing to compare with: give --alignment, --item or both")
    if not (args.checkpoint or args.mfcc):
        raise ValueError("nothing to evaluate: give --checkpoint, --mfcc or both")
    if args.kmeans is not None and args.kmeans < 1:
        raise ValueError(f"--kmeans {args.kmeans}: allowed is 1 or more clusters")
    if args.kmeans_manifest and not args.kmeans:
        raise ValueError(f"--kmeans-manifest {args.kmeans_manifest}: needs --kmeans K")
    if not args.item:
        for kind in args.kinds or ():
            if kind != "units":
                raise ValueError(f"--kinds {kind}: needs --item; an alignment scores units only")
        if args.mfcc and not args.kmeans:
            raise ValueError("--mfcc: needs --kmeans K or --item; an alignment scores units only")
    if args.out and not args.out.parent.is_dir():
        raise ValueError(f"--out {args.out}: there is no folder {args.out.parent}")


def _run(args: argparse.Namespace) -> None:
    _check(args)
    args.kmeans = args.kmeans or 0
    model, rate = None, float(FRAMES_PER_SECOND)
    if args.checkpoint:
        model = inference.load(args.checkpoint, model_type=args.model_type, dtype=args.precision)
        rate = model.config.framing.frames_per_second
    if args.mfcc and rate != FRAMES_PER_SECOND:
        raise ValueError(f"--mfcc: has {FRAMES_PER_SECOND} frames a second, the model {rate:g}")
    evaluation = open_set("", args.manifest, args.alignment, args.item, rate)
    if args.kmeans_manifest:
        open_manifest(args.kmeans_manifest)  # else refused only after the pass over --manifest
    scores: results.Scores = {}
    step = None
    if model:
        step, codes = model.step, model.config.codebook_size
        scores, counts = _score(args, evaluation, *_checkpoint(args, model), codes)
    if args.mfcc:
        more, counts = _score(args, evaluation, *_mfcc(args), 0)
        scores |= more
    print("\n".join([results.table(scores, args.kmeans), *results.notes(scores, counts)]))
    if args.out:
        told = {name: value for name, value in vars(args).items() if name != "out"}
        told |= {"step": step, **counts, "results": results.as_json(scores)}
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
