"""Models between this package's runs and the PyTorch reference's files, both ways.

    python -m spidr_jax.convert to-torch RUN_OR_CHECKPOINT OUT.pt [--student-only] [--force]
    python -m spidr_jax.convert from-torch IN.pt OUT_DIR [--model-type spidr|dinosr] [--force]

Exit code: 0 where it is done, 2 where it cannot be done, with the reason in one line.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spidr_jax.data.files import local_path, making_folder, replacing
from spidr_jax.weights import load as stored
from spidr_jax.weights import register, torch_files, torch_names
from spidr_jax.weights.check import one_error
from spidr_jax.weights.reference_config import MODEL_TYPES, to_reference


def to_torch_file(
    source: Path, out: Path, *, student_only: bool = False, force: bool = False
) -> str:
    """Write a run's newest checkpoint, or a certain one, as the reference's file.

    Args:
        source: a run's folder or a checkpoint's.
        out: a .pt or .safetensors file; config.json is written beside it.
        student_only: leave teacher and codebooks out (the reference does not load such a file;
            `spidr_jax.load` does).
        force: replace what lies there.

    Returns:
        What was done, in one line.

    Raises:
        FileExistsError: the file, or another model's config.json, is there.
        FileNotFoundError: there is no checkpoint.
        ImportError: torch (for .pt) or safetensors is not installed.
        ValueError: the checkpoint cannot be used, or `out` has another suffix.
    """
    if out.suffix not in (".pt", ".safetensors"):
        raise ValueError(f"{out}: allowed is a name that ends in .pt or .safetensors")
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: there is no such folder")
    model = stored.read(source, student_only=student_only)
    config_file = out.with_name("config.json")
    content = to_reference(model.config, model.run_config)
    text = json.dumps(content, indent=2) + "\n"
    if not force:
        _refuse_existing(out)
        if config_file.exists() and config_file.read_text() != text:
            raise FileExistsError(f"{config_file}: is there, of another model; --force replaces it")
    state = torch_names.to_torch(model.arrays)
    torch_names.check(str(source), state, model.config, model.arrays)
    torch_files.write(out, state | {torch_names.STEP: np.array([model.step], np.int64)})
    with replacing(config_file) as partial:
        partial.write_text(text)
    numbers = sum(value.size for value in state.values())
    return f"{out}: {model.config.model_type}, step {model.step}, {numbers / 1e6:.1f} M numbers"


def from_torch_file(
    source: Path, out: Path, *, model_type: str | None = None, force: bool = False
) -> str:
    """Write a file of the PyTorch side as a run's folder with one checkpoint.

    A full training checkpoint becomes a run that goes on with its step and moments; anything else
    a model without optimizer state, to use but not to train on.

    Args:
        source: the reference's file or the original DinoSR's; see `torch_files.read`.
        out: the run's folder.
        model_type: "spidr" or "dinosr", where nothing beside the file says it.
        force: replace the run that lies there.

    Returns:
        What was done, in one line.

    Raises:
        FileExistsError: the folder holds a run.
        FileNotFoundError: there is no such file.
        ImportError: torch (for .pt) or safetensors is not installed.
        ValueError: the file cannot be used; what does not fit is listed by name.
    """
    checkpoints = out / "checkpoints"
    if not force:
        for path in (checkpoints, out / "config.json", out / "metrics.jsonl"):
            _refuse_existing(path)
    with one_error(source):
        file = torch_files.read(source, model_type)
        torch_names.check(str(source), file.state, file.config, stored.PARTS)
        state, trains = _state(file)
        step = int(state["step"])
    position = {"step": step, "plan": None, "optimizer": trains}
    out.mkdir(parents=True, exist_ok=True)
    with making_folder(checkpoints, ".checkpoints.partial-") as partial:
        _save(partial, step, state, position, file.sections)
        if checkpoints.exists():
            shutil.rmtree(checkpoints)
    (out / "metrics.jsonl").unlink(missing_ok=True)  # the replaced run's
    with replacing(out / "config.json") as partial_config:
        partial_config.write_text(json.dumps(file.sections, indent=2) + "\n")
    kind = "training goes on from here" if trains else "a model without optimizer state"
    return f"{checkpoints / str(step)}: {file.config.model_type}, step {step}, {kind}"


def _state(file: torch_files.TorchFile) -> tuple[dict[str, Any], bool]:
    if not file.training:
        step = {"step": np.asarray(file.step, np.int32)}
        return step | torch_names.from_torch(file.state, stored.PARTS), False
    from spidr_jax.weights.torch_training import train_state

    return train_state(file)._asdict(), True


def _save(
    folder: Path, step: int, state: Any, position: dict[str, Any], config: dict[str, Any]
) -> None:
    import jax

    from spidr_jax.train.checkpoint import Checkpoints

    with jax.default_device(jax.devices("cpu")[0]):
        state = jax.tree.map(jax.numpy.asarray, state)  # Orbax wants no views with odd strides
        checkpoints = Checkpoints(folder, keep=1)
        try:
            checkpoints.save(step, state, position, config)
            checkpoints.wait()
        finally:
            checkpoints.close()


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise FileExistsError(f"{path}: is there already; --force replaces it")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m spidr_jax.convert")
    commands = parser.add_subparsers(dest="command", required=True)
    out = commands.add_parser("to-torch", help="a run or checkpoint to the reference's file")
    out.add_argument("source", type=local_path, metavar="RUN_OR_CHECKPOINT")
    out.add_argument("out", type=local_path, metavar="OUT.pt", help="or OUT.safetensors")
    out.add_argument("--student-only", action="store_true", help="without teacher and codebooks")
    back = commands.add_parser("from-torch", help="a PyTorch file to a run's folder")
    back.add_argument("source", type=local_path, metavar="IN.pt", help="or .ckpt, .safetensors")
    back.add_argument("out", type=local_path, metavar="OUT_DIR")
    back.add_argument("--model-type", choices=MODEL_TYPES, help="where config.json is silent")
    for command in (out, back):
        command.add_argument("--force", action="store_true", help="replace what lies there")
        register.add_option(command)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the commands above and give its exit code."""
    args = vars(_parser().parse_args(arguments))
    del args["register"]  # done
    convert = to_torch_file if args.pop("command") == "to-torch" else from_torch_file
    try:
        print(convert(args.pop("source"), args.pop("out"), **args))
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
