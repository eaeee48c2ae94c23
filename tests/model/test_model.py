"""The networks: sizes, shapes, padding, dropout, layer drop, what feeds the heads."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from spidr_jax.model import model
from spidr_jax.model.config import Framing, ModelConfig
from spidr_jax.model.frontend import conv_framing
from spidr_jax.model.heads import LinearHeads
from spidr_jax.model.noise import draw_noise

POSITIONS = {"encoder_pos_conv_depth": 2, "encoder_pos_conv_kernel": 14}  # 7 taps each
FIELDS: dict[str, Any] = tiny.SMALLEST | POSITIONS
FRAMING = ModelConfig().framing


def draw_params(config: ModelConfig) -> model.Params:
    """Normal draws in the parameters' shapes: quicker to make than their own initial values."""
    shapes = jax.eval_shape(lambda key: model.init_params(config, key), jax.random.key(0))
    draw = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(0.2 * draw.standard_normal(x.shape), jnp.float32), shapes
    )


def noise(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).standard_normal(shape), jnp.float32)


def count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("samples", "frames"), [(400, 1), (719, 1), (720, 2), (2_000, 6), (16_000, 49), (320_000, 999)]
)
def test_a_frame_is_320_samples_once_the_first_400_are_there(samples: int, frames: int) -> None:
    assert FRAMING.num_frames(samples) == frames
    assert FRAMING.num_frames(np.array([samples]))[0] == frames


def test_frames_of_any_convolutions_are_counted_as_one_after_another() -> None:
    layers = ((4, 7, 3), (4, 2, 2), (4, 5, 1))
    assert conv_framing(layers) == Framing(6, 34)
    for samples in range(100):
        frames = samples
        for _, kernel, stride in layers:
            frames = (frames - kernel) // stride + 1
        assert conv_framing(layers).num_frames(samples) == frames


def test_num_frames_is_what_the_extractor_gives() -> None:
    config = ModelConfig()
    nets = model.build(config)
    for samples in (400, 720, 2_639, 2_640):
        params = jax.eval_shape(lambda key: model.init_params(config, key), jax.random.key(0))
        waveforms = jax.ShapeDtypeStruct((2, samples), jnp.float32)
        feats, _ = jax.eval_shape(lambda p, w: model.extract(nets, p, w), params, waveforms)
        assert feats.shape == (2, FRAMING.num_frames(samples), 768)


