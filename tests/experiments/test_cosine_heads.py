"""HuBERT's heads, cosines with embeddings of the codes: a module and an entry."""

from pathlib import Path

import driver

EXPERIMENT = '''
import runpy
from pathlib import Path
from typing import Any
import jax.numpy as jnp
from flax import linen as nn
from spidr_jax.model import heads
from spidr_jax.model.config import ModelConfig


class CosineHeads(nn.Module):
    """Cosines of projected outputs with embeddings of the codes, over 0.1."""

    config: ModelConfig
    dtype: Any

    @nn.compact
    def __call__(self, x, codebooks=slice(None)):
        number, codes = self.config.num_codebooks, self.config.codebook_size
        init = nn.initializers.normal(0.02)
        kernel = self.param("projection", init, (number, x.shape[-1], 16))[codebooks]
        embeddings = self.param("embeddings", init, (number, codes, 16))[codebooks]
        x = (x @ kernel.astype(self.dtype)[:, None]).astype(jnp.float32)
        x, embeddings = (
            y / (jnp.linalg.norm(y, axis=-1, keepdims=True) + 1e-6) for y in (x, embeddings)
        )
        return x @ embeddings[:, None].swapaxes(-1, -2) / 0.1


heads.HEADS["cosine"] = CosineHeads


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("base.py")))["get_config"]()
    config.model.head = "cosine"
    return config
'''


def test_cosine_heads(tmp_path: Path) -> None:
    driver.run(tmp_path, EXPERIMENT)
