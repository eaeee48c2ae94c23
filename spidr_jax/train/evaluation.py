"""Evaluation while a run trains: what its layers are worth, at a cadence, in a share of the time.

The first process evaluates on one of its devices, the others wait. Nothing of it enters training.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from spidr_jax.data.audio import AudioError
from spidr_jax.data.pipeline import BadDataError
from spidr_jax.eval.metrics import Key, key_text
from spidr_jax.eval.results import Measured
from spidr_jax.inference import outputs as measure
from spidr_jax.inference.datasets import open_sets
from spidr_jax.inference.forward import make_joint_forward
from spidr_jax.inference.outputs import AbxOptions, EvaluationSet
from spidr_jax.method.step import StepConfig, TrainState
from spidr_jax.model import model
from spidr_jax.train import console as progress
from spidr_jax.train import distributed, metrics, sharding, watchdog
from spidr_jax.train.sinks import Logs

ABX = AbxOptions(max_size_group=10, max_x_across=5)  # the field's limits; the same draw every time
MAX_SECONDS = 3600  # that the other processes wait for the one that evaluates
_BATCH_SAMPLES = 640_000
_QUALITY = ("pnmi", "phone_purity", "cluster_purity")


class TimeShare:
    """Keeps what is done again and again within a share of the time."""

    def __init__(self, share: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Allow `share`, above 0 to 1, of the time from now on."""
        self.share, self._clock = share, clock
        self._begun, self._spent, self.last = clock(), 0.0, 0.0

    def allows(self) -> bool:
        """Whether all that was done and once more, as long as the last, are within the share."""
        elapsed = self._clock() - self._begun
        return self._spent + self.last <= self.share * (elapsed + self.last)

    @contextlib.contextmanager
    def spending(self) -> Iterator[None]:
        """Count the time inside."""
        start = self._clock()
        try:
            yield
        finally:
            self.last = self._clock() - start
            self._spent += self.last


