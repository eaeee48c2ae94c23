"""A log-mel front end of 100 frames a second, which has no parameters: a class and an entry."""

from pathlib import Path

import driver

EXPERIMENT = '''
import runpy
from pathlib import Path
import jax.numpy as jnp
import numpy as np
from spidr_jax.model import frontend
from spidr_jax.model.config import Framing

WINDOW, HOP, BANDS = 400, 160, 80


def mel(hertz):
    return 2595 * np.log10(1 + hertz / 700)


def filters():
    """Triangles over the power spectrum, [WINDOW // 2 + 1, BANDS]."""
    edges = np.linspace(0, mel(8_000), BANDS + 2)
    place = mel(np.fft.rfftfreq(WINDOW, 1 / 16_000))[:, None]
    rising = (place - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - place) / (edges[2:] - edges[1:-1])
    return np.maximum(np.minimum(rising, falling), 0).astype(np.float32)


class LogMel(frontend.Frontend):
    """Log energies of 80 mel bands."""

    @staticmethod
    def framing(config):
        return Framing(HOP, WINDOW)

    def __call__(self, waveforms, lengths=None):
        starts = HOP * np.arange(self.config.framing.num_frames(waveforms.shape[1]))
        windows = waveforms[:, starts[:, None] + np.arange(WINDOW)]  # [B, T, WINDOW]
        power = jnp.square(jnp.abs(jnp.fft.rfft(windows * np.hanning(WINDOW))))
        return jnp.log(power @ filters() + 1e-6).astype(self.dtype)


frontend.FRONTENDS["log_mel"] = LogMel


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("base.py")))["get_config"]()
    config.model.frontend = "log_mel"
    return config
'''


def test_log_mel(tmp_path: Path) -> None:
    driver.run(tmp_path, EXPERIMENT)
