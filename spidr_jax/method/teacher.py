"""The teacher: an exponential moving average of the student's encoder.

The EMA rate is the share of the student in an update, one minus the decay; it is computed itself,
since 1 - decay in float32 loses it.
Source: SpidR (arXiv 2512.20308), section 3; DinoSR (arXiv 2305.10005), section 3.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from spidr_jax.model.checks import check_fields, is_integer

Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """EMA schedule of the teacher.

    Attributes:
        schedule: name in SCHEDULES: "exponential" (SpidR) or "linear" (DinoSR).
        decay: one minus the EMA rate, before the first step.
        timescale: steps after which the exponential rate is 1 / e of its first value.
        threshold: exponential rate at or below which the teacher stands still.
        final_decay: decay of the linear schedule from `final_step` on.
        final_step: last step of its rise.
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
            ("schedule", self.schedule in SCHEDULES, ", ".join(SCHEDULES)),
            ("decay", 0 <= self.decay <= 1, "0 to 1"),
            ("timescale", 1e-9 <= self.timescale <= 1e18, "a number of steps above 0"),
            ("threshold", 0 <= self.threshold <= 1, "a rate from 0 to 1"),
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


def ema_rate(config: TeacherConfig, step: jax.Array, freeze_step: int) -> jax.Array:
    """EMA rate, float32, of the update after `step` finished steps; at 0 nothing moves."""
    return SCHEDULES[config.schedule](config, step.astype(jnp.float32), freeze_step)


def _exponential(config: TeacherConfig, step: jax.Array, freeze_step: int) -> jax.Array:
    rate = (1 - config.decay) * jnp.exp(-step / config.timescale)
    return jnp.where(rate <= config.threshold, 0.0, rate)


def _linear(config: TeacherConfig, step: jax.Array, freeze_step: int) -> jax.Array:
    """To the final decay at `final_step`; nothing moves from `freeze_step` on."""
    progress = jnp.minimum(step / config.final_step, 1.0)
    rate = (1 - config.decay) + (config.decay - config.final_decay) * progress
    return jnp.where(step >= freeze_step, 0.0, rate)


# (config, finished steps float32 [], freeze_step) -> EMA rate, float32 []
SCHEDULES: dict[str, Callable[[TeacherConfig, jax.Array, int], jax.Array]] = {
    "exponential": _exponential,
    "linear": _linear,
}


def update(teacher: Tree, student: Tree, rate: jax.Array, exclude_layers: tuple[str, ...]) -> Tree:
    """Move the teacher towards the student by the EMA rate; excluded layers are copied.

    Args:
        teacher: encoder parameters.
        student: encoder parameters of the same structure.
        rate: scalar in [0, 1]; at 0 nothing moves, excluded layers neither.
        exclude_layers: prefixes of parameter names such as "layers_0.attention.qkv.kernel".
    """

    def move(path: tuple[Any, ...], old: jax.Array, new: jax.Array) -> jax.Array:
        if _name(path).startswith(exclude_layers):
            return jnp.where(rate > 0, new, old)
        return old + rate * (new - old)

    return jax.tree_util.tree_map_with_path(move, teacher, student)


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(entry.key for entry in path)
