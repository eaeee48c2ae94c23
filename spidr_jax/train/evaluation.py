"""Evaluation of a run at a cadence, by the first process on one of its devices.

The other processes wait. Nothing of it enters training.
"""

import time

import jax
from jax.sharding import Mesh

from spidr_jax.data.audio import AudioError
from spidr_jax.data.pipeline import BadDataError
from spidr_jax.eval.metrics import key_text, of_set, parse_key
from spidr_jax.train import distributed, placement, watchdog
from spidr_jax.train.config import RunConfig
from spidr_jax.train.sinks import Logs
from spidr_jax.train.task import Evaluation, State, Task

MAX_SECONDS = 3600  # that the other processes wait for the one that evaluates


class Evaluations:
    """The evaluations of a run and their cadence."""

    def __init__(self, task: Task, config: RunConfig, mesh: Mesh) -> None:
        """Compute nothing yet."""
        self._task, self._config, self._mesh = task, config, mesh

    def due(self, step: int) -> bool:
        """Whether to evaluate after `step` finished steps."""
        every, ends = self._config.evaluation_every, (0, self._config.steps)
        return bool(self._task.evaluations) and (step in ends or bool(every and step % every == 0))

    def measure(self, state: State, step: int, logs: Logs) -> None:
        """Evaluate what the logs do not have yet, log and print. All processes take part.

        Args:
            state: state after `step` finished steps; it stays as it is.
            step: number of finished steps.
            logs: destination of `SET/METRIC` and `SET/METRIC/LAYER`.

        Raises:
            BadDataError: a set cannot be evaluated before training; later that only warns.
        """
        weights = placement.gather(self._task.weights(state), self._mesh)
        if distributed.is_first():
            here = jax.device_put(jax.device_get(weights), jax.local_devices()[0])
            for each in self._task.evaluations:
                if not logs.has(step, key_text(parse_key(each.key)._replace(set=each.name))):
                    self._measure(each, here, step, logs)
        distributed.barrier(f"evaluation after step {step}", MAX_SECONDS)

    def _measure(self, evaluation: Evaluation, weights: object, step: int, logs: Logs) -> None:
        name = evaluation.name
        watchdog.beat(MAX_SECONDS)
        start = time.perf_counter()
        distributed.tell(f"evaluating {name} after step {step}")
        try:
            values = evaluation.measure(weights)
        except (AudioError, OSError, ValueError, jax.errors.JaxRuntimeError) as error:
            text = f"config.evaluation: {name}: {' '.join(str(error).split())[:300]}"
            if step == 0:
                raise BadDataError(text) from None
            distributed.tell(f"warning: {text}")  # no reason to stop what trains well
            return
        logs.write(step, of_set(name, values))
        seconds = time.perf_counter() - start
        shown = evaluation.show(values)
        distributed.tell(f"evaluation {name} after step {step} ({seconds:.1f} s)\n{shown}")
