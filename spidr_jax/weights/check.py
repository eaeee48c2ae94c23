"""Arrays as they are and as they should be, compared by name."""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from spidr_jax.model import model
from spidr_jax.model.config import ModelConfig

Shapes = Mapping[str, tuple[int, ...]]


def named(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their place in it, such as "params.student.layer_norm.scale"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def expected_arrays(config: ModelConfig, parts: Collection[str]) -> dict[str, Any]:
    """Shapes and types of a model's arrays in a training state, as its initialiser draws them."""
    params = jax.eval_shape(lambda key: model.init_params(config, key), jax.random.key(0))
    rows = (config.num_codebooks, config.codebook_size)
    sums = jax.ShapeDtypeStruct((*rows, config.encoder_embed_dim), np.float32)
    codebooks = {"sums": sums, "counts": jax.ShapeDtypeStruct(rows, np.float32)}
    drawn = {"params": params, "teacher": params["student"], "codebooks": codebooks}
    return {name: drawn[name] for name in parts}


@contextlib.contextmanager
def one_error(path: Path) -> Iterator[None]:
    """Refuse a file, by name, for whatever a damaged or hostile one leads to."""
    try:
        yield
    except (OSError, ImportError):
        raise
    except Exception as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        text = " ".join(f"{kind}{error}".split())[:3000]
        raise ValueError(text if str(path) in text else f"{path}: {text}") from error


def check_arrays(place: str, arrays: Mapping[str, Any], shapes: Shapes) -> None:
    """Compare arrays, or what has but their shapes, with those that they should be in float32.

    Raises:
        ValueError: listing what is missing, unknown, misshapen or not finite, by name.
    """
    wrong = []
    for name in sorted(arrays.keys() & shapes.keys()):
        array, shape = arrays[name], shapes[name]
        if array.shape != shape:
            wrong.append(f"{name} is {list(array.shape)} and should be {list(shape)}")
        elif array.dtype != np.float32:
            wrong.append(f"{name} is {array.dtype} and should be float32")
        elif isinstance(array, np.ndarray) and not np.isfinite(array).all():
            wrong.append(f"{name} holds NaN or infinite numbers")
    problems = {
        "missing": sorted(shapes.keys() - arrays.keys()),
        "unknown": sorted(arrays.keys() - shapes.keys()),
        "wrong": wrong,
    }
    found = [f"{kind}: {_listed(items)}" for kind, items in problems.items() if items]
    if found:
        raise ValueError(f"{place} does not fit its model: {'; '.join(found)}")


def _listed(names: Collection[str], most: int = 20) -> str:
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(list(names)[:most]) + more
