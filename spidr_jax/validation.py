"""Validation of a run: what training measures, on held-out speech, always on the same batches.

Crops, batches and masks are functions of the set and of constants only: of no seed of the run, of
no step, nor of the devices and processes.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from spidr_jax import metrics, sharding, train_step
from spidr_jax.data import ladder, pipeline
from spidr_jax.data.corpus import open_manifest
from spidr_jax.data.plan import Plan, make_plan
from spidr_jax.data.sources import Source
from spidr_jax.train_step import StepConfig, TrainState

EvalFn = Callable[[TrainState, train_step.Batch, np.int32], train_step.Metrics]
_SEED = 0
_MAX_RUNGS = 4  # each is a program to compile
_ENOUGH = 0.95
_METRICS = ("loss", "target_ppl", "pred_ppl", "active_codes")


class ValidationSet(NamedTuple):
    """A named corpus and the batches it is cut into, those of epoch 0 of the plan."""

    name: str
    source: Source
    plan: Plan


def parse_sets(text: str) -> dict[str, str]:
    """Read "name:manifest,..." (the manifest may itself hold colons, as URLs do).

    Raises:
        ValueError: naming the entry and what is wrong with it.
    """
    sets: dict[str, str] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, _, manifest = entry.partition(":")
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or not manifest:
            raise ValueError(f"config.validation: {entry!r} is not name:manifest")
        if name in sets:
            raise ValueError(f"config.validation: the name {name!r} stands twice")
        sets[name] = manifest
    return sets


def open_sets(
    text: str,
    *,
    min_samples: int,
    max_samples: int,
    num_rungs: int,
    max_batch_samples: int,
    planned_devices: int,
    num_devices: int,
) -> list[ValidationSet]:
    """Open "name:manifest,..." and cut each set into batches.

    A batch holds about as much audio as training gives one device, spread over the planned ones;
    less where the set is so small that such batches would leave much of it out.

    Args:
        text: the sets.
        min_samples: as of training's plan, and so are the next four.
        max_samples: see above.
        num_rungs: see above; validation has four lengths at most.
        max_batch_samples: see above.
        planned_devices: see above.
        num_devices: those there are.

    Raises:
        ValueError: an entry or a manifest is malformed, or the set is too small.
        FileNotFoundError: a manifest is missing.
    """
    sets = []
    for name, manifest in parse_sets(text).items():
        try:
            source = Source(name, open_manifest(manifest))
            pipeline.probe(source)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"config.validation: {name}: {manifest!r}: there is no such file"
            ) from None
        plan = plan_batches(
            source,
            min_samples=min_samples,
            max_samples=max_samples,
            num_rungs=min(num_rungs, _MAX_RUNGS),
            largest=max(max_batch_samples // planned_devices, max_samples),
            planned_devices=planned_devices,
        )
        for rung, rows in plan.rows.items():
            if rows % num_devices:
                raise ValueError(
                    f"config.data.planned_devices = {planned_devices}: {rows} rows of {rung} "
                    f"samples of config.validation's {name} do not divide among {num_devices} "
                    "devices; allowed is a multiple"
                )
        sets.append(ValidationSet(name, source, plan))
    return sets


def plan_batches(
    source: Source,
    *,
    min_samples: int,
    max_samples: int,
    num_rungs: int,
    largest: int,
    planned_devices: int,
) -> Plan:
    """Plan the largest batches that use nearly as much of a set's audio as any smaller ones do.

    Args:
        source: the set.
        min_samples: shorter utterances are left out.
        max_samples: no crop is longer.
        num_rungs: at most so many lengths.
        largest: samples of a batch for one planned device, at most.
        planned_devices: rows are a multiple of it.

    Raises:
        ValueError: the set fills no batch.
    """
    shortest = max(min_samples, ladder.SHORTEST)
    usable = int((source.corpus.num_samples >= shortest).sum())
    if usable < planned_devices:
        raise ValueError(
            f"config.validation: {source.name}: {usable} of its {len(source.corpus)} utterances "
            f"have {shortest} samples or more, and a batch takes {planned_devices}: add "
            "utterances, or lower config.data.planned_devices or config.data.min_samples"
        )
    plans = []
    for samples in _sizes(largest, shortest):
        try:
            plan = make_plan(
                [source],
                min_samples=min_samples,
                max_samples=max_samples,
                num_rungs=num_rungs,
                max_batch_samples=samples,
                planned_devices=planned_devices,
                seed=_SEED,
                warn=False,
            )
        except ValueError:  # no batch is filled: the next size is smaller
            continue
        plans.append(plan)
    most = max(map(_used, plans))
    return next(plan for plan in plans if _used(plan) >= _ENOUGH * most)


def _sizes(largest: int, shortest: int) -> Iterable[int]:
    """Halves of `largest`, down to `shortest`, at which a batch takes a row a planned device."""
    while largest > shortest:
        yield largest
        largest //= 2
    yield shortest


def _used(plan: Plan) -> int:
    return sum(rung * plan.rows[rung] * plan.batches[rung] for rung in plan.rungs)


def describe(dataset: ValidationSet) -> str:
    """Say in a line what validation measures on, for the log."""
    plan, samples = dataset.plan, dataset.source.corpus.num_samples
    utterances = sum(plan.rows[rung] * plan.batches[rung] for rung in plan.rungs)
    shapes = ", ".join(f"{plan.batches[r]} of {plan.rows[r]} x {r}" for r in plan.rungs)
    return (
        f"validation: {dataset.name}, {utterances} of {len(samples)} utterances, "
        f"{_used(plan) / samples.sum():.0%} of the audio, in {plan.batches_per_epoch} batches, by "
        f"rows x samples: {shapes}"
    )


def names(sets: Iterable[ValidationSet], layers: Sequence[int]) -> list[str]:
    """The metrics by which a checkpoint can be the best, as metrics.jsonl names them."""
    return [
        f"{dataset.name}_{metric}"
        for dataset in sets
        for name in _METRICS
        for metric in (name, *(f"{name.removesuffix('_codes')}_{layer}" for layer in layers))
    ]


def make_eval_fn(config: StepConfig, mesh: Mesh) -> EvalFn:
    """Make the jitted function (state, batch, its number) -> metrics; it ignores the moments."""
    step = train_step.make_eval_step(config)

    def evaluate(
        state: TrainState, batch: train_step.Batch, number: np.int32
    ) -> train_step.Metrics:
        return step(state, batch, jax.random.fold_in(jax.random.key(_SEED), number))

    return jax.jit(evaluate, out_shardings=sharding.replicated(mesh))


def measure(
    eval_fn: EvalFn,
    state: TrainState,
    dataset: ValidationSet,
    mesh: Mesh,
    layers: Sequence[int],
    *,
    num_threads: int = 2,
    max_bad_share: float = 0.01,
) -> dict[str, float]:
    """Measure a state on a set: means over its batches. All processes take part.

    Args:
        eval_fn: of `make_eval_fn`.
        state: it stays as it is.
        dataset: the set.
        mesh: the devices.
        layers: numbers of the layers that have a codebook.
        num_threads: that decode.
        max_bad_share: of the set's utterances that may be unreadable.

    Returns:
        `NAME_loss`, `NAME_target_ppl`, `NAME_pred_ppl`, `NAME_active_codes`, `NAME_masked_frames`,
        and of each layer K `NAME_loss_K`, `NAME_target_ppl_K`, `NAME_pred_ppl_K`, `NAME_active_K`.

    Raises:
        BadDataError: too many utterances cannot be read.
    """
    state = state._replace(opt_state=None)  # freezing changes its structure: one program for both
    found: list[Any] = []
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
                found.append(eval_fn(state, batch, np.int32(number)))
                jax.block_until_ready(found[-2:][0])  # batches must not pile up on the device
    except pipeline.BadDataError as error:
        raise pipeline.BadDataError(f"config.validation: {dataset.name}: {error}") from None
    values = jax.tree.map(
        lambda *each: np.mean(each, axis=0, dtype=np.float64), *jax.device_get(found)
    )
    flat = metrics.flatten(values, layers)
    return {f"{dataset.name}_{name}": value for name, value in flat.items()}
