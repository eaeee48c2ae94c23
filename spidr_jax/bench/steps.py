"""Time of a training step on one device, of its compilation, and its memory.

The step is the one that training runs, with its state donated, on noise that lies on the device.
"""

import os
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from spidr_jax.bench import flops, memory, profiling, pytorch, setups
from spidr_jax.bench.setups import Setup
from spidr_jax.bench.timing import Start, measure_peak, stepper, take_turns
from spidr_jax.data.audio import SAMPLE_RATE
from spidr_jax.pretraining import Pretraining
from spidr_jax.train import placement

WARM_UP = 2  # steps
OURS = "spidr_jax"
Rounds = list[list[float]]  # seconds of the steps of each


class Program(NamedTuple):
    """A compiled step.

    Attributes:
        start: starts it on the state that it gave, beginning with a fresh one.
        batch: batch to run on.
        costs: "lower_s" and "compile_s", the seconds of tracing and compilation without a cache,
            and "planned_bytes" of device memory.
    """

    compiled: jax.stages.Compiled
    start: Start
    batch: dict[str, jax.Array]
    costs: dict[str, float]


def compile_step(setup: Setup, frozen: bool) -> Program:
    """Compile the step of a phase for the first device, and draw its state and batch there."""
    task, mesh = Pretraining(setup.config), Mesh(np.array(jax.devices()[:1]), ("data",))
    state = placement.init_state(task, mesh, fsdp=False, key=jax.random.key(1))
    if frozen:
        state = task.enter(1, state)
        state = state._replace(step=state.step + setup.config.freeze_step)
    batch = placement.put_batch(setups.draw_batch(setup), mesh)
    key = jax.random.key(0)
    step = placement.jit_step(task, mesh, fsdp=False, phase=int(frozen))
    begin = time.perf_counter()
    lowered = step.lower(state, batch, key)
    middle = time.perf_counter()
    compiled = lowered.compile()
    costs = {
        "lower_s": middle - begin,
        "compile_s": time.perf_counter() - middle,
        "planned_bytes": memory.planned_bytes(compiled),
    }
    return Program(compiled, stepper(compiled, state, batch, key), batch, costs)


def bench_step(
    setup: Setup,
    *,
    frozen: bool = False,
    steps: int = 20,
    reference: bool = False,
    profile: str | None = None,
) -> dict[str, Any]:
    """Measure a step, and print tables in Markdown.

    Args:
        setup: config and batch.
        frozen: the phase from `freeze_step` on.
        steps: least number of timed steps.
        reference: also time the PyTorch reference, in turns with ours.
        profile: a folder for a trace of three more steps.

    Returns:
        What JSON holds: "conditions", "peak_tflops", "tflop" of a step, "contenders", "ratios" and
        "skipped" by name, and "profile" if asked for.

    Raises:
        ImportError: the reference is not installed.
        ValueError: a value is not usable.
    """
    if steps < 1:
        raise ValueError(f"steps: {steps}, allowed is 1 or more")
    if reference:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs room as well
        pytorch.check_installed()
    conditions = _conditions(setup, frozen)
    peak = measure_peak(setup.step_config.dtype)
    program = compile_step(setup, frozen)
    for _ in range(WARM_UP):
        program.start()()
    starts = {OURS: program.start}
    skipped: dict[str, str] = {}
    if reference:
        theirs, skipped = pytorch.make_steps(setup, frozen, program.batch, WARM_UP)
        starts |= theirs
    times = take_turns(starts, steps)
    if reference:
        conditions |= pytorch.conditions()
    found: dict[str, Any] = {"conditions": conditions, "skipped": skipped}
    found |= _describe(setup, frozen, peak, program, times)
    print(_table(found))
    if profile:
        text = program.compiled.as_text() or ""
        found["profile"] = profiling.profile(program.start, text, profile)
        if found["profile"]:
            print("\n" + profiling.table(found["profile"]))
    return found


