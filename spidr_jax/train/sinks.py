"""Destinations of a run's metrics: metrics.jsonl always, TensorBoard and Weights & Biases by flag.

metrics.jsonl is the record, the others are for looking on.
"""

import importlib.util
import json
import math
import os
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from spidr_jax.train import distributed
from spidr_jax.train.metrics import MetricsWriter

_EXTRAS = {"tensorboard": "tensorboardX", "wandb": "wandb"}


class Sink(Protocol):
    """A destination of metrics."""

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Log values after `step` finished steps; a step's may come in several goes."""

    def close(self) -> None:
        """Write what waits."""


class TensorBoard:
    """An event file of its own for each start of a run, in the run's folder `tensorboard`.

    It is written event by event: the queue of tensorboardX's `SummaryWriter` loses what waits in
    it to a kill, and blocks for ever once its thread has met a full disk.
    """

    def __init__(self, folder: Path, step: int) -> None:
        """Begin after `step` finished steps: readers drop what earlier files hold beyond it."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        (folder / "tensorboard").mkdir(exist_ok=True)
        self._file = EventsWriter(str(folder / "tensorboard" / "events"), f".{step}.{os.getpid()}")
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._file.write_event(self._event(wall_time=time.time(), step=step + 1, session_log=start))

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Write values after `step` finished steps, those that are finite numbers, at once."""
        scalars = [
            self._summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
            if isinstance(value, int | float) and math.isfinite(value)
        ]
        summary = self._summary(value=scalars)
        self._file.write_event(self._event(wall_time=time.time(), step=step, summary=summary))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class WandB:
    """One W&B run for all starts of a run; its id lies in the run's folder.

    W&B takes steps in order alone: of those that a resumed run does again it keeps the first.
    """

    def __init__(self, folder: Path, project: str, config: Mapping[str, Any]) -> None:
        """Open the run, a new one if there is none of this project.

        Raises:
            OSError: W&B does not let us.
        """
        import wandb

        path = folder / "wandb.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        if known.get("project") != project:
            known = {"project": project, "id": secrets.token_hex(4)}
            path.write_text(json.dumps(known) + "\n")
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

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Log values after `step` finished steps; W&B merges those of a step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """End the W&B run's session."""
        self._run.finish()


class Logs:
    """The sinks of a run as one; what one of them does not take ends no run."""

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
            step: finished steps; what was logged beyond them counts no longer.
            config: config for W&B to show.
            tensorboard: write event files.
            wandb: W&B project, empty for none.
            writes: whether this process is the one that logs.

        Raises:
            OSError: a file cannot be written, or W&B refuses.
        """
        self._metrics: MetricsWriter | None = None
        self._sinks: list[Sink] = []
        if not writes:
            return
        if wandb:  # first, as it may refuse
            self._sinks.append(WandB(folder, wandb, config))
        if tensorboard:
            self._sinks.append(TensorBoard(folder, step))
        self._metrics = MetricsWriter(folder / "metrics.jsonl", step)
        self._sinks.append(self._metrics)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Log values after `step` finished steps; a step's may come in several goes."""
        self._each(f"step {step} was not written", lambda sink: sink.write(step, values))

    def has(self, step: int, name: str) -> bool:
        """Whether the last values are of `step`, and one of that name is among them."""
        return self._metrics is not None and self._metrics.has(step, name)

    def close(self) -> None:
        """Write what waits, and close all of them."""
        self._each("was not closed", lambda sink: sink.close())

    def _each(self, failed: str, action: Callable[[Sink], None]) -> None:
        for sink in self._sinks:
            try:
                action(sink)
            except Exception as error:  # a full disk, or whatever W&B or tensorboardX raises
                distributed.tell(f"warning: {type(sink).__name__}: {failed}: {error}")


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
