"""What a run tells its user while it trains, on the terminal and in metrics.jsonl."""

import datetime
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from spidr_jax.data.audio import SAMPLE_RATE
from spidr_jax.data.plan import Plan
from spidr_jax.eval.abx import SPEAKERS
from spidr_jax.eval.metrics import Key, key_text, parse_key
from spidr_jax.eval.results import Measured
from spidr_jax.method.step import StepConfig, TrainState
from spidr_jax.model.config import ModelConfig
from spidr_jax.train import distributed
from spidr_jax.train.metrics import flatten, read
from spidr_jax.train.monitors import Collapse
from spidr_jax.train.sinks import Logs


class ProgressLog:
    """One line per interval; its values are fetched while the next step already runs.

    Attributes:
        writer: where the values go.
    """

    def __init__(self, writer: Logs, steps: int, model: ModelConfig) -> None:
        """Begin a run of `model` that ends after `steps`."""
        self.writer, self._steps, self._layers = writer, steps, model.codebook_layers
        self._collapse = Collapse(model.codebook_size)
        self._pending: tuple[int, dict[str, Any]] | None = None
        self._compiling = True
        self._begin()

    def _begin(self) -> None:
        self._time = time.perf_counter()
        self._counted, self._samples, self._data_wait = 0, 0, 0.0

    def count(self, samples: int, data_wait: float) -> None:
        """Count a step that has just been dispatched, and write the line that waits for it."""
        self.flush()
        self._counted += 1
        self._samples += samples
        self._data_wait += data_wait

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Log the metrics of a step, as soon as the next one is dispatched or at `flush`."""
        if jax.process_index() == 0:  # they are the same in all processes
            self._pending = (step, dict(values))

    @contextmanager
    def paused(self, state: TrainState) -> Iterator[None]:
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
        values = flatten(jax.device_get(pending), self._layers)
        elapsed = time.perf_counter() - self._time
        values["audio_seconds_per_second"] = self._samples / SAMPLE_RATE / elapsed
        values["data_wait"] = self._data_wait
        self.writer.write(step, values)
        left = datetime.timedelta(seconds=round((self._steps - step) * elapsed / self._counted))
        ending = f"{elapsed:.0f} s with compilation" if self._compiling else f"left {left}"
        distributed.tell(f"{_line(step, self._steps, values)}  {ending}")
        names = {k: key_text(Key("", k, "target_ppl")) for k in self._layers}
        self._collapse.check(step, {k: values[name] for k, name in names.items()})
        self._compiling = False
        self._begin()


def _line(step: int, steps: int, values: Mapping[str, Any]) -> str:
    return (
        f"step {step:>{len(str(steps))}}/{steps}"
        f"  loss {values['loss']:.3f}"
        f"  target_ppl {values['target_ppl']:.1f}"
        f"  pred_ppl {values['pred_ppl']:.1f}"
        f"  active {values['active_codes']:.1f}"
        f"  lr {values['learning_rate']:.1e}"
        f"  audio {values['audio_seconds_per_second']:,.0f} s/s"
    )


def introduce(folder: Path, plan: Plan, config: StepConfig, state: TrainState) -> None:
    """Say what is about to train, on what and from where."""
    student = sum(x.size for x in jax.tree.leaves(state.params))
    teacher = sum(x.size for x in jax.tree.leaves(state.teacher))
    model = config.model
    step = int(state.step)
    distributed.tell(
        f"devices: {jax.device_count()} x {jax.devices()[0].device_kind}, "
        f"{jax.process_count()} process(es), jax {jax.__version__}, {config.dtype.__name__}\n"
        f"model: {model.model_type}, {student / 1e6:.1f} M parameters, teacher "
        f"{teacher / 1e6:.1f} M; {model.num_codebooks} codebooks of {model.codebook_size}\n"
        f"data: {plan.describe()}\n"
        f"run: {folder}, " + (f"goes on after step {step}" if step else "starts")
    )


def report_evaluation(step: int, name: str, rows: Sequence[Measured], seconds: float) -> None:
    """Say the unit quality and the ABX errors of each layer of an evaluation set."""
    pnmi = [f"{r.layer} {q.pnmi:.3f} ({q.active_codes} codes)" for r in rows if (q := r.quality)]
    errors = [(r.layer, *(r.abx[task].error for task in SPEAKERS)) for r in rows if r.abx]
    abx = [f"{k} {within:.1%} / {across:.1%}" for k, within, across in errors]
    named = {"PNMI of units": pnmi, "ABX of codebooks, within / across speakers": abx}
    text = "\n".join(f"{kind}: layer {'  '.join(each)}" for kind, each in named.items() if each)
    distributed.tell(f"evaluation {name} after step {step} ({seconds:.1f} s)\n{text}")


def report_validation(step: int, name: str, values: Mapping[str, float], seconds: float) -> None:
    """Say the means of a validation set."""
    distributed.tell(
        f"validation {name} after step {step}: loss {values['loss']:.3f}"
        f"  target_ppl {values['target_ppl']:.1f}"
        f"  pred_ppl {values['pred_ppl']:.1f}"
        f"  active {values['active_codes']:.1f}  ({seconds:.1f} s)"
    )


def report_best(name: str, step: int, values: Mapping[str, float]) -> None:
    """Say that a validation is the best so far in the metric `name`."""
    distributed.print0(f"best {name} so far: {values[name]:.4f} after step {step}")


def conclude(
    folder: Path, step: int, steps: int, saved: int | None, best: tuple[int, float] | None
) -> None:
    """Say where the run lies, how PNMI and ABX moved, and what to do next."""
    lines = read(folder / "metrics.jsonl")
    names = lines[0] if lines else {}
    moved = [name for name in names if parse_key(name).name in ("pnmi", "abx_across")]
    for name in [n for n in moved if None not in (lines[0][n], lines[-1].get(n))]:
        distributed.tell(
            f"{name}: {lines[0][name]:.3f} at step {lines[0]['step']}, {lines[-1][name]:.3f} now"
        )
    distributed.tell(
        f"{'finished' if step >= steps else 'stopped'} after step {step} of {steps}\n"
        f"run: {folder} (metrics.jsonl, config.json, checkpoints/{saved})\n"
        + (f"best: checkpoints/{best[0]} with {best[1]:.4f}\n" if best else "")
        + "next: the same command goes on from here; "
        + f"--config.steps={2 * max(step, steps)} trains longer"
    )
