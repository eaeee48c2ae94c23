"""Which kernels a training step spends its time in, read from a trace of JAX's profiler."""

import collections
import gzip
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from spidr_jax.bench_timing import Start

STEPS = 3
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?(\S+) = (.*)", re.MULTILINE)
_SOURCE = re.compile(r'metadata=\{.*?op_name="([^"]*)"')
_CONTROL = ("while", "conditional", "call")  # whose time is that of the operations they run
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
        For each kind and place "name", "source", "ms" and "calls" of a step, and "share" of all:
        time of its own, without the operations it calls, and summed over threads. What goes on
        in the background after its call counts until its end.
    """
    sources = _sources(program)
    times: dict[tuple[str, str], float] = collections.defaultdict(float)
    calls: dict[tuple[str, str], int] = collections.defaultdict(int)
    operations = _operations(events)
    background = _background_times(events, operations)
    for event, own in _own_times(operations):
        operation = event.get("args", {}).get("hlo_op", "")
        key = _kind(event["name"]), _place(sources.get(operation, ""))
        times[key] += own + background.get(id(event), 0)
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
    return [event for event in whole if "hlo_op" in event.get("args", {})]


def _own_times(events: list[dict[str, Any]]) -> Iterable[tuple[dict[str, Any], float]]:
    """Each event's duration less that of the events within it, thread by thread."""
    threads = collections.defaultdict(list)
    for event in events:
        threads[event["pid"], event["tid"]].append(event)
    for thread in threads.values():
        thread.sort(key=lambda event: (event["ts"], -event["dur"]))
        own = [event["dur"] for event in thread]
        open_events: list[int] = []
        for i, event in enumerate(thread):
            while open_events and _end(thread[open_events[-1]]) <= event["ts"]:
                open_events.pop()
            if open_events:
                own[open_events[-1]] -= event["dur"]
            open_events.append(i)
        yield from zip(thread, own, strict=True)


def _background_times(
    events: list[dict[str, Any]], operations: list[dict[str, Any]]
) -> dict[int, float]:
    """What passes between the return of an operation's call, by id, and its "end: NAME" event."""
    ends = collections.defaultdict(list)
    for event in sorted(events, key=lambda event: -event.get("ts", 0)):
        if event.get("name", "").startswith("end: "):
            ends[event["name"].removeprefix("end: ")].append(event["ts"])
    found = {}
    for event in sorted(operations, key=lambda event: event["ts"]):
        waiting = ends[event["name"]]  # the earliest is last
        while waiting and waiting[-1] < event["ts"]:
            waiting.pop()
        if waiting and not event["name"].startswith(_CONTROL):
            found[id(event)] = max(0.0, waiting.pop() - _end(event))
    return found


def _end(event: dict[str, Any]) -> float:
    return event["ts"] + event["dur"]


def _kind(name: str) -> str:
    """An operation's name without its number."""
    return re.sub(r"[._]\d+$", "", name)


def _place(source: str) -> str:
    """Where in the model an operation comes from, without the layer's number."""
    return re.sub(r"(layers|convs)_\d+", r"\1_*", source)


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
