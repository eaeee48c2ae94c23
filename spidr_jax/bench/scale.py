"""What a training step asks of each of many devices: memory, and bytes between devices.

XLA compiles the real step for so many CPU devices, which need not exist; nothing runs. Bytes of the
state follow from its shardings. Collectives are read from the program that XLA's partitioner hands
to every backend, before one changes it: CPUs go on in float32 where others keep bfloat16.
"""

import dataclasses
import math
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from spidr_jax.method.step import StepConfig, TrainState
from spidr_jax.train import config as config_lib
from spidr_jax.train import config_file, phases, sharding
from spidr_jax.train import programs as compilation

KINDS = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all", "collective-permute")
_OPERATION = re.compile(rf"^\s*(?:ROOT )?(%\S+) = (.+?) ({'|'.join(KINDS)})\(([^)]*)\)")
_ARRAY = re.compile(r"[a-z]+(\d+)\[([\d,]*)\]")
_PARTITIONED = "*after_spmd-partitioning*.txt"
_DUMP: dict[str, str | bool] = {
    "xla_dump_hlo_pass_re": "spmd-partitioning",
    "xla_backend_optimization_level": "0",
}


class Collective(NamedTuple):
    """One exchange among all devices; `size` is in bytes of its whole array."""

    kind: str
    size: int

    def sent(self, devices: int) -> float:
        """Bytes that each of so many devices sends, in a ring."""
        if self.kind == "collective-permute":
            return self.size
        rounds = 2 if self.kind == "all-reduce" else 1
        return rounds * self.size * (devices - 1) / devices


@dataclasses.dataclass(frozen=True)
class Demand:
    """What a step asks of each device; all sizes in bytes.

    Attributes:
        devices: their number.
        fsdp: whether the state is split over the devices.
        rows: utterances in a device's batch.
        samples: of each.
        state: of each part of the state.
        batch: of a device's batch.
        temporary: that XLA's CPU compiler plans beside state and batch.
        collectives: how many of each kind, and the bytes of their whole arrays.
        sent: to other devices, in rings.
    """

    devices: int
    fsdp: bool
    rows: int
    samples: int
    state: dict[str, int]
    batch: int
    temporary: int
    collectives: dict[str, tuple[int, int]]
    sent: float


def use_cpu_devices(number: int) -> None:
    """Let this process have so many devices; nothing may have used JAX before.

    Raises:
        RuntimeError: something has.
    """
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", number)


def measure(config: StepConfig, devices: int, rows: int, samples: int, fsdp: bool) -> Demand:
    """Compile the step of the phase before `freeze_step` and read what it asks.

    Args:
        config: what to compute.
        devices: number of devices, of those that there are.
        rows: utterances in each device's batch.
        samples: of each utterance.
        fsdp: split the state.

    Raises:
        ValueError: one device, which exchanges nothing, or more than there are.
    """
    if not 2 <= devices <= jax.device_count():
        raise ValueError(f"devices: {devices} is not within 2 .. {jax.device_count()}")
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    lowered, state, batch = lower_step(config, mesh, devices * rows, samples, fsdp)
    with tempfile.TemporaryDirectory() as folder:
        compiled = lowered.compile(compiler_options=_DUMP | {"xla_dump_to": folder})
        (text,) = [path.read_text() for path in Path(folder).glob(_PARTITIONED)]
    memory = compiled.memory_analysis()
    assert memory is not None  # CPU gives one
    found = read_collectives(text, devices)
    return Demand(
        devices=devices,
        fsdp=fsdp,
        rows=rows,
        samples=samples,
        state={name: sharding.device_bytes(getattr(state, name)) for name in TrainState._fields},
        batch=sharding.device_bytes(batch),
        temporary=memory.temp_size_in_bytes,
        collectives={
            kind: (len(sizes), sum(sizes))
            for kind in KINDS
            if (sizes := [each.size for each in found if each.kind == kind])
        },
        sent=sum(each.sent(devices) for each in found),
    )


