"""Functions that each device computes for its own rows of a batch only.

XLA's partitioner gathers the whole batch on every device for what it does not know how to split,
such as a kernel of ours or a grouped convolution (openxla/xla#47945).
"""

from collections.abc import Callable, Collection
from typing import Any

import jax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Shardings = tuple[Mesh, Any, Any, Any]


def axes(mesh: Mesh, operands: Any) -> tuple[Any, NamedSharding, NamedSharding]:
    """The mesh axes that split the first operand's rows, and the shardings of rows and wholes."""
    names = operands[0].sharding.spec[0]
    return names, NamedSharding(mesh, PartitionSpec(names)), NamedSharding(mesh, PartitionSpec())


def by_rows(
    function: Callable[..., Any], rule: str, whole: Collection[int] = ()
) -> Callable[..., Any]:
    """Tell the partitioner that rows do not meet in `function`; nothing is communicated.

    Args:
        function: of arrays whose first axis is the rows, all results' too.
        rule: of its axes (see `jax.experimental.custom_partitioning`), a letter of its own for
            each but the rows, or shardings of other axes would come in.
        whole: places of arguments that have no rows and that every device needs.
    """

    def partition(mesh: Mesh, operands: Any, results: Any) -> Shardings:
        _, rows, all_of_it = axes(mesh, operands)
        places = [all_of_it if i in whole else rows for i in range(len(operands))]
        return mesh, function, jax.tree.map(lambda _: rows, results), tuple(places)

    split = custom_partitioning(function)
    split.def_partition(partition, sharding_rule=rule)
    return split
