"""Which parts of the model a training step spends its time in, read from JAX's profiler's trace."""

import collections
import gzip
import json
import re
from pathlib import Path
from typing import Any

import jax

from spidr_jax.bench.timing import Start

STEPS = 3
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?(\S+) = (.*)", re.MULTILINE)
_SCOPE = re.compile(r'metadata=\{.*?op_name="([^"]*)"')
_LINES = ("Stream", "XLA Ops")  # of a GPU's kernels, of a TPU's operations
# what JAX adds to the names of modules and scopes
_WRAPPER = re.compile(r"(?:jvp|transpose|vmap)\((.*)\)")
_NO_PART = re.compile(
    r"|jit\(.*|.*->.*|.*<locals>.*|\w+_\d+"
    r"|while|body|cond|closed_call|checkpoint|rematted_computation"
)
Events = list[dict[str, Any]]


def profile(start: Start, program: str, folder: str) -> list[dict[str, Any]]:
    """Trace some steps and add up the time of each part of the model; see `part_times`.

    Args:
        start: starts a step.
        program: the compiled step's text, which says where its operations come from.
        folder: folder for the trace, which TensorBoard and Perfetto read.
    """
    before = set(Path(folder).rglob("*.trace.json.gz"))
    with jax.profiler.trace(folder):
        for _ in range(STEPS):
            wait = start()
        wait()
    (path,) = set(Path(folder).rglob("*.trace.json.gz")) - before
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return part_times(json.load(file)["traceEvents"], program, STEPS)


def part_times(events: Events, program: str, steps: int) -> list[dict[str, Any]]:
    """Add up the time of each part of the model, over all its layers.

    Args:
        events: the trace's events in Chrome's format, in microseconds.
        program: the compiled program's text.
        steps: number of traced steps.

    Returns:
        For each "part" and "pass", the longest first: "ms" of a step, and "share" of all. Empty on
        a CPU, whose threads run operations at the same time.
    """
    scopes = _scopes(program)
    times: dict[tuple[str, str], float] = collections.defaultdict(float)
    for event in _kernels(events):
        operation = event.get("args", {}).get("hlo_op", "")
        kernel = re.sub(r"_(\d+)$", r".\1", event["name"])  # all of a CUDA graph are one operation
        times[part(scopes.get(operation) or scopes.get(kernel, ""))] += event["dur"]
    whole = sum(times.values())
    return [
        {"part": key[0], "pass": key[1], "ms": time / steps / 1e3, "share": time / whole}
        for key, time in sorted(times.items(), key=lambda item: -item[1])
    ]


def part(scope: str) -> tuple[str, str]:
    """The part of the model, and the pass, that an operation belongs to.

    Args:
        scope: JAX's name: "jit(step)/transpose(jvp(Encoder))/layers_3/attention/mul".

    Returns:
        Such as ("Encoder/attention", "backward"). Of what is in no module or scope: "losses" is
        what is differentiated, "masks and update" the rest.
    """
    names = []
    for name in scope.split("/")[:-1]:  # the last is the operation
        while match := _WRAPPER.fullmatch(name):
            name = match[1]
        if not _NO_PART.fullmatch(name):
            names.append(name)
    if not names:
        names = ["losses" if "jvp(" in scope else "masks and update"]
    depth = 3 if names[0] == "teacher" else 2
    return "/".join(names[:depth]), "backward" if "transpose(" in scope else "forward"


def _scopes(program: str) -> dict[str, str]:
    """The scope of each operation of a program; of what does not say so, its user's."""
    found: dict[str, str] = {}
    for name, body in reversed(_INSTRUCTION.findall(program)):
        if match := _SCOPE.search(body):
            found[name] = match[1]
        if scope := found.get(name):
            operands = re.findall(r"%([\w.-]+)", body.partition(", metadata=")[0])
            found |= dict.fromkeys(operands, scope)
    return found


def _kernels(events: Events) -> Events:
    """What the devices ran."""
    names = {
        (event["pid"], event.get("tid")): event["args"]["name"]
        for event in events
        if event.get("ph") == "M" and event["name"] in ("process_name", "thread_name")
    }
    for line in _LINES:
        if kernels := [
            event
            for event in events
            if event.get("ph") == "X"
            and names.get((event["pid"], None), "").startswith("/device:")
            and names.get((event["pid"], event["tid"]), "").startswith(line)
        ]:
            return kernels
    return []


def table(found: list[dict[str, Any]]) -> str:
    """A table in Markdown."""
    lines = ["| part of the model | pass | ms of a step | share |", "|---|---|---|---|"]
    lines += [
        f"| {each['part']} | {each['pass']} | {each['ms']:,.2f} | {each['share']:.1%} |"
        for each in found
    ]
    return "\n".join(lines)
