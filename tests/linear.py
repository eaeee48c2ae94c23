"""Linear regression as a task: what a run needs to train something that is no speech model."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spidr_jax.data.pipeline import Data
from spidr_jax.train import command
from spidr_jax.train.config import RunConfig
from spidr_jax.train.task import Task


class State(NamedTuple):
    step: jax.Array
    params: jax.Array  # [3]


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    rate: float = 0.1


class Points(Data):
    def __init__(self, seed: int, num_batches: int | None = None) -> None:
        self.fingerprint, self.num_batches = f"seed {seed}", num_batches
        self._seed = seed

    def load(self, number: int, process_index: int, process_count: int) -> dict[str, np.ndarray]:
        x = np.random.default_rng((self._seed, number)).standard_normal((8, 3), np.float32)
        mine = np.split(x, process_count)[process_index]
        return {"x": mine, "y": mine @ np.array([1, -2, 3], np.float32)}


class Regression(Task):
    def __init__(self, config: Config) -> None:
        self.rate_of_learning = config.rate
        self.data, self.validation = Points(config.seed), {"dev": Points(99, num_batches=2)}

    def init_state(self, key: jax.Array) -> State:
        return State(jnp.zeros((), jnp.int32), jax.random.normal(key, (3,)))

    def loss(self, params: jax.Array, batch: Any) -> jax.Array:
        return jnp.square(batch["x"] @ params - batch["y"]).mean()

    def make_step(self, phase: int) -> Any:
        def step(state: State, batch: Any, key: jax.Array) -> Any:
            loss, gradient = jax.value_and_grad(self.loss)(state.params, batch)
            params = state.params - self.rate_of_learning * gradient
            return State(state.step + 1, params), {"loss": loss}

        return step

    def make_eval_step(self) -> Any:
        return lambda state, batch, key: {"loss": self.loss(state.params, batch)}


if __name__ == "__main__":
    command.main(Config, Regression, lambda folder: None)
