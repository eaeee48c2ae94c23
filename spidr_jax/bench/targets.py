"""Devices to compile for that need not be there: JAX's plugin and a description are enough.

What XLA knows of a GPU is a text of a few facts. Sources of the facts and of the published rates:
NVIDIA's H100 and A100 datasheets and CUDA's table of compute capabilities.
"""

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from spidr_jax.bench import scale
from spidr_jax.method.step import StepConfig, TrainState
from spidr_jax.ops import platform as backend

_CUDA_PLUGINS = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")
_CUDA_TOOLS = ("nvidia.cu13", "nvidia.cuda_nvcc")  # where ptxas comes from with pip


class Rates(NamedTuple):
    """What a device is taken to reach of its published peaks.

    Attributes:
        bandwidth: of its memory, bytes a second.
        flops: a second, of products, by what they multiply: "bf16", "tf32", "f32".
    """

    bandwidth: float
    flops: Mapping[str, float]


class Target(NamedTuple):
    """A device that can be described.

    Attributes:
        kind: "gpu" or "tpu".
        topology: the devices described, of which the first is used.
        description: of a GPU, in XLA's words.
        rates: of a GPU.
    """

    kind: str
    topology: str
    description: str = ""
    rates: Rates | None = None


def _gpu(
    name: str,
    *,
    capability: int,
    cores: int,
    fpus: int,
    shared: int,
    l2: int,
    memory: int,
    clock: float,
    bandwidth: int,
) -> str:
    """Describe a GPU to XLA.

    Args:
        name: as the driver gives it.
        capability: major number of the compute capability.
        cores: streaming multiprocessors.
        fpus: float32 units of each.
        shared: memory of each that is shared, in KiB; one block can have all but 1.
        l2: bytes of the cache.
        memory: bytes.
        clock: GHz.
        bandwidth: of the memory, bytes a second.
    """
    return f"""
        gpu_device_info {{
          threads_per_block_limit: 1024
          threads_per_warp: 32
          shared_memory_per_block: 49152
          shared_memory_per_core: {shared * 1024}
          shared_memory_per_block_optin: {(shared - 1) * 1024}
          threads_per_core_limit: 2048
          core_count: {cores}
          fpus_per_core: {fpus}
          block_dim_limit_x: 2147483647
          block_dim_limit_y: 65535
          block_dim_limit_z: 65535
          memory_bandwidth: {bandwidth}
          l2_cache_size: {l2}
          clock_rate_ghz: {clock}
          device_memory_size: {memory}
          cuda_compute_capability {{ major: {capability} }}
          registers_per_core_limit: 65536
          registers_per_block_limit: 65536
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: 9 minor: 10 }}
        runtime_version {{ major: 12 minor: 9 }}
        device_description_str: "{name}"
    """


_H100 = _gpu(
    "NVIDIA H100 80GB HBM3",
    capability=9,
    cores=132,
    fpus=128,
    shared=228,
    l2=50 * 2**20,
    memory=84_978_434_048,
    clock=1.98,
    bandwidth=3_352_320_000_000,
)
_A100 = _gpu(
    "NVIDIA A100-SXM4-80GB",
    capability=8,
    cores=108,
    fpus=64,
    shared=164,
    l2=40 * 2**20,
    memory=85_100_068_864,
    clock=1.41,
    bandwidth=2_039_040_000_000,
)

# Published: H100 3.35 TB/s, 989 TFLOP/s bf16, 495 tf32, 67 f32; A100 2.04, 312, 156, 19.5.
TARGETS = {
    "h100": Target(
        "gpu", "1x1x1", _H100, Rates(2.6e12, {"bf16": 600e12, "tf32": 300e12, "f32": 50e12})
    ),
    "a100": Target(
        "gpu", "1x1x1", _A100, Rates(1.6e12, {"bf16": 220e12, "tf32": 110e12, "f32": 15e12})
    ),
    "v5e": Target("tpu", "v5e:2x2"),
    "v5p": Target("tpu", "v5p:2x2x1"),
    "v6e": Target("tpu", "v6e:2x2"),
}


