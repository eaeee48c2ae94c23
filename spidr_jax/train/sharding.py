"""Where arrays lie: one mesh over all devices, batches split among them, state on each or split."""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def make_mesh() -> Mesh:
    """A mesh of all devices along the axis "data", those of a process next to each other."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_rows(mesh: Mesh) -> NamedSharding:
    """An array's first axis split among the devices: a batch's sharding."""
    return NamedSharding(mesh, PartitionSpec("data"))


def state_shardings(state: Any, mesh: Mesh, fsdp: bool) -> Any:
    """Where each array of a state lies.

    Args:
        state: a `TrainState` of arrays or their shapes.
        mesh: from `make_mesh`.
        fsdp: split parameters, moments and teacher among the devices, each array along the
            largest of its dimensions that their number divides, the last of equal ones; what has
            none is whole on every device, as the codebooks are.

    Returns:
        The state's tree, of shardings.
    """
    whole = replicated(mesh)
    shardings = jax.tree.map(lambda _: whole, state)
    if not fsdp:
        return shardings

    def split(x: Any) -> NamedSharding:
        fitting = [d for d, size in enumerate(x.shape) if size and size % mesh.size == 0]
        if not fitting:
            return whole
        largest = max(fitting, key=lambda d: (x.shape[d], d))  # the last: products keep its order
        return NamedSharding(mesh, PartitionSpec(*[None] * largest, "data"))

    names = ("params", "opt_state", "teacher")
    parts = {name: jax.tree.map(split, getattr(state, name)) for name in names}
    return shardings._replace(**parts)


def gather(tree: Any, mesh: Mesh) -> Any:
    """A tree of arrays, whole on every device; all processes must call it."""
    return jax.jit(_same, out_shardings=replicated(mesh))(tree)


def _same(tree: Any) -> Any:  # one function, that it is compiled once
    return tree


def device_bytes(tree: Any) -> int:
    """Bytes of a tree of arrays, or of shapes with shardings, on one device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
    """Bring this process's rows of a batch to the devices, split along the first axis."""
    rows = split_rows(mesh)
    return {k: jax.make_array_from_process_local_data(rows, v) for k, v in batch.items()}
