"""Span masks drawn on the device: which frames of each utterance the student must predict.

B batch, T frames, N the largest number of spans of an utterance, G groups of rows.
Source: wav2vec 2.0 and fairseq's span masking, as SpidR uses it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from spidr_jax.model.checks import check_fields, is_integer


@dataclasses.dataclass(frozen=True)
class MaskingConfig:
    """Span masking, under the reference's field names.

    Attributes:
        mask_prob: masked share of the frames, if spans did not overlap.
        mask_length: mean span, in frames.
        mask_selection: name in SPAN_LAWS.
        mask_other: second number of the law.
        no_mask_overlap: whether spans lie apart, by `mask_min_space` frames.
        group_rows: consecutive utterances that get equally many masked frames.

    Raises:
        ValueError: a value is not usable; the message names field, value and what is allowed.
    """

    mask_prob: float = 0.8
    mask_length: int = 10
    mask_selection: str = "static"
    mask_other: float = 0.0
    no_mask_overlap: bool = False
    mask_min_space: int = 1
    group_rows: int = 16

    def __post_init__(self) -> None:
        checks = (
            ("mask_prob", 0 < self.mask_prob <= 1, "a share above 0, up to 1"),
            ("mask_length", is_integer(self.mask_length, 1, 2**20), "an integer from 1"),
            ("mask_selection", self.mask_selection in SPAN_LAWS, ", ".join(SPAN_LAWS)),
            ("mask_other", 0 <= self.mask_other <= 2 * self.mask_length, "0 to 2 mask_length"),
            ("mask_min_space", is_integer(self.mask_min_space, 0), "an integer from 0"),
            ("group_rows", is_integer(self.group_rows, 1), "an integer from 1"),
        )
        check_fields(self, checks)


def _static(key: jax.Array, number: int, config: MaskingConfig) -> jax.Array:
    return jnp.full((number,), config.mask_length, jnp.int32)


def _uniform(key: jax.Array, number: int, config: MaskingConfig) -> jax.Array:
    """From `mask_other` to twice the mean."""
    low, high = int(config.mask_other), 2 * config.mask_length + 1
    return jax.random.randint(key, (number,), low, high)


def _normal(key: jax.Array, number: int, config: MaskingConfig) -> jax.Array:
    """With the standard deviation `mask_other`."""
    drawn = config.mask_length + config.mask_other * jax.random.normal(key, (number,))
    return jnp.maximum(1, jnp.round(drawn).astype(jnp.int32))


def _poisson(key: jax.Array, number: int, config: MaskingConfig) -> jax.Array:
    """With means that are uniform below `mask_length`."""
    rate_key, key = jax.random.split(key)
    return jax.random.poisson(key, config.mask_length * jax.random.uniform(rate_key, (number,)))


# (key, number of spans N, config) -> their sizes in frames, int32 [N]
SPAN_LAWS: dict[str, Callable[[jax.Array, int, MaskingConfig], jax.Array]] = {
    "static": _static,
    "uniform": _uniform,
    "normal": _normal,
    "poisson": _poisson,
}


def sample_spans(
    key: jax.Array, num_frames: int, lengths: jax.Array, config: MaskingConfig
) -> jax.Array:
    """Draw the masked frames of a batch, a function of the arguments only.

    Every utterance of a group of `group_rows` consecutive rows gets the same number of masked
    frames: the group's smallest, the others lose frames at random.

    Args:
        key: random key.
        num_frames: T.
        lengths: valid frames of each utterance, int [B].
        config: the masking's numbers.

    Returns:
        bool [B, T], true at masked frames, of which each utterance has at least one.
    """
    spans_key, equal_key = jax.random.split(key)
    keys = jax.random.split(spans_key, lengths.shape[0])
    mask = jax.vmap(lambda k, length: _mask_row(k, num_frames, length, config))(keys, lengths)
    return _equalise(equal_key, mask, config.group_rows)


def _mask_row(
    key: jax.Array, num_frames: int, length: jax.Array, config: MaskingConfig
) -> jax.Array:
    size_key, place_key, rescue_key = jax.random.split(key, 3)
    sizes, number = _span_sizes(size_key, num_frames, length, config)
    exists = jnp.arange(sizes.shape[0]) < number
    shortest = jnp.where(exists, sizes, jnp.iinfo(jnp.int32).max).min()
    if config.no_mask_overlap:
        starts, sizes = _place_disjoint(place_key, length, sizes, shortest, config.mask_min_space)
    else:
        starts = _place_overlapping(place_key, num_frames, length - shortest, number, len(sizes))
    mask = _cover(starts, sizes, num_frames, length)
    # the reference can leave a very short utterance without a mask, which makes its loss NaN
    size = jnp.array([config.mask_length])
    start = jax.random.randint(rescue_key, (1,), 0, jnp.maximum(1, length - config.mask_length + 1))
    return jnp.where(mask.any(), mask, _cover(start, size, num_frames, length))


def _span_sizes(
    key: jax.Array, num_frames: int, length: jax.Array, config: MaskingConfig
) -> tuple[jax.Array, jax.Array]:
    """Sizes [N] of an utterance's spans, 0 beyond their number, and that number."""
    number_key, key = jax.random.split(key)
    share = config.mask_prob / config.mask_length
    largest = max(2, int(share * num_frames + 1))
    drawn = jnp.floor(share * length + jax.random.uniform(number_key)).astype(jnp.int32)
    number = jnp.clip(drawn, 2, largest)
    sizes = SPAN_LAWS[config.mask_selection](key, largest, config)
    sizes = jnp.where(jnp.arange(largest) < number, sizes, 0)
    fallback = jnp.minimum(config.mask_length, length - 1)
    return sizes.at[0].set(jnp.where(sizes.max() == 0, fallback, sizes[0])), number


