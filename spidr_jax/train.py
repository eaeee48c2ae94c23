"""A training run: open, build or restore, loop over batches, log, evaluate, save."""

import dataclasses
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from spidr_jax import config as config_lib
from spidr_jax import evaluate, extract, optim, progress, sharding, train_step
from spidr_jax.checkpoint import Checkpoints
from spidr_jax.data import pipeline
from spidr_jax.data.plan import Plan, make_plan
from spidr_jax.data.sources import Source, open_sources
from spidr_jax.metrics import MetricsWriter
from spidr_jax.progress import ProgressLog
from spidr_jax.train_step import StepConfig, TrainState


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same while a run trains."""

    config: ConfigDict
    step_config: StepConfig
    folder: Path
    sources: list[Source]
    plan: Plan
    evaluations: list[evaluate.EvaluationSet]
    checkpoints: Checkpoints
    mesh: Mesh
    units_fn: extract.UnitsFn


def open_run(config: ConfigDict) -> Run:
    """Open data, evaluation sets and the run's folder; nothing is computed yet.

    Raises:
        ValueError: data, config or an earlier run in the folder do not fit, in one line.
        OSError: a file is missing or the folder cannot be written.
    """
    sources = open_sources(config.data.manifest, config.data.sources)
    plan = make_plan(
        sources,
        min_samples=config.data.min_samples,
        max_samples=config.data.max_samples,
        num_rungs=config.data.num_rungs,
        max_batch_samples=config.data.max_batch_samples,
        planned_devices=config.data.planned_devices,
        seed=config.seed,
    )
    for source in sources:
        pipeline.probe(source)
    mesh = sharding.make_mesh()
    for rung, rows in plan.rows.items():
        if rows % mesh.size:
            raise ValueError(
                f"config.data.planned_devices = {config.data.planned_devices}: its {rows} rows of "
                f"{rung} samples do not divide among {mesh.size} devices; allowed is a multiple"
            )
    evaluations = evaluate.open_sets(config.evaluation)
    folder = Path(config.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(folder / "checkpoints", config.checkpoint.keep)
    step_config = config_lib.step_config(config)
    units_fn = extract.make_units_fn(step_config.model, step_config.dtype)
    return Run(config, step_config, folder, sources, plan, evaluations, checkpoints, mesh, units_fn)


def build_state(run: Run) -> TrainState:
    """The state that the run starts from: its last checkpoint's, or a new one.

    Raises:
        ValueError: the folder's run has another config or other data, named field by field.
    """
    key = jax.random.split(jax.random.key(run.config.seed))[0]
    fsdp, step = run.config.sharding.fsdp, run.checkpoints.latest()
    frozen = step is not None and step >= run.step_config.freeze_step
    target = abstract_state(run.step_config, run.mesh, fsdp, frozen)
    if step is None:
        shardings = jax.tree.map(lambda x: x.sharding, target)
        return jax.jit(partial(train_step.init_state, run.step_config), out_shardings=shardings)(
            key
        )
    position, saved = run.checkpoints.read(step)
    current, imported = config_lib.to_dict(run.config), position["plan"] is None
    if imported and not position["optimizer"]:
        raise ValueError(f"{run.folder} holds a model without optimizer state, not a run to go on")
    changed = config_lib.changes(saved, config_lib.known(current, saved) if imported else current)
    if not changed and not imported and position["plan"] != run.plan.fingerprint:
        changed = ["the files or lengths in the manifest"]
    if changed:
        raise ValueError(
            f"{run.folder} holds a run at step {step} of which something has changed: "
            f"{'; '.join(changed)}. Undo that or choose another config.workdir"
        )
    return run.checkpoints.restore(step, target)


def abstract_state(config: StepConfig, mesh: Mesh, fsdp: bool, frozen: bool) -> TrainState:
    """Shapes, types and shardings of the state of a phase."""
    state = jax.eval_shape(lambda: train_step.init_state(config, jax.random.key(0)))
    if frozen:
        state = state._replace(opt_state=optim.freeze(state.opt_state, config.model))
    shardings = sharding.state_shardings(state, mesh, fsdp)
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state, shardings
    )


def jit_step(config: StepConfig, mesh: Mesh, fsdp: bool, frozen: bool) -> jax.stages.Wrapped:
    """The jitted training step of a phase, which takes over (donates) its state argument."""
    state = abstract_state(config, mesh, fsdp, frozen)
    return jax.jit(
        train_step.make_train_step(config, frozen),
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda x: x.sharding, state), sharding.replicated(mesh)),
    )


def train(run: Run, state: TrainState) -> int:
    """Train from `state` to `config.steps`; gives the process's exit status.

    SIGINT (status 130) and SIGTERM (0) end the run after the step in progress, with a checkpoint.

    Raises:
        OSError: the end of the run could not be saved; the message names the newest checkpoint.
        BadDataError: too many utterances cannot be read; what was trained is saved.
    """
    start, steps = int(state.step), run.config.steps
    (run.folder / "config.json").write_text(run.config.to_json(indent=2) + "\n")
    writer = MetricsWriter(run.folder / "metrics.jsonl", start)
    with closing(writer), closing(run.checkpoints), stop_request() as stop:
        progress.introduce(run.folder, run.plan, run.step_config, state)
        _evaluate(run, state, writer)
        if start < steps:
            log = ProgressLog(writer, steps, run.step_config.model.codebook_layers)
            state = _loop(run, state, log, stop)
            _evaluate(run, state, writer)
        run.checkpoints.wait()
        saved = run.checkpoints.latest()
    progress.conclude(run.folder, int(state.step), steps, saved)
    if saved != int(state.step):
        raise OSError(f"the end of the run is not saved: the newest checkpoint is {saved}")
    return 130 if stop.signal == signal.SIGINT else 0


def _loop(run: Run, state: TrainState, log: ProgressLog, stop: "StopRequest") -> TrainState:
    config, freeze_step = run.config, run.step_config.freeze_step
    start = int(state.step)
    key = jax.random.split(jax.random.key(config.seed))[1]
    step_fn = compile_step(run, start >= freeze_step)
    batches = pipeline.batches(
        run.sources,
        run.plan,
        put=lambda batch: sharding.put_batch(batch, run.mesh),
        start=start,
        stop=config.steps,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_threads=config.data.num_threads,
        max_bad_share=config.data.max_bad_share,
    )
    with batches:
        for step in range(start + 1, config.steps + 1):
            try:
                batch = next(batches)
            except pipeline.BadDataError:
                _save(run, state, step - 1)
                raise
            state, values = step_fn(state, batch, key)
            log.count(batch["waveforms"].size, batches.data_wait)
            if step == freeze_step:
                state = _freeze(run, state)
                step_fn = compile_step(run, frozen=True)
            ends = step == config.steps
            if step % config.log_every == 0 or step == 1 or ends:
                log.add(step, values | {"bad_rows": batches.bad.bad_rows})
            if step % config.checkpoint.every == 0 or ends or stop.signal:
                log.flush()
                _save(run, state, step)
            if stop.signal:
                break
    return state


def compile_step(run: Run, frozen: bool) -> Callable[..., tuple[TrainState, dict[str, Any]]]:
    """The run's `jit_step`."""
    return jit_step(run.step_config, run.mesh, run.config.sharding.fsdp, frozen)


