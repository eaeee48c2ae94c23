"""A run's two phases, before and from `freeze_step` on, on a mesh of devices: their state and step.

`init_state` and `jit_step` place what `train_step` computes; nothing else knows of shardings.
"""

import contextlib
from collections.abc import Iterator
from functools import partial

import jax
from jax.sharding import Mesh

from spidr_jax.method import optim
from spidr_jax.method import step as train_step
from spidr_jax.method.step import StepConfig, TrainState
from spidr_jax.train import sharding


def abstract_state(config: StepConfig, mesh: Mesh, fsdp: bool, frozen: bool) -> TrainState:
    """Shapes, types and shardings of the state of a phase."""
    state = jax.eval_shape(lambda: train_step.init_state(config, jax.random.key(0)))
    if frozen:
        state = freeze(config, state)
    shardings = sharding.state_shardings(state, mesh, fsdp)
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state, shardings
    )


def init_state(config: StepConfig, mesh: Mesh, fsdp: bool, key: jax.Array) -> TrainState:
    """Draw the state before the first step, each device its part."""
    state = abstract_state(config, mesh, fsdp, frozen=False)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    with _threefry_as_one_kernel():
        return jax.jit(partial(train_step.init_state, config), out_shardings=shardings)(key)


@contextlib.contextmanager
def _threefry_as_one_kernel() -> Iterator[None]:
    """Let GPUs draw the same numbers with far less to compile: 6 s instead of 50 on an H100."""
    before = jax.config.values["jax_threefry_gpu_kernel_lowering"]
    jax.config.update("jax_threefry_gpu_kernel_lowering", True)
    try:
        yield
    finally:
        jax.config.update("jax_threefry_gpu_kernel_lowering", before)


def jit_step(config: StepConfig, mesh: Mesh, fsdp: bool, frozen: bool) -> jax.stages.Wrapped:
    """The jitted training step of a phase, which takes over (donates) its state argument."""
    state = abstract_state(config, mesh, fsdp, frozen)
    return jax.jit(
        train_step.make_train_step(config, frozen),
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda x: x.sharding, state), sharding.replicated(mesh)),
    )


def freeze(config: StepConfig, state: TrainState) -> TrainState:
    """Drop what the second phase does without."""
    return state._replace(opt_state=optim.freeze(state.opt_state, config.model))
