"""The model: modules, initial parameters, and the student's forward pass.

B batch, S samples, T frames, D model width, K codebooks, V codes per codebook.
Source: SpidR (arXiv 2512.20308), DinoSR (arXiv 2305.10005).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from spidr_jax.model.config import ModelConfig, num_frames
from spidr_jax.model.encoder import LAYER_PLACES, Encoder
from spidr_jax.model.frontend import FeatureExtractor, FeatureProjection
from spidr_jax.ops import dropout as dropout_lib
from spidr_jax.ops.dropout import Noise, dropout
from spidr_jax.ops.norms import uniform_init

Params = dict[str, Any]


@jax.custom_vjp
def _project(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """[K or 1, B, T, D] times [K, 1, D, V] plus float32 [K, V] -> float32 [K, B, T, V].

    As in the reference's autocast, the gradient is rounded to the factors' type: else products
    of the backward pass would be float32's.
    """
    return jnp.matmul(x, kernel, preferred_element_type=jnp.float32) + bias[:, None, None]


def _project_backward(factors: tuple[jax.Array, jax.Array], g: jax.Array) -> Any:
    # without a barrier XLA keeps g in float32, too, for the sum
    g = lax.optimization_barrier(g.astype(factors[0].dtype))
    return *jax.vjp(jnp.matmul, *factors)[1](g), g.sum(axis=(1, 2), dtype=jnp.float32)


_project.defvjp(lambda x, kernel, bias: (_project(x, kernel, bias), (x, kernel)), _project_backward)


class Heads(nn.Module):
    """One linear prediction head a codebook: [K or 1, B, T, D] -> float32 logits [K, B, T, V]."""

    num_codebooks: int
    codebook_size: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = uniform_init(1 / math.sqrt(x.shape[-1]))
        shape = (self.num_codebooks, x.shape[-1], self.codebook_size)
        kernel = self.param("kernel", init, shape).astype(self.dtype)
        bias = self.param("bias", init, (shape[0], shape[2]))
        return _project(x, kernel[:, None], bias)


class Networks(NamedTuple):
    """The modules of one model; their parameters are the entries of `init_params`."""

    feature_extractor: FeatureExtractor
    feature_projection: FeatureProjection
    encoder: Encoder
    heads: Heads


def build(config: ModelConfig, dtype: Any = jnp.float32, remat: bool = False) -> Networks:
    """Modules that compute in `dtype`, with float32 parameters, statistics and logits.

    With `remat` a backward pass computes a layer's inside again, instead of keeping it.
    """
    return Networks(
        FeatureExtractor(config, dtype, remat),
        FeatureProjection(config.encoder_embed_dim, dtype),
        Encoder(config, dtype, remat),
        Heads(config.num_codebooks, config.codebook_size, dtype),
    )


def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Draw the student side's parameters: extractor, projection, encoder, heads, mask embedding.

    Returns:
        Float32 arrays under `feature_extractor`, `feature_projection`, `student`, `heads` and
        `mask_embedding` [D]; the initial distributions are the reference's.
    """
    nets = build(config)
    keys = jax.random.split(key, 5)
    samples = 1
    for _, kernel, stride in reversed(config.extractor_conv_layer_config):
        samples = (samples - 1) * stride + kernel
    x = jnp.zeros((1, 1, config.encoder_embed_dim))
    channels = config.extractor_conv_layer_config[-1][0]
    return {
        "feature_extractor": nets.feature_extractor.init(keys[0], jnp.zeros((1, samples)))[
            "params"
        ],
        "feature_projection": nets.feature_projection.init(keys[1], jnp.zeros((1, 1, channels)))[
            "params"
        ],
        "student": nets.encoder.init(keys[2], x)["params"],
        "heads": nets.heads.init(keys[3], x[None])["params"],
        "mask_embedding": jax.random.uniform(keys[4], (config.encoder_embed_dim,)),
    }


def extract(
    nets: Networks,
    params: Params,
    waveforms: jax.Array,
    lengths: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Waveforms [B, S] -> projected features [B, T, D] and the mask of valid frames [B, T].

    Args:
        nets: the modules.
        params: as `init_params` gives them.
        waveforms: standardised 16 kHz audio, [B, S].
        lengths: valid samples of each utterance, [B]; None if nothing is padded (then the mask
            is None too).
    """
    x = _apply(nets.feature_extractor, params["feature_extractor"], waveforms, lengths)
    x = _apply(nets.feature_projection, params["feature_projection"], x)
    if lengths is None:
        return x, None
    frames = num_frames(lengths, nets.encoder.config.extractor_conv_layer_config)
    return x, jnp.arange(x.shape[1]) < frames[:, None]


def draw_noise(config: ModelConfig, key: jax.Array, rows: int) -> Noise:
    """The noise of a training step's student, for `mask_feats` and `encode`."""
    places = 1 + LAYER_PLACES * config.encoder_num_layers + 1
    layers, rate = config.encoder_num_layers, config.encoder_layer_drop
    return dropout_lib.draw_noise(key, rows, places, layers, rate)


def mask_feats(
    nets: Networks,
    params: Params,
    feats: jax.Array,
    mask: jax.Array,
    noise: Noise | None = None,
) -> jax.Array:
    """What the student reads: features [B, T, D] after the projection's dropout, masked.

    Args:
        nets: the modules.
        params: as `init_params` gives them.
        feats: from `extract`; the teacher reads them as they are.
        mask: bool [B, T], true at frames that become the mask embedding.
        noise: from `draw_noise`; None for no dropout.
    """
    seeds = None if noise is None else noise.seeds[:, -1]
    feats = dropout(feats, seeds, nets.encoder.config.encoder_projection_dropout)
    return jnp.where(mask[..., None], params["mask_embedding"].astype(feats.dtype), feats)


def encode(
    nets: Networks,
    params: Params,
    feats: jax.Array,
    frame_mask: jax.Array | None = None,
    noise: Noise | None = None,
) -> tuple[jax.Array, list[jax.Array]]:
    """Run the encoder with the student's or the teacher's parameters; see `Encoder`."""
    return _apply(nets.encoder, params, feats, frame_mask, noise)


def predict(
    nets: Networks, params: Params, final: jax.Array, outputs: list[jax.Array]
) -> jax.Array:
    """Head logits [K, B, T, V] from what `encode` gives for the student.

    SpidR's head k (from 1) reads the output of layer L - K + k; DinoSR's heads all read the
    final residual stream.
    """
    spidr = nets.encoder.config.model_type == "spidr"
    x = jnp.stack(outputs[-nets.heads.num_codebooks :]) if spidr else final[None]
    return _apply(nets.heads, params["heads"], x)


def _apply(module: nn.Module, params: Params, *args: Any) -> Any:
    return module.apply({"params": params}, *args)
