"""Learning-rate schedules, optimizers, and the parts of a tree that train and that do not.

Source: SpidR (arXiv 2512.20308), section 4.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from spidr_jax.model.checks import check_fields, is_integer

Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its learning-rate schedule, under the reference's field names.

    Raises:
        ValueError: a value is not usable; the message names field, value and what is allowed.
    """

    name: str = "adamw"  # in OPTIMIZERS
    lr: float = 5e-4  # peak rate
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-6
    weight_decay: float = 0.01
    max_norm: float = 10.0  # of the gradient
    scheduler: str = "tristage"  # name in SCHEDULES
    warmup_steps: int = 12_000
    hold_steps: int = 188_000
    decay_steps: int = 200_000
    max_steps: int = 400_000  # of the cosine schedule
    init_lr_scale: float = 0.01
    final_lr_scale: float = 0.01
    rsqrt_timescale: int = 10_000
    rsqrt_shift: int = 0

    def __post_init__(self) -> None:
        checks = (
            ("name", self.name in OPTIMIZERS, ", ".join(OPTIMIZERS)),
            ("lr", 0 < self.lr <= 1000, "a rate above 0, up to 1000"),
            (
                "betas",
                len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
                "two rates from 0 to below 1",
            ),
            ("eps", 1e-37 <= self.eps <= 1, "1e-37 (float32) to 1"),
            ("weight_decay", 0 <= self.weight_decay <= 1000, "0 to 1000"),
            ("max_norm", self.max_norm > 0, "a norm above 0"),
            ("scheduler", self.scheduler in SCHEDULES, ", ".join(SCHEDULES)),
            ("warmup_steps", is_integer(self.warmup_steps, 0), "an integer from 0"),
            ("hold_steps", is_integer(self.hold_steps, 0), "an integer from 0"),
            ("decay_steps", is_integer(self.decay_steps, 1), "an integer from 1"),
            (
                "max_steps",
                is_integer(self.max_steps, 1)
                and (self.scheduler != "cosine" or self.max_steps > self.warmup_steps),
                f"an integer above warmup_steps = {self.warmup_steps}",
            ),
            ("init_lr_scale", 0 <= self.init_lr_scale <= 1, "0 to 1"),
            ("final_lr_scale", 0 < self.final_lr_scale <= 1, "above 0, up to 1"),
            ("rsqrt_timescale", is_integer(self.rsqrt_timescale, 1), "an integer from 1"),
            ("rsqrt_shift", is_integer(self.rsqrt_shift, 0), "an integer from 0"),
        )
        check_fields(self, checks)


def learning_rate(config: OptimizerConfig, step: jax.Array | int) -> jax.Array:
    """Rate of the update that has `step` finished steps before it, a float32 scalar."""
    step = jnp.asarray(step, jnp.float32)
    scale, peak = SCHEDULES[config.scheduler](config, step)
    if config.warmup_steps > 0:
        rise = config.init_lr_scale + (peak - config.init_lr_scale) * step / config.warmup_steps
        scale = jnp.where(step < config.warmup_steps, rise, scale)
    return config.lr * scale


def _tristage(config: OptimizerConfig, step: jax.Array) -> tuple[jax.Array, float]:
    after = step - config.warmup_steps - config.hold_steps
    progress = jnp.maximum(after / config.decay_steps, 0)
    return jnp.exp(math.log(config.final_lr_scale) * progress), 1.0


def _cosine(config: OptimizerConfig, step: jax.Array) -> tuple[jax.Array, float]:
    left = (config.max_steps - step) / (config.max_steps - config.warmup_steps)
    # the square is (1 + cos(pi (1 - left))) / 2, which in float32 is inexact near the end
    share = jnp.square(jnp.sin(jnp.pi / 2 * left))
    return config.final_lr_scale + (1 - config.final_lr_scale) * share, 1.0


def _rsqrt(config: OptimizerConfig, step: jax.Array) -> tuple[jax.Array, float]:
    after = step - config.warmup_steps - config.hold_steps
    decayed = jnp.maximum(after, 0) + config.rsqrt_shift
    scale = 1 / jnp.sqrt(1 + decayed / config.rsqrt_timescale)
    peak = 1 / math.sqrt(1 + config.rsqrt_shift / config.rsqrt_timescale)
    return jnp.where(after < 0, 1.0, scale), peak


def _constant(config: OptimizerConfig, step: jax.Array) -> tuple[jax.Array, float]:
    return jnp.ones_like(step), 1.0


# (config, finished steps float32 []) -> share of the peak rate after the warm-up, and the share
# to which the warm-up rises
SCHEDULES: dict[str, Callable[[OptimizerConfig, jax.Array], tuple[jax.Array, float]]] = {
    "tristage": _tristage,
    "cosine": _cosine,
    "rsqrt": _rsqrt,
    "constant": _constant,
}


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformationExtraArgs:
    """Make what turns gradients into updates to add: `update(gradient, state, params, step=...)`.

    The step is the number of finished ones, a skipped update's among them: the optimizer keeps no
    count for the learning rate.
    """
    return optax.with_extra_args_support(OPTIMIZERS[config.name](config))


def descend(config: OptimizerConfig) -> optax.GradientTransformationExtraArgs:
    """Turn a direction u into the update -rate (u + weight_decay p): the end of a chain."""

    def update(
        direction: Tree, state: Any, params: Tree, *, step: jax.Array, **_: Any
    ) -> tuple[Tree, Any]:
        rate = learning_rate(config, step)
        decayed = jax.tree.map(
            lambda u, p: -rate * (u + config.weight_decay * p), direction, params
        )
        return decayed, state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _adamw(config: OptimizerConfig) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(config.max_norm),
        optax.scale_by_adam(*config.betas, eps=config.eps),
        descend(config),
    )


# config -> optimizer, of which `descend` is the last part
OPTIMIZERS: dict[str, Callable[[OptimizerConfig], optax.GradientTransformation]] = {"adamw": _adamw}


def split(params: Tree, trains: Callable[[tuple[str, ...]], bool]) -> tuple[Tree, Tree]:
    """Split parameters into the trained and the rest; each has None where the other has arrays.

    Args:
        params: parameters, or what has their structure.
        trains: whether the parameter of a path trains.
    """

    def pick(wanted: bool) -> Tree:
        return jax.tree_util.tree_map_with_path(
            lambda path, x: x if trains(tuple(e.key for e in path)) == wanted else None, params
        )

    return pick(True), pick(False)


def merge(first: Tree, second: Tree) -> Tree:
    """Undo `split`."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, first, second, is_leaf=lambda x: x is None
    )


def freeze(config: OptimizerConfig, opt_state: Any, trained: Tree) -> Any:
    """Drop from an optimizer's state what belongs to parameters that train no longer.

    Args:
        config: an optimizer whose state keeps what belongs to a parameter under its path.
        opt_state: state for more parameters.
        trained: those that still train, from `split`.
    """
    before = dict(jax.tree_util.tree_leaves_with_path(opt_state))
    after = jax.eval_shape(make_optimizer(config).init, trained)
    return jax.tree_util.tree_map_with_path(lambda path, _: before[path], after)
