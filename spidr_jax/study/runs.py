"""The runs of a study: how far each is, and running them one after another."""

import contextlib
import fcntl
import re
import signal
import statistics
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from spidr_jax.report.runs import Run, read_runs
from spidr_jax.study.plan import PlannedRun

SPEED = "audio_seconds_per_second"
_FAILED = "failed: "
_ERROR = re.compile(r"error: |[\w.]*(Error|Exception|Interrupt)(: |$)|F\d{4} \d\d:")
_LONGEST = 300


class Outcome(NamedTuple):
    """What a run of a study has come to.

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
    """How far a run is, by its files."""
    try:
        (found,) = read_runs([out / run.name])
    except FileNotFoundError:
        return Outcome(f"not started{_failure(out, run)}", {})
    except ValueError as error:
        return Outcome(str(error), {})
    values = _values(found, run.steps)
    if (found.saved_step or 0) < run.steps or "loss" not in values:
        reached = found.lines[-1]["step"] if found.lines else 0
        return Outcome(f"after step {reached} of {run.steps}{_failure(out, run)}", {})
    if missing := [name for name in run.measured if name not in values]:
        return Outcome(f"ended without {missing[0]}{_failure(out, run)}", {})
    numbers = {name: v for name, v in values.items() if isinstance(v, int | float)}
    return Outcome("finished", numbers)


def _failure(out: Path, run: PlannedRun) -> str:
    """What `Runner.run` has written of a failure, where nothing has come after it."""
    log = _log(out, run)
    last = log.read_text(errors="replace").splitlines()[-1:] if log.exists() else []
    return f", {last[0]}" if last and last[0].startswith(_FAILED) else ""


def _log(out: Path, run: PlannedRun) -> Path:
    return out / f"{run.name}.log"


def _values(run: Run, step: int) -> dict[str, Any]:
    values = next((line for line in run.lines if line["step"] == step), {})
    speeds = [v for _, v in run.series(SPEED) if v is not None]
    speed = {SPEED: statistics.median(speeds[1:] or speeds)} if speeds else {}
    return {**values, **speed}


@contextlib.contextmanager
def alone(out: Path) -> Iterator[IO[bytes]]:
    """Have a study's folder for oneself and the runs that inherit the file.

    Raises:
        ValueError: another study, or a run that one left behind, is at work there.
    """
    with (out / "study.lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{out}: a study is at work there, or a run of one that was killed"
            ) from None
        yield lock


class Runner:
    """Runs one after another, each in a process of its own.

    SIGINT and SIGTERM go to the run, which saves and ends, and no other begins.

    Attributes:
        stopped: the signal that came, or None.
    """

    def __init__(self, out: Path, lock: IO[bytes]) -> None:
        """Run in a study's folder, with the lock of `alone`."""
        self.stopped: int | None = None
        self._out, self._lock = out, lock
        self._process: subprocess.Popen[bytes] | None = None

    @contextlib.contextmanager
    def taking_signals(self) -> Iterator[None]:
        """Take the two signals inside."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self._pass_on) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    def _pass_on(self, number: int, _: Any) -> None:
        self.stopped = number
        if self._process is not None:
            self._process.send_signal(number)

    def run(self, run: PlannedRun) -> bool:
        """Start a run or go on with it; gives whether it failed, which its log then ends with."""
        with _log(self._out, run).open("a+b") as log:
            start = log.tell()
            # A group of its own: Ctrl-C must reach it once, through us, as twice ends it at once.
            self._process = subprocess.Popen(
                run.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
                pass_fds=[self._lock.fileno()],
            )
            if self.stopped is not None:  # it came before there was a process
                self._process.send_signal(self.stopped)
            status = self._process.wait()
            finished = outcome(self._out, run).finished
            if finished or self.stopped is not None:
                return False
            log.seek(start)
            said = last_error(log.read().decode(errors="replace"))
            ended = f"ended by {signal.Signals(-status).name}: " if status < 0 else ""
            log.write(f"{_FAILED}{ended}{said}\n".encode())
            return True


def last_error(text: str) -> str:
    """The last line that tells an error of ours, of Python's or of XLA's, or else the last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR.match(line)]
    return (errors or lines or [""])[-1][:_LONGEST]
