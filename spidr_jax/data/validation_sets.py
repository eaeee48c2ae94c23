"""The sets that validation measures on, each cut into the same batches every time.

Crops and batches are functions of the set, the limits of training's batches and a constant seed:
of no seed of the run, of no step, nor of the devices and processes there are.
"""

from collections.abc import Iterator
from typing import NamedTuple

from spidr_jax.data import planned_audio
from spidr_jax.data.buckets import SHORTEST
from spidr_jax.data.corpus import open_manifest
from spidr_jax.data.plan import Plan, make_plan
from spidr_jax.data.sources import Source, parse_named

_SEED = 0
_MAX_BUCKETS = 4  # each is a program to compile
_ENOUGH = 0.95


class ValidationSet(NamedTuple):
    """A named corpus and the batches it is cut into, those of epoch 0 of the plan."""

    name: str
    source: Source
    plan: Plan


def open_sets(
    text: str,
    *,
    min_samples: int,
    max_samples: int,
    num_buckets: int,
    max_batch_samples: int,
    planned_devices: int,
) -> list[ValidationSet]:
    """Open "name:manifest,..." and cut each set into batches.

    A batch holds about as much audio as training gives one device, spread over the planned ones;
    less where the set is so small that such batches would leave much of it out.

    Args:
        text: the sets.
        min_samples: see `make_plan`, as all that follow.
        max_samples: longest crop.
        num_buckets: largest number of lengths; validation has four at most.
        max_batch_samples: most samples of training's batch on one device.
        planned_devices: devices that the global batch is planned for.

    Raises:
        ValueError: an entry or a manifest is malformed, or the set is too small.
        FileNotFoundError: a manifest is missing.
    """
    sets = []
    for name, manifest in parse_named(text, "validation", "name:manifest").items():
        try:
            source = Source(name, open_manifest(manifest))
            planned_audio.probe(source)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"config.validation: {name}: {manifest!r}: there is no such file"
            ) from None
        plan = plan_batches(
            source,
            min_samples=min_samples,
            max_samples=max_samples,
            num_buckets=min(num_buckets, _MAX_BUCKETS),
            largest=max(max_batch_samples // planned_devices, max_samples),
            planned_devices=planned_devices,
        )
        sets.append(ValidationSet(name, source, plan))
    return sets


def plan_batches(
    source: Source,
    *,
    min_samples: int,
    max_samples: int,
    num_buckets: int,
    largest: int,
    planned_devices: int,
) -> Plan:
    """Plan the largest batches that use nearly as much of a set's audio as any smaller ones do.

    Args:
        source: the set.
        min_samples: shorter utterances are left out.
        max_samples: no crop is longer.
        num_buckets: largest number of lengths.
        largest: samples of a batch for one planned device, at most.
        planned_devices: rows are a multiple of it.

    Raises:
        ValueError: the set fills no batch.
    """
    shortest = max(min_samples, SHORTEST)
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
                num_buckets=num_buckets,
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


def _sizes(largest: int, shortest: int) -> Iterator[int]:
    """Ever fewer samples, down to `shortest`, with which a batch takes a row a planned device."""
    while largest > shortest:
        yield largest
        largest = largest * 9 // 10
    yield shortest


def _used(plan: Plan) -> int:
    return sum(bucket * plan.rows[bucket] * plan.batches[bucket] for bucket in plan.buckets)


def describe(dataset: ValidationSet) -> str:
    """Say in a line what validation measures on, for the log."""
    plan, samples = dataset.plan, dataset.source.corpus.num_samples
    utterances = sum(plan.rows[bucket] * plan.batches[bucket] for bucket in plan.buckets)
    shapes = ", ".join(f"{plan.batches[r]} of {plan.rows[r]} x {r}" for r in plan.buckets)
    return (
        f"validation: {dataset.name}, {utterances} of {len(samples)} utterances, "
        f"{_used(plan) / samples.sum():.0%} of the audio, in {plan.batches_per_epoch} batches, by "
        f"rows x samples: {shapes}"
    )
