"""Status of the runs of a study, from their files."""

import statistics
from pathlib import Path
from typing import NamedTuple

from spidr_jax.report.runs import Run, read_runs
from spidr_jax.study.plan import PlannedRun

SPEED = "audio_seconds_per_second"


class Outcome(NamedTuple):
    """Status and last metrics of a run.

    Attributes:
        status: "finished", "not started", or where it stands.
        values: the metrics of its last step, of a finished run, but `SPEED`: the median of its
            lines without the first, which includes compilation.
    """

    status: str
    values: dict[str, float]

    @property
    def finished(self) -> bool:
        """Whether the run has nothing more to do."""
        return self.status == "finished"


def outcome(out: Path, run: PlannedRun) -> Outcome:
    """How far a run of the study in folder `out` is."""
    try:
        (found,) = read_runs([out / run.name])
    except FileNotFoundError:
        return Outcome("not started", {})
    except ValueError as error:
        return Outcome(str(error), {})
    values = _values(found, run.steps)
    if (found.saved_step or 0) < run.steps or "loss" not in values:
        reached = found.lines[-1]["step"] if found.lines else 0
        return Outcome(f"after step {reached} of {run.steps}", {})
    return Outcome("finished", values)


def _values(run: Run, step: int) -> dict[str, float]:
    line = next((line for line in run.lines if line["step"] == step), {})
    values = {name: value for name, value in line.items() if isinstance(value, int | float)}
    speeds = [value for _, value in run.series(SPEED) if value is not None]
    return values | ({SPEED: statistics.median(speeds[1:] or speeds)} if speeds else {})
