"""The PyTorch reference and our port of it, side by side: builders, five-step runs, errors."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spidr_jax.method import step as train_step
from spidr_jax.method.codebook import CodebookConfig, CodebookState
from spidr_jax.method.step import StepConfig, TrainState
from spidr_jax.method.teacher import TeacherConfig
from spidr_jax.model import model as networks
from spidr_jax.model.config import ModelConfig
from spidr_jax.train import optim
from spidr_jax.train.optim import OptimizerConfig
from spidr_jax.weights import torch_names
from spidr_jax.weights.load import PARTS

torch = pytest.importorskip("torch")
pytest.importorskip("spidr")

from spidr.config import DinoSRConfig, SpidRConfig  # noqa: E402
from spidr.config import OptimizerConfig as ReferenceOptimizerConfig  # noqa: E402
from spidr.models.dinosr import DinoSR  # noqa: E402
from spidr.models.spidr import SpidR  # noqa: E402
from spidr.optimizer import build_optimizer  # noqa: E402

# few and narrow convolutions: compiling them is most of a test's time
CONV = ((16, 10, 5), (24, 3, 2), (24, 2, 2))
SMALL: dict[str, Any] = {
    "extractor_conv_layer_config": CONV,
    "encoder_embed_dim": 48,
    "encoder_pos_conv_kernel": 14,
    "encoder_pos_conv_groups": 4,
    "encoder_pos_conv_depth": 2,
    "encoder_num_layers": 3,
    "encoder_num_heads": 4,
    "encoder_ff_interm_features": 96,
    "codebook_size": 24,
    "num_codebooks": 2,
    "encoder_dropout": 0.0,
    "encoder_attention_dropout": 0.0,
    "encoder_layer_drop": 0.0,
}
# weight decay, clipping, warm-up and the teacher's end all act visibly within five steps
FAST_OPTIMIZER = OptimizerConfig(
    lr=5e-4, weight_decay=0.2, max_norm=0.2, warmup_steps=3, hold_steps=1, decay_steps=4
)
FAST_TEACHER = TeacherConfig(decay=0.9, timescale=2.0, threshold=1e-2)  # ends before step 5
RECIPE = (OptimizerConfig(), TeacherConfig())


class Pair(NamedTuple):
    """The reference model and our configuration and state with the same weights."""

    model: Any
    config: StepConfig
    state: TrainState


def make_pair(
    kind: str,
    fields: dict[str, Any],
    optimizer: OptimizerConfig = FAST_OPTIMIZER,
    teacher: TeacherConfig = FAST_TEACHER,
    codebook_decay: float = 0.9,
    freeze_step: int = 200_000,
) -> Pair:
    """A fresh reference model of `kind` and the same weights in our state."""
    torch.manual_seed(0)
    ours = ModelConfig(model_type=kind, **fields)
    theirs = fields | {
        "extractor_conv_layer_config": list(ours.extractor_conv_layer_config),
        "codebook_decay": codebook_decay,
        "freeze_step": freeze_step,
        "ema_start_decay": teacher.decay,
        "ema_exclude_layers": list(teacher.exclude_layers),
    }
    if kind == "spidr":
        theirs |= {"ema_timescale": teacher.timescale, "ema_threshold": teacher.threshold}
        model = SpidR(SpidRConfig(**theirs))
    else:
        teacher = dataclasses.replace(teacher, schedule="linear")
        theirs |= {"ema_final_decay": teacher.final_decay, "ema_final_step": teacher.final_step}
        model = DinoSR(DinoSRConfig(**theirs))
    config = StepConfig(
        model=ours,
        optimizer=optimizer,
        teacher=teacher,
        codebook=CodebookConfig(decay=codebook_decay),
        freeze_step=freeze_step,
        dtype=jnp.float32,
    )
    return Pair(model.train(), config, port_state(model, config))


def tensors(model: Any) -> dict[str, np.ndarray]:
    """The reference's state dict as numpy arrays of its own, without its step counter."""
    items = model.state_dict().items()
    return {name: value.numpy().copy() for name, value in items if name != "current_step"}


def port_state(model: Any, config: StepConfig) -> TrainState:
    """Our state before the first step, with the reference's weights, teacher and codebooks."""
    parts = jax.tree.map(jnp.asarray, torch_names.from_torch(tensors(model), PARTS))
    params, codebooks = parts["params"], CodebookState(**parts["codebooks"])
    trained, _ = optim.split(params, networks.trained(config.model, config.freeze_step <= 0))
    moments = optim.make_optimizer(config.optimizer).init(trained)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, zero, params, moments, parts["teacher"], codebooks)


