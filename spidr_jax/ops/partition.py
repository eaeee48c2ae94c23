"""Functions that each device computes for its own part of a batch only.

XLA's partitioner gathers the whole batch on every device for what it does not know how to split,
such as a kernel of ours or a grouped convolution (openxla/xla#47945).
"""

from collections.abc import Callable, Collection
from typing import Any

import jax
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def partition_batch(
    function: Callable[..., Any],
    rule: str,
    whole: Collection[int] = (),
    summed: Collection[int] = (),
) -> Callable[..., Any]:
    """Have each device compute a function of its rows; only sums are communicated.

    Args:
        function: function of arrays whose first axis is the batch, as is that of its results.
        rule: names of all axes (see `jax.experimental.custom_partitioning`), another letter for
            each but the batch, or shardings of other axes would come in.
        whole: indices of arguments without rows, which every device needs.
        summed: indices of results without rows, which are sums over them.
    """

    def partition(mesh: Mesh, operands: Any, results: Any) -> tuple[Mesh, Any, Any, Any]:
        axes = operands[0].sharding.spec[0]  # of the mesh, that split the rows
        rows, replicated = (NamedSharding(mesh, PartitionSpec(each)) for each in (axes, None))

        def local(*arrays: jax.Array) -> Any:
            found, tree = jax.tree.flatten(function(*arrays))
            sums = [lax.psum(x, axes) if i in summed else x for i, x in enumerate(found)]
            return jax.tree.unflatten(tree, sums)

        arguments = [replicated if i in whole else rows for i in range(len(operands))]
        shapes, tree = jax.tree.flatten(results)
        shardings = [replicated if i in summed else rows for i in range(len(shapes))]
        placed = jax.tree.unflatten(tree, shardings)
        return mesh, local if axes else function, placed, tuple(arguments)

    split = custom_partitioning(function)
    split.def_partition(partition, sharding_rule=rule)
    return split
