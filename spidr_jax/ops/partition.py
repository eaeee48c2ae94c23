"""Functions that each device computes for its own rows of a batch only.

XLA's partitioner gathers the whole batch on every device for what it does not know how to split,
such as a kernel of ours or a grouped convolution (openxla/xla#47945).
"""

from collections.abc import Callable, Collection
from typing import Any

import jax
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def by_rows(
    function: Callable[..., Any],
    rule: str,
    whole: Collection[int] = (),
    summed: Collection[int] = (),
) -> Callable[..., Any]:
    """Tell the partitioner that rows do not meet in `function`; only sums are communicated.

    Args:
        function: of arrays whose first axis is the rows, all results' too but for `summed`.
        rule: of its axes (see `jax.experimental.custom_partitioning`), a letter of its own for
            each but the rows, or shardings of other axes would come in.
        whole: places of arguments that have no rows and that every device needs.
        summed: places of results that have no rows, but are sums over them.
    """

    def partition(mesh: Mesh, operands: Any, results: Any) -> tuple[Mesh, Any, Any, Any]:
        names = operands[0].sharding.spec[0]  # the mesh axes that split the rows
        rows, all_of_it = (NamedSharding(mesh, PartitionSpec(axes)) for axes in (names, None))

        def local(*arrays: jax.Array) -> Any:
            found, tree = jax.tree.flatten(function(*arrays))
            sums = [lax.psum(x, names) if i in summed else x for i, x in enumerate(found)]
            return jax.tree.unflatten(tree, sums)

        arguments = [all_of_it if i in whole else rows for i in range(len(operands))]
        shapes, tree = jax.tree.flatten(results)
        places = [all_of_it if i in summed else rows for i in range(len(shapes))]
        places_of_results = jax.tree.unflatten(tree, places)
        return mesh, local if names else function, places_of_results, tuple(arguments)

    split = custom_partitioning(function)
    split.def_partition(partition, sharding_rule=rule)
    return split
