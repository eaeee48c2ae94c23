"""One training step of SpidR or DinoSR: a pure function of state, batch and key.

B batch, S samples, T frames, D model width, K codebooks, V codes per codebook, N = B T.
Source: SpidR (arXiv 2512.20308), section 3.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from spidr_jax.method import codebook, loss, masking, teacher
from spidr_jax.method.codebook import CodebookConfig, CodebookState
from spidr_jax.method.loss import LossConfig, Metrics, StepStatistics
from spidr_jax.method.masking import MaskingConfig
from spidr_jax.method.teacher import TeacherConfig
from spidr_jax.model import model
from spidr_jax.model.config import ModelConfig
from spidr_jax.model.noise import Noise, draw_noise
from spidr_jax.train import optim
from spidr_jax.train.optim import OptimizerConfig

Batch = dict[str, jax.Array]


class TrainState(NamedTuple):
    """State of a training run: arrays only."""

    step: jax.Array  # int32, finished steps
    skipped: jax.Array  # int32, those of them whose update was not finite and did not happen
    params: model.Params
    opt_state: Any
    teacher: model.Params
    codebooks: CodebookState


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """Config of a training step."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    masking: MaskingConfig = dataclasses.field(default_factory=MaskingConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    teacher: TeacherConfig = dataclasses.field(default_factory=TeacherConfig)
    codebook: CodebookConfig = dataclasses.field(default_factory=CodebookConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    freeze_step: int = 200_000
    dtype: Any = jnp.bfloat16
    accumulate: int = 1  # parts of a batch that go through the model one after the other
    remat: bool = False  # compute a layer's inside again in the backward pass, to save memory


def init_state(config: StepConfig, key: jax.Array) -> TrainState:
    """Draw the state before the first step.

    Raises:
        ValueError: `teacher.exclude_layers` names no layer.
    """
    param_key, teacher_key, codebook_key = jax.random.split(key, 3)
    params = model.init_params(config.model, param_key)
    fresh = model.init_params(config.model, teacher_key)["student"]
    teacher.check_excluded(fresh, config.teacher.exclude_layers)
    trained, _ = optim.split(params, model.trained(config.model, config.freeze_step <= 0))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optim.make_optimizer(config.optimizer).init(trained),
        teacher=teacher.init(params["student"], fresh),
        codebooks=codebook.init(
            codebook_key,
            config.model.num_codebooks,
            config.model.codebook_size,
            config.model.encoder_embed_dim,
        ),
    )


def freeze(config: StepConfig, state: TrainState) -> TrainState:
    """Drop the moments of what does not train from `freeze_step` on."""
    trained, _ = optim.split(state.params, model.trained(config.model, frozen=True))
    return state._replace(opt_state=optim.freeze(config.optimizer, state.opt_state, trained))


