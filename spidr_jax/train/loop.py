"""A training run: open, build or restore, loop over batches, log, evaluate, save."""

import dataclasses
import signal
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from spidr_jax.data import pipeline
from spidr_jax.data.plan import Plan, make_plan
from spidr_jax.data.sources import Rows, Source, open_sources
from spidr_jax.method.step import StepConfig, TrainState
from spidr_jax.train import config as config_lib
from spidr_jax.train import console as progress
from spidr_jax.train import distributed, phases, resume, sharding, watchdog
from spidr_jax.train.checkpoint import Checkpoints
from spidr_jax.train.console import ProgressLog
from spidr_jax.train.evaluation import RunEvaluation, TimeShare
from spidr_jax.train.lock import Claim
from spidr_jax.train.monitors import NotFiniteError, SkippedUpdates
from spidr_jax.train.preemption import Stop, stop_on_signals
from spidr_jax.train.programs import FREEZE_AHEAD, Programs, shapes_needed
from spidr_jax.train.sinks import Logs, check_installed
from spidr_jax.train.validation import Validation


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same while a run trains."""

    config: ConfigDict
    step_config: StepConfig
    folder: Path
    claim: Claim
    sources: list[Source]
    plan: Plan
    checkpoints: Checkpoints
    mesh: Mesh
    evaluation: RunEvaluation
    validation: Validation


def open_run(config: ConfigDict) -> Run:
    """Open data, evaluation sets and the run's folder; nothing is computed yet.

    Raises:
        ValueError: data, config or an earlier run in the folder do not fit, or another process
            trains there, in one line.
        OSError: a file is missing or the folder cannot be written.
    """
    sources = open_sources(config.data.manifest, config.data.sources)
    limits = config_lib.plan_limits(config)
    plan = make_plan(sources, seed=config.seed, **limits)
    for source in sources:
        pipeline.probe(source)
    mesh = sharding.make_mesh()
    parts = mesh.size * config.memory.accumulate
    for rung, rows in plan.rows.items():
        if rows % parts:
            raise ValueError(
                f"config.data.planned_devices = {config.data.planned_devices}: its {rows} rows of "
                f"{rung} samples do not divide among {mesh.size} devices x memory.accumulate = "
                f"{config.memory.accumulate}; allowed is a multiple"
            )
    step_config = config_lib.step_config(config)
    evaluation = RunEvaluation(
        config.evaluation,
        step_config,
        mesh,
        every=config.evaluation_every,
        share=TimeShare(config.evaluation_share),
        steps=config.steps,
        log_every=config.log_every,
    )
    validation = Validation(
        config.validation,
        step_config,
        mesh,
        every=config.validation_every,
        steps=config.steps,
        best=config.checkpoint.best,
        num_threads=config.data.num_threads,
        max_bad_share=config.data.max_bad_share,
        **limits,
    )
    check_installed(config.tensorboard, config.wandb)
    resume.versions()  # now, not at the first save, where this package's own is not known
    folder = Path(config.workdir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"config.workdir = {str(folder)!r}: {error.strerror}") from None
    claim = Claim(folder)
    keeping = {name: config.checkpoint[name] for name in ("keep", "keep_every", "best")}
    checkpoints = Checkpoints(folder / "checkpoints", **keeping)
    return Run(
        config,
        step_config,
        folder,
        claim,
        sources,
        plan,
        checkpoints,
        mesh,
        evaluation,
        validation,
    )


def build_state(run: Run) -> TrainState:
    """The state that the run starts from: its last checkpoint's, or a new one.

    Raises:
        ValueError: the folder's run has another config or other data, named field by field; its
            checkpoint is damaged; `init_from` does not fit.
    """
    config, checkpoints, step_config = run.config, run.checkpoints, run.step_config
    fsdp = config.sharding.fsdp
    step = resume.choose_step(checkpoints, config.resume_step)
    if step is None:
        if config.resume_step != 0:
            resume.check_unstarted(run.folder, config.checkpoint.every)
        key = jax.random.split(jax.random.key(config.seed))[0]
        state = phases.init_state(step_config, run.mesh, fsdp, key)
        state = resume.adopt(state, config.init_from) if config.init_from else state
    else:
        resume.check_unchanged(
            checkpoints,
            step,
            config_lib.to_dict(config),
            config_lib.allowed_changes(config),
            run.plan.fingerprint,
        )
        frozen = step >= step_config.freeze_step
        target = phases.abstract_state(step_config, run.mesh, fsdp, frozen)
        state = checkpoints.restore(step, target)
    if later := checkpoints.set_aside(step or 0):
        distributed.print0(f"checkpoints {later} now lie in {run.folder / 'set_aside'}")
    return state


def train(run: Run, state: TrainState) -> int:
    """Train from `state` to `config.steps`; gives the process's exit status.

    SIGINT (status 130) and SIGTERM (0) in any process end the run in all of them after the same
    step, with a checkpoint.

    Raises:
        OSError: the end of the run could not be saved; the message names the newest checkpoint.
        BadDataError: too many utterances cannot be read; what was trained is saved.
        NotFiniteError: too many updates in a row were not finite; what was trained is saved.
    """
    start, steps = int(state.step), run.config.steps
    if distributed.is_first():
        (run.folder / "config.json").write_text(run.config.to_json(indent=2) + "\n")
        progress.introduce(run.folder, run.plan, run.step_config, state)
    writer = Logs(
        run.folder,
        start,
        config_lib.to_dict(run.config),
        tensorboard=run.config.tensorboard,
        wandb=run.config.wandb,
        writes=distributed.is_first(),
    )
    with closing(writer), closing(run.checkpoints), stop_on_signals() as stop:
        run.evaluation.begin(run.folder)
        if run.evaluation.due(start):
            run.evaluation.measure(state, start, writer)
        run.validation.introduce()
        run.validation.measure(state, start, writer)
        if start < steps:
            log = ProgressLog(writer, steps, run.step_config.model)
            state = _loop(run, state, log, stop)
        watchdog.beat()
        _warn_if_unsaved(run.checkpoints.wait)
        saved = run.checkpoints.latest()
        best = run.checkpoints.best()
    if stop.error:
        distributed.shutdown()  # the others have no error: this one may fail when they have left
        raise stop.error
    if distributed.is_first():
        progress.conclude(run.folder, int(state.step), steps, saved, best)
    if saved != int(state.step):
        raise OSError(f"the end of the run is not saved: the newest checkpoint is {saved}")
    return 130 if stop.signal == signal.SIGINT else 0


def _loop(run: Run, state: TrainState, log: ProgressLog, stop: Stop) -> TrainState:
    config, freeze_step = run.config, run.step_config.freeze_step
    start = int(state.step)
    draw_key = jax.jit(
        lambda: jax.random.split(jax.random.key(config.seed))[1],
        out_shardings=sharding.replicated(run.mesh),
    )
    key = draw_key()
    programs = Programs(run.step_config, run.mesh, config.sharding.fsdp)
    skipped = SkippedUpdates(int(state.skipped), config.max_skipped, partial(_describe_batch, run))
    with programs, _open_batches(run, start) as batches:
        for step in range(start + 1, config.steps + 1):
            watchdog.beat()
            try:
                batch = next(batches)
            except pipeline.BadDataError:
                if jax.process_count() == 1:  # a save needs all processes
                    log.flush()
                    _save(run, state, step - 1)
                raise
            shape, frozen = batch["waveforms"].shape, step > freeze_step
            if not programs.ready(shape, frozen):
                watchdog.beat(watchdog.SLOW_SECONDS)
            state, values = programs.get(shape, frozen)(state, batch, key)
            _prepare(run, programs, start, step)
            log.count(batch["waveforms"].size, batches.data_wait)
            with stop.because_of(NotFiniteError, pipeline.BadDataError):
                skipped.add(step, values["skipped"])
                batches.bad.check()
            if step == freeze_step:
                state = phases.freeze(run.step_config, state)
            ends = step == config.steps
            logs = step % config.log_every == 0 or step == 1 or ends
            if logs:
                log.add(
                    step,
                    values | {"bad_rows": sum(distributed.all_gather_int(batches.bad.bad_rows))},
                )
            stops = stop.reached(step, agree=logs)
            measured = _validate(run, state, step, log)
            improves = run.checkpoints.improves(measured)
            if improves:
                progress.report_best(config.checkpoint.best, step, measured)
            if step % config.checkpoint.every == 0 or ends or stops or improves:
                log.flush()
                _save(run, state, step, measured)
            if stops:
                break
            if run.evaluation.due(step):  # after the save: what it takes must not be lost with it
                with log.paused(state):
                    run.evaluation.measure(state, step, log.writer)
        with stop.because_of(NotFiniteError):
            skipped.flush()
    return state


def _open_batches(run: Run, start: int) -> pipeline.Batches:
    """This process's rows of the batches from step number `start` + 1 on."""
    return pipeline.batches(
        run.sources,
        run.plan,
        put=lambda batch: sharding.put_batch(batch, run.mesh),
        start=start,
        stop=run.config.steps,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_threads=run.config.data.num_threads,
        max_bad_share=run.config.data.max_bad_share,
    )


