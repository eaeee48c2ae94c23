"""The kernels that a compiled program runs on a GPU, read from its text.

The text is optimised and scheduled: each instruction of it that is not bookkeeping is a kernel.
"""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from spidr_jax.bench import hlo_cost
from spidr_jax.bench.hlo import Computation, Instruction, Program, first_array, operand_shape, parse

_BRANCHES = re.compile(r"\b(?:branch_computations=\{([^}]*)|(?:true|false)_computation=([\w.%-]+))")
_BOOKKEEPING = re.compile(
    r"add-dependency|after-all|bitcast|constant|get-tuple-element|opt-barrier|parameter|"
    r"partition-id|replica-id|tuple|.*-done"
)


class Kernel(NamedTuple):
    """One kernel.

    Attributes:
        name: in the program.
        kind: what XLA calls it, such as "fusion kLoop" or a library's function.
        source: where in the model its result comes from (JAX's op_name); "" if nothing says.
        operands: types and dimensions.
        result: type and dimensions, of several the first.
        size: bytes read and written.
        flops: of products and convolutions, by what they multiply: "bf16", "tf32" or "f32".
        known: whether `flops` says all; not of a kernel that was written by hand.
        calls: how often a run of the program runs it.
    """

    name: str
    kind: str
    source: str
    operands: tuple[str, ...]
    result: str
    size: int
    flops: Mapping[str, float]
    known: bool = True
    calls: int = 1


def read_kernels(text: str) -> list[Kernel]:
    """The kernels that a program runs, in their order; those of a loop's body once.

    Of two branches, those of the one that moves more.

    Raises:
        ValueError: the text is no program, or does not say how often a loop runs.
    """
    program, entry = parse(text)
    return list(_kernels(program, entry, 1))


def _kernels(program: Program, name: str, calls: int) -> Iterator[Kernel]:
    computation = program[name]
    sources = _sources(computation)
    for each in computation.values():
        if _BOOKKEEPING.fullmatch(each.operation):
            continue
        if each.operation == "conditional":
            branches = [
                list(_kernels(program, branch.strip(" %"), calls))
                for found in _BRANCHES.findall(each.attributes)
                for branch in "".join(found).split(",")
            ]
            yield from max(branches, key=lambda branch: sum(k.size * k.calls for k in branch))
        elif each.operation in ("call", "while", "async-start"):
            yield from _kernels(program, each.called, calls * _trips(each))
        else:
            yield _kernel(program, computation, each, sources.get(each.name, ""), calls)


def _kernel(
    program: Program, computation: Computation, each: Instruction, source: str, calls: int
) -> Kernel:
    shapes = [operand_shape(computation, operand) for operand in each.operands]
    flops = hlo_cost.flops(program, computation, each)
    read = hlo_cost.bytes_read(program, computation, each)
    return Kernel(
        name=each.name,
        kind=_kind(each),
        source=source,
        operands=tuple(first_array(shape) for shape in shapes if shape),
        result=first_array(each.shape),
        size=read + hlo_cost.bytes_written(program, computation, each),
        flops=flops or {},
        known=flops is not None,
        calls=calls,
    )


def _trips(each: Instruction) -> int:
    if each.operation != "while":
        return 1
    if trips := each.numbers(r'"known_trip_count":\{"n":"(\d+)"'):
        return trips[0]
    raise ValueError(f"the compiled program does not say how often its loop {each.name} runs")


def _sources(computation: Computation) -> dict[str, str]:
    """Where each instruction comes from; what does not say so, from its user."""
    found: dict[str, str] = {}
    for each in reversed(computation.values()):
        if match := re.search(r'op_name="([^"]*)"', each.attributes):
            found[each.name] = match[1]
        if source := found.get(each.name):
            found |= dict.fromkeys(each.operands, source)
    return found


def _kind(each: Instruction) -> str:
    """A kernel written with Pallas has a name of its own."""
    for pattern in (
        r'\bbackend_config=\{.*\bname = "([\w.-]+)"',
        r'\bcustom_call_target="_*([^"]*)"',
        r'"kind":"_*(\w+)"',
        r"\bkind=(\w+)",
    ):
        if match := re.search(pattern, each.attributes):
            return f"{each.operation} {match[1]}"
    return each.operation
