"""Which parts of the model a training step spends its time in, read from JAX's profiler's trace."""

import collections
import gzip
import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from spidr_jax.bench.timing import Start

STEPS = 3
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?(\S+) = (.*)", re.MULTILINE)
_SCOPE = re.compile(r'metadata=\{.*?op_name="([^"]*)"')
_CONTROL = ("while", "conditional", "call")  # whose time is that of what they run
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
        folder: for the trace, which TensorBoard and Perfetto read.
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
        events: of the trace: Chrome's, in microseconds.
        program: the compiled program's text.
        steps: that were traced.

    Returns:
        For each "part" and "pass", the longest first: "ms" of a step, and "share" of all. Where
        several operations are under way, as on several streams or threads, each gets an equal part
        of the time: all together take as long as the device is busy.
    """
    scopes = _scopes(program)
    times: dict[tuple[str, str], float] = collections.defaultdict(float)
    operations = _operations(events)
    for event, time in zip(operations, _shared_times(events, operations), strict=True):
        operation = event.get("args", {}).get("hlo_op", "")
        kernel = re.sub(r"_(\d+)$", r".\1", event["name"])  # all of a CUDA graph are one operation
        times[part(scopes.get(operation) or scopes.get(kernel, ""))] += time
    whole = sum(times.values())
    return [
        {"part": key[0], "pass": key[1], "ms": time / steps / 1e3, "share": time / whole}
        for key, time in sorted(times.items(), key=lambda item: -item[1])
    ]


def part(scope: str) -> tuple[str, str]:
    """The part of the model, and the pass, that an operation belongs to.

    Args:
        scope: as JAX names it: "jit(step)/transpose(jvp(Encoder))/layers_3/attention/mul".

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


def _operations(events: Events) -> Events:
    """A device's kernels, or on CPU the operations that the host's threads ran."""
    names = {
        (event["pid"], event.get("tid")): event["args"]["name"]
        for event in events
        if event.get("ph") == "M" and event["name"] in ("process_name", "thread_name")
    }
    whole = [event for event in events if event.get("ph") == "X"]
    on_device = [e for e in whole if names.get((e["pid"], None), "").startswith("/device:")]
    for line in _LINES:
        if kernels := [
            e for e in on_device if names.get((e["pid"], e["tid"]), "").startswith(line)
        ]:
            return kernels
    on_cpu = [event for event in whole if "hlo_op" in event.get("args", {})]
    return [event for event in on_cpu if not event["name"].startswith(_CONTROL)]


def _shared_times(events: Events, operations: Events) -> list[float]:
    """Each operation's part of the time, divided among those under way at the same time."""
    starts = np.array([event["ts"] for event in operations], float)
    ends = np.array(_ends(events, operations), float)
    times = np.unique(np.concatenate([starts, ends]))
    begun = np.searchsorted(np.sort(starts), times, "right")
    under_way = begun - np.searchsorted(np.sort(ends), times, "right")
    parts = np.diff(times) / np.maximum(under_way[:-1], 1)
    until = np.concatenate([[0.0], np.cumsum(parts)])
    return (until[np.searchsorted(times, ends)] - until[np.searchsorted(times, starts)]).tolist()


def _ends(events: Events, operations: Events) -> list[float]:
    """When each operation ends: on CPU it may go on after its call, until "end: NAME"."""
    said = collections.defaultdict(list)
    for event in sorted(events, key=lambda event: -event.get("ts", 0)):
        if event.get("name", "").startswith("end: "):
            said[event["name"].removeprefix("end: ")].append(event["ts"])
    found = {}
    for event in sorted(operations, key=lambda event: event["ts"]):
        end, later = event["ts"] + event["dur"], said[event["name"]]  # the earliest is last
        while later and later[-1] < event["ts"]:
            later.pop()
        found[id(event)] = max(end, later.pop()) if later else end
    return [found[id(event)] for event in operations]


def table(found: list[dict[str, Any]]) -> str:
    """A table in Markdown."""
    lines = ["| part of the model | pass | ms of a step | share |", "|---|---|---|---|"]
    lines += [
        f"| {each['part']} | {each['pass']} | {each['ms']:,.2f} | {each['share']:.1%} |"
        for each in found
    ]
    return "\n".join(lines)
