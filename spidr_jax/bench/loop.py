"""What training loses between files and devices: steps on real files against steps on kept batches.

Batches from files come through the pipeline of a run: read, decoded, cropped, put on the devices.
"""

import os
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax

from spidr_jax.bench.setups import Setup
from spidr_jax.data import pipeline
from spidr_jax.data.audio import SAMPLE_RATE
from spidr_jax.pretraining import Pretraining
from spidr_jax.train import placement
from spidr_jax.train.programs import Programs

_LEAD = 8  # steps before timing, in which the pipeline spends what it has read ahead
ROUNDS = 4
FILES, KEPT = "from files", "on kept batches"


class Block(NamedTuple):
    """Some steps: seconds of audio, seconds in all, waiting for batches, and of processors."""

    audio: float
    elapsed: float
    waited: float
    cpu: float


class Loop:
    """Trains a model whose state goes on from block to block."""

    def __init__(self, task: Pretraining) -> None:
        """Draw the state of an opened task."""
        self._data = task.data
        self._mesh = placement.make_mesh()
        self._programs = Programs(task, self._mesh, fsdp=False)
        self._state = placement.init_state(task, self._mesh, False, jax.random.key(0))
        everywhere = placement.replicated(self._mesh)
        self._key = jax.jit(lambda: jax.random.key(1), out_shardings=everywhere)()
        self.kept: dict[int, dict[str, Any]] = {}  # a batch of each length

    def on_files(self, start: int, steps: int) -> Block:
        """Train on the plan's batches from `start` on, after some that are not timed."""
        with pipeline.batches(
            self._data, put=lambda batch: placement.put_batch(batch, self._mesh), start=start
        ) as batches:
            for _, batch in zip(range(_LEAD), batches, strict=False):
                self._step(batch)
                self.kept.setdefault(batch["waveforms"].shape[1], batch)
            return self._train(batches, steps)

    def on_kept(self, start: int, steps: int) -> Block:
        """Train on batches of the same shapes that lie on the devices."""
        numbers = range(start + _LEAD, start + _LEAD + steps)
        lengths = [self._data.plan.batch(number).num_samples for number in numbers]
        return self._train([self.kept[length] for length in lengths], steps)

    def _train(self, batches: Iterable[dict[str, Any]], steps: int) -> Block:
        jax.block_until_ready(self._state.step)
        source, waited, samples = iter(batches), 0.0, 0
        cpu, begin = _cpu_seconds(), time.perf_counter()
        for _ in range(steps):
            asked = time.perf_counter()
            batch = next(source)
            waited += time.perf_counter() - asked
            self._step(batch)
            samples += batch["waveforms"].size
        jax.block_until_ready(self._state.step)
        elapsed = time.perf_counter() - begin
        return Block(samples / SAMPLE_RATE, elapsed, waited, _cpu_seconds() - cpu)

    def _step(self, batch: dict[str, Any]) -> None:
        program = self._programs.get(batch, phase=0)
        self._state, _ = program(self._state, batch, self._key)


def _cpu_seconds() -> float:
    spent = os.times()
    return spent.user + spent.system


def bench_loop(setup: Setup, steps: int) -> dict[str, Any]:
    """Measure steps from files and steps on kept batches, taking turns.

    Args:
        setup: a config with its data, of one bucket or few.
        steps: timed steps of each.

    Raises:
        FileNotFoundError, ValueError: as manifest and plan raise them.
    """
    data = setup.config.data
    if not (data.manifest or data.sources):
        raise ValueError("data.manifest: allowed is a manifest's path (--set data.manifest=M)")
    if steps < 1:
        raise ValueError(f"steps: {steps}, allowed is 1 or more")
    task = Pretraining(setup.config)
    task.open(num_devices=jax.device_count())
    plan = task.data.plan
    loop, each, start = Loop(task), -(-steps // ROUNDS), 0
    while len(loop.kept) < sum(number > 0 for number in plan.batches.values()):
        loop.on_files(start, 0)  # compiles
        start += _LEAD
    blocks: dict[str, list[Block]] = {FILES: [], KEPT: []}
    for number in range(ROUNDS):
        begin = start + number * (each + _LEAD)
        blocks[FILES].append(loop.on_files(begin, each))
        blocks[KEPT].append(loop.on_kept(begin, each))
    found: dict[str, Any] = {"steps": each * ROUNDS, "load": os.getloadavg()[0]}
    for name, parts in blocks.items():
        audio, elapsed, waited, cpu = map(sum, zip(*parts, strict=True))
        found[name] = {
            "audio_per_s": audio / elapsed,
            "waited_share": waited / elapsed,
            "cpu_per_audio_s": cpu / audio,
        }
    rates = {name: [part.audio / part.elapsed for part in parts] for name, parts in blocks.items()}
    found["share"] = found[FILES]["audio_per_s"] / found[KEPT]["audio_per_s"]
    found["shares"] = [a / b for a, b in zip(rates[FILES], rates[KEPT], strict=True)]
    return found


def table(found: dict[str, Any]) -> str:
    """What was found, in Markdown."""
    lines = ["| steps | audio s/s | waiting | CPU ms per s of audio |", "|---|---|---|---|"]
    for name in (KEPT, FILES):
        each = found[name]
        lines.append(
            f"| {name} | {each['audio_per_s']:,.1f} | {each['waited_share']:.1%} "
            f"| {each['cpu_per_audio_s'] * 1e3:,.1f} |"
        )
    low, high = min(found["shares"]), max(found["shares"])
    share = f"{found['share']:.1%} (rounds {low:.1%} .. {high:.1%})"
    return "\n".join([*lines, "", f"{FILES}: {share} of the rate {KEPT}"])