def draw_batches(config: ModelConfig, number: int, rows: int, samples: int) -> list[dict[str, Any]]:
    """Noise with a different loudness per row, and as many masked frames in each row."""
    draw = np.random.default_rng(1)
    frames = config.framing.num_frames(samples)
    batches = []
    for _ in range(number):
        loudness = draw.uniform(0.5, 2.0, (rows, 1))
        waveforms = (draw.standard_normal((rows, samples)) * loudness).astype(np.float32)
        indices = np.stack([np.sort(draw.permutation(frames)[: frames // 2]) for _ in range(rows)])
        mask = np.zeros((rows, frames), bool)
        np.put_along_axis(mask, indices, True, axis=1)
        batches.append({"waveforms": waveforms, "mask": mask, "indices": indices})
    return batches


def make_optimizer(pair: Pair) -> tuple[Any, Any, Any]:
    """The reference's optimizer, scaler and scheduler for its model."""
    shared = dataclasses.asdict(pair.config.optimizer)
    del shared["name"]
    return build_optimizer(pair.model, ReferenceOptimizerConfig(**shared, dtype="float32"))


def train_reference(
    pair: Pair,
    batches: list[dict[str, Any]],
    made: tuple[Any, Any, Any] | None = None,
    start: int = 0,
) -> list[dict[str, float]]:
    """Train the reference model in place, by the reference's own modules; metrics per step.

    `made` by `make_optimizer`, to go on after `start` finished steps.
    """
    from spidr.checkpoint import remove_param_group

    model = pair.model
    optimizer, _, scheduler = made or make_optimizer(pair)
    history = []
    for step, batch in enumerate(batches, start=start + 1):
        losses, outputs = model(
            torch.tensor(batch["waveforms"]), mask_indices=torch.tensor(batch["indices"])
        )
        loss = losses.mean()
        loss.backward()
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        # torch sums a norm of millions of elements in float32 with an error of 4e-5 on CPU
        squares = [p.grad.double().square().sum() for p in trained if p.grad is not None]
        norm = torch.stack(squares).sum().sqrt()
        torch.nn.utils.clip_grad_norm_(trained, pair.config.optimizer.max_norm)
        rate = scheduler.get_last_lr()[0]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        scheduler.step()
        decay = model.update_ema(step)
        if step == pair.config.freeze_step:
            remove_param_group(optimizer, scheduler, 1)
        history.append(
            {
                "loss": loss.item(),
                "target_ppl": outputs["target_ppl"].item(),
                "pred_ppl": outputs["pred_ppl"].item(),
                "grad_norm": norm.item(),
                "learning_rate": rate,
                "teacher_decay": decay,
            }
        )
    return history


def train_ours(
    pair: Pair, batches: list[dict[str, Any]]
) -> tuple[list[TrainState], list[dict[str, float]]]:
    """The states after each step and the metrics of each, from the pair's state."""
    state, states, history = pair.state, [], []
    start = int(state.step)
    frozen = 0 < pair.config.freeze_step <= start
    step_fn = jax.jit(train_step.make_train_step(pair.config, frozen))
    for step, batch in enumerate(batches, start=start + 1):
        arrays = {name: jnp.asarray(batch[name]) for name in ("waveforms", "mask")}
        state, metrics = step_fn(state, arrays, jax.random.key(0))
        if step == pair.config.freeze_step:
            state = train_step.freeze(pair.config, state)
            step_fn = jax.jit(train_step.make_train_step(pair.config, frozen=True))
        states.append(state)
        history.append({name: value.item() for name, value in metrics.items() if value.ndim == 0})
    return states, history


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """||ours - theirs|| / ||theirs||, 0 where both are zero."""
    error = float(np.linalg.norm(np.asarray(ours, np.float64) - theirs))
    size = float(np.linalg.norm(np.asarray(theirs, np.float64)))
    return error / size if size > 0 else (0.0 if error == 0 else np.inf)


def check_tensors(
    ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], before: dict[str, np.ndarray]
) -> None:
    """Check tensors: 1e-5, and 1e-4 for vectors that are zero before the first step."""
    assert ours.keys() == theirs.keys()
    errors = {name: relative(ours[name], theirs[name]) for name in theirs}
    limits = {name: 1e-5 if np.any(before[name]) else 1e-4 for name in theirs}
    wrong = {name: error for name, error in errors.items() if not error <= limits[name]}
    assert not wrong, wrong


def check_metrics(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> None:
    """Check metrics: loss, gradient norm, perplexities 1e-6 relative; rate and decay as close."""
    assert len(ours) == len(theirs)
    errors = {
        f"{name} at step {step}": abs(mine[name] - value) / abs(value)
        for step, (mine, other) in enumerate(zip(ours, theirs, strict=True), start=1)
        for name, value in other.items()
    }
    wrong = {name: error for name, error in errors.items() if not error <= 1e-6}
    assert not wrong, wrong