def _cover(starts: jax.Array, sizes: jax.Array, num_frames: int, length: jax.Array) -> jax.Array:
    """Union bool [T] of the spans [N], cut at the utterance's length."""
    edges = jnp.zeros(num_frames + 1, jnp.int32)
    edges = edges.at[starts].add(1, mode="drop").at[starts + sizes].add(-1, mode="drop")
    inside = jnp.cumsum(edges[:num_frames]) > 0
    return inside & (jnp.arange(num_frames) < length)


def _place_overlapping(
    key: jax.Array, num_frames: int, room: jax.Array, number: jax.Array, most: int
) -> jax.Array:
    """Distinct uniform starts for the spans [N = most]."""
    choices = jnp.where(room <= number, number + 1, room)
    positions = jnp.arange(max(num_frames, most + 1))
    scores = jnp.where(positions < choices, jax.random.uniform(key, positions.shape), 2.0)
    return jnp.argsort(scores)[:most]


def _place_disjoint(
    key: jax.Array, length: jax.Array, sizes: jax.Array, shortest: jax.Array, gap: int
) -> tuple[jax.Array, jax.Array]:
    """Starts and sizes of the spans [N], longest first, each in a free interval [begin, end)."""
    sizes = -jnp.sort(-sizes)
    slots = jnp.arange(sizes.shape[0] + 1)

    def place(free: tuple[jax.Array, ...], span: tuple[jax.Array, ...]) -> tuple[Any, Any]:
        begins, ends, fits = free
        index, size, span_key = span
        interval_key, start_key = jax.random.split(span_key)
        room = jnp.where(ends - begins >= size + gap, ends - begins, 0)
        fits &= room.max() > 0
        chosen = jax.random.categorical(interval_key, jnp.log(room))
        begin, end = begins[chosen], ends[chosen]
        start = jax.random.randint(start_key, (), begin, jnp.maximum(end - size, begin + 1))
        left_end = jnp.where(start - begin - gap >= shortest, start - gap + 1, begin)
        keep_right = end - start - shortest - gap > shortest
        right = jnp.where(keep_right, start + size + gap, end)
        left_slot, right_slot = fits & (slots == chosen), fits & (slots == index + 1)
        begins = jnp.where(right_slot, right, begins)
        ends = jnp.where(right_slot, end, jnp.where(left_slot, left_end, ends))
        return (begins, ends, fits), (start, jnp.where(fits, size, 0))

    free = (jnp.zeros_like(slots), jnp.where(slots == 0, length, 0), jnp.array(True))
    spans = (jnp.arange(sizes.shape[0]), sizes, jax.random.split(key, sizes.shape[0]))
    return lax.scan(place, free, spans)[1]


def _equalise(key: jax.Array, mask: jax.Array, group_rows: int) -> jax.Array:
    """Un-mask frames at random until every row of a group has the group's smallest count."""
    rows = mask.shape[0]
    groups = jnp.arange(rows) // group_rows
    counts = jax.ops.segment_min(mask.sum(axis=1), groups, num_segments=-(-rows // group_rows))
    scores = jnp.where(mask, jax.random.uniform(key, mask.shape), 2.0)
    rank = jnp.argsort(jnp.argsort(scores, axis=1), axis=1)
    return mask & (rank < counts[groups][:, None])
