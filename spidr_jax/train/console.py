"""Lines on the terminal while a run trains."""

import datetime
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from spidr_jax.train import distributed
from spidr_jax.train.sinks import Logs
from spidr_jax.train.task import State, Task


class ProgressLog:
    """One line per interval; its values are fetched while the next step already runs.

    Attributes:
        writer: destination of the values.
    """

    def __init__(self, writer: Logs, steps: int, task: Task) -> None:
        """Begin a run that ends after `steps`."""
        self.writer, self._steps, self._task = writer, steps, task
        self._pending: tuple[int, dict[str, Any]] | None = None
        self._compiling = True
        self._begin()

    def _begin(self) -> None:
        self._time = time.perf_counter()
        self._counted, self._amount, self._data_wait = 0, 0.0, 0.0

    def count(self, amount: float, data_wait: float) -> None:
        """Count a step that has just been dispatched, and write the line that waits for it."""
        self.flush()
        self._counted += 1
        self._amount += amount
        self._data_wait += data_wait

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Log the metrics of a step, as soon as the next one is dispatched or at `flush`."""
        if jax.process_index() == 0:  # they are the same in all processes
            self._pending = (step, dict(values))

    @contextmanager
    def paused(self, state: State) -> Iterator[None]:
        """Wait for `state` and write the line that waits; no time passes for it inside."""
        jax.block_until_ready(state.step)
        self.flush()
        start = time.perf_counter()
        yield
        self._time += time.perf_counter() - start

    def flush(self) -> None:
        """Write the line that waits, if there is one."""
        if self._pending is None:
            return
        (step, pending), self._pending = self._pending, None
        values = self._task.flatten(jax.device_get(pending))
        elapsed = time.perf_counter() - self._time
        values[self._task.rate] = self._amount / elapsed
        values["data_wait"] = self._data_wait
        self.writer.write(step, values)
        left = datetime.timedelta(seconds=round((self._steps - step) * elapsed / self._counted))
        ending = f"{elapsed:.0f} s with compilation" if self._compiling else f"left {left}"
        formats = {**self._task.shown, "learning_rate": "lr {:.1e}"}
        number = f"{step:>{len(str(self._steps))}}/{self._steps}"
        distributed.tell(f"step {number}  {shown(values, formats)}  {ending}")
        self._task.watch(step, values)
        self._compiling = False
        self._begin()


def shown(values: Mapping[str, Any], formats: Mapping[str, str]) -> str:
    """Metrics in a line, by their formats."""
    return "  ".join(text.format(values[name]) for name, text in formats.items() if name in values)


def introduce(folder: Path, task: Task, state: State, precision: str) -> None:
    """Say what is about to train, on what and from where."""
    step = int(state.step)
    distributed.tell(
        f"devices: {jax.device_count()} x {jax.devices()[0].device_kind}, "
        f"{jax.process_count()} process(es), jax {jax.__version__}, {precision}\n"
        + task.describe(state)
        + "".join(f"evaluation: {each.description}\n" for each in task.evaluations)
        + f"run: {folder}, "
        + (f"resumes after step {step}" if step else "starts")
    )


def conclude(
    folder: Path, step: int, steps: int, saved: int | None, best: tuple[int, float] | None
) -> None:
    """Say where the run lies and what to do next."""
    distributed.tell(
        f"{'finished' if step >= steps else 'stopped'} after step {step} of {steps}\n"
        f"run: {folder} (metrics.jsonl, config.json, checkpoints/{saved})\n"
        + (f"best: checkpoints/{best[0]} with {best[1]:.4f}\n" if best else "")
        + "next: the same command goes on from here; "
        + f"--config.steps={2 * max(step, steps)} trains longer"
    )
