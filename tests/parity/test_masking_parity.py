"""Masks have the statistics of the reference's generator, and the published masked shares."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spidr_jax.method import masking
from spidr_jax.method.masking import MaskingConfig

torch = pytest.importorskip("torch")
spidr = pytest.importorskip("spidr")

from spidr.config import MaskingConfig as ReferenceMaskingConfig  # noqa: E402

DRAWS = 800
STATIC: dict[str, Any] = {}
UNIFORM = {"mask_selection": "uniform", "mask_other": 3.0}
NORMAL = {"mask_selection": "normal", "mask_other": 4.0}
POISSON = {"mask_selection": "poisson", "mask_prob": 0.5}
SHORT_SPANS = {"mask_length": 3, "mask_prob": 0.4}
FEW = {"mask_prob": 0.35}
DISJOINT = {"no_mask_overlap": True, "mask_min_space": 2}
ONE, SEVERAL, SHORT = (90,), (90, 75, 41), (12, 7)  # frames of a group's utterances


@pytest.fixture(scope="module")
def generator_class() -> Iterator[Any]:
    path = Path(spidr.__file__).parent / "data" / "masks.py"
    spec = importlib.util.spec_from_file_location("reference_masks", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MaskGenerator


def draw_theirs(
    generator_class: Any, fields: dict[str, Any], lengths: tuple[int, ...], draws: int
) -> np.ndarray:
    """bool [draws, B, T]; draws in which the reference masks nothing are left out."""
    generate = generator_class(ReferenceMaskingConfig(**fields))
    torch.manual_seed(0)
    source = torch.Generator().manual_seed(0)
    padded = torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]
    masks = np.zeros((draws, *padded.shape), bool)
    for mask in masks:
        indices = generate(padded, generator=source)[0].numpy()
        np.put_along_axis(mask, indices, True, axis=1)
    return masks[masks.any(axis=(1, 2))]


def draw_ours(fields: dict[str, Any], lengths: tuple[int, ...], draws: int) -> np.ndarray:
    config = MaskingConfig(**fields, group_rows=len(lengths))

    @jax.jit
    def draw(keys: jax.Array) -> jax.Array:
        frames = jnp.array(lengths)
        return jax.vmap(lambda key: masking.sample_spans(key, max(lengths), frames, config))(keys)

    return np.asarray(draw(jax.random.split(jax.random.key(0), draws)))


def statistics(masks: np.ndarray, lengths: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Numbers of each draw, [draws]: masked frames, runs, gaps, windows, edges, positions."""
    edges = np.diff(np.pad(masks, ((0, 0), (0, 0), (1, 1))).astype(int), axis=2)
    runs = (edges == 1).sum(axis=2)  # [draws, B]
    counts = masks.sum(axis=2)
    found = {"masked frames": counts[:, 0], "its square": counts[:, 0] ** 2}
    for row in range(masks.shape[1]):
        found[f"runs of row {row}"] = runs[:, row]
        found[f"run length of row {row}"] = counts[:, row] / runs[:, row]
        found[f"first frame of row {row}"] = masks[:, row, 0]
        found[f"last frame of row {row}"] = masks[:, row, lengths[row] - 1]
        gaps = [
            np.diff(np.flatnonzero(mask), prepend=-1, append=lengths[row]) for mask in masks[:, row]
        ]
        found[f"squared gaps of row {row}"] = np.array([np.square(gap).sum() for gap in gaps])
        positions = np.arange(masks.shape[2])
        found[f"centre of row {row}"] = (masks[:, row] * positions).sum(axis=1) / counts[:, row]
        for size in (1, 2, 5, 10):
            windows = np.lib.stride_tricks.sliding_window_view(masks[:, row], size, axis=1)
            found[f"windows of {size} masked in row {row}"] = windows.all(axis=2).sum(axis=1)
    return {name: np.asarray(value, np.float64) for name, value in found.items()}


def check_equal_statistics(ours: np.ndarray, theirs: np.ndarray, lengths: tuple[int, ...]) -> None:
    """Means of two samples agree within five standard errors of their difference."""
    wrong = {}
    mine, other = statistics(ours, lengths), statistics(theirs, lengths)
    for name, a in mine.items():
        b = other[name]
        error = np.sqrt(a.var() / a.size + b.var() / b.size)
        if abs(a.mean() - b.mean()) > 5 * error:
            wrong[name] = (a.mean(), b.mean(), error)
    assert not wrong, wrong


@pytest.mark.parametrize(
    ("fields", "lengths"),
    [
        pytest.param(STATIC, ONE, id="static"),
        pytest.param(UNIFORM, ONE, id="uniform"),
        pytest.param(NORMAL, ONE, id="normal"),
        pytest.param(POISSON, ONE, id="poisson"),
        pytest.param(STATIC | DISJOINT, ONE, id="static-disjoint"),
        pytest.param(UNIFORM | DISJOINT, ONE, id="uniform-disjoint"),
        pytest.param(NORMAL | DISJOINT, ONE, id="normal-disjoint"),
        pytest.param(POISSON | DISJOINT, ONE, id="poisson-disjoint"),
        pytest.param(SHORT_SPANS | DISJOINT, ONE, id="short-spans-disjoint"),
        pytest.param(FEW | DISJOINT, ONE, id="few-disjoint"),
        pytest.param(STATIC, SEVERAL, id="static-group"),
        pytest.param(POISSON, SEVERAL, id="poisson-group"),
        pytest.param(STATIC | DISJOINT, SEVERAL, id="static-disjoint-group"),
        # the reference masks nothing in most short utterances with disjoint spans
        pytest.param(STATIC, SHORT, id="static-short"),
        pytest.param(NORMAL, SHORT, id="normal-short"),
        pytest.param(POISSON, SHORT, id="poisson-short"),
    ],
)
def test_masks_have_the_references_statistics(
    generator_class: Any, fields: dict[str, Any], lengths: tuple[int, ...]
) -> None:
    theirs = draw_theirs(generator_class, fields, lengths, DRAWS)
    ours = draw_ours(fields, lengths, DRAWS)
    assert (ours.sum(axis=2) == ours.sum(axis=2)[:, :1]).all()
    assert len(theirs) > 0.99 * DRAWS
    check_equal_statistics(ours, theirs, lengths)


@pytest.mark.parametrize(
    ("rows", "share"),
    [
        (1, 0.566),
        pytest.param(4, 0.540, marks=pytest.mark.slow),
        (16, 0.520),
        pytest.param(64, 0.504, marks=pytest.mark.slow),
    ],
)
def test_masked_share_of_a_group_is_the_published_one(rows: int, share: float) -> None:
    masks = draw_ours({}, (736,) * rows, max(32, 1024 // rows))
    shares = masks.mean(axis=(1, 2))
    error = shares.std() / np.sqrt(shares.size)
    assert abs(shares.mean() - share) < 0.0005 + 4 * error  # figures have three digits