def _prepare(run: Run, programs: Programs, start: int, step: int) -> None:
    """Have compiled in the background what later steps need, when `step` has been dispatched."""
    freeze_step, steps = run.step_config.freeze_step, run.config.steps
    if step == start + 1:
        frozen = step > freeze_step
        shapes = shapes_needed(run.plan, step, steps if frozen else min(freeze_step, steps))
        programs.prepare(shapes, frozen)
    if step == max(start + 1, freeze_step - FREEZE_AHEAD) and step <= freeze_step < steps:
        programs.prepare(shapes_needed(run.plan, freeze_step, steps), frozen=True)


def _save(run: Run, state: TrainState, step: int, measured: dict[str, float] | None = None) -> None:
    """Save in the background; a full disk is no reason to stop, as there may be room later."""
    position = {"step": step, "plan": run.plan.fingerprint, "versions": resume.versions()}
    config = config_lib.to_dict(run.config)
    _warn_if_unsaved(run.checkpoints.wait)
    _warn_if_unsaved(partial(run.checkpoints.save, step, state, position, config, measured))


def _warn_if_unsaved(action: Callable[[], None]) -> None:
    try:
        action()
    except OSError as error:
        distributed.tell(f"warning: {distributed.name()}{error}")


def _validate(run: Run, state: TrainState, step: int, log: ProgressLog) -> dict[str, float]:
    """Measure what is due; files that have gone bad must not cost what was trained."""
    if not run.validation.due(step):
        return {}
    _warn_if_unsaved(run.checkpoints.wait)  # what is not on disk cannot be the best so far
    try:
        with log.paused(state):
            return run.validation.measure(state, step, log.writer)
    except pipeline.BadDataError:
        if jax.process_count() == 1:  # a save needs all processes
            _save(run, state, step)
        raise


def _describe_batch(run: Run, step: int) -> str:
    """Name the utterances that step number `step`, from 1, trains on."""
    batch, rows = run.plan.batch(step - 1), Rows(run.sources)
    names = ", ".join(rows[row].fileid for row in batch.rows.tolist())
    return f"{len(batch.rows)} x {batch.num_samples} samples, epoch {batch.epoch}: {names}"
