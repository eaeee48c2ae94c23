"""A run's checkpoints read as numpy arrays: without the training code, its devices or types."""

import ast
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorstore
from flax.traverse_util import unflatten_dict

from spidr_jax.ops.fingerprint import fingerprint_host
from spidr_jax.weights.check import named

Tree = dict[str, Any]
Stores = dict[tuple[str, ...], tensorstore.TensorStore]


class Saved(NamedTuple):
    """What is read of a checkpoint."""

    path: Path
    config: dict[str, Any]  # the run's, as JSON holds it
    step: int  # finished steps
    state: Tree  # the chosen entries of the state


def find(path: Path) -> Path:
    """The checkpoint that a path names: itself, or a run's (or `checkpoints` folder's) newest.

    Raises:
        FileNotFoundError: there is none.
    """
    if (path / "state").is_dir():
        return path
    for folder in (path / "checkpoints", path):
        steps = [p for p in folder.glob("*") if p.name.isdigit() and (p / "state").is_dir()]
        if steps:
            return max(steps, key=lambda p: int(p.name))
    raise FileNotFoundError(f"{path}: holds no checkpoint, nor is it one")


def read(
    path: Path,
    wanted: Callable[[str], bool],
    check: Callable[[Path, Tree, Mapping[str, Any]], None] = lambda *_: None,
) -> Saved:
    """Read the entries of a checkpoint's state, such as "params", whose name is wanted.

    Args:
        path: a run, its `checkpoints` or a checkpoint.
        wanted: whether to read an entry.
        check: refuses arrays by place, config and their `shape` and `dtype` by name, before there
            is memory for them.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: it cannot be read; the message names it, and another where there is one.
    """
    step = find(path)
    try:
        config = read_json(step / "config" / "metadata")
        metadata = read_json(step / "state" / "_METADATA")
        stores = _open_arrays(step / "state", metadata, wanted)
        saved = read_json(step / "data" / "metadata").get("fingerprints", {})
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(step, error) from None
    check(step, config, {".".join(name): store for name, store in stores.items()})
    try:
        state = _read_arrays(stores)
        for name, array in named(state).items():
            if name in saved and fingerprint_host(array) != saved[name]:
                raise ValueError(f"{name} is not as it was saved: a bit of it has changed")
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(step, error) from None
    return Saved(step, config, int(state.pop("step")), state)


def _unreadable(step: Path, error: Exception) -> ValueError:
    others = sorted((p.name for p in step.parent.glob("*") if p.name.isdigit()), key=int)
    rest = ", ".join(name for name in others if name != step.name)
    hint = f"; other checkpoints beside it: {rest}" if rest else ""
    return ValueError(f"{step}: cannot be read: {_reason(error)}{hint}")


def read_json(path: Path) -> Tree:
    """Read a JSON file of a checkpoint.

    Raises:
        OSError: it is missing.
        ValueError: it is damaged; the message names it.
    """
    try:
        content: Tree = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: is damaged: {error}") from None
    return content


def _reason(error: Exception) -> str:
    """One line; of tensorstore's long text what it says of the file."""
    text = str(error).split("\n")[0]
    files = re.findall(r'local file "([^"]+[^/"])"', text)
    if not files:
        return text[:300]
    status = text.split(":")[0]
    return f"{files[-1]}: {status}"


def _open_arrays(folder: Path, metadata: Tree, wanted: Callable[[str], bool]) -> Stores:
    kind = "zarr3" if metadata.get("use_zarr3") else "zarr"
    pending = {}
    for key, entry in metadata["tree_metadata"].items():
        names = ast.literal_eval(key)  # "('params', 'student', ...)"
        empty = entry["value_metadata"]["value_type"] == "None"
        if not empty and (names[0] == "step" or wanted(names[0])):
            spec = {
                "driver": kind,
                "fill_missing_data_reads": False,
                "kvstore": {
                    "driver": "ocdbt",
                    "base": {"driver": "file", "path": str(folder.resolve())},
                    "path": ".".join(names) + "/",
                },
            }
            pending[names] = tensorstore.open(spec, open=True, read=True)
    stores = {names: future.result() for names, future in pending.items()}
    for names, store in stores.items():
        chunk = math.prod(size or 1 for size in store.chunk_layout.read_chunk.shape or ())
        if chunk > max(1, store.size):
            raise ValueError(f"{'.'.join(names)}: a chunk of it is larger than the array")
    return stores


def _read_arrays(stores: Stores) -> Tree:
    reads = {names: store.read() for names, store in stores.items()}
    return unflatten_dict({names: np.asarray(read.result()) for names, read in reads.items()})