def make_train_step(
    config: StepConfig, frozen: bool
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """Make the step function `(state, batch, key) -> (state, metrics)`.

    The batch holds `waveforms` [B, S] and, where they are not standardised yet, `mean` and
    `inv_std` [B]; where rows are padded, `lengths` in samples [B]; to give the masked frames
    instead of drawing them, `mask` bool [B, T]. The same key serves every step: the step number
    is folded in. Metrics are scalars, and [K] under names that end in `_per_codebook`; `skipped`
    counts all updates so far that were not finite.

    Args:
        config: sections of the method's config.
        frozen: whether `freeze_step` has come, and `freeze` has been applied to the state.
    """
    optimizer = optim.make_optimizer(config.optimizer)
    trains = model.trained(config.model, frozen)

    def train_step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        step_key = jax.random.fold_in(key, state.step)
        mask_key, noise_key = jax.random.split(step_key)
        trained, rest = optim.split(state.params, trains)
        batch, masked_frames = _mask(config, batch, mask_key)
        noise = draw_noise(config.model, noise_key, len(batch["mask"]))

        def loss_fn(trained: model.Params, rows: Batch) -> tuple[jax.Array, StepStatistics]:
            params = optim.merge(trained, rest)
            found = _forward(config, params, state, rows, noise._replace(seeds=rows["seeds"]))
            return found.loss.mean() / masked_frames, found

        grad_fn = partial(jax.value_and_grad(loss_fn, has_aux=True), trained)
        rows = batch | {"seeds": noise.seeds}
        (value, statistics), gradient = _accumulate(grad_fn, rows, config.accumulate)
        updates, opt_state = optimizer.update(gradient, state.opt_state, trained, step=state.step)
        params = optim.merge(optax.apply_updates(trained, updates), rest)
        rate = teacher.ema_rate(config.teacher, state.step + 1, config.freeze_step)
        moved = teacher.update(
            state.teacher, params["student"], rate, config.teacher.exclude_layers
        )
        codebooks = codebook.update(
            config.codebook, state.codebooks, statistics.codes, jax.random.fold_in(step_key, 2)
        )
        grad_norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(value) & jnp.isfinite(grad_norm) & jnp.isfinite(codebooks.sums).all()
        new = (params, opt_state, moved, codebooks)
        old = (state.params, state.opt_state, state.teacher, state.codebooks)
        kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
        metrics = loss.metrics(statistics, masked_frames) | {
            "masked_frames": masked_frames,
            "grad_norm": grad_norm,
            "learning_rate": optim.learning_rate(config.optimizer, state.step),
            "teacher_decay": 1 - rate,
            "skipped": state.skipped + 1 - finite.astype(jnp.int32),
        }
        return TrainState(state.step + 1, metrics["skipped"], *kept), metrics

    return train_step


def make_eval_step(config: StepConfig) -> Callable[[TrainState, Batch, jax.Array], Metrics]:
    """Make the validation function `(state, batch, key) -> metrics`: no dropout, no change.

    Unlike in training, nothing is folded into the key: the same key gives the same masks.
    """

    def eval_step(state: TrainState, batch: Batch, key: jax.Array) -> Metrics:
        batch, masked_frames = _mask(config, batch, key)
        statistics = _forward(config, state.params, state, batch, None)
        return loss.metrics(statistics, masked_frames) | {"masked_frames": masked_frames}

    return eval_step


def _mask(config: StepConfig, batch: Batch, key: jax.Array) -> tuple[Batch, jax.Array]:
    """The batch with its `mask`, given or drawn, `lots`, and the number of masked frames."""
    framing = config.model.framing
    rows, samples = batch["waveforms"].shape
    lengths = framing.num_frames(batch.get("lengths", jnp.full(rows, samples)))
    frames = framing.num_frames(samples)
    mask = batch.get("mask")
    if mask is None:
        mask = masking.sample_spans(key, frames, lengths, config.masking)
    mask = mask & (jnp.arange(frames) < lengths[:, None])
    lots = codebook.draw_lots(jax.random.fold_in(key, 2), mask)
    return batch | {"mask": mask, "lots": lots}, mask.sum().astype(jnp.float32)


def _accumulate(function: Callable[[Batch], Any], batch: Batch, parts: int) -> Any:
    """The sum of a function over parts of a batch; each part has every parts-th of the rows."""
    if parts == 1:
        return function(batch)
    split = {k: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1) for k, x in batch.items()}
    part = jax.tree.map(lambda x: x[0], split)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, part))

    def add(total: Any, part: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(part)), None

    return jax.lax.scan(add, zeros, split)[0]


def _forward(
    config: StepConfig, params: model.Params, state: TrainState, rows: Batch, noise: Noise | None
) -> StepStatistics:
    """Student, teacher, assignment and loss for some rows."""
    nets = model.build(config.model, config.dtype, config.remat)
    waveforms, mask = _standardise(rows), rows["mask"]
    feats, frame_mask = model.extract(nets, params, waveforms, rows.get("lengths"))  # [B, T, D]
    x = model.mask_feats(nets, params, feats, mask, noise)
    outputs = model.encode(nets, params["student"], x, frame_mask, noise)
    logits = model.predict(nets, params, *outputs)  # [K, B, T, V]
    with jax.named_scope("teacher"):
        _, layers = model.encode(nets, state.teacher, jax.lax.stop_gradient(feats), frame_mask)
    teacher_layers = layers[-config.model.num_codebooks :]
    targets = loss.make_targets(teacher_layers, frame_mask)  # [K, N, D]
    assignments = codebook.assign(config.codebook, state.codebooks, targets, mask.ravel())
    return loss.loss_and_statistics(config.loss, logits, targets, assignments, mask, rows["lots"])


def _standardise(batch: Batch) -> jax.Array:
    waveforms = batch["waveforms"].astype(jnp.float32)
    if "mean" not in batch:
        return waveforms
    return (waveforms - batch["mean"][:, None]) * batch["inv_std"][:, None]
