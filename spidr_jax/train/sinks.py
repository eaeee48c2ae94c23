"""Where a run's numbers go: metrics.jsonl always, TensorBoard and Weights & Biases by flag.

metrics.jsonl is the record; the others show no step twice, however often a run was stopped.
"""

import importlib.util
import json
import math
import os
import secrets
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Protocol

from spidr_jax.train.metrics import MetricsWriter, read

_EXTRAS = {"tensorboard": "tensorboardX", "wandb": "wandb"}


class Sink(Protocol):
    """One place where values go."""

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Log values after `step` finished steps; a step's may come in several goes."""

    def close(self) -> None:
        """Write what waits."""


class TensorBoard:
    """An event file of its own for each start of a run, so that none is ever rewritten.

    It is written event by event: tensorboardX's `SummaryWriter` queues them, and its `flush` does
    not wait for the queue, so that a kill would lose what metrics.jsonl already has.
    """

    def __init__(self, folder: Path, step: int) -> None:
        """Begin after `step` finished steps: readers drop what earlier files hold beyond it.

        The first one begins with all that metrics.jsonl has.
        """
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        files = folder / "tensorboard"
        first = not files.exists()
        files.mkdir(exist_ok=True)
        self._file = EventsWriter(str(files / "events"), f".{step}.{os.getpid()}")
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._file.write_event(self._event(wall_time=time.time(), step=step + 1, session_log=start))
        for line in read(folder / "metrics.jsonl") if first else ():
            self.write(line["step"], line)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Write values after `step` finished steps, those that are finite numbers, at once."""
        scalars = [
            self._summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
            if name != "step" and isinstance(value, int | float) and math.isfinite(value)
        ]
        summary = self._summary(value=scalars)
        self._file.write_event(self._event(wall_time=time.time(), step=step, summary=summary))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class WandB:
    """One W&B run for all starts of a run.

    W&B takes each step once and in order. So a step goes to it when the next one begins, and
    `wandb.json` in the run's folder holds the W&B run's id and the last step that went. Online,
    the server knows that better: what W&B had not sent when it was killed is sent again.
    """

    def __init__(self, folder: Path, project: str, config: Mapping[str, Any]) -> None:
        """Open the run, a new one if there is none, and bring it what metrics.jsonl has more.

        Raises:
            OSError: W&B does not let us.
        """
        import wandb

        self._path = folder / "wandb.json"
        known = json.loads(self._path.read_text()) if self._path.exists() else {}
        if known.get("project") != project:
            known = {"project": project, "id": secrets.token_hex(4), "step": -1}
        self._known = known
        try:
            self._run = wandb.init(
                project=project,
                id=known["id"],
                name=folder.absolute().name,
                dir=str(folder),
                config=dict(config),
                resume="allow",
                allow_val_change=True,
            )
        except wandb.Error as error:
            raise OSError(f"config.wandb = {project!r}: {error}") from None
        if not self._run.offline:
            known["step"] = self._run.step - 1
        self._save()
        self._row: tuple[int, dict[str, Any]] = (-1, {})
        for line in read(folder / "metrics.jsonl"):
            self.write(line["step"], line)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Add values to the row of `step`, unless an earlier start of the run logged it."""
        if step != self._row[0]:
            self._send()
            self._row = (step, {})
        self._row[1].update(values)

    def _send(self) -> None:
        step, row = self._row
        if step <= self._known["step"]:
            return
        values = {name: value for name, value in row.items() if name != "step"}
        self._run.log(values, step=step, commit=True)
        self._known["step"] = step
        self._save()

    def _save(self) -> None:
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self._known) + "\n")
        temporary.replace(self._path)

    def close(self) -> None:
        """Send the last row and end the W&B run's session."""
        self._send()
        self._run.finish()


class Logs:
    """The sinks of a run as one."""

    def __init__(
        self,
        folder: Path,
        step: int,
        config: Mapping[str, Any],
        *,
        tensorboard: bool = False,
        wandb: str = "",
        writes: bool = True,
    ) -> None:
        """Open the sinks of a run that goes on after `step` finished steps.

        Args:
            folder: the run's.
            step: finished steps; what is logged beyond them is dropped.
            config: for W&B to show.
            tensorboard: write event files to the folder's `tensorboard`.
            wandb: W&B project, empty for none.
            writes: whether this process is the one that logs.

        Raises:
            OSError: a file cannot be written, or W&B refuses.
        """
        self._writer: MetricsWriter | None = None
        self._sinks: list[Sink] = []
        self._opened = ExitStack()
        if not writes:
            return
        with ExitStack() as opened:  # what is open is closed where another refuses
            self._writer = opened.enter_context(
                closing(MetricsWriter(folder / "metrics.jsonl", step))
            )
            self._sinks.append(self._writer)
            if tensorboard:
                self._sinks.append(opened.enter_context(closing(TensorBoard(folder, step))))
            if wandb:
                self._sinks.append(opened.enter_context(closing(WandB(folder, wandb, config))))
            self._opened = opened.pop_all()

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Log values after `step` finished steps; a step's may come in several goes.

        A full disk is no reason to stop a run: a warning says what it does not take.
        """
        for sink in self._sinks:
            try:
                sink.write(step, values)
            except OSError as error:
                name = type(sink).__name__
                print(f"warning: {name}: step {step} was not written: {error}", flush=True)

    def has(self, step: int, name: str) -> bool:
        """Whether the last values are of `step`, and one of that name is among them."""
        return self._writer is not None and self._writer.has(step, name)

    def close(self) -> None:
        """Write what waits, and close all of them."""
        self._opened.close()


def check_installed(tensorboard: bool, wandb: str) -> None:
    """Refuse a log whose package is missing.

    Raises:
        ImportError: it names the extra to install.
    """
    for field, wanted in (("tensorboard", tensorboard), ("wandb", wandb)):
        package = _EXTRAS[field]
        if wanted and importlib.util.find_spec(package) is None:
            raise ImportError(
                f"config.{field} = {wanted!r} needs {package}: pip install 'spidr_jax[{field}]'"
            )
