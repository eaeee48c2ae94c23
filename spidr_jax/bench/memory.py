"""How many utterances a device's memory holds, from what XLA's compiler plans; nothing runs.

A step's memory grows linearly with the rows of its batch: two compilations give the line, a third
in between checks it. Sizes of devices are in GiB, as their makers' "GB" is.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax

from spidr_jax.bench import targets
from spidr_jax.bench.targets import Machine
from spidr_jax.method.step import StepConfig
from spidr_jax.train import sharding

ROWS = (1, 2, 4, 8, 16)
_MEASURED, _CHECKED = (2, 16), 8
_EXACT = 0.03  # what the check may be off before it is said


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory of a step on one device, in bytes.

    Attributes:
        name: of the variant.
        state: parameters, moments, teacher, codebooks: exact.
        fixed: state and whatever else does not grow with the rows.
        row: what each row adds.
        check: planned for `_CHECKED` rows, over what the line says for them.
    """

    name: str
    state: int
    fixed: float
    row: float
    check: float

    def of(self, rows: int) -> float:
        """Bytes for so many rows."""
        return self.fixed + rows * self.row

    def most_rows(self, size: float) -> int:
        """The most rows that fit so many bytes, 0 if none do."""
        return max(0, math.floor((size - self.fixed) / self.row))


def planned_bytes(compiled: jax.stages.Compiled) -> int:
    """Bytes of device memory that a program needs: arguments, results and temporary arrays."""
    memory = compiled.memory_analysis()
    assert memory is not None  # CPU and GPU give one
    whole = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return whole - memory.alias_size_in_bytes  # results that take over an argument's place


def measure(name: str, config: StepConfig, machine: Machine, samples: int, frozen: bool) -> Memory:
    """Compile a step for three numbers of rows and read what memory it needs.

    Args:
        name: of the variant, for the table.
        config: what to compute.
        machine: what for.
        samples: of an utterance.
        frozen: the phase from `freeze_step` on.
    """
    # on CPU, not to optimise the machine's code, which has no part in memory
    fast = {"xla_backend_optimization_level": "0"} if machine.device.platform == "cpu" else {}
    planned = {}
    for rows in (*_MEASURED, _CHECKED):
        compiled, state = targets.compile_step(machine, config, rows, samples, frozen, fast)
        planned[rows] = planned_bytes(compiled)
    low, high = _MEASURED
    row = (planned[high] - planned[low]) / (high - low)
    fixed = planned[low] - low * row
    check = planned[_CHECKED] / (fixed + _CHECKED * row)
    return Memory(name, sharding.device_bytes(state), fixed, row, check)


def bench_memory(
    variants: Mapping[str, StepConfig], machine: Machine, *, samples: int, frozen: bool = False
) -> list[Memory]:
    """Measure the memory of each variant of a step; see `measure`."""
    return [measure(name, config, machine, samples, frozen) for name, config in variants.items()]


def table(
    found: Sequence[Memory], machine: Machine, sizes: Sequence[int], reserve: float, samples: int
) -> str:
    """Two tables in Markdown: memory of batches, and the largest batches of devices.

    Args:
        found: a line each.
        machine: what they were measured for.
        sizes: of devices, in GiB.
        reserve: the share of a device to leave free.
        samples: of an utterance.
    """
    lines = [
        f"GiB of one device for batches of rows x {samples:,} samples, planned by the compiler for "
        f"{machine.name}",
        "",
        _line("step", "state", *(f"{rows} rows" for rows in ROWS)),
        _line(*["---"] * (2 + len(ROWS))),
    ]
    for each in found:
        sums = (each.of(rows) for rows in ROWS)
        lines.append(_line(each.name, *(f"{x / 2**30:.2f}" for x in (each.state, *sums))))
    lines += [
        "",
        f"the most rows on a device, {reserve:.0%} of which stay free",
        "",
        _line("step", *(f"{size} GB" for size in sizes)),
        _line(*["---"] * (1 + len(sizes))),
    ]
    for each in found:
        most = (each.most_rows((1 - reserve) * size * 2**30) for size in sizes)
        lines.append(_line(each.name, *map(str, most)))
    return "\n".join([*lines, *_notes(found, machine)])


def _notes(found: Sequence[Memory], machine: Machine) -> list[str]:
    notes = [
        f"warning: {each.name} is not linear in rows: {_CHECKED} rows take {each.check:.2f} times "
        "what the line says"
        for each in found
        if abs(each.check - 1) > _EXACT
    ]
    if machine.device.platform == "cpu":
        notes.append(
            "a CPU's plan: its compiler fuses less and keeps some bfloat16 arrays as float32. "
            "--target h100 asks a GPU's compiler, also without a GPU"
        )
    notes += targets.notes(machine)
    return ["", *notes] if notes else []


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
