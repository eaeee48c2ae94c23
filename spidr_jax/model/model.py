"""The model: modules, initial parameters, and the student's forward pass.

B batch, S samples, T frames, D model width, K codebooks, V codes per codebook.
Source: SpidR (arXiv 2512.20308), DinoSR (arXiv 2305.10005).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from spidr_jax.model.config import ModelConfig
from spidr_jax.model.encoder import Encoder
from spidr_jax.model.frontend import FRONTENDS, FeatureProjection, Frontend
from spidr_jax.model.heads import HEADS
from spidr_jax.model.noise import Noise, at
from spidr_jax.ops.dropout import dropout

Params = dict[str, Any]
FROZEN_MODULES = ("feature_extractor", "feature_projection")  # in the second phase


class Networks(NamedTuple):
    """The modules of one model; their parameters are the entries of `init_params`."""

    feature_extractor: Frontend
    feature_projection: FeatureProjection
    encoder: Encoder
    heads: nn.Module


def build(config: ModelConfig, dtype: Any = jnp.float32, remat: bool = False) -> Networks:
    """Modules that compute in `dtype`, with float32 parameters, statistics and logits.

    With `remat` a backward pass computes a layer's inside again, instead of keeping it.
    """
    return Networks(
        FRONTENDS[config.frontend](config, dtype, remat),
        FeatureProjection(config.encoder_embed_dim, dtype),
        Encoder(config, dtype, remat),
        HEADS[config.head](config, dtype),
    )


def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Draw the student side's parameters: extractor, projection, encoder, heads, mask embedding.

    Returns:
        Float32 arrays under `feature_extractor`, `feature_projection`, `student`, `heads` and
        `mask_embedding` [D], but nothing for a module without any; the initial distributions are
        the reference's.
    """
    nets = build(config)
    keys = jax.random.split(key, 5)
    waveform = jnp.zeros((1, config.framing.receptive_field))
    features, extractor = nets.feature_extractor.init_with_output(keys[0], waveform)
    x = jnp.zeros((1, 1, config.encoder_embed_dim))
    drawn = {
        "feature_extractor": extractor,
        "feature_projection": nets.feature_projection.init(keys[1], features),
        "student": nets.encoder.init(keys[2], x),
        "heads": nets.heads.init(keys[3], x[None]),
    }
    params = {name: each["params"] for name, each in drawn.items() if each}
    return params | {"mask_embedding": jax.random.uniform(keys[4], x.shape[-1:])}


def trained(config: ModelConfig, frozen: bool) -> Callable[[tuple[str, ...]], bool]:
    """Make the test, by its path in `init_params`, of whether a parameter trains.

    SpidR's student does not use the last layer's second norm, or in pre-norm the encoder's.

    Args:
        config: the architecture.
        frozen: whether front end and projection are frozen.
    """
    last = f"layers_{config.encoder_num_layers - 1}"
    unused = ("layer_norm",) if config.encoder_layer_norm_first else (last, "final_layer_norm")
    left_out = ("student", *unused) if config.model_type == "spidr" else None

    def trains(path: tuple[str, ...]) -> bool:
        return path[:-1] != left_out and not (frozen and path[0] in FROZEN_MODULES)

    return trains


def extract(
    nets: Networks, params: Params, waveforms: jax.Array, lengths: jax.Array | None = None
) -> tuple[jax.Array, jax.Array | None]:
    """Standardised audio [B, S] -> projected features [B, T, D] and mask of valid frames [B, T].

    Audio has 16 kHz. Lengths [B] are each utterance's valid samples; None, and so is the mask, if
    nothing is padded.
    """
    x = _apply(nets.feature_extractor, params.get("feature_extractor", {}), waveforms, lengths)
    x = _apply(nets.feature_projection, params["feature_projection"], x)
    if lengths is None:
        return x, None
    frames = nets.encoder.config.framing.num_frames(lengths)
    return x, jnp.arange(x.shape[1]) < frames[:, None]


def mask_feats(
    nets: Networks,
    params: Params,
    feats: jax.Array,
    mask: jax.Array,
    noise: Noise | None = None,
) -> jax.Array:
    """Mask the student's input: features [B, T, D] after the projection's dropout.

    Frames where the mask, bool [B, T], is true become the mask embedding. Without noise nothing is
    dropped.
    """
    seeds = None if noise is None else at(noise.seeds, "feature_projection")
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
    nets: Networks,
    params: Params,
    final: jax.Array,
    outputs: list[jax.Array],
    layers: Sequence[int] | None = None,
) -> jax.Array:
    """Head logits [K, B, T, V] from what `encode` gives for the student.

    SpidR's head k (from 1) reads the output of layer L - K + k; DinoSR's heads all read the
    final residual stream.

    With the numbers of some layers, of their heads alone.
    """
    config = nets.encoder.config
    chosen = config.codebook_layers if layers is None else layers
    spidr = config.model_type == "spidr"
    x = jnp.stack([outputs[layer - 1] for layer in chosen]) if spidr else final[None]
    if layers is None:
        return _apply(nets.heads, params["heads"], x)
    codebooks = jnp.array([layer - config.codebook_layers[0] for layer in layers])
    return _apply(nets.heads, params["heads"], x, codebooks)


def _apply(module: nn.Module, params: Params, *args: Any) -> Any:
    return module.apply({"params": params}, *args)
