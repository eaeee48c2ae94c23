"""Validation of a run: training's metrics on held-out data, with the same masks every time.

Keys are functions of a batch's number and a constant seed: of no seed of the run nor of a step.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from spidr_jax.data import pipeline
from spidr_jax.eval.metrics import Key, key_text, of_set, parse_key
from spidr_jax.train import console, distributed, placement, watchdog
from spidr_jax.train.config import RunConfig
from spidr_jax.train.sinks import Logs
from spidr_jax.train.task import Metrics, State, Task

_SEED = 0


class Validation:
    """The validation sets of a run and their cadence."""

    def __init__(self, task: Task, config: RunConfig, mesh: Mesh) -> None:
        """Compute nothing yet.

        Raises:
            ValueError: nothing gives the metric `config.checkpoint.best`.
        """
        self._task, self._config, self._mesh = task, config, mesh
        self._eval_fn = make_eval_fn(task, mesh)
        best = config.checkpoint.best
        if best and best not in (allowed := self._names()):
            raise ValueError(
                f"config.checkpoint.best = {best!r}: allowed is "
                f"{', '.join(allowed) or 'a metric of config.validation, which is empty'}"
            )

    def due(self, step: int) -> bool:
        """Whether there is something to measure after `step` finished steps."""
        at_cadence = step % self._config.validation_every == 0 or step == self._config.steps
        return bool(self._task.validation) and at_cadence

    def measure(self, state: State, step: int, logs: Logs) -> dict[str, float]:
        """Measure, where it is due, the sets that the logs do not have yet, log and print.

        All processes take part; the state stays as it is.

        Args:
            state: state after `step` finished steps.
            step: number of finished steps.
            logs: destination of the values.

        Returns:
            `SET/METRIC` of each set: means over its batches.

        Raises:
            BadDataError: too much of a set cannot be read.
        """
        measured: dict[str, float] = {}
        for name in self._task.validation if self.due(step) else ():
            if distributed.all_gather_int(logs.has(step, key_text(Key(name, None, "loss"))))[0]:
                continue
            start = time.perf_counter()
            values = self._task.flatten(
                measure_set(self._eval_fn, self._task, state, name, self._mesh)
            )
            seconds = time.perf_counter() - start
            shown = console.shown(values, self._task.shown)
            distributed.print0(f"validation {name} after step {step}: {shown}  ({seconds:.1f} s)")
            named = of_set(name, values)
            logs.write(step, named)
            measured |= named
        return measured

    def _names(self) -> list[str]:
        """The metrics of all sets by which a checkpoint may be the best."""
        state = self._task.eval_state(placement.abstract_state(self._task, self._mesh, fsdp=False))
        names: list[str] = []
        for name, data in self._task.validation.items():
            batch = placement.abstract_batch(data.shapes(0, 1)[0], self._mesh)
            shapes = jax.eval_shape(self._eval_fn, state, batch, np.int32(0))
            values = self._task.flatten(jax.tree.map(lambda x: np.zeros(x.shape), shapes))
            shown = {n: v for n, v in values.items() if parse_key(n).name in self._task.shown}
            names += of_set(name, shown)
        return names


def make_eval_fn(task: Task, mesh: Mesh) -> Callable[[Any, Any, np.int32], Metrics]:
    """Make the jitted function (state, batch, its number) -> metrics."""
    step = task.make_eval_step()

    def evaluate(state: State, batch: Any, number: np.int32) -> Metrics:
        return step(state, batch, jax.random.fold_in(jax.random.key(_SEED), number))

    return jax.jit(evaluate, out_shardings=placement.replicated(mesh))


def measure_set(
    eval_fn: Callable[[Any, Any, np.int32], Metrics],
    task: Task,
    state: State,
    name: str,
    mesh: Mesh,
) -> dict[str, Any]:
    """Measure a state on a set: means over its batches, float64. All processes take part.

    Raises:
        BadDataError: too much of the set cannot be read.
    """
    data, state = task.validation[name], task.eval_state(state)
    found: list[Metrics] = []
    batches = pipeline.batches(
        data,
        put=lambda batch: placement.put_batch(batch, mesh),
        stop=data.num_batches,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    try:
        with batches:
            for number, batch in enumerate(batches):
                watchdog.beat(watchdog.SLOW_SECONDS)  # a batch of a new shape is compiled
                found.append(eval_fn(state, batch, np.int32(number)))
                jax.block_until_ready(found[-2:][0])  # batches must not pile up on the device
            data.check()
    except pipeline.BadDataError as error:
        raise pipeline.BadDataError(f"config.validation: {name}: {error}") from None
    host = jax.device_get(found)
    return jax.tree.map(lambda *each: np.mean(each, axis=0, dtype=np.float64), *host)
