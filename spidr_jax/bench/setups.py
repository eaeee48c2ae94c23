"""The step that the benchmarks measure: a config's, on a batch of some shape."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from spidr_jax.method.config import Config
from spidr_jax.method.step import StepConfig
from spidr_jax.train import config as config_lib
from spidr_jax.train import config_file

USUAL_SAMPLES = 235_600  # of an utterance in the published recipe's batches of 3.8 M samples


class Setup(NamedTuple):
    """A step and the shape of its batch."""

    config: Config
    rows: int
    samples: int

    @property
    def step_config(self) -> StepConfig:
        """Config of the step."""
        return self.config.step_config()

    @property
    def frames(self) -> int:
        """Frames of an utterance."""
        return self.step_config.model.framing.num_frames(self.samples)


def load(
    path: str, overrides: Sequence[str] = (), rows: int | None = None, samples: int | None = None
) -> Setup:
    """Read a config file and check it and the batch's shape; sets JAX's options as training does.

    Args:
        path: path of the config file.
        overrides: texts FIELD=VALUE, such as "model.encoder_dropout=0".
        rows: utterances in the batch; None for as many as the config allows.
        samples: samples of each; None for the usual number, or the config's longest if less.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a value is not usable; one line says which.
    """
    values = config_file.read(path, config_file.parse_fields(overrides, "--set"))
    config = config_lib.build(Config, values)
    samples = min(USUAL_SAMPLES, config.data.max_samples) if samples is None else samples
    setup = Setup(config, config.data.max_batch_samples // max(1, samples), samples)
    if setup.frames < 1:
        raise ValueError(f"samples: {samples} give no frame; allowed are more")
    setup = setup if rows is None else setup._replace(rows=rows)
    if setup.rows < 1:
        limit = f"data.max_batch_samples = {config.data.max_batch_samples} holds"
        raise ValueError(f"batch: {setup.rows}, allowed is 1 or more (without it, what {limit})")
    config_lib.set_jax_options(config)
    # what compilation takes is measured
    jax.config.update("jax_enable_compilation_cache", False)
    return setup


def draw_batch(setup: Setup) -> dict[str, np.ndarray]:
    """Noise in the form that the data pipeline gives."""
    draw = np.random.default_rng(0)
    loudness = draw.uniform(300, 3000, (setup.rows, 1))
    noise = draw.standard_normal((setup.rows, setup.samples), np.float32) * loudness
    waveforms = noise.astype(np.int16)
    return {
        "waveforms": waveforms,
        "mean": waveforms.mean(axis=1, dtype=np.float32),
        "inv_std": 1 / waveforms.std(axis=1, dtype=np.float32),
    }
