"""A run of a task: open, restore, loop over batches, log, validate, evaluate, save."""

import bisect
import dataclasses
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import jax
from jax.sharding import Mesh

from spidr_jax.data import pipeline
from spidr_jax.data.files import local_path
from spidr_jax.train import config as config_lib
from spidr_jax.train import console, distributed, placement, resume, watchdog
from spidr_jax.train.checkpoint import Checkpoints
from spidr_jax.train.config import RunConfig
from spidr_jax.train.console import ProgressLog
from spidr_jax.train.evaluation import Evaluations
from spidr_jax.train.monitors import NotFiniteError, SkippedUpdates
from spidr_jax.train.preemption import FolderLock, Stop, lock_folder, stop_on_signals
from spidr_jax.train.programs import Programs
from spidr_jax.train.sinks import Logs, check_installed
from spidr_jax.train.task import Metrics, State, Task
from spidr_jax.train.validation import Validation

_AHEAD = 1_000  # steps before a phase at which its programs are begun


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of a run that stay the same while it trains."""

    task: Task
    config: RunConfig
    folder: Path
    lock: FolderLock | None
    checkpoints: Checkpoints
    mesh: Mesh
    evaluations: Evaluations
    validation: Validation

    def phase(self, step: int) -> int:
        """The phase of step number `step`, from 1."""
        return bisect.bisect_left(self.task.phase_starts, step)


def open_run(task: Task, config: RunConfig) -> Run:
    """Open data, evaluation sets and the run's folder; nothing is computed yet.

    Raises:
        ValueError: data, config or an earlier run in the folder do not fit, or another process
            trains there, in one line.
        OSError: a file is missing or the folder cannot be written.
    """
    folder, begins_from = map(local_path, (config.workdir, config.init_from))
    if config.init_from and not (begins_from.exists() or (folder / "checkpoints").is_dir()):
        raise FileNotFoundError(f"config.init_from = {config.init_from!r}: there is no such path")
    mesh = placement.make_mesh()
    task.open(mesh.size)
    evaluations = Evaluations(task, config, mesh)
    validation = Validation(task, config, mesh)
    check_installed(config.tensorboard, config.wandb)
    resume.versions()  # now, not at the first save, where this package's own is not known
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"config.workdir = {str(folder)!r}: {error.strerror}") from None
    lock = lock_folder(folder)
    keeping = {name: getattr(config.checkpoint, name) for name in ("keep", "keep_every", "best")}
    checkpoints = Checkpoints(folder / "checkpoints", **keeping)
    return Run(task, config, folder, lock, checkpoints, mesh, evaluations, validation)


def build_state(run: Run) -> State:
    """The state that the run starts from: its last checkpoint's, or a new one.

    Raises:
        ValueError: the folder's run has another config or other data, named field by field; its
            checkpoint is damaged; `init_from` does not fit.
    """
    task, config, checkpoints, fsdp = (
        run.task,
        run.config,
        run.checkpoints,
        run.config.sharding.fsdp,
    )
    step = resume.choose_step(checkpoints, config.resume_step)
    if step is None:
        if config.resume_step != 0:
            resume.check_unstarted(run.folder, config.checkpoint.every)
        key = jax.random.split(jax.random.key(config.seed))[0]
        state = placement.init_state(task, run.mesh, fsdp, key)
        state = task.adopt(state, config.init_from) if config.init_from else state
    else:
        resume.check_unchanged(checkpoints, step, config, task.data.fingerprint)
        target = placement.abstract_state(task, run.mesh, fsdp, run.phase(step + 1))
        state = checkpoints.restore(step, target)
    if later := checkpoints.set_aside(step or 0):
        distributed.print0(f"checkpoints {later} now lie in {run.folder / 'set_aside'}")
    return state


def train(run: Run, state: State) -> int:
    """Train from `state` to `config.steps`; gives the process's exit status.

    SIGINT (status 130) and SIGTERM (0) in any process end the run in all of them after the same
    step, with a checkpoint.

    Raises:
        OSError: the end of the run could not be saved; the message names the newest checkpoint.
        BadDataError: too much data cannot be read; what was trained is saved.
        NotFiniteError: too many updates in a row were not finite; what was trained is saved.
    """
    start, config = int(state.step), run.config
    if distributed.is_first():
        (run.folder / "config.json").write_text(config_lib.to_text(config))
        console.introduce(run.folder, run.task, state, config.precision)
    logs = Logs(
        run.folder,
        start,
        config_lib.to_json(config),
        tensorboard=config.tensorboard,
        wandb=config.wandb,
        writes=distributed.is_first(),
    )
    with closing(logs), closing(run.checkpoints), stop_on_signals() as stop:
        with stop.slow(partial(_save_now, run, state, start)):
            if run.evaluations.due(start):
                run.evaluations.measure(state, start, logs)
            run.validation.measure(state, start, logs)
        if start < config.steps:
            state = _loop(run, state, ProgressLog(logs, config.steps, run.task), stop)
        watchdog.beat()
        _warn_if_unsaved(run.checkpoints.wait)
        saved = run.checkpoints.latest()
        best = run.checkpoints.best()
    if stop.error:
        jax.distributed.shutdown()  # the others have no error: first they leave, then this fails
        raise stop.error
    if distributed.is_first():
        console.conclude(run.folder, int(state.step), config.steps, saved, best)
    if saved != int(state.step):
        raise OSError(f"the end of the run is not saved: the newest checkpoint is {saved}")
    return 130 if stop.signal == signal.SIGINT else 0


def _loop(run: Run, state: State, log: ProgressLog, stop: Stop) -> State:
    task, config, data, start = run.task, run.config, run.task.data, int(state.step)
    key = _step_key(run)
    name_batch = lambda step: data.name_batch(step - 1)  # noqa: E731
    skipped = SkippedUpdates(int(getattr(state, "skipped", 0)), config.max_skipped, name_batch)
    programs = Programs(task, run.mesh, config.sharding.fsdp)
    with closing(programs), _open_batches(run, start) as batches:
        for step in range(start + 1, config.steps + 1):
            batch = _next_batch(run, state, log, batches, step)
            program = _program(run, programs, state, batch, log, stop, step)
            state, values = program(state, batch, key)
            _compile_ahead(run, programs, start, step)
            log.count(task.amount(batch), batches.data_wait)
            with stop.because_of(NotFiniteError, pipeline.BadDataError):
                if "skipped" in values:
                    skipped.add(step, values["skipped"])
                data.check()
            if run.phase(step + 1) != run.phase(step):
                state = task.enter(run.phase(step + 1), state)
            ends = step == config.steps
            logs = step % config.log_every == 0 or step == 1 or ends
            if logs:
                log.add(
                    step, values | {"bad_rows": sum(distributed.all_gather_int(data.bad_rows()))}
                )
            stops = stop.reached(step, agree=logs)
            measured = _validate(run, state, step, log, stop)
            if improves := run.checkpoints.improves(measured):
                best = config.checkpoint.best
                distributed.print0(f"best {best} so far: {measured[best]:.4f} after step {step}")
            if step % config.checkpoint.every == 0 or ends or stops or improves:
                log.flush()
                _save(run, state, step, measured)
            if stops:
                if stop.signal and programs.compiling() and jax.process_count() == 1:
                    stop.leave(stop.signal, partial(_save_now, run, state, step))
                break
            if run.evaluations.due(step):  # after the save: what it takes must not be lost with it
                with log.paused(state), stop.slow(partial(_save_now, run, state, step)):
                    run.evaluations.measure(state, step, log.writer)
        with stop.because_of(NotFiniteError):
            skipped.flush()
    return state


def _step_key(run: Run) -> jax.Array:
    """The key of all steps, on all devices; the draw of the state has the other half."""
    whole = placement.replicated(run.mesh)
    draw = jax.jit(
        lambda: jax.random.split(jax.random.key(run.config.seed))[1], out_shardings=whole
    )
    return draw()


def _open_batches(run: Run, start: int) -> pipeline.Batches:
    """This process's rows of the batches from step number `start` + 1 on."""
    return pipeline.batches(
        run.task.data,
        put=lambda batch: placement.put_batch(batch, run.mesh),
        start=start,
        stop=run.config.steps,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _next_batch(
    run: Run, state: State, log: ProgressLog, batches: pipeline.Batches, step: int
) -> dict[str, jax.Array]:
    watchdog.beat()
    with _saved_on_error(run, state, log, step - 1):
        return next(batches)


@contextmanager
def _saved_on_error(run: Run, state: State, log: ProgressLog, step: int) -> Iterator[None]:
    """Whatever data raise inside must not cost what was trained after `step`."""
    try:
        yield
    except Exception:
        if jax.process_count() == 1:  # a save needs all processes
            log.flush()
            _save(run, state, step)
        raise


def _program(
    run: Run,
    programs: Programs,
    state: State,
    batch: dict[str, jax.Array],
    log: ProgressLog,
    stop: Stop,
    step: int,
) -> Callable[..., tuple[State, Metrics]]:
    """What computes step number `step`; the state is that before it."""
    phase = run.phase(step)
    if programs.ready(batch, phase):
        return programs.get(batch, phase)
    watchdog.beat(watchdog.SLOW_SECONDS)
    log.flush()
    distributed.print0("compiling the training step")
    with stop.slow(partial(_save_now, run, state, step - 1)):
        return programs.get(batch, phase)


def _compile_ahead(run: Run, programs: Programs, start: int, step: int) -> None:
    """Compile in the background what later steps need, when `step` has been dispatched."""
    data, steps = run.task.data, run.config.steps
    for phase, begin in enumerate((start, *run.task.phase_starts)):
        ends = min((*run.task.phase_starts, steps)[phase], steps)
        now = phase == run.phase(step) and step == start + 1
        soon = phase > 0 and step == max(start + 1, begin - _AHEAD) and step <= begin
        if (now or soon) and begin < ends:
            programs.prepare(data.shapes(step if now else begin, ends), phase)


def _save(run: Run, state: State, step: int, measured: dict[str, float] | None = None) -> None:
    """Save in the background; a full disk is no reason to stop, as there may be room later."""
    position = {"step": step, "plan": run.task.data.fingerprint, "versions": resume.versions()}
    config = config_lib.to_json(run.config)
    _warn_if_unsaved(run.checkpoints.wait)
    _warn_if_unsaved(partial(run.checkpoints.save, step, state, position, config, measured))


def _save_now(run: Run, state: State, step: int) -> None:
    """Save what is trained after `step`, and say that the run ends with it."""
    if step:
        _save(run, state, step)
        _warn_if_unsaved(run.checkpoints.wait)
    distributed.print0(f"asked to stop: ends after step {step}, saved: {run.checkpoints.latest()}")


def _warn_if_unsaved(action: Callable[[], None]) -> None:
    try:
        action()
    except OSError as error:
        distributed.tell(f"warning: {distributed.name()}{error}")


def _validate(run: Run, state: State, step: int, log: ProgressLog, stop: Stop) -> dict[str, float]:
    """Measure what is due."""
    if not run.validation.due(step):
        return {}
    _warn_if_unsaved(run.checkpoints.wait)  # what is not on disk cannot be the best so far
    with (
        _saved_on_error(run, state, log, step),
        log.paused(state),
        stop.slow(partial(_save_now, run, state, step)),
    ):
        return run.validation.measure(state, step, log.writer)
