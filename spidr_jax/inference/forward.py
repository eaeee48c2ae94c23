"""Forward passes of a trained student: features, codebook probabilities, units.

B batch, S samples, T frames, D model width, V codes per codebook, n layers asked for.
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from spidr_jax.model import model
from spidr_jax.model.config import ModelConfig

KINDS = ("features", "codebooks", "units")
Forward = Callable[[model.Params, Any, Any], dict[str, jax.Array]]


def make_forward(config: ModelConfig, dtype: Any, layers: Mapping[str, tuple[int, ...]]) -> Forward:
    """Make the jitted function (params, waveforms [B, S], lengths [B]) -> outputs by kind.

    Features are the layers' feed-forward outputs before the residual, float32 [n, B, T, D];
    codebooks the probabilities of their heads, float32 [n, B, T, V]; units the most probable
    codes, int32 [n, B, T]. The audio is not masked. Only what the layers need is computed.

    Args:
        config: the architecture.
        dtype: type of the computation.
        layers: the layers' numbers of each kind that is asked for.

    Raises:
        ValueError: a layer does not exist, or has no head.
    """
    for kind, numbers in layers.items():
        allowed = layers_of(config, kind)
        if wrong := [layer for layer in numbers if layer not in allowed]:
            raise ValueError(
                f"layer {wrong[0]}: {kind} are there for layers {allowed[0]} to {allowed[-1]}"
            )
    nets = model.build(config, dtype)

    def forward(params: model.Params, waveforms: jax.Array, lengths: jax.Array) -> Any:
        exact = dtype == jnp.float32  # where the hardware's default would be less
        with jax.default_matmul_precision("float32") if exact else contextlib.nullcontext():
            feats, frame_mask = model.extract(nets, params, waveforms, lengths)
            encoded = model.encode(nets, params["student"], feats, frame_mask)
            return {
                kind: _output(nets, params, *encoded, kind, numbers)
                for kind, numbers in layers.items()
            }

    return jax.jit(forward)


def layers_of(config: ModelConfig, kind: str) -> range:
    """The layers that have this kind of output."""
    first = 1 if kind == "features" else config.codebook_layers[0]
    return range(first, config.encoder_num_layers + 1)


def _output(
    nets: model.Networks,
    params: model.Params,
    final: jax.Array,
    outputs: list[jax.Array],
    kind: str,
    layers: tuple[int, ...],
) -> jax.Array:
    if kind == "features":
        return jnp.stack([outputs[layer - 1] for layer in layers]).astype(jnp.float32)
    logits = model.predict(nets, params, final, outputs, layers)
    if kind == "units":
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jax.nn.softmax(logits)
