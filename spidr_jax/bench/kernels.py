"""What a training step compiles to for a GPU, and what its kernels can take at best.

Nothing runs. The time of a kernel is predicted as the longer of what its bytes and what its
products take at rates that kernels reach: it says where time must go, not how long a step takes.
"""

import collections
import math
import re
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax

from spidr_jax.bench import memory, targets
from spidr_jax.bench.hlo import dims, place
from spidr_jax.bench.hlo_kernels import Kernel, read_kernels
from spidr_jax.bench.setups import Setup
from spidr_jax.bench.targets import Machine, Rates

# what JAX adds to names of the model's parts
_WRAPPER = re.compile(r"(?:jvp|transpose|vmap)\((.*)\)")
_NO_PART = re.compile(
    r"|jit\(.*|.*->.*|while|body|cond|closed_call|checkpoint|rematted_computation|\w+_\d+"
)

# Multiplications of our own kernels, from the dimensions of their operands and first result:
# attention's qkv [B, T, 3, H, d]; convolutions' kernel [1, K * C / G, D] and result [B, T, D], or
# result's gradient and the kernel's: rows' sums and groups first, what is padding too; the first
# layer's x [B, T, K] and weights [K, D].
_OWN_PRODUCTS: dict[str, Callable[..., int]] = {
    "attention_forward": lambda qkv, *_: 2 * _attention(*qkv),
    "attention_backward": lambda qkv, *_: 7 * _attention(*qkv),  # 4 for keys, 3 for queries
    "first_layer_forward": lambda x, weights, *_: x[0] * x[1] * math.prod(weights),
    "first_layer_backward": lambda x, weights, *_: 3 * x[0] * x[1] * math.prod(weights),
    "norm_forward": lambda *_: 0,
    "norm_backward": lambda *_: 0,
    "grouped_conv": lambda x, kernel, bias, y: y[0] * y[1] * math.prod(kernel),
    "grouped_conv_kernel_gradient": lambda x, g, y: g[0] // y[0] * g[1] * math.prod(y),
}


def _attention(rows: int, frames: int, _: int, heads: int, width: int) -> int:
    """Multiplications of one product of queries' and keys' arrays, all frames with all."""
    return rows * heads * frames * frames * width


class _Sum(NamedTuple):
    """Of kernels: how many run, bytes, FLOP and predicted seconds."""

    kernels: int
    size: int
    flop: float
    seconds: float


def bench_kernels(
    setup: Setup, machine: Machine, *, frozen: bool, program: str | None = None
) -> dict[str, Any]:
    """Compile a step and read its kernels.

    Args:
        setup: the step and its batch.
        machine: what to compile for.
        frozen: the phase from `freeze_step` on.
        program: a file for the program's text.

    Returns:
        "conditions", "totals", and, the longest first, "parts" and "groups": kernels of the same
        shapes from the same place in all layers.

    Raises:
        ValueError: no rates are known of the machine.
    """
    rates = targets.rates(machine)
    start = time.perf_counter()
    compiled, _ = targets.compile_step(
        machine, setup.step_config, setup.rows, setup.samples, frozen
    )
    seconds = time.perf_counter() - start
    text = compiled.as_text() or ""
    if program:
        with open(program, "w", encoding="utf-8") as file:
            file.write(text)
    kernels = [with_own_products(each) for each in read_kernels(text)]
    conditions = {
        "device": machine.name,
        "jax": jax.__version__,
        "rows": setup.rows,
        "samples": setup.samples,
        "precision": setup.config.precision,
        "frozen": frozen,
        "bandwidth": rates.bandwidth,
        "flops": dict(rates.flops),
        "compile_s": seconds,
        "planned_bytes": memory.planned_bytes(compiled),
        "notes": targets.notes(machine),
    }
    return {"conditions": conditions, **summary(kernels, rates)}


def with_own_products(kernel: Kernel) -> Kernel:
    """Fill in what our own kernels multiply, of which XLA does not know."""
    name = kernel.kind.removeprefix("custom-call ")
    if kernel.known or name not in _OWN_PRODUCTS:
        return kernel
    arrays = [dims(shape) for shape in (*kernel.operands, kernel.result)]
    kind = "bf16" if kernel.operands[0].startswith(("bf16", "f16")) else "f32"
    number = 2.0 * _OWN_PRODUCTS[name](*arrays)
    return kernel._replace(flops={kind: number} if number else {}, known=True)


