"""Validation of a run: what training measures, on held-out speech, with the same masks every time.

Masks are functions of a batch's number and a constant seed: of no seed of the run nor of a step.
"""

import time
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from spidr_jax.data import pipeline
from spidr_jax.eval.metrics import Key, key_text, parse_key
from spidr_jax.method import step as train_step
from spidr_jax.method.step import StepConfig, TrainState
from spidr_jax.train import console as progress
from spidr_jax.train import distributed, metrics, sharding, watchdog
from spidr_jax.train.sinks import Logs
from spidr_jax.train.validation_sets import ValidationSet, describe, open_sets

EvalFn = Callable[[TrainState, train_step.Batch, np.int32], train_step.Metrics]
_SEED = 0
_METRICS = ("loss", "target_ppl", "pred_ppl", "active_codes")


def make_eval_fn(config: StepConfig, mesh: Mesh) -> EvalFn:
    """Make the jitted function (state, batch, its number) -> metrics; it ignores the moments."""
    step = train_step.make_eval_step(config)

    def evaluate(
        state: TrainState, batch: train_step.Batch, number: np.int32
    ) -> train_step.Metrics:
        return step(state, batch, jax.random.fold_in(jax.random.key(_SEED), number))

    return jax.jit(evaluate, out_shardings=sharding.replicated(mesh))


def measure_set(
    eval_fn: EvalFn,
    state: TrainState,
    dataset: ValidationSet,
    mesh: Mesh,
    *,
    num_threads: int,
    max_bad_share: float,
) -> train_step.Metrics:
    """Measure a state on a set: means over its batches. All processes take part.

    Args:
        eval_fn: of `make_eval_fn`.
        state: it stays as it is.
        dataset: the set.
        mesh: the devices.
        num_threads: that decode.
        max_bad_share: of the set's utterances that may be unreadable.

    Returns:
        The values of `make_eval_step`, float64 on the host.

    Raises:
        BadDataError: too many utterances cannot be read.
    """
    state = state._replace(opt_state=None)  # freezing changes its structure: one program for both
    found: list[train_step.Metrics] = []
    batches = pipeline.batches(
        [dataset.source],
        dataset.plan,
        put=lambda batch: sharding.put_batch(batch, mesh),
        stop=dataset.plan.batches_per_epoch,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_threads=num_threads,
        max_bad_share=max_bad_share,
    )
    try:
        with batches:
            for number, batch in enumerate(batches):
                watchdog.beat(watchdog.SLOW_SECONDS)  # a batch of a new shape is compiled
                found.append(eval_fn(state, batch, np.int32(number)))
                jax.block_until_ready(found[-2:][0])  # batches must not pile up on the device
            batches.bad.check()
    except pipeline.BadDataError as error:
        raise pipeline.BadDataError(f"config.validation: {dataset.name}: {error}") from None
    return jax.tree.map(
        lambda *each: np.mean(each, axis=0, dtype=np.float64), *jax.device_get(found)
    )


class Validation:
    """What a run measures on held-out speech, and when."""

    def __init__(
        self,
        text: str,
        config: StepConfig,
        mesh: Mesh,
        *,
        every: int,
        steps: int,
        best: str,
        num_threads: int,
        max_bad_share: float,
        **plan: int,
    ) -> None:
        """Open the sets; nothing is computed yet.

        Args:
            text: "name:manifest,...", empty for none.
            config: what a training step computes.
            mesh: the devices.
            every: steps between two validations.
            steps: after which the run ends.
            best: the metric in which a checkpoint shall be the best, empty for none.
            num_threads: that decode.
            max_bad_share: of a set's utterances that may be unreadable.
            plan: the other arguments of `open_sets`.

        Raises:
            ValueError: an entry or a manifest is malformed, a set is too small, or nothing gives
                the metric `best`.
            FileNotFoundError: a manifest is missing.
        """
        self.sets = open_sets(text, num_devices=mesh.size, **plan)
        self._mesh, self._every, self._steps = mesh, every, steps
        self._layers = config.model.codebook_layers
        self._eval_fn = make_eval_fn(config, mesh)
        self._num_threads, self._max_bad_share = num_threads, max_bad_share
        allowed = self._names()
        if best and best not in allowed:
            raise ValueError(
                f"config.checkpoint.best = {best!r}: allowed is "
                f"{', '.join(allowed) or 'a metric of config.validation, which is empty'}"
            )

    def introduce(self) -> None:
        """Say what the sets are."""
        for dataset in self.sets:
            distributed.print0(describe(dataset))

    def due(self, step: int) -> bool:
        """Whether there is something to measure after `step` finished steps."""
        return bool(self.sets) and (step % self._every == 0 or step == self._steps)

    def measure(self, state: TrainState, step: int, logs: Logs) -> dict[str, float]:
        """Measure, where it is due, the sets that the logs do not have yet, log and print.

        All processes take part; the state stays as it is.

        Args:
            state: after `step` finished steps.
            step: see above.
            logs: where the values go.

        Returns:
            `NAME/loss`, `NAME/target_ppl`, `NAME/pred_ppl`, `NAME/active_codes` and
            `NAME/masked_frames` of each set, means over its batches, and all but the last of each
            layer K: `NAME/loss/K`.

        Raises:
            BadDataError: too many utterances cannot be read.
        """
        measured: dict[str, float] = {}
        for dataset in self.sets if self.due(step) else ():
            if distributed.all_gather_int(
                logs.has(step, key_text(Key(dataset.name, None, "loss")))
            )[0]:
                continue
            start = time.perf_counter()
            values = metrics.flatten(self._measure(state, dataset), self._layers)
            if distributed.is_first():
                seconds = time.perf_counter() - start
                progress.report_validation(step, dataset.name, values, seconds)
            keys = {name: parse_key(name)._replace(set=dataset.name) for name in values}
            named = {key_text(keys[name]): value for name, value in values.items()}
            logs.write(step, named)
            measured |= named
        return measured

    def _measure(self, state: TrainState, dataset: ValidationSet) -> train_step.Metrics:
        return measure_set(
            self._eval_fn,
            state,
            dataset,
            self._mesh,
            num_threads=self._num_threads,
            max_bad_share=self._max_bad_share,
        )

    def _names(self) -> list[str]:
        return [
            key_text(Key(dataset.name, layer, name))
            for dataset in self.sets
            for name in _METRICS
            for layer in (None, *self._layers)
        ]
