"""Learning-rate schedules, AdamW with clipping, and which parameters train in which phase.

Source: SpidR's recipe; spec section 3.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from spidr_jax.model.checks import check_fields, is_integer
from spidr_jax.model.config import ModelConfig

SCHEDULES = ("tristage", "cosine", "rsqrt", "constant")
FROZEN_MODULES = ("feature_extractor", "feature_projection")
Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its learning-rate schedule, under the reference's field names.

    Raises:
        ValueError: a value is not usable; the message names field, value and what is allowed.
    """

    lr: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-6
    weight_decay: float = 0.01
    max_norm: float = 10.0
    scheduler: str = "tristage"
    warmup_steps: int = 12_000
    hold_steps: int = 188_000
    decay_steps: int = 200_000
    max_steps: int = 400_000
    init_lr_scale: float = 0.01
    final_lr_scale: float = 0.01
    rsqrt_timescale: int = 10_000
    rsqrt_shift: int = 0

    def __post_init__(self) -> None:
        checks = (
            ("lr", 0 < self.lr < math.inf, "a rate above 0"),
            (
                "betas",
                len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
                "two rates from 0 to below 1",
            ),
            ("eps", 0 < self.eps < math.inf, "a number above 0"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "a number from 0"),
            ("max_norm", self.max_norm > 0, "a norm above 0"),
            ("scheduler", self.scheduler in SCHEDULES, ", ".join(SCHEDULES)),
            ("warmup_steps", is_integer(self.warmup_steps, 0), "an integer from 0"),
            ("hold_steps", is_integer(self.hold_steps, 0), "an integer from 0"),
            ("decay_steps", is_integer(self.decay_steps, 1), "an integer from 1"),
            (
                "max_steps",
                self.scheduler != "cosine" or self.max_steps > self.warmup_steps,
                f"more than warmup_steps = {self.warmup_steps}",
            ),
            ("init_lr_scale", 0 <= self.init_lr_scale <= 1, "0 to 1"),
            ("final_lr_scale", 0 < self.final_lr_scale <= 1, "above 0, up to 1"),
            ("rsqrt_timescale", is_integer(self.rsqrt_timescale, 1), "an integer from 1"),
            ("rsqrt_shift", is_integer(self.rsqrt_shift, 0), "an integer from 0"),
        )
        check_fields(self, checks)


def learning_rate(config: OptimizerConfig, step: jax.Array) -> jax.Array:
    """Rate of the update that has `step` finished steps before it, a float32 scalar."""
    step = jnp.asarray(step, jnp.float32)
    warmup, final = config.warmup_steps, config.final_lr_scale
    after = step - warmup
    peak = 1.0
    if config.scheduler == "tristage":
        progress = jnp.maximum((after - config.hold_steps) / config.decay_steps, 0)
        scale = jnp.exp(math.log(final) * progress)
    elif config.scheduler == "cosine":
        left = (config.max_steps - step) / (config.max_steps - warmup)
        # the square is (1 + cos(pi (1 - left))) / 2, which in float32 is inexact near the end
        scale = final + (1 - final) * jnp.square(jnp.sin(jnp.pi / 2 * left))
    elif config.scheduler == "rsqrt":
        peak = 1 / math.sqrt(1 + config.rsqrt_shift / config.rsqrt_timescale)
        decayed = jnp.maximum(after - config.hold_steps, 0) + config.rsqrt_shift
        held = 1 / jnp.sqrt(1 + decayed / config.rsqrt_timescale)
        scale = jnp.where(after < config.hold_steps, 1.0, held)
    else:
        scale = jnp.ones_like(step)
    if warmup > 0:
        rise = config.init_lr_scale + (peak - config.init_lr_scale) * step / warmup
        scale = jnp.where(after < 0, rise, scale)
    return config.lr * scale


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clipping to a global norm and AdamW, short of the learning rate: apply `-lr * update`."""
    return optax.chain(
        optax.clip_by_global_norm(config.max_norm),
        optax.scale_by_adam(*config.betas, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay),
    )


def split(params: Tree, model: ModelConfig, frozen: bool) -> tuple[Tree, Tree]:
    """Split parameters into the trained and the rest; each has None where the other has arrays.

    Not trained are the norm whose output SpidR's student does not use (the last layer's second
    norm, or in pre-norm the encoder's), and extractor and projection in the frozen phase.

    Args:
        params: a tree of the student side's structure: parameters or moments.
        model: the architecture.
        frozen: whether `freeze_step` has come.
    """
    unused = "layer_norm" if model.encoder_layer_norm_first else "final_layer_norm"
    last = f"layers_{model.encoder_num_layers - 1}"

    def trains(path: tuple[Any, ...]) -> bool:
        names = [entry.key for entry in path]
        if names[0] in FROZEN_MODULES:
            return not frozen
        if model.model_type == "spidr" and names[0] == "student":
            unused_path = [unused] if model.encoder_layer_norm_first else [last, unused]
            return names[1:-1] != unused_path
        return True

    def pick(wanted: bool) -> Tree:
        return jax.tree_util.tree_map_with_path(
            lambda path, x: x if trains(path) == wanted else None, params
        )

    return pick(True), pick(False)


def merge(first: Tree, second: Tree) -> Tree:
    """Undo `split`."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, first, second, is_leaf=lambda x: x is None
    )


def freeze(opt_state: Any, model: ModelConfig) -> Any:
    """Drop the moments of extractor and projection, as the frozen phase has none."""

    def drop(state: Any) -> Any:
        if not isinstance(state, optax.ScaleByAdamState):
            return state
        mu, nu = (split(moments, model, frozen=True)[0] for moments in (state.mu, state.nu))
        return state._replace(mu=mu, nu=nu)

    return tuple(drop(state) for state in opt_state)