def _describe(
    setup: Setup, frozen: bool, peak: float, program: Program, times: dict[str, Rounds]
) -> dict[str, Any]:
    """Arithmetic, and what each contender's times say; of ours also compilation and memory."""
    work = flops.count_step(setup.step_config.model, setup.rows, setup.samples, frozen)
    contenders: dict[str, dict[str, Any]] = {}
    for name, rounds in times.items():
        seconds = np.concatenate(rounds)
        low, median, high = np.percentile(seconds, (25, 50, 75)).tolist()
        contenders[name] = {
            "median_ms": median * 1e3,
            "quartiles_ms": [low * 1e3, high * 1e3],
            "steps": len(seconds),
            "audio_per_s": setup.rows * setup.samples / SAMPLE_RATE / median,
            "tflops": work / median / 1e12,
            "share_of_peak": work / median / peak,
        }
    stats = jax.devices()[0].memory_stats() or {}  # None on CPU
    contenders[OURS] |= program.costs | {"peak_bytes": stats.get("peak_bytes_in_use")}
    return {
        "peak_tflops": peak / 1e12,
        "tflop": work / 1e12,
        "contenders": contenders,
        "ratios": _ratios(times),
    }


def _ratios(times: dict[str, Rounds]) -> dict[str, Any]:
    """How many times as long as ours each other takes: over all steps, and in each round."""
    whole = {name: float(np.median(np.concatenate(rounds))) for name, rounds in times.items()}
    medians = {name: np.median(rounds, axis=1) for name, rounds in times.items()}
    return {
        name: {
            "ratio": whole[name] / whole[OURS],
            "rounds": (medians[name] / medians[OURS]).tolist(),
        }
        for name in times
        if name != OURS
    }


def _conditions(setup: Setup, frozen: bool) -> dict[str, Any]:
    device = jax.devices()[0]
    return {
        "device": f"{device.platform} ({device.device_kind})",
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),  # of whatever else runs here
        "jax": jax.__version__,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "precision": setup.config.precision,
        "rows": setup.rows,
        "samples": setup.samples,
        "frames": setup.frames,
        "frozen": frozen,
    }


def _table(found: dict[str, Any]) -> str:
    conditions = found["conditions"]
    whole, peak = found["tflop"], found["peak_tflops"]
    lines = [
        ", ".join(f"{name} {value}" for name, value in conditions.items() if value != ""),
        "",
        "| what | step, ms | quartiles | steps | audio s/s | TFLOP/s | of the peak |",
        "|---|---|---|---|---|---|---|",
        f"| {whole:.3g} TFLOP at the peak of a matrix product | {whole / peak * 1e3:,.2f} "
        f"| | | | {peak:.4g} | 100 % |",
    ]
    for name, each in found["contenders"].items():
        low, high = each["quartiles_ms"]
        lines.append(
            f"| {name} | {each['median_ms']:,.2f} | {low:,.2f} .. {high:,.2f} | {each['steps']} "
            f"| {each['audio_per_s']:,.0f} | {each['tflops']:.4g} | {each['share_of_peak']:.1%} |"
        )
    return "\n".join([*lines, "", *_notes(found)])


def _notes(found: dict[str, Any]) -> list[str]:
    ours = found["contenders"][OURS]
    peak = ours["peak_bytes"]
    said = f"{peak / 2**30:.2f} GiB at the device's peak so far" if peak else "no peak said here"
    notes = [
        f"compilation: {ours['lower_s']:.1f} s to trace, {ours['compile_s']:.1f} s to compile",
        f"memory: {ours['planned_bytes'] / 2**30:.2f} GiB planned by the compiler; {said}",
    ]
    for name, each in found["ratios"].items():
        extremes = f"{min(each['rounds']):.2f} .. {max(each['rounds']):.2f}"
        notes.append(f"{name} takes {each['ratio']:.2f} times as long (rounds {extremes})")
    return notes + [f"{name}: left out, {why}" for name, why in found["skipped"].items()]
