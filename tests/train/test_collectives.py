"""What a step compiled for eight devices exchanges between them, against counts by hand.

A gather of anything that grows with the batch would undo data parallelism and change no result.
"""

import json
import math
import re
import subprocess
import sys

import pytest
from group import environment

DEVICES, ROWS, SAMPLES = 8, 32, 3_280
MODEL = {
    "extractor_conv_layer_config": ((16, 10, 5), (16, 8, 8)),
    "encoder_embed_dim": 32,
    "encoder_pos_conv_kernel": 5,
    "encoder_pos_conv_groups": 4,
    "encoder_pos_conv_depth": 1,
    "encoder_num_layers": 2,
    "encoder_num_heads": 2,
    "encoder_ff_interm_features": 48,
    "codebook_size": 8,
    "num_codebooks": 2,
}
NORM = 2 * 32
LAYER = 32 * 96 + (32 * 32 + 32) + (32 * 48 + 48) + (48 * 32 + 32) + 2 * NORM
STUDENT = (5 * 8 * 32 + 32) + NORM + 2 * LAYER
EXTRACTOR = 10 * 1 * 16 + 8 * 16 * 16 + 2 * 2 * 16
PROJECTION = 2 * 16 + 16 * 32 + 32
HEADS, MASK = 2 * (32 * 8 + 8), 32
TRAINED = STUDENT + EXTRACTOR + PROJECTION + HEADS + MASK - NORM  # the last second norm is unused
CODEBOOKS = 2 * (8 * 32 + 8)

COLLECTIVE = re.compile(
    r"= (.+?) (all-reduce|reduce-scatter|all-gather|all-to-all|collective-permute)(?:-start)?\("
)


def exchanged(fsdp: bool) -> dict[str, int]:
    """Numbers in the arrays of each kind of collective of a compiled step."""
    import jax

    from spidr_jax.bench import targets
    from spidr_jax.method.config import Config
    from spidr_jax.model.config import ModelConfig
    from spidr_jax.pretraining import Pretraining

    task = Pretraining(Config(model=ModelConfig(**MODEL), precision="float32"))
    machine = targets.Machine(tuple(jax.devices()))
    compiled = targets.compile_step(machine, task, ROWS, SAMPLES, frozen=False, fsdp=fsdp)
    found: dict[str, int] = {}
    for shapes, kind in COLLECTIVE.findall(compiled.as_text() or ""):
        sizes = re.findall(r"\[([\d,]*)\]", shapes)
        numbers = sum(math.prod(int(n) for n in each.split(",") if n) for each in sizes)
        found[kind] = found.get(kind, 0) + numbers
    return found


@pytest.fixture(scope="module")
def found() -> list[dict[str, int]]:
    return json.loads(subprocess.check_output([sys.executable, __file__], env=environment(DEVICES)))


def test_a_whole_state_sums_gradient_and_codebook_statistics_and_nothing_else(
    found: list[dict[str, int]],
) -> None:
    losses_and_count, predicted_codes, masked_in_groups = 2 + 1, 2 * 8, ROWS // 16
    statistics = CODEBOOKS + losses_and_count + predicted_codes + masked_in_groups
    assert found[0] == {"all-reduce": TRAINED + statistics}


def test_a_split_state_gathers_parameters_and_teacher_and_nothing_else(
    found: list[dict[str, int]],
) -> None:
    whole, split = found
    assert split.keys() <= {"all-reduce", "reduce-scatter", "all-gather"}
    gathered = TRAINED + STUDENT - NORM
    # a few vectors once more in the backward pass; one activation would be ROWS * 81 * 16
    assert gathered <= split["all-gather"] < 1.02 * gathered
    sums = split["all-reduce"] + split.get("reduce-scatter", 0)
    assert sums == pytest.approx(whole["all-reduce"], rel=0.01)  # and the norms of the parts


if __name__ == "__main__":
    print(json.dumps([exchanged(False), exchanged(True)]))
