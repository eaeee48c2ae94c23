"""What several tests of runs share."""

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
import tiny
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of 14 utterances."""
    return tiny.write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The runs of a file compile the same programs: let the later ones read them."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("programs")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
