"""The arithmetic of a training step, counted from its shapes; a multiplication and addition is 2.

Only products and convolutions count: they are what a device's peak is about. Nothing that is
computed twice counts twice. B batch, S samples, T frames, D model width, K codebooks, V codes.
"""

from typing import NamedTuple

from spidr_jax.model.config import ModelConfig
from spidr_jax.model.frontend import conv_framing


class Arithmetic(NamedTuple):
    """FLOP of a part's forward and backward pass."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        return self.forward + self.backward


def count_parts(model: ModelConfig, rows: int, samples: int, frozen: bool) -> dict[str, Arithmetic]:
    """FLOP of each part of a step.

    Args:
        model: the architecture.
        rows: B.
        samples: S.
        frozen: extractor and projection have no backward pass.

    Returns:
        "extractor" (with projection), "student encoder", "teacher encoder" and "heads and
        codebooks", which make up the step, and what encoders hold: one "positional convolution"
        (all its layers), and one layer's "attention".
    """
    layers, width = model.extractor_conv_layer_config, model.encoder_embed_dim
    frames = model.framing.num_frames(samples)
    tokens = rows * frames
    convolutions, channels, length = [], 1, samples
    for features, kernel, stride in layers:
        length = conv_framing(((features, kernel, stride),)).num_frames(length)
        convolutions.append(2 * rows * length * kernel * channels * features)
        channels = features
    projection = 2 * tokens * channels * width
    extractor = sum(convolutions) + projection
    # the first layer's input, the waveforms, needs no gradient
    extractor_backward = 0 if frozen else 2 * extractor - convolutions[0]

    attention = 2 * tokens * width * (3 * width + width) + 2 * 2 * tokens * frames * width
    feed_forward = 2 * 2 * tokens * width * model.encoder_ff_interm_features
    positional = _positional(model, rows, frames)
    encoder = positional + model.encoder_num_layers * (attention + feed_forward)

    # predictions and distances to codes, and sums of the frames of each code
    product = 2 * model.num_codebooks * tokens * width * model.codebook_size
    return {
        "extractor": Arithmetic(extractor, extractor_backward),
        "student encoder": Arithmetic(encoder, 2 * encoder),
        "teacher encoder": Arithmetic(encoder, 0),
        "heads and codebooks": Arithmetic(3 * product, 2 * product),
        "positional convolution": Arithmetic(positional, 2 * positional),
        "attention": Arithmetic(attention, 2 * attention),
    }


def count_step(model: ModelConfig, rows: int, samples: int, frozen: bool) -> float:
    """FLOP of a whole step; see `count_parts`."""
    parts = count_parts(model, rows, samples, frozen)
    inside = ("positional convolution", "attention")
    return sum(part.total for name, part in parts.items() if name not in inside)


def _positional(model: ModelConfig, rows: int, frames: int) -> float:
    width, depth = model.encoder_embed_dim, model.encoder_pos_conv_depth
    kernel = max(3, model.encoder_pos_conv_kernel // depth)
    length = frames + 1 - kernel % 2  # an even kernel gives one frame more, which is dropped
    return depth * 2 * rows * length * kernel * (width // model.encoder_pos_conv_groups) * width
