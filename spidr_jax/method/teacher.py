"""The teacher: an exponential moving average of the student's encoder.

`weight` is the share of the student in an update, one minus the decay; it is computed itself,
since 1 - decay in float32 loses it. Source: SpidR section 3, DinoSR section 3; spec section 3.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from spidr_jax.model.checks import check_fields, is_integer

SCHEDULES = ("exponential", "linear")
Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """When and how fast the teacher follows the student.

    Attributes:
        schedule: "exponential" (SpidR): weight (1 - decay) exp(-s / timescale), nothing moves
            once it is at or below threshold. "linear" (DinoSR): decay -> final_decay over
            final_step steps, nothing moves from freeze_step.
        exclude_layers: name prefixes of encoder parameters that are copied instead.

    Raises:
        ValueError: a value is not usable; the message names field, value and what is allowed.
    """

    schedule: str = "exponential"
    decay: float = 0.999
    timescale: float = 20_000
    threshold: float = 1e-7
    final_decay: float = 0.9999
    final_step: int = 30_000
    exclude_layers: tuple[str, ...] = ("pos_conv_embed",)

    def __post_init__(self) -> None:
        checks = (
            ("schedule", self.schedule in SCHEDULES, " or ".join(SCHEDULES)),
            ("decay", 0 <= self.decay <= 1, "0 to 1"),
            ("timescale", self.timescale > 0, "a number of steps above 0"),
            ("threshold", self.threshold >= 0, "a weight from 0"),
            ("final_decay", 0 <= self.final_decay <= 1, "0 to 1"),
            ("final_step", is_integer(self.final_step, 1), "an integer from 1"),
        )
        check_fields(self, checks)


def init(student: Tree, fresh: Tree) -> Tree:
    """Copy the student's encoder, with attention and feed-forward taken from a fresh draw."""

    def pick(path: tuple[Any, ...], copied: jax.Array, drawn: jax.Array) -> jax.Array:
        redrawn = {"attention", "feed_forward"} & {entry.key for entry in path}
        return drawn if redrawn else copied

    return jax.tree_util.tree_map_with_path(pick, student, fresh)


def check_excluded(teacher: Tree, exclude_layers: tuple[str, ...]) -> None:
    """Refuse layers to exclude that are none.

    Raises:
        ValueError: a prefix matches no parameter.
    """
    names = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(teacher)]
    for prefix in exclude_layers:
        if not any(name.startswith(prefix) for name in names):
            raise ValueError(
                f"config.teacher.exclude_layers has {prefix!r}: allowed are prefixes of encoder "
                f"parameters, such as {names[0]!r}"
            )


def weight(config: TeacherConfig, step: jax.Array, freeze_step: int) -> jax.Array:
    """Share of the student in the update after `step` finished steps, 0 when nothing moves."""
    step = step.astype(jnp.float32)
    start = 1 - config.decay
    if config.schedule == "exponential":
        value = start * jnp.exp(-step / config.timescale)
        return jnp.where(value <= config.threshold, 0.0, value)
    progress = jnp.minimum(step / config.final_step, 1.0)
    value = start + (config.decay - config.final_decay) * progress
    return jnp.where(step >= freeze_step, 0.0, value)


def update(
    teacher: Tree, student: Tree, weight: jax.Array, exclude_layers: tuple[str, ...]
) -> Tree:
    """Move the teacher towards the student by `weight`; excluded layers are copied.

    Args:
        teacher: encoder parameters.
        student: encoder parameters of the same structure.
        weight: scalar in [0, 1]; at 0 nothing moves, excluded layers neither.
        exclude_layers: prefixes of parameter names such as "layers_0.attention.qkv.kernel".
    """

    def move(path: tuple[Any, ...], old: jax.Array, new: jax.Array) -> jax.Array:
        if _name(path).startswith(exclude_layers):
            return jnp.where(weight > 0, new, old)
        return old + weight * (new - old)

    return jax.tree_util.tree_map_with_path(move, teacher, student)


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(entry.key for entry in path)
