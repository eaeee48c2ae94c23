"""What a run's checkpoint must hold to be a model, checked by the names of its own arrays."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import tiny

import spidr_jax
from spidr_jax.model import model
from spidr_jax.model.config import ModelConfig
from spidr_jax.weights.load import read


def change_config(run: Path, **fields: Any) -> None:
    file = run / "checkpoints" / "5" / "config" / "metadata"
    content = json.loads(file.read_text())
    content["model"] |= fields
    file.write_text(json.dumps(content))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    tiny.write_run(tmp_path / "run")
    return tmp_path / "run"


def test_a_field_that_an_old_run_lacks_has_its_default(run: Path) -> None:
    file = run / "checkpoints" / "5" / "config" / "metadata"
    content = json.loads(file.read_text())
    del content["model"]["encoder_qkv_bias"]
    file.write_text(json.dumps(content))
    assert read(run).config == ModelConfig(**tiny.FIELDS)


def test_a_field_of_another_version_is_named(run: Path) -> None:
    change_config(run, rotary=True, depth=3)
    with pytest.raises(ValueError, match=r"does not know config\.model's fields depth, rotary; "):
        spidr_jax.load(run)


def test_arrays_that_do_not_fit_are_listed_by_their_own_names(tmp_path: Path) -> None:
    params = model.init_params(ModelConfig(**tiny.FIELDS), jax.random.key(0))
    params["heads"]["scale"] = params["heads"].pop("bias")
    params["mask_embedding"] = params["mask_embedding"][:5]
    tiny.write_run(tmp_path / "run", params=params)
    with pytest.raises(ValueError, match=r"missing: params\.heads\.bias; ") as error:
        read(tmp_path / "run")
    assert "unknown: params.heads.scale; " in str(error.value)
    assert "params.mask_embedding is [5] and should be [32]" in str(error.value)


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    params = model.init_params(ModelConfig(**tiny.FIELDS), jax.random.key(0))
    params["mask_embedding"] = params["mask_embedding"].at[3].set(jnp.nan)
    tiny.write_run(tmp_path, params=params)
    with pytest.raises(ValueError, match=r"wrong: params\.mask_embedding holds NaN or infinite"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("layers", "said"), [(10**9, "from 1 to 256"), ([1], "allowed is int"), (4, "missing: ")]
)
def test_what_a_config_asks_for_is_bounded_and_compared_before_it_is_read(
    run: Path, layers: Any, said: str
) -> None:
    change_config(run, encoder_num_layers=layers)
    with pytest.raises(ValueError, match=said):
        read(run)
