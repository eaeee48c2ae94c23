"""Files between the reference and this package, through the reference's own objects."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spidr_jax import convert
from spidr_jax.method.step import TrainState
from spidr_jax.method.teacher import TeacherConfig
from spidr_jax.model.config import ModelConfig
from spidr_jax.weights import load as stored
from spidr_jax.weights import orbax as orbax_files
from spidr_jax.weights import torch_files, torch_names, torch_training
from spidr_jax.weights.reference_config import OWN_FIELDS, to_reference

pytest.importorskip("torch")
pytest.importorskip("spidr")

import reference
import torch

pytestmark = pytest.mark.filterwarnings("ignore:.*GradScaler is enabled")

OPTIONS = {
    "extractor_mode": "group_norm",
    "extractor_conv_bias": True,
    "encoder_layer_norm_first": True,
    "encoder_qkv_bias": True,
}
KINDS = [("spidr", {}), ("dinosr", {}), ("spidr", OPTIONS), ("dinosr", OPTIONS)]
NAMES = ["spidr", "dinosr", "spidr-options", "dinosr-options"]
LINEAR = TeacherConfig(decay=0.9, final_decay=0.99, final_step=3)


def write_config(folder: Path, pair: reference.Pair) -> None:
    """config.json as the reference has it."""
    content = to_reference(pair.config.model, dataclasses.asdict(pair.config))
    (folder / "config.json").write_text(json.dumps(content))


def export(pair: reference.Pair, folder: Path, name: str = "in.pt") -> Path:
    write_config(folder, pair)
    torch.save({"model": pair.model.state_dict()}, folder / name)
    return folder / name


@pytest.mark.parametrize(("kind", "fields"), KINDS, ids=NAMES)
def test_a_file_of_ours_loads_strictly_and_computes_the_same(
    kind: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    from spidr.models import build_model

    from spidr_jax.model import model

    pair = reference.make_pair(kind, reference.SMALL | fields)
    pair.model.current_step.fill_(7)
    run = tmp_path / "run"
    convert.from_torch_file(export(pair, tmp_path), run)
    convert.to_torch_file(run, tmp_path / "out" / "model.pt")
    theirs = build_model(model_type=kind, checkpoint=tmp_path / "out" / "model.pt").eval()
    before, after = pair.model.state_dict(), theirs.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)

    waveform = reference.draw_batches(pair.config.model, 1, 2, 3000)[0]["waveforms"]
    nets, params = model.build(pair.config.model), stored.read(run).arrays["params"]
    feats, _ = model.extract(nets, params, jnp.asarray(waveform))
    final, outputs = model.encode(nets, params["student"], feats)
    with torch.no_grad():
        features = theirs.get_intermediate_outputs(torch.tensor(waveform))
    for ours, other in zip(outputs, features, strict=True):
        np.testing.assert_allclose(ours, other.numpy(), atol=1e-5)
    predictions = jax.nn.softmax(model.predict(nets, params, final, outputs))
    with torch.no_grad():
        codebooks = [c for c in theirs.get_codebooks(torch.tensor(waveform)) if c is not None]
    for ours, other in zip(predictions, codebooks, strict=True):
        np.testing.assert_allclose(ours, other.numpy(), atol=1e-5)


def save_run(pair: reference.Pair, made: tuple[Any, Any, Any], folder: Path, step: int) -> Path:
    """A full training checkpoint, written by the reference's own Checkpointer."""
    from spidr.checkpoint import Checkpointer

    optimizer, scaler, scheduler = made
    checkpointer = Checkpointer(folder, interval=1)
    checkpointer.init_state(pair.model, optimizer, scheduler, scaler)
    assert checkpointer.save(step, 0)
    write_config(folder, pair)
    return folder / f"step_{step}.pt"


