"""Outputs of every module and layer equal the reference's, with and without padding."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spidr_jax.method import step as train_step
from spidr_jax.model import model
from spidr_jax.model.frontend import conv_framing

torch = pytest.importorskip("torch")
pytest.importorskip("spidr")

import reference  # noqa: E402

OPTIONS = {
    "extractor_conv_bias": True,
    "encoder_layer_norm_first": True,
    "encoder_qkv_bias": True,
    "encoder_pos_conv_kernel": 12,
}
CASES = [
    pytest.param("spidr", {}, False, id="spidr"),
    pytest.param("spidr", {}, True, id="spidr-padded"),
    pytest.param("spidr", OPTIONS, True, id="spidr-options-padded"),
    pytest.param("dinosr", {"extractor_mode": "group_norm"}, False, id="dinosr-group-norm"),
    pytest.param("dinosr", OPTIONS, False, id="dinosr-options"),
    pytest.param("dinosr", {}, True, id="dinosr-padded"),
]
LENGTHS = (1000, 610, 333)


def outputs_of_theirs(
    pair: reference.Pair, waveforms: np.ndarray, frame_mask: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Output of every module of extractor, projection, student and heads by name, and r_l."""
    network, found = pair.model.eval(), {}

    def keep(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else output
            output = output.mT if ".conv_layers." in name else output
            found[name] = output.numpy().copy()

        return hook

    attention = None
    if frame_mask is not None:
        valid = torch.tensor(frame_mask)[:, None, None, :]
        attention = valid.expand(-1, 1, frame_mask.shape[1], -1)
    wanted = r"feature_(extractor|projection)|student|heads\.\d"
    parts = r"(.\w*layer_norm|.attention|.feed_forward)?"
    inside = rf"(.conv_layers.\d+|.pos_conv_embed|(.layers.\d+)?{parts})?"
    handles = [
        module.register_forward_hook(keep(name))
        for name, module in network.named_modules()
        if re.fullmatch(f"({wanted}){inside}", name)
    ]
    with torch.no_grad():
        feats = network.feature_projection(network.feature_extractor(torch.tensor(waveforms)))
        final = network.student(feats, attention)
        layers = network.student.get_intermediate_outputs(feats, attention)
        spidr = pair.config.model.model_type == "spidr"
        chosen = layers[-network.num_codebooks :]
        for k, head in enumerate(network.heads):
            head(chosen[k] if spidr else final)
    for handle in handles:
        handle.remove()
    # the second pass through the student ends without its last norm
    found["student"] = final.numpy()
    return found | {f"r_{i}": output.numpy() for i, output in enumerate(layers, start=1)}


def outputs_of_ours(
    pair: reference.Pair, waveforms: np.ndarray, lengths: np.ndarray | None
) -> dict[str, np.ndarray]:
    nets, params = model.build(pair.config.model), pair.state.params

    @jax.jit
    def run(params: Any, waveforms: jax.Array) -> Any:
        def capture(module: Any, name: str, *args: Any) -> Any:
            variables = {"params": params[name]}
            return module.apply(variables, *args, capture_intermediates=True)

        extracted, seen_1 = capture(nets.feature_extractor, "feature_extractor", waveforms, lengths)
        feats, seen_2 = capture(nets.feature_projection, "feature_projection", extracted)
        # `extract` and `encode` are what training calls
        feats_again, frame_mask = model.extract(nets, params, waveforms, lengths)
        (final, layers), seen_3 = capture(nets.encoder, "student", feats, frame_mask)
        logits = model.predict(nets, params, final, layers)
        seen = {
            "feature_extractor": seen_1["intermediates"],
            "feature_projection": seen_2["intermediates"],
            "student": seen_3["intermediates"],
        }
        return feats_again, jax.nn.log_softmax(logits), layers, seen

    feats, log_probs, layers, seen = run(params, jnp.asarray(waveforms))
    found = {}

    def flatten(node: dict[str, Any], name: str) -> None:
        for key, value in node.items():
            if key == "__call__":
                found[name] = value[0][0] if isinstance(value[0], tuple) else value[0]
            else:
                flatten(value, f"{name}.{re.sub(r'_(?=[0-9]+$)', '.', key)}")

    for name, tree in seen.items():
        flatten(tree, name)
    np.testing.assert_array_equal(feats, found["feature_projection"])
    found |= {f"heads.{k}": value for k, value in enumerate(log_probs)}
    found |= {f"r_{i}": output for i, output in enumerate(layers, start=1)}
    return {name: np.asarray(value) for name, value in found.items()}


@pytest.mark.parametrize(("kind", "fields", "padded"), CASES)
def test_every_module_and_layer_gives_what_the_reference_gives(
    kind: str, fields: dict[str, Any], padded: bool
) -> None:
    pair = reference.make_pair(kind, reference.SMALL | fields)
    conv_layers = pair.config.model.extractor_conv_layer_config
    batch = reference.draw_batches(pair.config.model, 1, len(LENGTHS), LENGTHS[0])[0]
    waveforms, lengths, frame_mask = batch["waveforms"], None, None
    if padded:
        lengths = np.array(LENGTHS)
        waveforms = np.where(np.arange(LENGTHS[0]) < lengths[:, None], waveforms, 0)
        frame_mask = (
            np.arange(batch["mask"].shape[1])
            < conv_framing(conv_layers).num_frames(lengths)[:, None]
        )
    theirs = outputs_of_theirs(pair, waveforms, frame_mask)
    ours = outputs_of_ours(pair, waveforms, None if lengths is None else jnp.asarray(lengths))

    layer_modules = ("", ".attention", ".layer_norm", ".feed_forward", ".final_layer_norm")
    expected = {
        *[f"feature_extractor.conv_layers.{i}" for i in range(3)],
        *[f"student.layers.{i}{name}" for i in range(3) for name in layer_modules],
        *("feature_extractor", "feature_projection", "student", "student.pos_conv_embed"),
        *("student.layer_norm", "heads.0", "heads.1", "r_1", "r_2", "r_3"),
    }
    if kind == "spidr" and fields.get("encoder_layer_norm_first"):
        theirs.pop("student.layer_norm"), ours.pop("student.layer_norm")
        expected.remove("student.layer_norm")
    assert theirs.keys() >= expected
    errors = {}
    for name in expected:
        a, b = ours[name], theirs[name]
        # the positional convolution gives zero where there is padding
        if frame_mask is not None and name != "student.pos_conv_embed":
            inner = re.search(r"conv_layers.(\d)", name)
            used = conv_layers[: int(inner[1]) + 1] if inner else conv_layers
            valid = np.arange(b.shape[1]) < conv_framing(used).num_frames(lengths)[:, None]
            a, b = a[valid], b[valid]
        errors[name] = reference.relative(a, b)
    assert max(errors.values()) <= 1e-5, errors


@pytest.mark.parametrize("kind", ["spidr", "dinosr"])
def test_codebook_features_are_the_references(kind: str) -> None:
    pair = reference.make_pair(kind, reference.SMALL)
    batch = reference.draw_batches(pair.config.model, 1, 3, 1000)[0]
    with torch.no_grad():
        first, *theirs = pair.model.eval().get_codebooks(torch.tensor(batch["waveforms"]))
    assert first is None
    assert len(theirs) == 2

    @jax.jit
    def features(params: model.Params, waveforms: jax.Array) -> jax.Array:
        nets = model.build(pair.config.model)
        feats, _ = model.extract(nets, params, waveforms)
        outputs = model.encode(nets, params["student"], feats)
        return jax.nn.softmax(model.predict(nets, params, *outputs))

    ours = features(pair.state.params, batch["waveforms"])
    for a, b in zip(ours, theirs, strict=True):
        assert reference.relative(a, b.numpy()) <= 1e-5


def test_evaluation_without_dropout_gives_the_references_metrics() -> None:
    pair = reference.make_pair("spidr", reference.SMALL | {"encoder_dropout": 0.1})
    batch = reference.draw_batches(pair.config.model, 1, 3, 1000)[0]
    with torch.no_grad():
        losses, theirs = pair.model.eval()(
            torch.tensor(batch["waveforms"]), mask_indices=torch.tensor(batch["indices"])
        )
    arrays = {"waveforms": batch["waveforms"], "mask": batch["mask"]}
    evaluate = jax.jit(train_step.make_eval_step(pair.config))
    ours = evaluate(pair.state, arrays, jax.random.key(0))
    for name, value in (theirs | {"loss": losses.mean()}).items():
        assert ours[name] == pytest.approx(value.item(), rel=1e-6)
