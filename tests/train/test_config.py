"""What `validate` refuses, and that its line names field, value and what is allowed."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
from ml_collections import ConfigDict

from spidr_jax.method.codebook import CodebookConfig
from spidr_jax.method.config import Config
from spidr_jax.method.step import StepConfig
from spidr_jax.model.config import ModelConfig
from spidr_jax.pretraining import check_manifest
from spidr_jax.train.config import build, changes, to_json


def load(name: str) -> ConfigDict:
    return runpy.run_path(str(tiny.REPOSITORY / "configs" / f"{name}.py"))["get_config"]()


def check(config: ConfigDict) -> Config:
    """What a run checks before it opens anything."""
    checked = build(Config, config)
    check_manifest(checked)
    return checked


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("steps", 0, "an integer from 1"),
        ("steps", 10**20, "an integer from 1"),
        ("optimizer.warmup_steps", 10**20, "an integer from 0"),
        ("seed", -1, "an integer from 0"),
        ("log_every", 0, "an integer from 1"),
        ("precision", "float16", "bfloat16 or float32"),
        ("checkpoint.every", -5, "an integer from 1"),
        ("codebook.decay", float("nan"), "0 to 1"),
        ("codebook.decay", 2.0, "0 to 1"),
        ("model.encoder_num_heads", 5, "divides encoder_embed_dim"),
        ("model.encoder_pos_conv_groups", 7, "divides encoder_embed_dim"),
        ("model.num_codebooks", 13, "at most encoder_num_layers = 12"),
        ("model.encoder_dropout", 1.0, "from 0 to below 1"),
        ("model.extractor_conv_layer_config", ((512, 10, 5),) * 6, "a frame for 2640 samples"),
        ("max_skipped", 0, "an integer from 1"),
        ("evaluation_every", -1, "an integer from 0"),
        ("resume_step", -1, "an integer from 0"),
        ("allow_changes", "optimizer.rate", "fields of the config"),
        ("model.extractor_mode", "batch_norm", "layer_norm or group_norm"),
        ("model.model_type", "hubert", "spidr or dinosr"),
        ("masking.mask_selection", "binomial", "static, uniform, normal, poisson"),
        ("masking.mask_prob", 0.0, "above 0"),
        ("optimizer.lr", float("nan"), "a rate above 0"),
        ("optimizer.lr", 1e300, "a rate above 0"),
        ("optimizer.eps", 1e-60, "1e-37"),
        ("model.codebook_size", 1, "an integer from 2"),
        ("model.encoder_num_layers", 10**9, "to 256"),
        ("masking.mask_length", 500, "half of the 999 frames of a crop of data.max_samples"),
        ("data.num_threads", 100_000, "an integer from 1 to 1024"),
        ("optimizer.lr", -1e-4, "a rate above 0"),
        ("optimizer.scheduler", "linear", "tristage, cosine, rsqrt, constant"),
        ("teacher.schedule", "cosine", "exponential, linear"),
        ("teacher.timescale", 0.0, "above 0"),
        ("data.max_bad_share", 2.0, "0 to 1"),
        ("data.planned_devices", 0, "an integer from 1"),
        ("data.max_samples", 100, "at least 2640"),
    ],
)
def test_nonsense_is_refused_in_one_line(
    manifest: Path, field: str, value: Any, allowed: str
) -> None:
    config = load("base")
    config.data.manifest = str(manifest)
    check(config)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=re.escape(f"config.{field} = {value!r}")) as caught:
        check(config)
    assert allowed in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        (
            "checkpoint.evry",
            3,
            "config.checkpoint.evry: there is no such field; did you mean every?",
        ),
        ("step", 7, "config.step: there is no such field; did you mean steps?"),
        ("masking.mask_len", 3, "config.masking.mask_len: there is no such field; did you mean"),
        ("memory.xyz", 3, "config.memory.xyz: there is no such field"),
        ("model", 3, "config.model = 3: it is a section"),
        ("model.extractor_conv_layer_config", 64, "= 64: allowed is tuple[tuple[int, int, int]"),
        ("optimizer.betas", ("a", "b"), "= ('a', 'b'): allowed is tuple[float, float]"),
        ("optimizer.betas", (0.9,), "= (0.9,): allowed is tuple[float, float]"),
        ("optimizer.lr", None, "config.optimizer.lr = None: allowed is float"),
        ("teacher.exclude_layers", "pos", "= 'pos': allowed is tuple[str, ...]"),
        ("evaluation", 5, "config.evaluation = 5: allowed is str"),
        ("steps", True, "config.steps = True: allowed is int"),
    ],
)
def test_a_config_file_of_ones_own_is_read_with_care(
    manifest: Path, field: str, value: Any, said: str
) -> None:
    config = load("base")
    config.data.manifest = str(manifest)
    *section, name = field.split(".")
    with config.unlocked(), config.ignore_type():
        (config[section[0]] if section else config)[name] = value
    with pytest.raises(ValueError, match=re.escape(said)):
        check(config)


def test_a_field_that_a_config_lacks_has_its_default(manifest: Path) -> None:
    config = load("base")
    config.data.manifest = str(manifest)
    config.data.num_buckets = 3
    with config.unlocked():
        del config.data["num_buckets"]
    assert check(config).data.num_buckets == Config().data.num_buckets


def test_the_cosine_schedule_covers_the_run(manifest: Path) -> None:
    config = load("base")
    config.data.manifest = str(manifest)
    config.optimizer.scheduler = "cosine"
    check(config)
    config.steps = 400_001
    with pytest.raises(ValueError, match=r"optimizer\.max_steps = 400000: .* at least steps = 40"):
        check(config)


def test_sources_count_before_a_manifest(manifest: Path) -> None:
    config = load("smoke")
    config.data.sources = f"one:{manifest}:1"
    check(config)


def test_the_base_recipe_asks_for_a_manifest_by_name() -> None:
    with pytest.raises(ValueError, match=r"config\.data\.manifest = None"):
        check(load("base"))


def test_a_missing_manifest_is_named() -> None:
    config = load("base")
    config.data.manifest = "/no/such.csv"
    with pytest.raises(FileNotFoundError, match=r"config\.data\.manifest = '/no/such\.csv'"):
        check(config)


def test_base_is_the_published_recipe_of_the_dataclasses() -> None:
    assert build(Config, load("base")) == Config()
    assert Config().step_config() == StepConfig()


@pytest.mark.parametrize(("spidr", "dinosr"), [("base", "dinosr"), ("bench", "bench_dinosr")])
def test_dinosr_differs_where_the_paper_says(spidr: str, dinosr: str) -> None:
    first, second = (build(Config, load(name)) for name in (spidr, dinosr))
    assert [line.split()[0] for line in changes(second, to_json(first))] == [
        "config.model.encoder_layer_drop",
        "config.model.model_type",
        "config.teacher.schedule",
    ]


def test_the_bench_recipes_find_all_their_files_in_the_corpus(tmp_path: Path) -> None:
    tiny.write_corpus(tmp_path / "train", utterances=1)
    for name in ("bench", "bench_dinosr"):
        config = load(name)
        config.corpus = str(tmp_path)
        check(config)
        files = ("manifest.csv", "alignment.txt", "triphone.item")
        assert [entry.split(":") for entry in config.evaluation.split(",")] == [
            [name, *(f"{tmp_path}/dev-{name}/{file}" for file in files)]
            for name in ("seen", "unseen")
        ]


def test_changes_name_fields_and_leave_out_the_free_ones() -> None:
    config = Config(
        steps=2, seed=1, model=ModelConfig(codebook_size=9), codebook=CodebookConfig(0.5)
    )
    saved = {"steps": 1, "seed": 0, "model": {"codebook_size": 8}, "checkpoint": {"every": 1}}
    saved |= {"optimizer": {"lr": 0.1}, "gone": 3}
    assert changes(config, saved) == [
        "config.codebook.decay was 0.9 and is 0.5",  # which the run had, before there was a field
        "config.model.codebook_size was 8 and is 9",
        "config.optimizer.lr was 0.1 and is 0.0005",
        "config.seed was 0 and is 1",
    ]
    assert changes(config, saved, ["optimizer", "seed", "model.codebook_size"]) == [
        "config.codebook.decay was 0.9 and is 0.5",
    ]
    assert len(changes(config, saved, absent_counts=False)) == 3


def test_a_field_of_an_older_run_counts_under_its_present_name() -> None:
    saved = to_json(Config())
    saved["data"]["num_rungs"] = saved["data"].pop("num_buckets") + 1
    assert changes(Config(), saved) == ["config.data.num_buckets was 9 and is 8"]


def test_the_resolved_config_survives_json(manifest: Path, tmp_path: Path) -> None:
    config = build(Config, tiny.config(manifest, tmp_path))
    saved = json.loads(json.dumps(to_json(config)))
    assert saved["model"]["extractor_conv_layer_config"][0] == [16, 10, 5]
    assert build(Config, saved) == config


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config=configs/smoke.py", "--config.modle.x=1"], "modle"),
        (["--config=configs/smoke.py", "--config.optimizer.lr=fast"], "config.optimizer.lr"),
        (["--config=configs/smoke.py", "left-over"], "left-over"),
        (["--config=configs/none.py"], "configs/none.py"),
        ([], "config"),
    ],
)
def test_wrong_flags_end_in_one_line(arguments: list[str], expected: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "spidr_jax.main", *arguments],
        cwd=tiny.REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error:")
    assert expected in lines[0]
