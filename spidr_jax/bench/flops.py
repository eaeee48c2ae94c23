"""The arithmetic of a training step, counted from its shapes; a multiplication and addition is 2.

Only products and convolutions count: they are what a device's peak is about. Nothing that is
computed twice counts twice.
"""

from spidr_jax.model.config import ModelConfig


def count_step(model: ModelConfig, rows: int, samples: int, frozen: bool) -> float:
    """FLOP of a training step, forward and backward, of the built-in front end, layers and heads.

    Args:
        model: the architecture.
        rows: utterances in the batch.
        samples: samples of each utterance.
        frozen: whether front end and projection have no backward pass.
    """
    width, channels, length = model.encoder_embed_dim, 1, samples
    convolutions = []
    for features, kernel, stride in model.extractor_conv_layer_config:
        length = (length - kernel) // stride + 1
        convolutions.append(2 * length * kernel * channels * features)
        channels = features
    extractor = sum(convolutions) + 2 * length * channels * width  # with the projection
    # the first layer's input, the waveforms, needs no gradient
    front = extractor if frozen else 3 * extractor - convolutions[0]

    depth = model.encoder_pos_conv_depth
    kernel = max(3, model.encoder_pos_conv_kernel // depth)
    frames = length + 1 - kernel % 2  # an even kernel gives one frame more, which is dropped
    positional = 2 * depth * frames * kernel * (width // model.encoder_pos_conv_groups) * width
    attention = 2 * length * width * 4 * width + 2 * 2 * length * length * width
    feed_forward = 2 * 2 * length * width * model.encoder_ff_interm_features
    encoder = positional + model.encoder_num_layers * (attention + feed_forward)

    # predictions with their two gradients, distances to codes, sums of the frames of each code
    product = 2 * model.num_codebooks * length * width * model.codebook_size
    return rows * (front + (3 + 1) * encoder + 5 * product)  # student and teacher
