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


def test_the_time_of_parts_is_that_of_the_kernels_on_streams() -> None:
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
        event("convolution_3", 2, 5_000, 600, hlo_op="convolution.3"),  # of what its user is
        event("MemcpyD2D", 2, 6_000, 500),
        event("dot_12", 2, 7_000, 200, hlo_op="command_buffer_3"),  # in a CUDA graph
        event("dot.1", 9, 0, 9_000, hlo_op="dot.1") | {"pid": 5},
    ]
    found = profiling.part_times(events, PROGRAM, steps=2)
    assert [(each["part"], each["pass"], each["ms"]) for each in found] == [
        ("E/dense", "forward", 2.1),
        ("X", "backward", 0.3),
        ("masks and update", "forward", 0.25),
    ]
    assert [each["share"] for each in found] == pytest.approx([4.2 / 5.3, 0.6 / 5.3, 0.5 / 5.3])
    assert profiling.part_times(events[5:], PROGRAM, steps=1) == []  # no device is named: a CPU


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
