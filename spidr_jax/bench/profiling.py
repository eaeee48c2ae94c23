"""Which kernels a training step spends its time in, read from a trace of JAX's profiler."""

import collections
import gzip
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from spidr_jax.bench.hlo import place
from spidr_jax.bench.timing import Start

STEPS = 3
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?(\S+) = (.*)", re.MULTILINE)
_SOURCE = re.compile(r'metadata=\{.*?op_name="([^"]*)"')
_CONTROL = ("while", "conditional", "call")  # whose time is that of what they run
_LINES = ("Stream", "XLA Ops")  # of a GPU's kernels, of a TPU's operations


def profile(start: Start, program: str, folder: str) -> list[dict[str, Any]]:
    """Trace some steps and add up what the trace says.

    Args:
        start: starts a step.
        program: the compiled step's text, which says where its operations come from.
        folder: for the trace, which TensorBoard and Perfetto read.

    Returns:
        As `total_times` does, the largest first.

    Raises:
        ValueError: the trace has no operations.
    """
    before = set(_traces(folder))
    with jax.profiler.trace(folder):
        for _ in range(STEPS):
            wait = start()
        wait()
    (path,) = set(_traces(folder)) - before
    with gzip.open(path, "rt", encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    if found := total_times(events, program, STEPS):
        return found
    raise ValueError(f"{path}: the trace has no operations")


def _traces(folder: str) -> Iterable[Path]:
    return Path(folder).glob("plugins/profile/*/*.trace.json.gz")


def total_times(events: list[dict[str, Any]], program: str, steps: int) -> list[dict[str, Any]]:
    """Add up the time of operations of the same kind from the same place, over all layers.

    Args:
        events: of the trace: Chrome's, in microseconds.
        program: the compiled program's text.
        steps: that were traced.

    Returns:
        For each kind and place "name", "source", "ms" and "calls" of a step, and "share" of all.
        Where several operations are under way, as on several streams or threads, each gets an
        equal part of the time: all together take as long as the device is busy.
    """
    sources = _sources(program)
    times: dict[tuple[str, str], float] = collections.defaultdict(float)
    calls: dict[tuple[str, str], int] = collections.defaultdict(int)
    operations = _operations(events)
    for event, time in zip(operations, _shared_times(events, operations), strict=True):
        key = _kind(event["name"]), place(_source(event, sources))
        times[key] += time
        calls[key] += 1
    whole = sum(times.values())
    return [
        {
            "name": key[0],
            "source": key[1],
            "ms": time / steps / 1e3,
            "calls": calls[key] / steps,
            "share": time / whole,
        }
        for key, time in sorted(times.items(), key=lambda item: -item[1])
    ]


def _source(event: dict[str, Any], sources: dict[str, str]) -> str:
    """By the operation, or, as all of a CUDA graph have its name, by that of a fusion's kernel."""
    operation = event.get("args", {}).get("hlo_op", "")
    of_kernel = re.sub(r"_(\d+)$", r".\1", event["name"])
    return sources.get(operation) or sources.get(of_kernel, "")


def _sources(program: str) -> dict[str, str]:
    """Where each operation of a program comes from; what does not say so, from its user."""
    found: dict[str, str] = {}
    for name, body in reversed(_INSTRUCTION.findall(program)):
        if match := _SOURCE.search(body):
            found[name] = match[1]
        if source := found.get(name):
            operands = re.findall(r"%([\w.-]+)", body.partition(", metadata=")[0])
            found |= dict.fromkeys(operands, source)
    return found


def _operations(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A device's kernels, or on CPU the operations that the host's threads ran."""
    names: dict[tuple[Any, Any], str] = {}
    for event in events:
        if event.get("ph") == "M" and event["name"] in ("process_name", "thread_name"):
            names[event["pid"], event.get("tid")] = event["args"]["name"]
    whole = [event for event in events if event.get("ph") == "X"]
    on_device = [e for e in whole if names.get((e["pid"], None), "").startswith("/device:")]
    for line in _LINES:
        if of_line := [
            e for e in on_device if names.get((e["pid"], e["tid"]), "").startswith(line)
        ]:
            return of_line
    return [
        event
        for event in whole
        if "hlo_op" in event.get("args", {}) and not event["name"].startswith(_CONTROL)
    ]


def _shared_times(events: list[dict[str, Any]], operations: list[dict[str, Any]]) -> list[float]:
    """Each operation's part of the time, divided among those under way at the same time."""
    starts = np.array([event["ts"] for event in operations], float)
    ends = np.array(_ends(events, operations), float)
    times = np.unique(np.concatenate([starts, ends]))
    under_way = np.searchsorted(np.sort(starts), times, "right") - np.searchsorted(
        np.sort(ends), times, "right"
    )
    parts = np.diff(times) / np.maximum(under_way[:-1], 1)
    until = np.concatenate([[0.0], np.cumsum(parts)])
    return (until[np.searchsorted(times, ends)] - until[np.searchsorted(times, starts)]).tolist()


def _ends(events: list[dict[str, Any]], operations: list[dict[str, Any]]) -> list[float]:
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


def _kind(name: str) -> str:
    """An operation's name without its number."""
    return re.sub(r"[._]\d*$", "", name)


def table(found: list[dict[str, Any]], lines: int = 25) -> str:
    """A table in Markdown of what takes most."""
    texts = ["| ms of a step | share | calls | kernel | from |", "|---|---|---|---|---|"]
    for each in found[:lines]:
        texts.append(
            f"| {each['ms']:,.2f} | {each['share']:.1%} | {each['calls']:g} "
            f"| {each['name'][:60]} | {each['source'][-90:]} |"
        )
    rest = sum(each["ms"] for each in found[lines:])
    texts.append(f"| {rest:,.2f} | | | {len(found[lines:])} others | |")
    return "\n".join(texts)
