"""The architecture's numbers, under the reference's names."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from spidr_jax.data.audio import SAMPLE_RATE
from spidr_jax.model.checks import check_fields, is_integer

_MAX_SIZE = 2**16  # of anything; more is a damaged or hostile file's, and would never end
_MAX_LAYERS = 256
_LAYERS = ("encoder_num_layers", "encoder_pos_conv_depth", "num_codebooks")
CONV_LAYERS = ((512, 10, 5), *[(512, 3, 2)] * 4, *[(512, 2, 2)] * 2)


class Framing(NamedTuple):
    """Where the frames of a front end lie.

    Attributes:
        hop: samples from a frame to the next.
        receptive_field: samples that a frame is made of.
    """

    hop: int
    receptive_field: int

    @property
    def frames_per_second(self) -> float:
        """Their rate."""
        return SAMPLE_RATE / self.hop

    def num_frames(self, num_samples: Any) -> Any:
        """Frames of a number of samples (int or integer array); not above 0: too few for one."""
        return (num_samples - self.receptive_field) // self.hop + 1


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture of a SpidR or DinoSR model, under the reference's field names.

    `frontend`, `encoder_layer` and `head` are names in `FRONTENDS`, `LAYERS` and `HEADS`.

    Raises:
        ValueError: a value is not usable; the message names field, value and what is allowed.
    """

    model_type: str = "spidr"
    frontend: str = "conv"
    encoder_layer: str = "transformer"
    head: str = "linear"
    extractor_mode: str = "layer_norm"
    extractor_conv_bias: bool = False
    extractor_conv_layer_config: tuple[tuple[int, int, int], ...] = CONV_LAYERS
    encoder_embed_dim: int = 768
    encoder_projection_dropout: float = 0.0
    encoder_pos_conv_kernel: int = 95
    encoder_pos_conv_groups: int = 16
    encoder_pos_conv_depth: int = 5
    encoder_num_layers: int = 12
    encoder_num_heads: int = 12
    encoder_attention_dropout: float = 0.1
    encoder_ff_interm_features: int = 3072
    encoder_ff_interm_dropout: float = 0.0
    encoder_dropout: float = 0.1
    encoder_layer_norm_first: bool = False
    encoder_layer_drop: float = 0.0
    encoder_qkv_bias: bool = False
    codebook_size: int = 256
    num_codebooks: int = 8

    def __post_init__(self) -> None:
        check_fields(self, self._checks())

    def _checks(self) -> Iterator[tuple[str, bool, str]]:
        yield "model_type", self.model_type in ("spidr", "dinosr"), "spidr or dinosr"
        norms = ("layer_norm", "group_norm")
        yield "extractor_mode", self.extractor_mode in norms, " or ".join(norms)
        for name, choices in self._choices().items():
            allowed = f"{', '.join(choices)}, or what a config file or --register FILE.py adds"
            yield name, getattr(self, name) in choices, allowed
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is float:
                yield field.name, 0 <= value < 1, "a rate from 0 to below 1"
            elif field.type is int:
                most = _MAX_LAYERS if field.name in _LAYERS else _MAX_SIZE
                least = 2 if field.name == "codebook_size" else 1
                allowed = f"an integer from {least} to {most}"
                yield field.name, is_integer(value, least, most), allowed
        layers = self.extractor_conv_layer_config
        usable = 0 < len(layers) <= _MAX_LAYERS and all(
            len(layer) == 3 and all(is_integer(x, 1, _MAX_SIZE) for x in layer) for layer in layers
        )
        allowed = "a tuple of (channels, kernel, stride), each from 1"
        yield "extractor_conv_layer_config", usable, allowed
        allowed = f"a multiple that divides encoder_embed_dim = {self.encoder_embed_dim}"
        for name in ("encoder_num_heads", "encoder_pos_conv_groups"):
            yield name, self.encoder_embed_dim % getattr(self, name) == 0, allowed
        allowed = f"at most encoder_num_layers = {self.encoder_num_layers}"
        yield "num_codebooks", self.num_codebooks <= self.encoder_num_layers, allowed

    def _choices(self) -> dict[str, Mapping[str, Any]]:
        from spidr_jax.model import encoder, frontend, heads  # which need this module

        return {
            "frontend": frontend.FRONTENDS,
            "encoder_layer": encoder.LAYERS,
            "head": heads.HEADS,
        }

    @property
    def framing(self) -> Framing:
        """Where the front end's frames lie."""
        return self._choices()["frontend"][self.frontend].framing(self)

    @property
    def codebook_layers(self) -> tuple[int, ...]:
        """Layer numbers (from 1) that have a codebook and a head: the last K."""
        return tuple(
            range(self.encoder_num_layers - self.num_codebooks + 1, self.encoder_num_layers + 1)
        )
