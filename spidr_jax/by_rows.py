"""Functions that each device computes for its own rows of a batch only.

XLA's partitioner gathers the whole batch on every device for what it does not know how to split,
such as a kernel of ours or a grouped convolution (openxla/xla#47945).
"""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import jax
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Shardings = tuple[Mesh, Any, Any, Any]


def axes(mesh: Mesh, operands: Any) -> tuple[Any, NamedSharding, NamedSharding]:
    """The mesh axes that split the first operand's rows, and the shardings of rows and wholes."""
    names = operands[0].sharding.spec[0]
    return names, NamedSharding(mesh, PartitionSpec(names)), NamedSharding(mesh, PartitionSpec())


def by_rows(
    function: Callable[..., Any], rule: str, whole: Collection[int] = (), summed: bool = False
) -> Callable[..., Any]:
    """Tell the partitioner that rows do not meet in `function`; only sums are communicated.

    Args:
        function: of arrays whose first axis is the rows, all results' too unless `summed`.
        rule: of its axes (see `jax.experimental.custom_partitioning`), a letter of its own for
            each but the rows, or shardings of other axes would come in.
        whole: places of arguments that have no rows and that every device needs.
        summed: the result has no rows, but is a sum over them.
    """

    def sum_up(names: Any, *arrays: Any) -> Any:
        return lax.psum(function(*arrays), names) if names else function(*arrays)

    def partition(mesh: Mesh, operands: Any, results: Any) -> Shardings:
        names, rows, all_of_it = axes(mesh, operands)
        places = [all_of_it if i in whole else rows for i in range(len(operands))]
        if summed:
            return mesh, partial(sum_up, names), all_of_it, tuple(places)
        return mesh, function, jax.tree.map(lambda _: rows, results), tuple(places)

    split = custom_partitioning(function)
    split.def_partition(partition, sharding_rule=rule)
    return split
