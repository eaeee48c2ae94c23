"""The reference as `bench step --reference` runs it is the one that the parity tests train."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from spidr_jax.bench import __main__ as bench
from spidr_jax.bench import pytorch, setups
from spidr_jax.bench.pytorch import COMPILED, EAGER
from spidr_jax.bench.setups import Setup
from spidr_jax.bench.steps import OURS

torch = pytest.importorskip("torch")
pytest.importorskip("spidr")

import reference  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*GradScaler is enabled")

SMOKE = Path(__file__).parents[2] / "configs" / "smoke.py"
OPTIONS = (
    "jax_default_matmul_precision",
    "jax_enable_compilation_cache",
    "jax_remove_custom_partitioning_ptr_from_cache_key",
)
ROWS, SAMPLES = 3, 3_000


@pytest.fixture(autouse=True)
def options() -> Iterator[None]:
    """JAX's options, put back afterwards."""
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def changes(**more: Any) -> list[str]:
    fields = {f"model.{name}": value for name, value in reference.SMALL.items()} | more
    return [f"{name}={value}" for name, value in fields.items()]


def load(*more: str) -> tuple[Setup, dict[str, Any]]:
    setup = setups.load(str(SMOKE), [*changes(), *more], ROWS, SAMPLES)
    return setup, setups.draw_batch(setup)


@pytest.mark.parametrize(
    "kind", [(), ("model.model_type=dinosr", "teacher.schedule=linear")], ids=["spidr", "dinosr"]
)
def test_its_steps_are_those_of_the_parity_tests(kind: tuple[str, ...]) -> None:
    setup, batch = load(*kind, "optimizer.max_norm=0.2", "optimizer.warmup_steps=1")
    model, step = pytorch.make_step(setup, False, batch, compiled=False)
    other, _ = pytorch.make_step(setup, False, batch, compiled=False)
    before = reference.tensors(other)
    waveforms, indices = pytorch._inputs(setup, batch)
    step()
    step()
    same = {"waveforms": waveforms, "indices": indices}
    reference.train_reference(reference.Pair(other, setup.step_config, None), [same, same])
    found, expected = reference.tensors(model), reference.tensors(other)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    moved = {name.split(".")[0] for name in found if not np.array_equal(found[name], before[name])}
    assert {"feature_extractor", "student", "teacher", "heads"} <= moved


@pytest.mark.parametrize("frozen", [False, True])
def test_a_frozen_extractor_has_no_backward_pass(frozen: bool) -> None:
    setup, batch = load()
    model, step = pytorch.make_step(setup, frozen, batch, compiled=False)
    reached = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda _, name=name: reached.append(name.split(".")[0]))
    step()
    expected = {"feature_extractor", "feature_projection"}
    assert set(reached) & expected == (set() if frozen else expected)
    assert {"student", "heads"} <= set(reached)


def test_masks_are_as_many_in_each_row() -> None:
    setup, batch = load("masking.group_rows=1")
    waveforms, indices = pytorch._inputs(setup, batch)
    np.testing.assert_allclose(waveforms.std(axis=1), 1, rtol=1e-4)
    assert indices.shape[0] == ROWS
    assert (np.diff(indices, axis=1) > 0).all()
    assert indices.max() < setup.frames


def test_what_cannot_be_compiled_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model: Any, dynamic: bool) -> Any:
        raise RuntimeError("no C++ compiler\nand a page more")

    monkeypatch.setattr(torch, "compile", fail)
    starts, skipped = pytorch.make_steps(*load()[:1], False, load()[1], warm_up=1)
    assert starts.keys() == {EAGER}
    assert skipped == {COMPILED: "RuntimeError: no C++ compiler"}


@pytest.mark.slow
def test_both_run_beside_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["step", "--config", str(SMOKE), "--reference", "--json", str(tmp_path / "json")]
    arguments += ["--batch", str(ROWS), "--samples", str(SAMPLES), "--steps", "4"]
    few = ("extractor_conv_layer_config=((16, 10, 5), (16, 4, 4))", "encoder_num_layers=1")
    few += ("encoder_pos_conv_depth=1", "num_codebooks=1")  # to compile
    all_changes = [*changes(), *(f"model.{each}" for each in few), "precision=bfloat16"]
    for field, value in dict(each.split("=", 1) for each in all_changes).items():
        arguments += ["--set", f"{field}={value}"]
    assert bench.main(arguments) == 0
    found = json.loads((tmp_path / "json").read_text())
    assert found["skipped"] == {}
    assert found["contenders"].keys() == {OURS, EAGER, COMPILED}
    assert found["conditions"]["torch_threads"] == found["conditions"]["cores"]
    ours = found["contenders"][OURS]["median_ms"]
    output = capsys.readouterr().out
    for name in (EAGER, COMPILED):
        ratio = found["contenders"][name]["median_ms"] / ours
        assert found["ratios"][name]["ratio"] == pytest.approx(ratio)
        assert len(found["ratios"][name]["rounds"]) == 4
        assert f"{name} takes {ratio:.2f} times as long" in output