def _freeze(run: Run, state: TrainState) -> TrainState:
    return state._replace(opt_state=optim.freeze(state.opt_state, run.step_config.model))


def _save(run: Run, state: TrainState, step: int) -> None:
    """Save in the background; a full disk is no reason to stop, as there may be room later."""
    position = {"step": step, "plan": run.plan.fingerprint}
    try:
        run.checkpoints.save(step, state, position, config_lib.to_dict(run.config))
    except OSError as error:
        print(f"warning: {error}", flush=True)


def _evaluate(run: Run, state: TrainState, writer: MetricsWriter) -> None:
    """Measure the units at the run's start and end, where the metrics do not hold it yet."""
    step = int(state.step)
    if step not in (0, run.config.steps) or jax.process_index() > 0:
        return
    model_config = run.step_config.model
    for evaluation in run.evaluations:
        names = {layer: f"{evaluation.name}_pnmi_{layer}" for layer in model_config.codebook_layers}
        if writer.has(step, names[model_config.encoder_num_layers]):
            continue
        params = jax.device_get(state.params)
        measured = evaluate.unit_quality(run.units_fn, params, model_config, evaluation)
        writer.write(step, {names[layer]: measured[layer].pnmi for layer in measured})
        progress.report_quality(step, evaluation.name, measured)


class StopRequest:
    """The first SIGINT or SIGTERM that came, 0 before; a second one acts at once."""

    def __init__(self) -> None:
        """Note nothing yet."""
        self.signal = 0


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Note SIGINT and SIGTERM instead of dying of them."""
    request = StopRequest()

    def note(number: int, _: Any) -> None:
        request.signal = number
        print(f"{signal.Signals(number).name}: saving after this step", flush=True)
        for other, handler in previous.items():
            signal.signal(other, handler)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