def lower_step(
    config: StepConfig,
    mesh: Mesh,
    rows: int,
    samples: int,
    fsdp: bool = False,
    frozen: bool = False,
) -> tuple[jax.stages.Lowered, TrainState, dict[str, jax.ShapeDtypeStruct]]:
    """Lower the step for a global batch of a shape; nothing is computed.

    Returns:
        The lowered step, and the shapes of its state and batch.
    """
    state = phases.abstract_state(config, mesh, fsdp, frozen)
    batch = compilation.abstract_batch((rows, samples), mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return phases.jit_step(config, mesh, fsdp, frozen).lower(state, batch, key), state, batch


def read_collectives(text: str, devices: int) -> list[Collective]:
    """Find the collectives of a partitioned program.

    An all-reduce of which each device uses only a slice counts as the reduce-scatter that the
    compilers for GPU and TPU make of it. Equal ones of the same arrays count once.

    Args:
        text: the program, as XLA prints it.
        devices: their number; each collective is among all of them.
    """
    lines = text.splitlines()
    matches = {match[1]: match for match in map(_OPERATION.match, lines) if match}
    users: dict[str, set[str]] = {name: set() for name in matches}
    for line in lines:
        _, _, operation = line.partition(" = ")
        for name in matches.keys() & set(re.findall(r"%[\w.-]+", operation)):
            users[name].add("slice" if " dynamic-slice(" in operation else "other")
    found = {}
    for name, (_, shapes, kind, operands) in ((n, m.groups()) for n, m in matches.items()):
        size = _num_bytes(shapes)
        if kind == "reduce-scatter":
            size *= devices  # its result is a slice
        if kind == "all-reduce" and users[name] == {"slice"}:
            kind = "reduce-scatter"
        found[kind, shapes, operands] = Collective(kind, size)
    return list(found.values())


def _num_bytes(shapes: str) -> int:
    bits = 0
    for width, sizes in _ARRAY.findall(shapes.replace("pred[", "pred8[")):
        bits += int(width) * math.prod(int(size) for size in sizes.split(",") if size)
    return bits // 8


def bench_scale(
    config_path: str,
    *,
    devices: Sequence[int],
    samples: int,
    rows: int | None,
    fsdp: Sequence[bool],
) -> list[Demand]:
    """Measure a config's step for several numbers of devices; sets up this process's devices.

    Args:
        config_path: of a config file.
        devices: the numbers.
        samples: of an utterance.
        rows: of a device's batch; None for as many as the config allows.
        fsdp: with the state whole, split, or both.

    Raises:
        FileNotFoundError: there is no such config.
        ValueError: a value is not usable.
    """
    config = config_file.read(config_path, {})
    rows = rows or config.data.max_batch_samples // samples
    if rows < 1:
        raise ValueError(
            f"samples: {samples} are more than data.max_batch_samples = "
            f"{config.data.max_batch_samples}, a device's batch"
        )
    use_cpu_devices(max(devices))
    jax.config.update("jax_enable_compilation_cache", False)  # nothing read from it is dumped
    step_config = config_lib.step_config(config)
    return [measure(step_config, n, rows, samples, each) for n in devices for each in fsdp]


def table(demands: Sequence[Demand], bandwidths: Sequence[float]) -> str:
    """A table in Markdown, in MB (10^6 bytes) of a device, and ms at so many GB/s."""
    parts = ("params", "opt_state", "teacher", "codebooks")
    names = ["devices", "batch of each", *parts, "batch", "temporary (CPU)", *KINDS[:3], "others"]
    names += ["sent", *(f"ms at {rate:g} GB/s" for rate in bandwidths)]
    lines = [names, ["---"] * len(names)]
    for each in demands:
        by_kind = {kind: size for kind, (_, size) in each.collectives.items()}
        sizes = [*(each.state[part] for part in parts), each.batch, each.temporary]
        sizes += [by_kind.pop(kind, 0) for kind in KINDS[:3]]
        lines.append(
            [
                f"{each.devices}{', fsdp' if each.fsdp else ''}",
                f"{each.rows} x {each.samples}",
                *(f"{size / 1e6:,.1f}" for size in (*sizes, sum(by_kind.values()), each.sent)),
                *(f"{each.sent / rate / 1e6:.1f}" for rate in bandwidths),
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
