"""Memory and traffic of a step on many devices, against counts by hand."""

import json
import subprocess
import sys
from typing import Any

import pytest
import tiny

from spidr_jax.bench import __main__ as bench
from spidr_jax.bench.scale import Collective, Demand, read_collectives, table

DEVICES, ROWS, SAMPLES = 8, 4, 3_280

CONFIG = f"""
import runpy

def get_config():
    config = runpy.run_path({str(tiny.SMOKE)!r})["get_config"]()
    config.precision = "bfloat16"
    config.model.update(
        extractor_conv_layer_config=((16, 10, 5), (16, 8, 8)),
        encoder_embed_dim=32,
        encoder_pos_conv_kernel=5,
        encoder_pos_conv_groups=4,
        encoder_pos_conv_depth=1,
        encoder_num_layers=2,
        encoder_num_heads=2,
        encoder_ff_interm_features=48,
        codebook_size=8,
        num_codebooks=2,
    )
    config.data.max_batch_samples = {ROWS * SAMPLES}
    return config
"""

# Of the model above. In float32 are norms and the heads' biases, the rest computes in bfloat16; the
# gradient of the positional convolution's bias is summed in float32.
NORM = 2 * 32
LAYER = 32 * 96 + (32 * 32 + 32) + (32 * 48 + 48) + (48 * 32 + 32)
CONV_BIAS = 32
ENCODER = (5 * 8 * 32 + CONV_BIAS) + 2 * LAYER
ENCODER_NORMS = (1 + 2 * 2) * NORM
EXTRACTOR = 10 * 1 * 16 + 8 * 16 * 16
PROJECTION = 16 * 32 + 32
EXTRACTOR_NORMS = 3 * 2 * 16
HEADS, HEADS_BIASES = 2 * 32 * 8, 2 * 8
MASK = 32
CODEBOOKS = 2 * (8 * 32 + 8)
STUDENT = ENCODER + ENCODER_NORMS
PARAMS = STUDENT + EXTRACTOR + PROJECTION + EXTRACTOR_NORMS + HEADS + HEADS_BIASES + MASK
TRAINED = PARAMS - NORM  # not the last layer's second norm
GRADIENT = 2 * (ENCODER - CONV_BIAS + EXTRACTOR + PROJECTION + HEADS + MASK)
GRADIENT += 4 * (CONV_BIAS + ENCODER_NORMS - NORM + EXTRACTOR_NORMS + HEADS_BIASES)


@pytest.fixture(scope="module")
def demands(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], str]:
    folder = tmp_path_factory.mktemp("scale")
    (folder / "config.py").write_text(CONFIG)
    command = [sys.executable, "-m", "spidr_jax.bench", "scale", "--fsdp"]
    command += ["--config", str(folder / "config.py"), "--json", str(folder / "found.json")]
    command += ["--devices", str(DEVICES), "--samples", str(SAMPLES)]
    done = subprocess.run(command, check=True, timeout=500, capture_output=True, text=True)
    return json.loads((folder / "found.json").read_text()), done.stdout


def test_bytes_of_the_state_are_those_counted_by_hand(demands: Any) -> None:
    whole, split = demands[0]
    assert [whole["fsdp"], split["fsdp"]] == [False, True]
    assert whole["state"] == {
        "step": 4,
        "skipped": 4,
        "params": 4 * PARAMS,
        "opt_state": 4 * 2 * TRAINED + 4,
        "teacher": 4 * STUDENT,
        "codebooks": 4 * CODEBOOKS,
    }
    assert split["state"] == whole["state"] | {
        "params": PARAMS // 2,  # 8 divides a dimension of each array
        "opt_state": TRAINED + 4,
        "teacher": STUDENT // 2,
    }


def test_batch_is_that_of_one_device(demands: Any) -> None:
    for each in demands[0]:
        assert each["rows"] == ROWS
        assert each["batch"] == ROWS * (2 * SAMPLES + 4 + 4)
        assert each["temporary"] > ROWS * SAMPLES / 5 * 16 * 4  # the extractor's first layer


def test_a_whole_state_reduces_gradient_and_codebook_statistics_and_nothing_else(
    demands: Any,
) -> None:
    whole = demands[0][0]
    masked_in_groups = 4 * DEVICES * ROWS // 4
    losses_and_count = 4 * (2 + 1)
    predicted_codes = 4 * 2 * 8
    rest = 4 * CODEBOOKS + masked_in_groups + losses_and_count + predicted_codes
    assert whole["collectives"].keys() == {"all-reduce"}
    assert whole["collectives"]["all-reduce"][1] == GRADIENT + rest
    assert whole["sent"] == pytest.approx(2 * 7 / 8 * (GRADIENT + rest))


