"""Kernels read from a compiled program, against counts by hand; and what cannot be compiled."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny

from spidr_jax.bench import __main__ as bench
from spidr_jax.bench import kernels, targets
from spidr_jax.bench.hlo import array_bytes, dims
from spidr_jax.bench.hlo_kernels import Kernel, read_kernels
from spidr_jax.bench.targets import Rates
from spidr_jax.ops import platform as backend

PROGRAM = """HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[4]{0})->f32[4]{0}}

%fused_gemm (p0: bf16[6,8], p1: bf16[8,5]) -> f32[6,5] {
  %p0 = bf16[6,8]{1,0} parameter(0)
  %p1 = bf16[8,5]{1,0} parameter(1)
  %dot.1 = f32[6,5]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %c.1 = f32[] constant(2)
  %b.1 = f32[6,5]{1,0} broadcast(%c.1), dimensions={}
  ROOT %m.1 = f32[6,5]{1,0} multiply(%dot.1, %b.1)
}

%fused_slice (p0.1: bf16[100,8], p1.1: s32[]) -> f32[8] {
  %p0.1 = bf16[100,8]{1,0} parameter(0)
  %p1.1 = s32[] parameter(1)
  %convert.1 = f32[100,8]{1,0} convert(%p0.1)
  %ds.1 = f32[1,8]{1,0} dynamic-slice(%convert.1, %p1.1, %p1.1), dynamic_slice_sizes={1,8}
  ROOT %r.1 = f32[8]{0} bitcast(%ds.1)
}

%fused_update (p0.2: f32[100,8], p1.2: f32[8], p2.2: s32[]) -> (f32[100,8], f32[8]) {
  %p0.2 = f32[100,8]{1,0} parameter(0)
  %p1.2 = f32[8]{0} parameter(1)
  %p2.2 = s32[] parameter(2)
  %n.2 = f32[8]{0} negate(%p1.2)
  %u.2 = f32[1,8]{1,0} bitcast(%n.2)
  %dus.2 = f32[100,8]{1,0} dynamic-update-slice(%p0.2, %u.2, %p2.2, %p2.2)
  ROOT %t.2 = (f32[100,8]{1,0}, f32[8]{0}) tuple(%dus.2, %n.2)
}

