"""Utterances that a device's memory holds, from what XLA's compiler plans; nothing runs.

A step's memory grows linearly with the rows of its batch: two compilations give the line. Sizes of
devices are in GiB, as their makers' "GB" is.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax

from spidr_jax.bench import targets
from spidr_jax.bench.setups import Setup
from spidr_jax.bench.targets import Machine
from spidr_jax.pretraining import Pretraining

_MEASURED = (2, 16)  # rows
_SHOWN = (1, 2, 4, 8, 16)
_RESERVE = 0.25  # of a device stays free: JAX itself takes 75 % of a GPU


class Memory(NamedTuple):
    """Memory of a step on one device, in bytes.

    Attributes:
        state: parameters, moments, teacher, codebooks: exact.
        fixed: state and whatever else does not grow with the rows.
        row: bytes that each row adds.
    """

    state: int
    fixed: float
    row: float

    def of(self, rows: int) -> float:
        """Bytes for so many rows."""
        return self.fixed + rows * self.row

    def most_rows(self, size: float) -> int:
        """The most rows that fit so many bytes, 0 if none do."""
        return max(0, math.floor((size - self.fixed) / self.row))


def planned_bytes(compiled: jax.stages.Compiled) -> int:
    """Bytes of device memory that a program needs: arguments, results and temporary arrays."""
    memory = compiled.memory_analysis()
    assert memory is not None  # CPU, GPU and TPU give one
    whole = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return whole - memory.alias_size_in_bytes  # results that take over an argument's place


def bench_memory(setup: Setup, machine: Machine, frozen: bool = False) -> Memory:
    """Compile a step for two numbers of rows and read what memory it needs.

    Args:
        setup: a config and the samples of an utterance.
        machine: device to compile for.
        frozen: the phase from `freeze_step` on.
    """
    low, high = _MEASURED
    lower, higher = (
        targets.compile_step(machine, Pretraining(setup.config), rows, setup.samples, frozen)
        for rows in _MEASURED
    )
    row = (planned_bytes(higher) - planned_bytes(lower)) / (high - low)
    state, *_ = lower.args_info[0]
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))
    return Memory(size, planned_bytes(lower) - low * row, row)


def table(found: Memory, machine: Machine, sizes: Sequence[int], samples: int) -> str:
    """Tables in Markdown: memory of batches, and the largest batches of devices.

    Args:
        found: result of `bench_memory`.
        machine: device that it was compiled for.
        sizes: sizes of devices in GiB.
        samples: samples of an utterance.
    """
    needed = {"state": found.state} | {f"{rows} rows": found.of(rows) for rows in _SHOWN}
    most = {f"{size} GB": found.most_rows((1 - _RESERVE) * size * 2**30) for size in sizes}
    text = (
        f"GiB of one device for batches of rows x {samples:,} samples, planned by the compiler for "
        f"{machine.name}\n\n{_row(needed)}\n{_row(['---'] * len(needed))}\n"
        f"{_row(f'{size / 2**30:.2f}' for size in needed.values())}\n\n"
        f"the most rows on a device, {_RESERVE:.0%} of which stay free\n\n"
        f"{_row(most)}\n{_row(['---'] * len(most))}\n{_row(map(str, most.values()))}"
    )
    if machine.platform == "cpu":
        text += (
            "\n\na CPU's plan: its compiler fuses less and keeps some bfloat16 arrays as float32. "
            "--target h100 asks a GPU's compiler, also without a GPU"
        )
    return text


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
