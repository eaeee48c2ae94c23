"""Devices to compile for that need not be there: JAX's plugin and a description are enough."""

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from spidr_jax.data.planned_audio import audio_shapes
from spidr_jax.ops import platform
from spidr_jax.train import placement
from spidr_jax.train.task import Task

_CUDA_PLUGINS = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")
_CUDA_TOOLS = ("nvidia.cu13", "nvidia.cuda_nvcc")  # where ptxas comes from with pip

# What XLA knows of a GPU. Sources: NVIDIA's H100 datasheet, CUDA's table of compute capabilities.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84978434048
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
_TPUS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}  # the smallest topologies
TARGETS = ("h100", *_TPUS)


class Machine(NamedTuple):
    """What programs are compiled for: JAX's first device, or devices that are only described."""

    devices: tuple[jax.Device, ...]
    described: bool = False

    @property
    def platform(self) -> str:
        """The kind of device: "cpu", "gpu" or "tpu"."""
        return self.devices[0].platform

    @property
    def name(self) -> str:
        """Kind and model, for the head of a table."""
        where = ", described" if self.described else ""
        return f"{self.platform} ({self.devices[0].device_kind}{where})"


def find(name: str | None, number: int = 1) -> Machine:
    """A machine to compile for.

    Args:
        name: one of `TARGETS`; None for JAX's first device. For a target nothing may have used JAX
            before: its own devices will be CPUs.
        number: devices of a described machine, at most 4 of a TPU.

    Raises:
        ValueError: there is no such target.
        ImportError: what compiles for it is not installed.
    """
    if name is None:
        return Machine((jax.devices()[0],))
    if name not in TARGETS:
        raise ValueError(f"--target {name}: allowed are {', '.join(TARGETS)}")
    if wanted := missing(name):
        raise ImportError(f"--target {name} needs {wanted}")
    jax.config.update("jax_platforms", "cpu")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # or XLA says that there is no driver
    if name in _TPUS:
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # or it asks the cloud for its machine
        described = topologies.get_topology_desc(_TPUS[name], platform="tpu")
    else:
        os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # of cuDNN, cuBLAS and the like
        facts = {"target_config": _H100, "topology": f"1x{number}x1"}
        described = topologies.get_topology_desc("", platform="cuda", **facts)
    return Machine(tuple(described.devices[:number]), described=True)


def compile_step(
    machine: Machine, task: Task, rows: int, samples: int, frozen: bool, fsdp: bool = False
) -> jax.stages.Compiled:
    """Compile a training step for a batch of a shape, to be looked at; nothing runs.

    Args:
        machine: device to compile for.
        task: program to compile.
        rows: utterances in the batch of all devices.
        samples: samples of an utterance.
        frozen: the phase from `freeze_step` on.
        fsdp: whether the state is split over the devices.
    """
    mesh = Mesh(np.array(machine.devices), ("data",))
    options: dict[str, str | bool] = {}
    if machine.platform == "cpu":
        options = {"xla_backend_optimization_level": "0"}  # which memory does not depend on
    elif machine.described and machine.platform == "gpu":
        options = {"xla_gpu_autotune_level": "0"}  # there is nothing to try kernels on
    with _described(mesh) if machine.described else contextlib.nullcontext():
        state = placement.abstract_state(task, mesh, fsdp, phase=int(frozen))
        key = jax.eval_shape(lambda: jax.random.key(0))
        step = placement.jit_step(task, mesh, fsdp, phase=int(frozen))
        batch = placement.abstract_batch(audio_shapes(rows, samples), mesh)
        return step.lower(state, batch, key).compile(options)


@contextlib.contextmanager
def _described(mesh: Mesh) -> Iterator[None]:
    """Compile for a mesh of devices that are not there; Pallas asks the mesh which they are."""
    with (
        jax.sharding.use_abstract_mesh(mesh.abstract_mesh),
        platform.target_platform(mesh.devices.flat[0].platform),
    ):
        yield


def missing(name: str) -> str:
    """What is not installed to compile for a target, and how to; "" if all is there."""
    if name in _TPUS:
        return "" if _folders("libtpu") else 'TPU\'s compiler: pip install "spidr_jax[tpu]"'
    wanted = [] if any(map(_folders, _CUDA_PLUGINS)) else ["JAX's CUDA plugin"]
    tools = [folder / "bin/ptxas" for module in _CUDA_TOOLS for folder in _folders(module)]
    if not any(tool.exists() for tool in tools) and not shutil.which("ptxas"):
        wanted.append("ptxas")
    return f'{" and ".join(wanted)}: pip install "spidr_jax[gpu-plan]"' if wanted else ""


def _folders(module: str) -> list[Path]:
    """Where a package lies; empty if it is not installed."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # its parent is not there
        return []
    return [Path(place) for place in spec.submodule_search_locations or ()] if spec else []