def test_the_published_model_has_the_published_number_of_parameters() -> None:
    params = jax.eval_shape(lambda key: model.init_params(ModelConfig(), key), jax.random.key(0))
    extractor = count(params["feature_extractor"]) + count(params["feature_projection"])
    assert round(count(params) / 1e6, 1) == 94.7
    assert round(count(params["student"]) / 1e6, 1) == 88.5
    assert round(extractor / 1e6, 1) == 4.6
    assert round(count(params["heads"]) / 1e6, 1) == 1.6
    assert params["mask_embedding"].shape == (768,)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"extractor_mode": "layer_norm"}, id="layer-norm"),
        pytest.param({"extractor_mode": "group_norm", "extractor_conv_bias": True}, id="group"),
        pytest.param({"encoder_layer_norm_first": True, "encoder_qkv_bias": True}, id="pre-norm"),
    ],
)
def test_an_utterance_gives_padded_what_it_gives_alone(changes: dict[str, Any]) -> None:
    config = ModelConfig(**FIELDS | changes)
    nets, params = model.build(config), draw_params(config)

    @jax.jit
    def run(waveforms: jax.Array, lengths: jax.Array | None) -> Any:
        feats, frame_mask = model.extract(nets, params, waveforms, lengths)
        return frame_mask, model.encode(nets, params["student"], feats, frame_mask)

    waveforms, lengths = noise(2, 400), jnp.array([400, 215])
    # whatever lies in the padding
    frame_mask, (final, outputs) = run(waveforms.at[1, 215:].set(1e3), lengths)
    _, (final_alone, outputs_alone) = run(waveforms[1:, :215], None)
    frames = final_alone.shape[1]
    np.testing.assert_array_equal(frame_mask.sum(axis=1), [final.shape[1], frames])
    for padded, alone in zip((final, *outputs), (final_alone, *outputs_alone), strict=True):
        np.testing.assert_allclose(padded[1, :frames], alone[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "rate", ["encoder_dropout", "encoder_attention_dropout", "encoder_ff_interm_dropout"]
)
def test_each_dropout_rate_acts_with_a_key_and_only_then(rate: str) -> None:
    rates = ("encoder_dropout", "encoder_attention_dropout", "encoder_ff_interm_dropout")
    config = ModelConfig(**FIELDS | dict.fromkeys(rates, 0.0) | {rate: 0.5})
    nets, params, feats = model.build(config), draw_params(config), noise(1, 9, 16)

    @jax.jit
    def run(key: jax.Array | None) -> jax.Array:
        noise = None if key is None else draw_noise(config, key, 1)
        return model.encode(nets, params["student"], feats, noise=noise)[0]

    with_key, again, other = (run(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(with_key, again)
    assert jnp.abs(with_key - other).max() > 0.01
    assert jnp.abs(with_key - run(None)).max() > 0.01


def test_projection_dropout_acts_on_what_the_student_reads_before_the_mask() -> None:
    config = ModelConfig(**FIELDS | {"encoder_projection_dropout": 0.5})
    nets, params, feats = model.build(config), draw_params(config), noise(3, 50, 16)
    mask = jnp.arange(50) % 2 == jnp.arange(3)[:, None] % 2
    dropped = model.mask_feats(nets, params, feats, mask, draw_noise(config, jax.random.key(0), 3))
    embedding = np.broadcast_to(params["mask_embedding"], (int(mask.sum()), 16))
    np.testing.assert_array_equal(dropped[mask], embedding)
    zero = np.asarray(dropped[~mask] == 0)
    assert 0.45 < zero.mean() < 0.55
    np.testing.assert_allclose(dropped[~mask][~zero], 2 * feats[~mask][~zero], rtol=1e-6)
    kept = model.mask_feats(nets, params, feats, mask)
    np.testing.assert_array_equal(kept[~mask], feats[~mask])


def test_layer_drop_skips_a_layer_at_its_rate_but_returns_its_output() -> None:
    fields = FIELDS | {"encoder_dropout": 0.0, "encoder_attention_dropout": 0.0}
    config = ModelConfig(**fields | {"encoder_layer_drop": 0.3, "encoder_layer_norm_first": True})
    nets, params, feats = model.build(config), draw_params(config), noise(1, 9, 16)

    @jax.jit
    @jax.vmap
    def run(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        noise = draw_noise(config, key, 1)
        final, outputs = model.encode(nets, params["student"], feats, noise=noise)
        return final, jnp.stack(outputs)

    finals, outputs = map(np.asarray, run(jax.random.split(jax.random.key(0), 2_000)))
    whole, plain = jax.jit(lambda: model.encode(nets, params["student"], feats))()
    # the first layer's output is there whether it is dropped or not
    assert np.ptp(outputs[:, 0], axis=0).max() < 1e-5
    np.testing.assert_allclose(outputs[0, 0], plain[0], rtol=1e-4, atol=1e-5)
    # the second layer's input tells whether the first was dropped
    first_kept = np.abs(outputs[:, 1] - plain[1]).max(axis=(1, 2, 3)) < 1e-4
    both_kept = np.abs(finals - whole).max(axis=(1, 2, 3)) < 1e-4
    error = np.sqrt(0.3 * 0.7 / 2_000)
    assert abs(first_kept.mean() - 0.7) < 4 * error
    assert abs(both_kept.mean() - 0.49) < 5 * error
    assert len({final.round(4).tobytes() for final in finals}) >= 4


def test_spidr_heads_read_their_own_layers_and_dinosr_heads_the_final_stream() -> None:
    fields = FIELDS | {"encoder_num_layers": 3}
    final, outputs = noise(1, 4, 16), [noise(1, 4, 16) + i for i in range(1, 4)]
    for kind, inputs in (("spidr", outputs[1:]), ("dinosr", [final, final])):
        config = ModelConfig(**fields, model_type=kind)
        params = draw_params(config)
        logits = model.predict(model.build(config), params, final, outputs)
        kernel, bias = params["heads"]["kernel"], params["heads"]["bias"]
        expected = [x @ kernel[k] + bias[k] for k, x in enumerate(inputs)]
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inputs", [1, 3], ids=["one for all heads", "one a head"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=lambda x: x.__name__)
def test_gradients_of_heads_are_autodiffs_in_float32_and_near_them_in_bfloat16(
    inputs: int, dtype: Any
) -> None:
    heads = LinearHeads(ModelConfig(num_codebooks=3, codebook_size=16), dtype)
    x = noise(inputs, 4, 50, 32).astype(dtype)
    params = heads.init(jax.random.key(0), x)["params"]
    params["kernel"] = params["kernel"].astype(dtype).astype(jnp.float32)
    slopes = jax.random.normal(jax.random.key(1), (3, 4, 50, 16))

    def plain(params: model.Params, x: jax.Array) -> jax.Array:
        kernel = params["kernel"].astype(x.dtype)[:, None]
        logits = jnp.matmul(x, kernel, preferred_element_type=jnp.float32)
        return logits + params["bias"][:, None, None]

    def gradients(function: Any, x: jax.Array) -> list[np.ndarray]:
        pull = jax.jit(lambda params, x, slopes: jax.vjp(function, params, x)[1](slopes))
        return jax.tree.leaves(jax.tree.map(np.float32, pull(params, x, slopes)))

    found = gradients(lambda params, x: heads.apply({"params": params}, x), x)
    autodiff, exact = gradients(plain, x), gradients(plain, x.astype(jnp.float32))
    # of bias, kernel and x; on CPUs jax 0.12 adds up the kernel's products in bfloat16
    limits = 2**-9, 2**-5, 2**-8
    for a, b, c, limit in zip(found, autodiff, exact, limits, strict=True):
        if dtype == jnp.float32:
            np.testing.assert_array_equal(a, b)
            continue
        assert np.linalg.norm(a - c) <= limit * np.linalg.norm(c)
        assert not np.array_equal(a, b)


def test_pre_norm_ends_with_the_encoders_norm_and_post_norm_starts_with_it() -> None:
    for first in (False, True):
        config = ModelConfig(**FIELDS | {"encoder_layer_norm_first": first})
        nets, student = model.build(config), draw_params(config)["student"]
        feats = noise(1, 9, 16)
        encode = jax.jit(lambda params, nets=nets, feats=feats: model.encode(nets, params, feats))
        outputs = encode(student)[1]
        shifted = student | {"layer_norm": {"scale": 0 * feats[0, 0], "bias": feats[0, 0]}}
        final_shifted, outputs_shifted = encode(shifted)
        only_the_end_changed = bool((outputs[0] == outputs_shifted[0]).all())
        assert only_the_end_changed == first
        if first:
            np.testing.assert_array_equal(final_shifted[0], np.tile(feats[0, 0], (9, 1)))


def test_bf16_computes_in_bf16_and_gives_float32_logits() -> None:
    config = ModelConfig(**FIELDS)
    nets, params = model.build(config, jnp.bfloat16), draw_params(config)

    def run(waveforms: jax.Array) -> Any:
        feats, _ = model.extract(nets, params, waveforms)
        final, outputs = model.encode(nets, params["student"], feats)
        return feats, final, outputs, model.predict(nets, params, final, outputs)

    feats, final, outputs, logits = jax.eval_shape(run, noise(2, 400))
    assert {feats.dtype, final.dtype, *(x.dtype for x in outputs)} == {jnp.dtype(jnp.bfloat16)}
    assert logits.dtype == jnp.float32


def test_the_last_layers_have_the_codebooks() -> None:
    assert ModelConfig().codebook_layers == (5, 6, 7, 8, 9, 10, 11, 12)