def continued(run: Path, pair: reference.Pair) -> TrainState:
    """The state that the training code restores of an imported run."""
    from spidr_jax.method import step as train_step
    from spidr_jax.train.checkpoint import Checkpoints

    target = jax.eval_shape(lambda key: train_step.init_state(pair.config, key), jax.random.key(0))
    checkpoints = Checkpoints(run / "checkpoints", keep=3)
    step = checkpoints.latest()
    assert step is not None
    if step >= pair.config.freeze_step:
        target = train_step.freeze(pair.config, target)
    placed = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
        ),
        target,
    )
    state = checkpoints.restore(step, placed)
    checkpoints.close()
    return state


@pytest.mark.parametrize(
    ("kind", "fields", "freeze_step"),
    [
        pytest.param("spidr", {}, 200_000, id="spidr"),
        pytest.param("spidr", {}, 3, id="frozen", marks=pytest.mark.slow),
        pytest.param("dinosr", {}, 200_000, id="dinosr", marks=pytest.mark.slow),
        pytest.param("spidr", OPTIONS, 5, id="options-and-freeze-between", marks=pytest.mark.slow),
    ],
)
def test_a_pytorch_run_goes_on_with_the_same_five_losses(
    kind: str, fields: dict[str, Any], freeze_step: int, tmp_path: Path
) -> None:
    arguments = {"teacher": LINEAR} if kind == "dinosr" else {}
    pair = reference.make_pair(kind, reference.SMALL | fields, freeze_step=freeze_step, **arguments)
    batches = reference.draw_batches(pair.config.model, 8, 4, 1000)
    made = reference.make_optimizer(pair)
    reference.train_reference(pair, batches[:3], made)
    file = save_run(pair, made, tmp_path / "theirs", 3)
    convert.from_torch_file(file, tmp_path / "ours")

    before = reference.tensors(pair.model)
    state = continued(tmp_path / "ours", pair)
    assert state.step == 3
    theirs = reference.train_reference(pair, batches[3:], made, start=3)
    states, ours = reference.train_ours(pair._replace(state=state), batches[3:])
    reference.check_metrics(ours, theirs)  # the losses among them, to 1e-6
    last = states[-1]
    after = torch_names.to_torch(last._asdict())
    reference.check_tensors(after, reference.tensors(pair.model), before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[reference.Pair, Any, Path]:
    """The reference after one step, its optimizer, and the file that it saved."""
    pair = reference.make_pair("spidr", reference.SMALL)
    made = reference.make_optimizer(pair)
    reference.train_reference(pair, reference.draw_batches(pair.config.model, 1, 2, 1000), made)
    return pair, made, save_run(pair, made, tmp_path_factory.mktemp("theirs"), 1)


def test_moments_land_at_their_parameters(trained: Any) -> None:
    pair, made, path = trained
    file = torch_files.read(path)
    adam = torch_training.train_state(file).opt_state[1]
    names = dict(pair.model.named_parameters())
    qkv = made[0].state[names["student.layers.1.attention.qkv.weight"]]
    ours = adam.nu["student"]["layers_1"]["attention"]["qkv"]["kernel"]
    np.testing.assert_array_equal(ours.T, qkv["exp_avg_sq"].numpy())
    head = made[0].state[names["heads.1.0.weight"]]
    np.testing.assert_array_equal(adam.mu["heads"]["kernel"][1].T, head["exp_avg"].numpy())
    assert adam.count == 1


def test_an_optimizer_of_another_model_is_refused(trained: Any) -> None:
    path = trained[2]
    content = torch.load(path)
    content["optimizer"]["state"].pop(0)
    path = path.with_name("other.pt")
    torch.save(content, path)
    with pytest.raises(ValueError, match="no optimizer state of mask_embedding"):
        torch_training.train_state(torch_files.read(path))


def fairseq_state(config: ModelConfig) -> dict[str, Any]:
    """A synthetic checkpoint of the original form, with random numbers."""
    draw = torch.Generator().manual_seed(0)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    def affine(name: str, *shape: int) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": tensor(*shape), f"{name}.bias": tensor(shape[0])}

    width, hidden = config.encoder_embed_dim, config.encoder_ff_interm_features

    def encoder() -> dict[str, torch.Tensor]:
        names = affine("layer_norm", width)
        per_group = width // config.encoder_pos_conv_groups
        kernel = max(3, config.encoder_pos_conv_kernel // config.encoder_pos_conv_depth)
        for i in range(config.encoder_pos_conv_depth):
            names |= affine(f"pos_conv.{i}.0", width, per_group, kernel)
        for i in range(config.encoder_num_layers):
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                names |= affine(f"layers.{i}.self_attn.{part}", width, width)
            names |= affine(f"layers.{i}.self_attn_layer_norm", width)
            names |= affine(f"layers.{i}.final_layer_norm", width)
            names |= affine(f"layers.{i}.fc1", hidden, width)
            names |= affine(f"layers.{i}.fc2", width, hidden)
        return names

    state: dict[str, Any] = {"mask_emb": tensor(width)}
    channels = 1
    for i, (out, kernel, _) in enumerate(config.extractor_conv_layer_config):
        state[f"feature_extractor.conv_layers.{i}.0.weight"] = tensor(out, channels, kernel)
        state |= affine(f"feature_extractor.conv_layers.{i}.2.1", out)
        channels = out
    state |= affine("layer_norm", channels) | affine("post_extract_proj", width, channels)
    state |= {f"encoder.{name}": value for name, value in encoder().items()}
    for k in range(config.num_codebooks):
        state |= affine(f"heads.{k}", config.codebook_size, width)
        state[f"_codebook{k}"] = tensor(config.codebook_size, width)
        state[f"_codebook_cnts{k}"] = tensor(config.codebook_size)
    optimizer = {"state": {0: {"step": 123}}}
    return {"model": state | {"_ema": encoder()}, "last_optimizer_state": optimizer}


def test_the_original_dinosr_checkpoint_reads_as_the_reference_converts_it(tmp_path: Path) -> None:
    from spidr.models.utils import state_dict_from_dinosr_fairseq_checkpoint

    fields = reference.SMALL | {
        "extractor_conv_layer_config": ((8, 10, 5), *[(8, 3, 2)] * 4, *[(8, 2, 2)] * 2),
        "encoder_pos_conv_depth": 5,
        "encoder_num_layers": 12,
        "num_codebooks": 8,
    }
    config = ModelConfig(model_type="dinosr", encoder_qkv_bias=True, **fields)
    checkpoint = fairseq_state(config)
    torch.save(checkpoint, tmp_path / "dinosr.ckpt")
    (tmp_path / "config.json").write_text(json.dumps(to_reference(config)))
    file = torch_files.read(tmp_path / "dinosr.ckpt")
    expected = state_dict_from_dinosr_fairseq_checkpoint(checkpoint)
    assert file.step == expected.pop("current_step").item() == 123
    assert file.state.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(file.state[name], value.numpy())
    assert file.config == config
    convert.from_torch_file(tmp_path / "dinosr.ckpt", tmp_path / "run")
    back = stored.read(tmp_path / "run")
    names = torch_names.to_torch(back.arrays)
    assert all(np.array_equal(names[name], file.state[name]) for name in expected)


def test_prefixes_of_wrappers_and_half_precision_are_understood(tmp_path: Path) -> None:
    pair = reference.make_pair("spidr", reference.SMALL)
    path = export(pair, tmp_path)
    plain = torch_files.read(path).state
    wrapped = {f"module._orig_mod.{n}": v for n, v in pair.model.state_dict().items()}
    torch.save({"model": wrapped}, path)
    file = torch_files.read(path)
    assert all(np.array_equal(file.state[n], plain[n]) for n in plain)
    half = {n: v.bfloat16() if v.is_floating_point() else v for n, v in wrapped.items()}
    torch.save(half, path)  # and without "model" around it
    torch_names.check("it", torch_files.read(path).state, pair.config.model, stored.PARTS)


def test_missing_unknown_and_misshapen_tensors_are_listed(tmp_path: Path) -> None:
    pair = reference.make_pair("spidr", reference.SMALL)
    path = export(pair, tmp_path)
    state = dict(pair.model.state_dict())
    state["surplus"] = state.pop("heads.1.0.bias")
    state["mask_embedding"] = state["mask_embedding"][:5]
    torch.save({"model": state}, path)
    with pytest.raises(ValueError, match=r"missing: heads\.1\.0\.bias") as error:
        convert.from_torch_file(path, tmp_path / "run")
    assert "unknown: surplus" in str(error.value)
    assert r"mask_embedding is [5] and should be [48]" in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_file_with_more_than_tensors_is_refused_and_explained(tmp_path: Path) -> None:
    import argparse

    content = {"model": {"mask_embedding": torch.zeros(3)}, "args": argparse.Namespace(lr=1)}
    torch.save(content, tmp_path / "old.pt")
    with pytest.raises(ValueError, match=r"argparse\.Namespace") as error:
        torch_files.read(tmp_path / "old.pt")
    assert "weights_only=False" in str(error.value)
    assert "old-clean.pt" in str(error.value)
    (tmp_path / "cut.pt").write_bytes((tmp_path / "old.pt").read_bytes()[:300])
    with pytest.raises(ValueError, match=r"cut\.pt: "):
        torch_files.read(tmp_path / "cut.pt")


def test_the_model_type_is_asked_for_where_nothing_says_it(tmp_path: Path) -> None:
    pair = reference.make_pair("spidr", reference.SMALL)
    path = export(pair, tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="--model-type"):
        torch_files.read(path)
    (tmp_path / "config.json").write_text('{"model": {"surplus": 1}}')
    with pytest.raises(ValueError, match="unknown model fields: surplus"):
        torch_files.read(path, "spidr")


def test_safetensors_hold_the_same(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    pair = reference.make_pair("dinosr", reference.SMALL, teacher=LINEAR)
    convert.from_torch_file(export(pair, tmp_path), tmp_path / "run")
    convert.to_torch_file(tmp_path / "run", tmp_path / "out.safetensors", force=True)
    convert.from_torch_file(tmp_path / "out.safetensors", tmp_path / "again")
    first, second = (orbax_files.read(tmp_path / n, lambda _: True) for n in ("run", "again"))
    assert jax.tree.all(jax.tree.map(np.array_equal, first.state, second.state))
    assert first.config["model"] == second.config["model"]


def test_the_training_command_goes_on_with_a_pytorch_run(tmp_path: Path) -> None:
    import tiny

    from spidr_jax.method.config import Config
    from spidr_jax.train import loop as train
    from spidr_jax.train.config import build

    config = tiny.config(tiny.write_corpus(tmp_path / "corpus"), tmp_path / "run")
    ours = build(Config, config).step_config()
    theirs = vars(ours.model).keys() - {"model_type", *OWN_FIELDS}
    fields = {name: getattr(ours.model, name) for name in theirs}
    pair = reference.make_pair("spidr", fields, ours.optimizer, ours.teacher, 0.5, 1000)
    made = reference.make_optimizer(pair)
    reference.train_reference(pair, reference.draw_batches(pair.config.model, 2, 2, 8000), made)
    convert.from_torch_file(save_run(pair, made, tmp_path / "theirs", 2), tmp_path / "run")
    config.steps = 4
    run = tiny.open_run(config)
    state = train.build_state(run)
    assert state.step == state.opt_state[1].count == 2
    assert train.train(run, state) == 0
    assert train.build_state(tiny.open_run(config)).step == 4
    config.codebook.decay = 0.9
    with pytest.raises(ValueError, match=r"config\.codebook\.decay was 0\.5 and is 0\.9"):
        train.build_state(tiny.open_run(config))
