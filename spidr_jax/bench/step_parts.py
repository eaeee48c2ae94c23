"""How long each part of a training step takes alone, on the shapes that it has there."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spidr_jax.bench import flops
from spidr_jax.bench.setups import Setup
from spidr_jax.bench.timing import Start, caller, durations, spread, stepper
from spidr_jax.method import codebook, masking, optim, teacher
from spidr_jax.method import step as train_step
from spidr_jax.method.step import TrainState
from spidr_jax.model import model
from spidr_jax.model.encoder import PositionalConv, SelfAttention

INSIDE = ("positional convolution", "attention")  # of the encoders, so not of the step's sum
Tree = Any


class Part(NamedTuple):
    """A part as a function `(inputs, others) -> outputs`, differentiable in inputs and outputs.

    Attributes:
        inputs: that get a gradient in training.
        others: what else it reads.
        backward: whether training differentiates it.
        replaces: instead, that its outputs take the inputs' place.
    """

    name: str
    function: Callable[[Tree, Tree], Tree]
    inputs: Tree
    others: Tree
    backward: bool = False
    replaces: bool = False


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a part takes, in ms: forward alone, and with backward where it has one."""

    name: str
    forward_ms: float
    both_ms: float | None
    share_of_peak: float | None


def bench_parts(
    setup: Setup,
    frozen: bool,
    state: TrainState,
    batch: dict[str, jax.Array],
    steps: int,
    peak: float,
) -> list[dict[str, Any]]:
    """Time the parts of a step.

    Args:
        setup: config and shapes.
        frozen: the phase from `freeze_step` on.
        state: of that phase.
        batch: as the step takes it.
        steps: how often each part is timed.
        peak: the device's, in FLOP per second.
    """
    work = flops.count_parts(setup.step_config.model, setup.rows, setup.samples, frozen)
    return [
        dataclasses.asdict(_time(part, steps, peak, work.get(part.name)))
        for part in _parts(setup, frozen, state, batch)
    ]


def _time(part: Part, steps: int, peak: float, work: flops.Arithmetic | None) -> Cost:
    if part.replaces:
        forward, both = _median_ms(_replacing(part), steps), None
    else:
        compiled = jax.jit(part.function).lower(part.inputs, part.others).compile()
        forward = _median_ms(caller(compiled, part.inputs, part.others), steps)
        both = _median_ms(_both(part), steps) if part.backward else None
    share = None
    if work:
        seconds = (forward if both is None else both) / 1e3
        share = (work.forward if both is None else work.total) / seconds / peak
    return Cost(part.name, forward, both, share)


def _median_ms(start: Start, steps: int) -> float:
    start()()  # warm-up
    return spread(durations(start, steps)).median * 1e3


def _both(part: Part) -> Start:
    """Forward and backward, from noise for the outputs' gradients."""

    def both(inputs: Tree, others: Tree, gradients: Tree) -> Tree:
        outputs, pull = jax.vjp(lambda x: part.function(x, others), inputs)
        return outputs, pull(gradients)

    shapes = jax.eval_shape(part.function, part.inputs, part.others)
    gradients = jax.tree.map(
        lambda x: jax.random.normal(jax.random.key(0), x.shape, x.dtype), shapes
    )
    compiled = jax.jit(both).lower(part.inputs, part.others, gradients).compile()
    return caller(compiled, part.inputs, part.others, gradients)


def _replacing(part: Part) -> Start:
    inputs = jax.tree.map(jnp.copy, part.inputs)  # which are donated

    @partial(jax.jit, donate_argnums=0)
    def step(inputs: Tree, others: Tree) -> tuple[Tree, jax.Array]:
        outputs = part.function(inputs, others)
        return outputs, jnp.ravel(jax.tree.leaves(outputs)[0])[0]  # to wait for

    return stepper(step.lower(inputs, part.others).compile(), inputs, part.others)


def _parts(
    setup: Setup, frozen: bool, state: TrainState, batch: dict[str, jax.Array]
) -> Iterator[Part]:
    config, key = setup.step_config, jax.random.key(2)
    nets = model.build(config.model, config.dtype)
    params, student = state.params, state.params["student"]

    front = {name: params[name] for name in optim.FROZEN_MODULES}
    waveforms = (batch["waveforms"] - batch["mean"][:, None]) * batch["inv_std"][:, None]
    extractor = Part(
        "extractor", lambda p, x: model.extract(nets, p, x)[0], front, waveforms, not frozen
    )
    yield extractor
    feats = jax.jit(extractor.function)(front, waveforms)  # [B, T, D]

    lengths = jnp.full(setup.rows, setup.frames)
    draw_mask = Part(
        "masks",
        lambda _, key: masking.sample_spans(key, setup.frames, lengths, config.masking),
        {},
        key,
    )
    yield draw_mask
    mask = jax.jit(draw_mask.function)({}, key)

    yield _encoder_part(config, nets, params, feats, mask, frozen)
    yield Part("teacher encoder", lambda p, x: model.encode(nets, p, x), state.teacher, feats)
    positional = PositionalConv(config.model, config.dtype)
    yield Part(
        "positional convolution",
        lambda inputs, _: positional.apply({"params": inputs[0]}, inputs[1]),
        (student["pos_conv_embed"], feats),
        (),
        backward=True,
    )
    noise = model.draw_noise(config.model, key, setup.rows)
    attention = SelfAttention(config.model, config.dtype)
    yield Part(
        "attention",
        lambda inputs, seeds: attention.apply({"params": inputs[0]}, inputs[1], None, seeds),
        (student["layers_0"]["attention"], feats),
        noise.seeds[:, 1],
        backward=True,
    )
    yield _heads_part(config, nets, state, feats, mask)
    yield _optimizer_part(setup, state, frozen)
    yield Part(
        "teacher update",
        lambda old, new: teacher.update(old, new, jnp.float32(1e-3), config.teacher.exclude_layers),
        state.teacher,
        student,
        replaces=True,
    )


