"""Where arrays lie: one mesh over all devices, state on each, batches split among them."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def make_mesh() -> Mesh:
    """A mesh of all devices along the axis "data", those of a process next to each other."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device: the state's sharding."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
    """Bring this process's rows of a batch to the devices, split along the first axis."""
    rows = NamedSharding(mesh, PartitionSpec("data"))
    return {k: jax.make_array_from_process_local_data(rows, v) for k, v in batch.items()}