class RunEvaluation:
    """What a run measures of its layers, and when."""

    def __init__(
        self,
        text: str,
        config: StepConfig,
        mesh: Mesh,
        *,
        every: int,
        share: TimeShare,
        steps: int,
        log_every: int,
    ) -> None:
        """Open the sets; nothing is computed yet.

        Args:
            text: "name:manifest:alignment:item,...", empty for none.
            config: what a training step computes.
            mesh: the devices.
            every: steps between two evaluations, 0 for those of the start and the end alone.
            share: of the time that they may take; the start's and the end's take theirs anyway.
            steps: after which the run ends.
            log_every: steps after which one that was put off is thought of again.

        Raises:
            ValueError: an entry is malformed, or its files are or do not fit each other.
            FileNotFoundError: a file is missing.
        """
        self._sets = open_sets(text)
        self._model, self._mesh, self._steps = config.model, mesh, steps
        self._every, self._log_every, self._time = every, log_every, share
        self._layers = {found.name: self._asked(found) for found in self._sets}
        self._forwards = {
            tuple(asked): make_joint_forward(config.model, config.dtype, asked)
            for asked in self._layers.values()
        }
        self._measured, self._told = -1, False

    def _asked(self, evaluation: EvaluationSet) -> dict[str, tuple[int, ...]]:
        kinds = [("units", evaluation.phones), ("codebooks", evaluation.items)]
        return {kind: self._model.codebook_layers for kind, known in kinds if known is not None}

    def begin(self, folder: Path) -> None:
        """Begin where the run goes on, and say what will be measured. All processes take part.

        Args:
            folder: the run's, with no metrics beyond that.
        """
        lines = metrics.read(folder / "metrics.jsonl") if distributed.is_first() else []
        found = [
            max((line["step"] for line in lines if self._name(each) in line), default=-1)
            for each in self._sets
        ]
        self._measured = distributed.all_gather_int(min(found, default=-1))[0]
        for each in self._sets:
            items = "no ABX" if each.items is None else f"{len(each.items.first)} ABX items"
            seconds = each.corpus.num_samples.sum() / 16_000
            distributed.print0(
                f"evaluation: {each.name}, {len(each.corpus)} utterances, {seconds:,.0f} s, "
                f"{'no ' if each.phones is None else ''}phones, {items}"
            )

    def _name(self, evaluation: EvaluationSet) -> str:
        """A metric that is there where the set has been measured."""
        kind = "abx_across" if evaluation.phones is None else "pnmi"
        return key_text(Key(evaluation.name, self._model.encoder_num_layers, kind))

    def due(self, step: int) -> bool:
        """Whether to measure after `step` finished steps; all processes must ask."""
        if not self._sets or step <= self._measured:
            return False
        if step in (0, self._steps):
            return True
        if not self._every or step // self._every == self._measured // self._every:
            return False
        if step % self._every and step % self._log_every:  # asking others at each step is slow
            return False
        allowed = bool(distributed.all_gather_int(self._time.allows())[0])
        if not allowed and not self._told:
            self._told = True
            distributed.print0(
                f"evaluation put off after step {step}, and later ones without a word: the last "
                f"took {self._time.last:.1f} s, and config.evaluation_share = {self._time.share} "
                "of the time has been used"
            )
        return allowed

    def measure(self, state: TrainState, step: int, logs: Logs) -> None:
        """Measure the sets that the logs do not have yet, log and print. All processes take part.

        Args:
            state: after `step` finished steps; it stays as it is.
            step: see above.
            logs: get `NAME/pnmi/K`, `NAME/phone_purity/K` and `NAME/cluster_purity/K` of the units
                and `NAME/abx_within/K` and `NAME/abx_across/K` of the codebook predictions of
                each predicted layer K, as far as phones and items are known.

        Raises:
            BadDataError: a set cannot be measured before training; later that only warns.
        """
        with self._time.spending():
            params = sharding.gather(state.params, self._mesh)
            if distributed.is_first():
                here = jax.device_put(jax.device_get(params), jax.local_devices()[0])
                for each in self._sets:
                    if not logs.has(step, self._name(each)):
                        self._measure(each, here, step, logs)
            distributed.barrier(f"evaluation after step {step}", MAX_SECONDS)
        self._measured = step

    def _measure(
        self, evaluation: EvaluationSet, params: model.Params, step: int, logs: Logs
    ) -> None:
        watchdog.beat(MAX_SECONDS)
        start = time.perf_counter()
        try:
            rows = self._rows(evaluation, params)
        except (AudioError, OSError, ValueError, jax.errors.JaxRuntimeError) as error:
            text = f"config.evaluation: {evaluation.name}: {' '.join(str(error).split())[:300]}"
            if step == 0:
                raise BadDataError(text) from None
            distributed.tell(f"warning: {text}")  # no reason to stop what trains well
            return
        logs.write(step, named(evaluation.name, rows))
        progress.report_evaluation(step, evaluation.name, rows, time.perf_counter() - start)

    def _rows(self, evaluation: EvaluationSet, params: model.Params) -> list[Measured]:
        asked = self._layers[evaluation.name]
        stream = measure.of_model(
            self._forwards[tuple(asked)],
            params,
            self._model,
            evaluation.corpus,
            _BATCH_SAMPLES,
            title="",
        )
        with measure.collected(stream, asked) as outputs:

            def rows(kind: str, known: EvaluationSet) -> list[Measured]:
                arrays = {k: array for k, array in outputs.arrays.items() if k[0] == kind}
                units = {kind: self._model.codebook_size}
                return measure.measure(known, outputs._replace(arrays=arrays), units, ABX)

            of_units = rows("units", evaluation._replace(items=None))
            return of_units + rows("codebooks", evaluation._replace(phones=None))


def named(name: str, rows: Sequence[Measured]) -> dict[str, Any]:
    """The numbers of a set by the names that metrics.jsonl has; see `RunEvaluation.measure`."""
    values: dict[str, Any] = {}
    for row in rows:
        if row.quality is not None:
            found = {measure: getattr(row.quality, measure) for measure in _QUALITY}
        else:
            found = {f"abx_{task}": each.error for task, each in (row.abx or {}).items()}
        values |= {key_text(Key(name, row.layer, key)): value for key, value in found.items()}
    return values