def _encoder_part(
    config: train_step.StepConfig,
    nets: model.Networks,
    params: model.Params,
    feats: jax.Array,
    mask: jax.Array,
    frozen: bool,
) -> Part:
    """The student's encoder with what masks its input; gives what the heads read."""
    inputs = {"student": params["student"], "mask_embedding": params["mask_embedding"]}
    noise = model.draw_noise(config.model, jax.random.key(3), len(mask))
    others = {"mask": mask, "noise": noise}
    (others if frozen else inputs)["feats"] = feats

    def encode(inputs: Tree, others: Tree) -> Tree:
        feats, noise = (inputs | others)["feats"], others["noise"]
        x = model.mask_feats(nets, inputs, feats, others["mask"], noise)
        final, outputs = model.encode(nets, inputs["student"], x, None, noise)
        spidr = config.model.model_type == "spidr"
        return outputs[-config.model.num_codebooks :] if spidr else final

    return Part("student encoder", encode, inputs, others, backward=True)


def _heads_part(
    config: train_step.StepConfig,
    nets: model.Networks,
    state: TrainState,
    feats: jax.Array,
    mask: jax.Array,
) -> Part:
    """From the encoders' outputs, here the teacher's for both, to loss and codebooks."""
    final, outputs = jax.jit(partial(model.encode, nets))(state.teacher, feats)
    outputs = outputs[-config.model.num_codebooks :]

    def compare(inputs: Tree, others: Tree) -> Tree:
        sums = train_step.compare(config, *inputs_of(inputs, others))
        updated = codebook.update(others[0], sums.assigned, config.codebook_decay)
        return sums.loss.mean(), jax.lax.stop_gradient(updated)

    def inputs_of(inputs: Tree, others: Tree) -> tuple[Any, ...]:
        codebooks, taught, mask = others
        return {"heads": inputs["heads"]}, codebooks, inputs["encoded"], taught, mask

    inputs = {"heads": state.params["heads"], "encoded": (final, outputs)}
    others = (state.codebooks, outputs, mask)
    return Part("heads and codebooks", compare, inputs, others, backward=True)


def _optimizer_part(setup: Setup, state: TrainState, frozen: bool) -> Part:
    """Clipping, AdamW and the parameters' change."""
    config = setup.step_config
    optimizer = optim.make_optimizer(config.optimizer)
    trained, _ = optim.split(state.params, config.model, frozen)

    def update(inputs: Tree, gradient: Tree) -> Tree:
        opt_state, trained = inputs
        updates, opt_state = optimizer.update(gradient, opt_state, trained)
        return opt_state, jax.tree.map(lambda p, u: p - 1e-4 * u, trained, updates)

    gradient = jax.tree.map(lambda p: 0.01 * p, trained)
    return Part("optimizer", update, (state.opt_state, trained), gradient, replaces=True)


def table(costs: list[dict[str, Any]]) -> str:
    """A table in Markdown, with the sum of the parts that make up a step."""
    lines = ["| part, alone | forward, ms | with backward, ms | of the peak |", "|---|---|---|---|"]
    by_name = {cost["name"]: cost for cost in costs}
    for cost in costs:
        share = "" if cost["share_of_peak"] is None else f"{cost['share_of_peak']:.1%}"
        note = " (one layer's)" if cost["name"] == "attention" else ""
        lines.append(f"| {cost['name']}{note} | {_cells(cost)} | {share} |")
    student, inside = by_name["student encoder"], by_name["positional convolution"]
    rest = {name: student[name] - inside[name] for name in ("forward_ms", "both_ms")}
    lines.append(f"| student encoder less positional convolution | {_cells(rest)} | |")
    whole = sum(cost["both_ms"] or cost["forward_ms"] for cost in costs if not _is_inside(cost))
    lines.append(f"| sum of a step, without {' and '.join(INSIDE)} | | {whole:,.2f} | |")
    return "\n".join(lines)


def _is_inside(cost: dict[str, Any]) -> bool:
    return cost["name"] in INSIDE


def _cells(cost: dict[str, Any]) -> str:
    both = "" if cost["both_ms"] is None else f"{cost['both_ms']:,.2f}"
    return f"{cost['forward_ms']:,.2f} | {both}"
