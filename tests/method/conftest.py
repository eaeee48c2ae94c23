"""Compiled steps, for all tests of them."""

import jax
import pytest
import steps

from spidr_jax.method.step import TrainState, init_state, make_eval_step


@pytest.fixture(scope="session")
def state() -> TrainState:
    return jax.jit(init_state, static_argnums=0)(steps.CONFIG, jax.random.key(0))


@pytest.fixture(scope="session")
def step() -> steps.Step:
    return steps.compiled(steps.CONFIG)


@pytest.fixture(scope="session")
def plain_step() -> steps.Step:
    """Without dropout."""
    return steps.compiled(steps.NO_DROPOUT)


@pytest.fixture(scope="session")
def evaluate() -> steps.Evaluate:
    evaluate = jax.jit(make_eval_step(steps.CONFIG))
    return lambda state, batch, key: jax.device_get(evaluate(state, batch, key))