def summary(kernels: Sequence[Kernel], rates: Rates) -> dict[str, Any]:
    """Sums over all kernels, parts of the model and groups of like kernels; see `bench_kernels`."""
    parts, groups = collections.defaultdict(list), collections.defaultdict(list)
    for each in kernels:
        parts[part(each.source)].append(each)
        key = place(each.source), each.kind, each.result, each.operands, each.size
        groups[key].append(each)
    return {
        "totals": _sum(kernels, rates)._asdict()
        | {"unknown": sorted({each.kind for each in kernels if not each.known})},
        "parts": _longest_first(
            {"part": name, "pass": direction} | _sum(found, rates)._asdict()
            for (name, direction), found in parts.items()
        ),
        "groups": _longest_first(
            _sum(found, rates)._asdict()
            | {
                "source": source,
                "kind": kind,
                "result": result,
                "operands": operands,
                "bound": "memory"
                if found[0].size / rates.bandwidth >= seconds(found[0], rates)
                else "products",
            }
            for (source, kind, result, operands, _), found in groups.items()
        ),
    }


def seconds(kernel: Kernel, rates: Rates) -> float:
    """The longer of what a kernel's bytes and its products take."""
    products = sum(number / rates.flops[kind] for kind, number in kernel.flops.items())
    return max(kernel.size / rates.bandwidth, products)


def _sum(kernels: Sequence[Kernel], rates: Rates) -> _Sum:
    return _Sum(
        kernels=sum(each.calls for each in kernels),
        size=sum(each.calls * each.size for each in kernels),
        flop=sum(each.calls * sum(each.flops.values()) for each in kernels),
        seconds=sum(each.calls * seconds(each, rates) for each in kernels),
    )


def _longest_first(found: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(found, key=lambda each: -each["seconds"])


def part(source: str) -> tuple[str, str]:
    """The part of the model that a kernel belongs to, and which pass.

    Args:
        source: as JAX names it: "jit(step)/transpose(jvp(Encoder))/layers_3/attention/mul".

    Returns:
        Such as ("Encoder/attention", "backward"). Of what is in no module: "losses" is what is
        differentiated, "masks and update" the rest.
    """
    names = []
    for name in source.split("/")[:-1]:  # the last is the operation
        while match := _WRAPPER.fullmatch(name):
            name = match[1]
        if not _NO_PART.fullmatch(name):
            names.append(name)
    if not names:
        names = ["losses" if "jvp(" in source else "masks and update"]
    depth = 3 if names[0] == "teacher" else 2
    return "/".join(names[:depth]), "backward" if "transpose(" in source else "forward"


def table(found: dict[str, Any], top: int) -> str:
    """Tables in Markdown of parts and of so many groups.

    Args:
        found: from `bench_kernels`.
        top: groups to show.
    """
    conditions, totals = found["conditions"], found["totals"]
    flops = ", ".join(f"{rate / 1e12:g} {kind}" for kind, rate in conditions["flops"].items())
    lines = [
        f"{conditions['rows']} x {conditions['samples']:,} samples, {conditions['precision']}"
        f"{', frozen' if conditions['frozen'] else ''}; {conditions['device']}, "
        f"jax {conditions['jax']}",
        f"ms: the longer of bytes at {conditions['bandwidth'] / 1e12:g} TB/s and products at "
        f"{flops} TFLOP/s. Nothing was measured; gaps between kernels, caches and all other "
        "arithmetic do not count",
        *conditions["notes"],
        "",
        "| part | pass | kernels | GB | TFLOP | ms |",
        "|---|---|---|---|---|---|",
        *(f"| {each['part']} | {each['pass']} | {_cells(each)} |" for each in found["parts"]),
        f"| all | | {_cells(totals)} |",
        "",
        "| ms | times | MB each | GFLOP each | bound by | kernel | of | from |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in found["groups"][:top]:
        number = each["kernels"]
        lines.append(
            f"| {each['seconds'] * 1e3:.2f} | {number} | {each['size'] / number / 1e6:,.1f} "
            f"| {each['flop'] / number / 1e9:,.1f} | {each['bound']} | {each['kind']} "
            f"| {each['result']} <- {', '.join(each['operands'])} | {each['source'][-90:]} |"
        )
    rest = found["groups"][top:]
    lines += [
        f"| {sum(each['seconds'] for each in rest) * 1e3:.2f} "
        f"| {sum(each['kernels'] for each in rest)} | | | | {len(rest)} other groups | | |",
        "",
        f"compilation: {conditions['compile_s']:.0f} s on this machine; "
        f"{conditions['planned_bytes'] / 2**30:.2f} GiB planned",
    ]
    if totals["unknown"]:
        lines.append(f"warning: arithmetic not known, only bytes: {', '.join(totals['unknown'])}")
    return "\n".join(lines)


def _cells(each: dict[str, Any]) -> str:
    return (
        f"{each['kernels']} | {each['size'] / 1e9:,.2f} | {each['flop'] / 1e12:,.3f} "
        f"| {each['seconds'] * 1e3:,.2f}"
    )
