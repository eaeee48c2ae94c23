"""The interface of what a run trains: all that the loop asks for and does not know itself."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from spidr_jax.data.pipeline import Data

State = Any  # a NamedTuple of arrays with `step`, the int32 number of finished steps
Batch = dict[str, Any]
Metrics = dict[str, jax.Array]
StepFn = Callable[[State, Batch, jax.Array], tuple[State, Metrics]]
EvalFn = Callable[[State, Batch, jax.Array], Metrics]


class Evaluation(NamedTuple):
    """A measurement of the weights at a cadence, by the first process alone.

    Attributes:
        name: set of its metrics.
        key: metric that is there once the set has been evaluated.
        description: one line for the log.
        measure: function from the weights, on one device, to metrics by name or name/layer.
        show: function from those metrics to the terminal's lines.
    """

    name: str
    key: str
    description: str
    measure: Callable[[Any], dict[str, float]]
    show: Callable[[Mapping[str, float]], str]


class Task:
    """Base class of tasks. Nothing is opened or computed before `open`; work on arrays is pure.

    Attributes:
        phase_starts: steps from which another program and another structure of the state hold.
        shown: formats of the metrics that the terminal shows of training and validation.
        rate: name of the metric that says how much data a second trains on.
        replicated: entries of the state that fsdp does not split.
        data: the training batches.
        validation: held-out data by name.
        evaluations: other measurements at a cadence.
    """

    phase_starts: tuple[int, ...] = ()
    shown: Mapping[str, str] = {"loss": "loss {:.3f}"}
    rate: str = "batches_per_second"
    replicated: tuple[str, ...] = ()
    data: Data
    validation: Mapping[str, Data] = {}
    evaluations: Sequence[Evaluation] = ()

    def open(self, num_devices: int) -> None:
        """Open data and sets for so many devices.

        Raises:
            ValueError, OSError: they do not fit, in one line.
        """

    def init_state(self, key: jax.Array) -> State:
        """Draw the state before the first step."""
        raise NotImplementedError

    def adopt(self, state: State, path: str) -> State:
        """The drawn state with the weights that lie at `path`."""
        raise ValueError(f"config.init_from = {path!r}: this task starts from no other weights")

    def enter(self, phase: int, state: State) -> State:
        """The state as a phase has it, from that of the phase before."""
        return state

    def make_step(self, phase: int) -> StepFn:
        """The step function of a phase; `skipped` among its metrics counts undone updates."""
        raise NotImplementedError

    def make_eval_step(self) -> EvalFn:
        """The function that validates a batch."""
        raise NotImplementedError

    def eval_state(self, state: State) -> State:
        """The state as validation takes it: of one structure in all phases."""
        return state

    def weights(self, state: State) -> Any:
        """What evaluations take of the state."""
        return state.params

    def flatten(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """A step's metrics on the host as numbers by name."""
        return {name: np.asarray(value).item() for name, value in metrics.items()}

    def amount(self, batch: Batch) -> float:
        """How much data a global batch holds, in what `rate` counts."""
        return 1.0

    def describe(self, state: State) -> str:
        """Lines about the model and its data, when a run begins."""
        return ""

    def watch(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Warn of what looks wrong in logged metrics."""
