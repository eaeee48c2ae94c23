"""What one instruction of a compiled program moves and computes."""

import math
import re

from spidr_jax.bench.hlo import (
    Computation,
    Instruction,
    Program,
    array_bytes,
    dims,
    first_array,
    item_bytes,
    operand_shape,
)

_VIEWS = ("bitcast", "convert", "copy", "reshape", "transpose")  # of a slice, no more is read
_SLICES = ("dynamic-slice", "gather", "slice")
_EXACT = ("operand_precision={highest,highest}", '"operand_precision":["HIGHEST","HIGHEST"]')
_SCORES = r'"intermediate_tensor_shape":.*?"dimensions":\[([\d",]*)\]'


def bytes_read(program: Program, computation: Computation, each: Instruction) -> int:
    """Bytes of an instruction's operands, of which it may read only a slice."""
    size = 0.0
    for place, operand in enumerate(each.operands):
        shape = operand_shape(computation, operand)
        size += min(array_bytes(shape), _elements(program, each, place) * item_bytes(shape))
    return int(size)


def _elements(program: Program, user: Instruction, place: int) -> float:
    """How many elements an instruction reads of an operand, at most."""
    if user.operation in _SLICES and place == 0:
        return math.prod(dims(user.shape))
    if user.operation == "dynamic-update-slice" and place == 0:
        return 0  # the rest stays where it is
    if user.operation != "fusion":
        return math.inf
    inside = program[user.called]
    return sum(
        _elements_inside(program, inside, each.name)
        for each in inside.values()
        if each.operation == "parameter" and each.operands == (str(place),)
    )


def _elements_inside(program: Program, inside: Computation, name: str) -> float:
    elements = 0.0
    for user in inside.values():
        for place, operand in enumerate(user.operands):
            if operand == name and user.operation in _VIEWS and not user.root:
                elements += _elements_inside(program, inside, user.name)
            elif operand == name:
                elements += _elements(program, user, place)
    return elements


def bytes_written(program: Program, computation: Computation, each: Instruction) -> int:
    """Bytes of an instruction's results; of an array changed in place, those that change."""
    if each.operation == "dynamic-update-slice":
        return array_bytes(operand_shape(computation, each.operands[1]))
    if each.operation != "fusion":
        return array_bytes(each.shape)
    inside = program[each.called]
    (root,) = (inner for inner in inside.values() if inner.root)
    results = root.operands if root.operation == "tuple" else (root.name,)
    return sum(bytes_written(program, inside, _viewed(inside, name)) for name in results)


def _viewed(inside: Computation, name: str) -> Instruction:
    each = inside[name]
    while each.operation == "bitcast":
        each = inside[each.operands[0]]
    return each


def flops(program: Program, computation: Computation, each: Instruction) -> dict[str, float] | None:
    """FLOP of an instruction's products and convolutions.

    Returns:
        By what they multiply: "bf16" (also f16), "tf32" or "f32"; None if it is a kernel of its
        own that does not say what it computes.
    """
    if each.operation == "fusion":
        return _flops_inside(program, program[each.called])
    shapes = [operand_shape(computation, operand) for operand in each.operands]
    number: float | None = 0.0
    if each.operation == "dot":
        number = _product(each, shapes[0], each.numbers(r"lhs_contracting_dims=\{([\d,]*)\}"))
    elif each.operation == "convolution":
        number = _convolution(each, each.shape, shapes[1])
    elif each.operation == "custom-call":
        number = _library(each, shapes)
    if number is None:
        return None
    return {_multiplies(each, shapes[0]): number} if number else {}


def _flops_inside(program: Program, inside: Computation) -> dict[str, float] | None:
    total: dict[str, float] = {}
    for each in inside.values():
        found = flops(program, inside, each)
        if found is None:
            return None
        for kind, number in found.items():
            total[kind] = total.get(kind, 0) + number
    return total


def _library(each: Instruction, shapes: list[str]) -> float | None:
    """FLOP of a library's function, None of an unknown one."""
    match = re.search(r'custom_call_target="([^"]*)"', each.attributes)
    name = match[1] if match else ""
    if "$conv" in name:
        # the pass forward's output and filters: all three passes compute as much
        filters = each.shape if "BackwardFilter" in name else shapes[1]
        gradients = {"BackwardFilter": shapes[1], "BackwardInput": shapes[0]}
        return _convolution(each, gradients.get(name.rpartition("$conv")[2], each.shape), filters)
    if "$fmha" in name:  # scores and output; backward also five products
        products = 5 if "Backward" in name else 2
        return products * 2.0 * math.prod(each.numbers(_SCORES)) * dims(shapes[0])[-1]
    if "cublas" in name:
        contracted = each.numbers(r'"lhs_contracting_dimensions":\[([\d",]*)\]')
        return _product(each, shapes[0], contracted)
    return 0.0 if "cub$" in name or "TopK" in name else None


def _product(each: Instruction, left: str, contracted: list[int]) -> float:
    summed = math.prod(dims(left)[dim] for dim in contracted)
    return 2.0 * math.prod(dims(each.shape)) * summed


def _convolution(each: Instruction, output: str, filters: str) -> float:
    """At each place of the output every element of the filters is multiplied."""
    layout = re.search(r"dim_labels=\w+->(\w+)", each.attributes)
    features = dims(output)[layout[1].index("f")] if layout else 1
    return 2.0 * math.prod(dims(output)) / features * math.prod(dims(filters))


def _multiplies(each: Instruction, left: str) -> str:
    kind = first_array(left).partition("[")[0]
    if kind in ("bf16", "f16"):
        return "bf16"
    algorithm = re.search(r"algorithm=dot_(bf16|tf32|f32)", each.attributes)
    if algorithm:
        return algorithm[1]
    exact = kind != "f32" or any(text in each.attributes for text in _EXACT)
    return "f32" if exact else "tf32"
