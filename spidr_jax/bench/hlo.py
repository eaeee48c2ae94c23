"""A compiled program's text, as XLA prints it: its instructions, and the sizes of their arrays.

Nothing here uses JAX.
"""

import math
import re
from typing import NamedTuple

_ARRAY = re.compile(r"\b(pred|bf16|[csuf]\d+)\w*\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) (?:\(.*)?\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (.+?) ([a-z][\w-]*)\(")
_CALLED = re.compile(r"\b(?:calls|to_apply|body)=%?([\w.-]+)")


class Instruction(NamedTuple):
    """A line of a program.

    Attributes:
        name: in its computation.
        shape: of its result, or results.
        operation: such as "fusion".
        operands: names; of a parameter or constant what its parentheses hold.
        attributes: what follows them.
        root: whether it is its computation's result.
    """

    name: str
    shape: str
    operation: str
    operands: tuple[str, ...]
    attributes: str
    root: bool

    @property
    def called(self) -> str:
        """The computation that it runs, "" if none."""
        match = _CALLED.search(self.attributes)
        return match[1] if match else ""

    def numbers(self, pattern: str) -> list[int]:
        """Those in the first group of a pattern among its attributes; none where it has none."""
        match = re.search(pattern, self.attributes)
        return [int(number) for number in re.findall(r"\d+", match[1])] if match else []


Computation = dict[str, Instruction]
Program = dict[str, Computation]


def parse(text: str) -> tuple[Program, str]:
    """All computations of a program, and the entry's name.

    Raises:
        ValueError: there is no entry.
    """
    program: Program = {}
    entry, current = "", None
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = program[match[2]] = {}
            entry = match[2] if match[1] else entry
        elif line == "}":
            current = None
        elif current is not None and (match := _INSTRUCTION.match(line)):
            root, name, shape, operation = match.groups()
            inside, after = _closing(line, match.end())
            operands = tuple(re.findall(r"%([\w.-]+)", inside)) or (inside,)
            current[name] = Instruction(name, shape, operation, operands, after, bool(root))
    if not entry:
        raise ValueError("a compiled program's text without an entry computation")
    return program, entry


def _closing(line: str, start: int) -> tuple[str, str]:
    """What lies within a parenthesis opened before `start`, and after it."""
    depth = 1
    for place in range(start, len(line)):
        depth += {"(": 1, ")": -1}.get(line[place], 0)
        if not depth:
            return line[start:place], line[place + 1 :]
    return line[start:], ""


def operand_shape(computation: Computation, name: str) -> str:
    """The shape of an operand, "" of what is none."""
    return computation[name].shape if name in computation else ""


def first_array(shape: str) -> str:
    """Type and dimensions of the first array, without its layout: "bf16[16,736]"."""
    array = _ARRAY.search(shape)
    return array[0] if array else shape


def dims(shape: str) -> list[int]:
    """Dimensions of the first array."""
    array = _ARRAY.search(shape)
    return [int(size) for size in array[2].split(",") if size] if array else []


def item_bytes(shape: str) -> float:
    """Bytes of an element of the first array; 4 bits are half of one."""
    array = _ARRAY.search(shape)
    return _bits(array[1]) / 8 if array else 0


def array_bytes(shape: str) -> int:
    """Bytes of all arrays of a shape."""
    bits = 0
    for kind, sizes in _ARRAY.findall(shape):
        bits += math.prod(int(size) for size in sizes.split(",") if size) * _bits(kind)
    return bits // 8


def _bits(kind: str) -> int:
    return 8 if kind == "pred" else int(kind.lstrip("bcsuf"))


def place(source: str) -> str:
    """Where in the model an operation comes from (JAX's op_name), without the layer's number."""
    return re.sub(r"(layers|convs)_\d+", r"\1_*", source)
