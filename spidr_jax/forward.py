"""What a trained student says of audio: features, codebook probabilities, units.

B batch, S samples, T frames, D model width, V codes per codebook, n layers asked for.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from spidr_jax import model
from spidr_jax.model_config import ModelConfig

KINDS = ("features", "codebooks", "units")
Forward = Callable[[model.Params, Any, Any], jax.Array]


def make_forward(config: ModelConfig, dtype: Any, kind: str, layers: tuple[int, ...]) -> Forward:
    """Make the jitted function (params, waveforms [B, S], lengths [B]) -> output of `layers`.

    Features are the layers' feed-forward outputs before the residual, float32 [n, B, T, D];
    codebooks the probabilities of their heads, float32 [n, B, T, V]; units the most probable
    codes, int32 [n, B, T]. The audio is not masked. Only what the layers need is computed.

    Raises:
        ValueError: a layer does not exist, or has no head.
    """
    allowed = range(1, config.encoder_num_layers + 1)
    if kind != "features":
        allowed = range(config.codebook_layers[0], config.codebook_layers[-1] + 1)
    if wrong := [layer for layer in layers if layer not in allowed]:
        raise ValueError(
            f"layer {wrong[0]}: {kind} are there for layers {allowed[0]} to {allowed[-1]}"
        )
    nets = model.build(config, dtype)
    indices = jnp.array([layer - allowed[0] for layer in layers])

    def forward(params: model.Params, waveforms: jax.Array, lengths: jax.Array) -> jax.Array:
        with _precision(dtype):
            feats, frame_mask = model.extract(nets, params, waveforms, lengths)
            final, outputs = model.encode(nets, params["student"], feats, frame_mask)
            chosen = [outputs[layer - 1] for layer in layers]
            if kind == "features":
                return jnp.stack(chosen).astype(jnp.float32)
            heads = jax.tree.map(lambda x: x[indices], params["heads"])
            some = nets._replace(heads=nets.heads.clone(num_codebooks=len(layers)))
            logits = model.predict(some, params | {"heads": heads}, final, chosen)
            return jnp.argmax(logits, axis=-1) if kind == "units" else jax.nn.softmax(logits)

    return jax.jit(forward)


def _precision(dtype: Any) -> contextlib.AbstractContextManager[Any]:
    """Float32 means float32, where the hardware's default would be less."""
    if dtype == jnp.float32:
        return jax.default_matmul_precision("float32")
    return contextlib.nullcontext()