def test_a_split_state_scatters_the_gradient_and_gathers_teacher_and_parameters(
    demands: Any,
) -> None:
    whole, split = (each["collectives"] for each in demands[0])
    assert split.keys() == {"all-reduce", "reduce-scatter", "all-gather"}
    assert split["reduce-scatter"][1] == GRADIENT
    norms = 4 * (ENCODER_NORMS - NORM)
    student = 2 * ENCODER + norms + 2 * (EXTRACTOR + PROJECTION + MASK) + 4 * EXTRACTOR_NORMS
    heads = 2 * HEADS + 4 * HEADS_BIASES
    teacher = 2 * ENCODER + norms
    assert split["all-gather"][1] == student + heads + teacher
    statistics = whole["all-reduce"][1] - GRADIENT
    arrays = split["reduce-scatter"][0]
    assert split["all-reduce"][1] == statistics + 4 * arrays  # a share of the norm of each


def test_the_table_has_a_line_for_each(demands: Any) -> None:
    header, _, whole, split = [line.split("|")[1:-1] for line in demands[1].splitlines()]
    assert header[0].strip() == "devices"
    assert [whole[0].strip(), split[0].strip()] == ["8", "8, fsdp"]
    assert whole[1].strip() == f"{ROWS} x {SAMPLES}"
    assert len(header) == len(whole) == len(split)


PROGRAM = """
  %all-reduce.1 = bf16[4,6]{1,0} all-reduce(%dot.1), channel_id=1, to_apply=%add
  %dynamic-slice.3 = bf16[2,6]{1,0} dynamic-slice(%all-reduce.1, %offset, %zero)
  %all-reduce.2 = f32[10]{0} all-reduce(%reduce.1), channel_id=2, to_apply=%add
  %all-reduce.3 = f32[10]{0} all-reduce(%reduce.1), channel_id=3, to_apply=%add
  %all-reduce.12 = f32[3]{0} all-reduce(%reduce.2), channel_id=4, to_apply=%add
  %dynamic-slice.4 = f32[1]{0} dynamic-slice(%all-reduce.12, %offset)
  %multiply.1 = f32[3]{0} multiply(%all-reduce.12, %all-reduce.2)
  %all-gather.1 = (f32[8,2]{1,0}, pred[8]{0}) all-gather(%copy.1, %copy.2), dimensions={0}
  %reduce-scatter.1 = s32[5]{0} reduce-scatter(%copy.3), dimensions={0}
  ROOT %collective-permute.1 = f32[] collective-permute(%copy.4), channel_id=9
  %fusion.1 = f32[10]{0} fusion(%all-reduce.3), metadata={op_name="all-gather(x)"}
"""


def test_collectives_are_read_from_a_program() -> None:
    assert read_collectives(PROGRAM, devices=2) == [
        Collective("reduce-scatter", 2 * 24),  # an all-reduce that is only sliced
        Collective("all-reduce", 40),  # the same twice
        Collective("all-reduce", 12),
        Collective("all-gather", 64 + 8),
        Collective("reduce-scatter", 2 * 20),  # its result is a half
        Collective("collective-permute", 4),
    ]


def test_what_a_device_sends_in_a_ring() -> None:
    kinds = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all", "collective-permute")
    assert [Collective(kind, 800).sent(8) for kind in kinds] == [1400, 700, 700, 700, 800]


def test_the_table_adds_up() -> None:
    state = {"params": 3_000_000, "opt_state": 6_000_000, "teacher": 2_500_000, "codebooks": 50_000}
    found = {"all-reduce": (2, 4_000_000), "all-to-all": (1, 100_000)}
    demand = Demand(16, False, 2, 100, state, 400, 7_000_000, found, sent=9_000_000)
    line = table([demand], bandwidths=[450, 0.5]).splitlines()[-1]
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[2:8] == ["3.0", "6.0", "2.5", "0.1", "0.0", "7.0"]
    assert cells[8:13] == ["4.0", "0.0", "0.0", "0.1", "9.0"]
    assert cells[13:] == ["0.0", "18.0"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--config", "none.py"], "none.py"),
        (["--samples", "9000000"], "samples: 9000000 are more than data.max_batch_samples"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ["--config", str(tiny.REPOSITORY / "configs" / "base.py")]
    assert bench.main(["scale", *config, *arguments]) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1
