"""Time of the model's parts, from traces written by hand."""

from typing import Any

import pytest

from spidr_jax.bench import profiling


def event(name: str, tid: int, start: float, duration: float, **arguments: Any) -> dict[str, Any]:
    return {"ph": "X", "pid": 1, "tid": tid, "name": name, "ts": start, "dur": duration} | (
        {"args": arguments} if arguments else {}
    )


PROGRAM = """
  %dot.1 = f32[2] dot(%x, %y), metadata={id=7 op_name="jit(s)/jvp(E)/layers_0/dense/x"}
  %dot.12 = f32[2] dot(%x, %y), metadata={op_name="jit(s)/jvp(E)/layers_11/dense/x"}
  %convolution.3 = f32[2] convolution(%dot.1, %dot.12)
  ROOT %copy.4 = f32[2] copy(%convolution.3), metadata={op_name="transpose(jvp(X))/convs_1/x"}
"""


def test_time_of_operations_on_a_cpu() -> None:
    events = [
        event("while.7", 1, 0, 9_000, hlo_op="while.7"),  # runs the others
        event("dot.1", 1, 1_000, 2_000, hlo_op="dot.1"),
        event("end: dot.1", 1, 3_000, 1),
        event("convolution.3", 2, 2_000, 100, hlo_op="convolution.3"),  # goes on until 6000
        event("dot.12", 2, 4_000, 1_000, hlo_op="dot.12"),
        event("dot.1", 1, 4_000, 1_000, hlo_op="dot.1"),  # again
        event("end: dot.1", 1, 5_000, 1),
        event("end: convolution.3", 2, 6_000, 1),
        event("copy.4", 2, 8_000, 500, hlo_op="copy.4"),
        event("python", 3, 0, 9_000),
    ]
    # 1000: dot.1 alone, 2000: with convolution.3, 3000: that alone, 4000: all three, 5000: it alone
    convolution = 0.5 + 1 + 1 / 3 + 1
    dots = 1 + 0.5 + 2 / 3
    found = profiling.part_times(events, PROGRAM, steps=2)
    assert [(each["part"], each["pass"]) for each in found] == [
        ("X", "backward"),
        ("E/dense", "forward"),
    ]
    milliseconds = [(convolution + 0.5) / 2, dots / 2]
    assert [each["ms"] for each in found] == pytest.approx(milliseconds)
    assert [each["share"] for each in found] == pytest.approx([ms / 2.75 for ms in milliseconds])


def test_kernels_of_a_gpu_are_those_of_its_streams() -> None:
    def named(kind: str, name: str, **place: int) -> dict[str, Any]:
        return {"ph": "M", "pid": 1, "name": kind, "args": {"name": name}} | place

    events = [
        named("process_name", "/device:GPU:0"),
        named("thread_name", "XLA Ops", tid=1),
        named("thread_name", "Stream #13(Compute)", tid=2),
        named("process_name", "/host:CPU", pid=5),
        event("dot.1", 1, 0, 4_000, hlo_op="dot.1"),
        event("gemm_fusion_dot_1", 2, 0, 3_000, hlo_op="dot.1"),
        event("gemm_fusion_dot_12", 2, 4_000, 1_000, hlo_op="dot.12"),
        event("MemcpyD2D", 2, 6_000, 500),
        event("dot_12", 2, 7_000, 200, hlo_op="command_buffer_3"),  # in a CUDA graph
        event("dot.1", 9, 0, 9_000, hlo_op="dot.1") | {"pid": 5},
    ]
    found = profiling.part_times(events, PROGRAM, steps=1)
    assert [(each["part"], each["ms"]) for each in found] == [
        ("E/dense", 4.2),
        ("masks and update", 0.5),
    ]


@pytest.mark.parametrize(
    ("source", "part", "direction"),
    [
        ("jit(s)/jvp(Encoder)/layers_3/attention/qkv/dot_general", "Encoder/attention", "forward"),
        ("jit(s)/transpose(jvp(Encoder))/layers_0/norm/mul", "Encoder/norm", "backward"),
        ("jit(s)/jvp(teacher)/Encoder/layers_0/ff/mul", "teacher/Encoder/ff", "forward"),
        ("jit(s)/while/body/closed_call/jvp(Heads)/dot_general", "Heads", "forward"),
        ("jit(s)/transpose(jvp(knd,kvd->knv))/dot_general", "losses", "backward"),
        ("jit(s)/jvp(jit(log_softmax))/exp", "losses", "forward"),
        ("jit(s)/jit(_where)/select_n", "masks and update", "forward"),
        ("", "masks and update", "forward"),
    ],
)
def test_the_part_of_the_model(source: str, part: str, direction: str) -> None:
    assert profiling.part(source) == (part, direction)