class Machine(NamedTuple):
    """What programs are compiled for: one of JAX's devices, or one that is only described."""

    device: jax.Device
    described: bool = False

    @property
    def name(self) -> str:
        """For the head of a table."""
        where = ", described" if self.described else ""
        return f"{self.device.platform} ({self.device.device_kind}{where})"


def find(name: str | None) -> Machine:
    """A machine to compile for.

    Args:
        name: of a target; None for JAX's first device. For a target nothing may have used JAX
            before: its own devices will be CPUs.

    Raises:
        ValueError: there is no such target.
        ImportError: what compiles for it is not installed.
    """
    if name is None:
        return Machine(jax.devices()[0])
    if name not in TARGETS:
        raise ValueError(f"--target {name}: allowed are {', '.join(TARGETS)}")
    target = TARGETS[name]
    if wanted := missing(target.kind):
        raise ImportError(f"--target {name} needs {wanted}")
    jax.config.update("jax_platforms", "cpu")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # or XLA says that there is no driver
    if target.kind == "gpu":
        os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # of cuDNN, cuBLAS and the like
        description = {"target_config": target.description, "topology": target.topology}
        described = topologies.get_topology_desc("", platform="cuda", **description)
    else:
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # or it asks the cloud for its machine
        described = topologies.get_topology_desc(target.topology, platform="tpu")
    return Machine(described.devices[0], described=True)


def rates(machine: Machine) -> Rates:
    """What a GPU of a target's name reaches.

    Raises:
        ValueError: none is known.
    """
    for name, target in TARGETS.items():
        if target.rates and name.upper() in machine.device.device_kind:
            return target.rates
    known = [name for name, target in TARGETS.items() if target.rates]
    raise ValueError(
        f"kernels: no rates of {machine.name} are known; allowed are --target {', '.join(known)}"
    )


def compile_step(
    machine: Machine,
    config: StepConfig,
    rows: int,
    samples: int,
    frozen: bool,
    options: Mapping[str, str | bool] | None = None,
) -> tuple[jax.stages.Compiled, TrainState]:
    """Compile a step for a batch of a shape; nothing runs.

    Args:
        machine: what for.
        config: what to compute.
        rows: of the batch.
        samples: of an utterance.
        frozen: the phase from `freeze_step` on.
        options: XLA's, beside what the machine needs.

    Returns:
        The program and the shapes of its state.
    """
    mesh = Mesh(np.array([machine.device]), ("data",))
    with _described(mesh) if machine.described else contextlib.nullcontext():
        lowered, state, _ = scale.lower_step(config, mesh, rows, samples, frozen=frozen)
    on_gpu = machine.described and machine.device.platform == "gpu"
    needed = {"xla_gpu_autotune_level": "0"} if on_gpu else {}  # nothing can be tried out
    return lowered.compile({**needed, **(options or {})}), state


@contextlib.contextmanager
def _described(mesh: Mesh) -> Iterator[None]:
    """Trace for a mesh of devices that are not there; Pallas asks the mesh which they are."""
    kind = mesh.devices.flat[0].platform
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), backend.made_for(kind):
        yield


def notes(machine: Machine) -> list[str]:
    """What a reader of numbers for a machine should know."""
    if not machine.described:
        return []
    lines = ["planned by the device's own compiler, without the device"]
    if machine.device.platform == "gpu":
        lines[0] += (
            ": without trials, so that products are XLA's kernels where a GPU may choose cuBLAS's"
        )
    return lines


def missing(kind: str) -> str:
    """What is not installed to compile for a kind of device, and how to; "" if all is there."""
    if kind == "tpu":
        return "" if _found("libtpu") else 'TPU\'s compiler: pip install "spidr_jax[tpu]"'
    wanted = [] if any(map(_found, _CUDA_PLUGINS)) else ["JAX's CUDA plugin"]
    tools = [folder / "bin/ptxas" for module in _CUDA_TOOLS for folder in _folders(module)]
    if not any(tool.exists() for tool in tools) and not shutil.which("ptxas"):
        wanted.append("ptxas")
    return f'{" and ".join(wanted)}: pip install "spidr_jax[gpu-plan]"' if wanted else ""


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is not there
        return False


def _folders(module: str) -> list[Path]:
    if not _found(module):
        return []
    spec: Any = importlib.util.find_spec(module)
    return [Path(place) for place in spec.submodule_search_locations or ()]
