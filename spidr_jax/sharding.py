"""Where arrays lie: one mesh over all devices, state on each, batches split among them."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def make_mesh() -> Mesh:
    """A mesh of all devices of all processes, along the axis "data"."""
    return Mesh(np.array(jax.devices()), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device: the state's sharding."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
    """Bring this process's rows of a batch to the devices, split along the first axis."""
    rows = NamedSharding(mesh, PartitionSpec("data"))
    return {k: jax.make_array_from_process_local_data(rows, v) for k, v in batch.items()}


def agree(flag: bool) -> bool:
    """What process 0 says of something that only it may know; all processes ask together."""
    return bool(multihost_utils.broadcast_one_to_all(np.array(flag)))