%body (arg: (s32[], f32[3,4])) -> (s32[], f32[3,4]) {
  %arg = (s32[], /*index=1*/f32[3,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %x = f32[3,4]{1,0} get-tuple-element(%arg), index=1
  %square = f32[3,3]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  %copy.7 = f32[3,4]{1,0} copy(%x)
  ROOT %out = (s32[], f32[3,4]{1,0}) tuple(%i, %copy.7)
}

%condition (arg.1: (s32[], f32[3,4])) -> pred[] {
  %arg.1 = (s32[], f32[3,4]{1,0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

%small (s: f32[4]) -> f32[4] {
  %s = f32[4]{0} parameter(0)
  ROOT %negate.1 = f32[4]{0} negate(%s)
}

%large (l: f32[4]) -> f32[4] {
  %l = f32[4]{0} parameter(0)
  ROOT %add.9 = f32[4]{0} add(%l, %l)
}

ENTRY %main (a: bf16[6,8], b: bf16[8,5]) -> f32[6,5] {
  %a = bf16[6,8]{1,0} parameter(0), metadata={op_name="state.params"}
  %b = bf16[8,5]{1,0} parameter(1)
  %e = f32[6,8]{1,0} parameter(2)
  %at = s32[] parameter(3)
  %rows = bf16[100,8]{1,0} parameter(4)
  %sums = f32[100,8]{1,0} parameter(5)
  %images = bf16[2,23,6]{2,1,0} parameter(6)
  %filters = bf16[12,3,2]{2,1,0} parameter(7)
  %vector = f32[4]{0} parameter(8)
  %gemm = f32[6,5]{1,0} fusion(%a, %b), kind=kCustom, calls=%fused_gemm, metadata={op_name="jit(step)/jvp(Encoder)/layers_0/attention/dot_general" stack_frame_id=3}, backend_config={"fusion_backend_config":{"kind":"__triton_nested_gemm_fusion"}}
  %exact = f32[6,6]{1,0} dot(%e, %e), lhs_contracting_dims={1}, rhs_contracting_dims={1}, operand_precision={highest,highest}
  %row = f32[8]{0} fusion(%rows, %at), kind=kLoop, calls=%fused_slice
  %changed = (f32[100,8]{1,0}, f32[8]{0}) fusion(%sums, %row, %at), kind=kLoop, calls=%fused_update, metadata={op_name="jit(step)/add"}
  %conv = (bf16[2,11,12]{2,1,0}, u8[0]{0}) custom-call(%images, %filters), window={size=3 stride=2}, dim_labels=b0f_o0i->b0f, feature_group_count=3, custom_call_target="__cudnn$convForward"
  %grad = bf16[2,11,12]{2,1,0} get-tuple-element(%conv), index=0
  %to_filters = (bf16[12,3,2]{2,1,0}, u8[10]{0}) custom-call(%images, %grad), window={size=3 stride=2}, dim_labels=b0f_o0i->b0f, feature_group_count=3, custom_call_target="__cudnn$convBackwardFilter"
  %to_images = (bf16[2,23,6]{2,1,0}, u8[0]{0}) custom-call(%grad, %filters), window={size=3 stride=2}, dim_labels=b0f_o0i->b0f, feature_group_count=3, custom_call_target="__cudnn$convBackwardInput"
  %blas = (f32[6,5]{1,0}, s8[64]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  %own = f32[4]{0} custom-call(%vector), custom_call_target="__gpu$xla.gpu.triton", backend_config={debug = false, ir = "ML\\EFR) name = \\22x\\22", name = "attention_forward", num_stages = 3 : i32}
  %first = (s32[], f32[3,4]{1,0}) tuple(%at, %vector)
  %loop = (s32[], f32[3,4]{1,0}) while(%first), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %either = f32[4]{0} conditional(%at, %vector, %vector), branch_computations={%small, %large}
  %copy-start.1 = (f32[4]{0}, f32[4]{0}, u32[]) copy-start(%vector)
  %copy-done.1 = f32[4]{0} copy-done(%copy-start.1)
  ROOT %last = f32[6,5]{1,0} copy(%gemm)
}
"""  # noqa: E501


@pytest.fixture(scope="module")
def program() -> dict[str, Kernel]:
    return {each.name: each for each in read_kernels(PROGRAM)}


def test_every_instruction_that_is_not_bookkeeping_is_a_kernel(program: Any) -> None:
    before = ["gemm", "exact", "row", "changed", "conv", "to_filters", "to_images", "blas", "own"]
    loop, larger_branch = ["square", "copy.7"], ["add.9"]
    assert list(program) == [*before, *loop, *larger_branch, "copy-start.1", "last"]


def test_bytes_are_those_of_operands_and_results(program: Any) -> None:
    assert program["gemm"].size == 2 * 6 * 8 + 2 * 8 * 5 + 4 * 6 * 5
    assert program["exact"].size == 2 * (4 * 6 * 8) + 4 * 6 * 6
    assert program["to_filters"].size == 2 * (2 * 23 * 6 + 2 * 11 * 12 + 12 * 3 * 2) + 10
    assert program["own"].size == 16 + 16
    assert program["add.9"].size == 16 + 16 + 16


def test_of_what_is_sliced_or_changed_in_place_only_that_counts(program: Any) -> None:
    index = 4
    assert program["row"].size == 2 * 8 + index + 4 * 8
    assert program["changed"].size == 4 * 8 + index + (4 * 8 + 4 * 8)


def test_arithmetic_by_what_is_multiplied(program: Any) -> None:
    assert program["gemm"].flops == {"bf16": 2 * 6 * 5 * 8}
    assert program["blas"].flops == {"bf16": 2 * 6 * 5 * 8}
    assert program["exact"].flops == {"f32": 2 * 6 * 6 * 8}
    assert program["square"].flops == {"tf32": 2 * 3 * 3 * 4}
    convolution = 2 * (2 * 11 * 12) * 3 * 2  # each output: 3 taps of a group's 2 channels
    for name in ("conv", "to_filters", "to_images"):
        assert program[name].flops == {"bf16": convolution}
    assert program["changed"].flops == {}
    assert [each.name for each in program.values() if not each.known] == ["own"]


def test_cudnn_attention() -> None:
    shape = "bf16[2,16,3,8]{3,2,1,0}"
    line = (
        "  %%x = (bf16[2,3,16,8]{3,1,2,0}, u8[0]{0}) custom-call(%%q, %%q, %%q), "
        'custom_call_target="__cudnn$fmhaSoftmax%s", backend_config={"cudnn_fmha_backend_config":'
        '{"mask_type":"NO_MASK","intermediate_tensor_shape":{"element_type":"BF16",'
        '"dimensions":["2","3","16","16"],"tuple_shapes":[]}}}'
    )
    for name, products in (("", 2), ("Backward", 5)):
        text = f"ENTRY %main {{\n  %q = {shape} parameter(0)\n{line % name}\n}}\n"
        (kernel,) = read_kernels(text)
        assert kernel.flops == {"bf16": products * 2 * (2 * 3 * 16 * 16) * 8}


def test_kernels_of_a_loop_count_as_often_as_it_runs(program: Any) -> None:
    assert (program["square"].calls, program["copy.7"].calls, program["last"].calls) == (5, 5, 1)
    with pytest.raises(ValueError, match="how often its loop loop runs"):
        read_kernels(PROGRAM.replace("known_trip_count", "unknown"))


def test_where_a_kernel_comes_from(program: Any) -> None:
    attention = "jit(step)/jvp(Encoder)/layers_0/attention/dot_general"
    assert program["gemm"].source == attention
    assert program["row"].source == "jit(step)/add"  # its user's
    assert program["exact"].source == ""
    names = ("gemm", "row", "conv", "own")
    kinds = ["fusion triton_nested_gemm_fusion", "fusion kLoop", "custom-call cudnn$convForward"]
    assert [program[name].kind for name in names] == [*kinds, "custom-call attention_forward"]


def test_a_text_without_an_entry_is_said() -> None:
    with pytest.raises(ValueError, match="without an entry"):
        read_kernels("HloModule x\n")


def test_sizes_of_arrays() -> None:
    assert array_bytes("(bf16[2,3]{1,0:T(8,128)(2,1)}, pred[5]{0}, s4[6]{0}, f32[])") == 24
    assert dims("(f32[7,2]{1,0}, f32[3])") == [7, 2]
    assert array_bytes("f8e4m3fn[16]{0}") == 16


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("jit(s)/jvp(Encoder)/layers_3/attention/qkv/dot_general", ("Encoder/attention", False)),
        ("jit(s)/transpose(jvp(Encoder))/layers_0/layer_norm/mul", ("Encoder/layer_norm", True)),
        (
            "jit(s)/jvp(teacher)/Encoder/layers_0/attention/mul",
            ("teacher/Encoder/attention", False),
        ),
        ("jit(s)/while/body/closed_call/jvp(Heads)/dot_general", ("Heads", False)),
        ("jit(s)/transpose(jvp(knd,kvd->knv))/dot_general", ("losses", True)),
        ("jit(s)/jvp(jit(log_softmax))/exp", ("losses", False)),
        ("jit(s)/jit(_where)/select_n", ("masks and update", False)),
        ("", ("masks and update", False)),
    ],
)
def test_the_part_of_the_model(source: str, found: tuple[str, bool]) -> None:
    part, backward = found
    assert kernels.part(source) == (part, "backward" if backward else "forward")


def test_time_is_that_of_what_takes_longer() -> None:
    rates = Rates(bandwidth=100.0, flops={"bf16": 1000.0, "f32": 10.0})

    def kernel(name: str, layer: int, **fields: Any) -> Kernel:
        source = f"jit(s)/jvp(Encoder)/layers_{layer}/{name}/mul"
        return Kernel(f"{name}.{layer}", "fusion", source, ("f32[2]",), "f32[2]", **fields)

    found = kernels.summary(
        [
            kernel("norm", 0, size=200, flops={}),
            kernel("norm", 1, size=200, flops={}),
            kernel("dense", 0, size=100, flops={"bf16": 3000.0, "f32": 20.0}, calls=2),
        ],
        rates,
    )
    assert found["totals"] == {
        "kernels": 4,
        "size": 600,
        "flop": 2 * 3020.0,
        "seconds": 2 * 2.0 + 2 * (3.0 + 2.0),
        "unknown": [],
    }
    assert [(each["source"], each["bound"], each["seconds"]) for each in found["groups"]] == [
        ("jit(s)/jvp(Encoder)/layers_*/dense/mul", "products", 10.0),
        ("jit(s)/jvp(Encoder)/layers_*/norm/mul", "memory", 4.0),
    ]
    parts = [(each["part"], each["kernels"], each["seconds"]) for each in found["parts"]]
    assert parts == [("Encoder/dense", 2, 10.0), ("Encoder/norm", 2, 4.0)]


def test_products_of_our_own_kernels() -> None:
    def kernel(name: str, *operands: str, result: str) -> Kernel:
        kind = f"custom-call {name}"
        return Kernel(name, kind, "", operands, result, size=1, flops={}, known=False)

    rows, frames, heads, width = 2, 5, 3, 16
    product = 2 * rows * heads * frames * frames * width
    qkv, x = f"bf16[{rows},{frames},3,{heads},{width}]", "f32[4,5,24]"
    found = [
        kernel("attention_forward", qkv, "s32[2]", result="bf16[2,5,3,16]"),
        kernel("attention_backward", qkv, "s32[2]", result=qkv),
        kernel("grouped_conv", x, "f32[1,42,40]", "f32[40]", result="f32[4,5,40]"),
        kernel("grouped_conv_kernel_gradient", x, "f32[4,5,40]", result="f32[2,4,3,64,16]"),
        kernel("first_layer_forward", x, "f32[24,32]", result="f32[4,5,32]"),
        kernel("first_layer_backward", x, "f32[24,32]", "f32[4,5,32]", result="f32[4,3,24,32]"),
        kernel("norm_backward", qkv, result=qkv),
        kernel("another", x, result=x),
    ]
    ours = [kernels.with_own_products(each) for each in found]
    assert [each.flops for each in ours] == [
        {"bf16": 2 * product},
        {"bf16": 7 * product},
        {"f32": 2 * (4 * frames) * 42 * 40},
        {"f32": 2 * (4 * frames) * 4 * 3 * 64 * 16},
        {"f32": 2 * (4 * frames) * 24 * 32},
        {"f32": 3 * 2 * (4 * frames) * 24 * 32},
        {},
        {},
    ]
    assert [each.known for each in ours] == [True] * 7 + [False]


# --- what to compile for

BASE = ["--config", str(tiny.REPOSITORY / "configs" / "base.py")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["memory", "--target", "h1000"], "--target h1000: allowed are h100, a100, v5e"),
        (["kernels"], "kernels: no rates of cpu (cpu) are known; allowed are --target h100, a100"),
        (["kernels", "--batch", "0"], "batch: 0, allowed is 1 or more"),
    ],
)
def test_what_cannot_be_compiled_for_is_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *rest = arguments
    assert bench.main([command, *BASE, *rest]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("target", "installed", "said"),
    [
        ("h100", (), 'needs JAX\'s CUDA plugin and ptxas: pip install "spidr_jax[gpu-plan]"'),
        ("a100", ("jax_plugins.xla_cuda13",), "--target a100 needs ptxas: pip install"),
        ("v5e", (), 'needs TPU\'s compiler: pip install "spidr_jax[tpu]"'),
    ],
)
def test_what_is_not_installed_is_said_with_the_command(
    target: str,
    installed: tuple[str, ...],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = importlib.util.find_spec("json")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: found if name in installed else None
    )
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert bench.main(["kernels", *BASE, "--target", target]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_programs_are_made_for_the_described_kind() -> None:
    assert backend.kind() == "cpu"
    with backend.made_for("gpu"):
        assert backend.kind() == "gpu"
    assert backend.kind() == "cpu"


needs_gpu_plan = pytest.mark.skipif(
    bool(targets.missing("gpu")), reason="needs pip install spidr_jax[gpu-plan]"
)


@pytest.mark.slow
@needs_gpu_plan
def test_a_step_compiles_for_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    command = [sys.executable, "-m", "spidr_jax.bench", "kernels", "--target", "h100"]
    command += [*BASE, "--batch", "16", "--frozen", "--json", str(out)]
    command += ["--set", "model.encoder_num_layers=3", "--set", "model.num_codebooks=3"]
    done = subprocess.run(command, check=True, timeout=500, capture_output=True, text=True)
    assert "gpu (NVIDIA H100 80GB HBM3, described)" in done.stdout
    assert "warning" not in done.stdout  # all arithmetic is known
    found = json.loads(out.read_text())
    parts = {(each["part"], each["pass"]): each for each in found["parts"]}
    student = parts["Encoder/attention", "forward"]
    assert parts["Encoder/attention", "backward"]["flop"] > student["flop"] > 0
    assert ("FeatureExtractor/conv", "forward") in parts
    assert ("FeatureExtractor/conv", "backward") not in parts  # frozen
    teacher = parts["teacher/Encoder/attention", "forward"]
    assert teacher["flop"] == pytest.approx(student["flop"])
    # no layer of the teacher computes the norms of those before it anew
    norms = [each for each in found["groups"] if "teacher)/Encoder/layers" in each["source"]]
    assert norms
    assert max(len(each["operands"]) for each in norms) < 12


FOR_FOUR_DEVICES = """
import numpy as np
from spidr_jax.bench import scale, targets
machine = targets.find("h100")  # before JAX is used
from jax.experimental import topologies
from jax.sharding import Mesh
from spidr_jax.model_config import ModelConfig
from spidr_jax.train_step import StepConfig

described = {"target_config": targets.TARGETS["h100"].description, "topology": "1x4x1"}
devices = topologies.get_topology_desc("", platform="cuda", **described).devices
mesh = Mesh(np.array(devices), ("data",))
config = StepConfig(model=ModelConfig(encoder_num_layers=3, num_codebooks=3))
with targets._described(mesh):
    lowered, _, _ = scale.lower_step(config, mesh, 8, 235_600, frozen=False)
    program = lowered.compile({"xla_gpu_autotune_level": "0"}).as_text()
for kernel in ("attention", "first_layer", "grouped_conv", "norm"):
    assert f'name = "{kernel}' in program, kernel
assert " all-reduce" in program
for moved in ("all-gather", "all-to-all", "collective-permute"):
    assert f" {moved}" not in program, moved
"""


@pytest.mark.slow
@needs_gpu_plan
def test_a_step_for_four_gpus_has_our_kernels_and_gathers_nothing() -> None:
    subprocess.run([sys.executable, "-c", FOR_FOUR_DEVICES], check=True, timeout=500)
