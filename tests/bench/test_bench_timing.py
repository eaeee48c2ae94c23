"""Times of steps, by a clock of our own."""

from collections.abc import Callable

import pytest

from spidr_jax.bench import steps, timing


class Machine:
    """A clock, and steps of 1, 2, 3, ... s, which a device runs one after the other."""

    def __init__(self, waits_at_start: bool) -> None:
        self.now, self.free, self.started = 0.0, 0.0, 0
        self.waits_at_start = waits_at_start

    def start(self) -> Callable[[], None]:
        self.started += 1
        self.free = end = max(self.now, self.free) + self.started

        def wait() -> None:
            self.now = max(self.now, end)

        if self.waits_at_start:
            wait()
        return wait


@pytest.mark.parametrize(("waits_at_start", "expected"), [(False, [2, 3, 4]), (True, [3, 4, 5])])
def test_steps_are_timed_from_end_to_end(
    waits_at_start: bool, expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(waits_at_start)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: machine.now)
    assert timing.durations(machine.start, 3) == expected
    assert machine.now == 1 + 2 + 3 + 4 + 5  # the last has ended before others have their turn


def test_contenders_take_turns() -> None:
    order = []

    def contender(name: str) -> timing.Start:
        def start() -> Callable[[], None]:
            order.append(name)
            return lambda: None

        return start

    found = timing.take_turns({name: contender(name) for name in "ab"}, 7)
    assert "".join(order) == 4 * ("aaaa" + "bbbb")  # 2 timed and 2 more a round
    assert {name: [len(each) for each in rounds] for name, rounds in found.items()} == {
        "a": [2, 2, 2, 2],
        "b": [2, 2, 2, 2],
    }


def test_how_many_times_as_long_others_take() -> None:
    times = {steps.OURS: [[1.0, 1.0, 9.0], [2.0, 2.0, 2.0]], "other": [[3.0] * 3, [5.0] * 3]}
    assert steps._ratios(times) == {"other": {"ratio": 4.0 / 2.0, "rounds": [3.0, 2.5]}}


def test_ratios_and_what_is_left_out_are_told() -> None:
    ours = {"lower_s": 1.0, "compile_s": 9.0, "planned_bytes": 2**30, "peak_bytes": 2**31}
    found = {
        "contenders": {steps.OURS: ours},
        "ratios": {"other": {"ratio": 2.0, "rounds": [1.5, 3.0]}},
        "skipped": {"third": "no compiler"},
    }
    text = "\n".join(steps._notes(found))
    assert "other takes 2.00 times as long (rounds 1.50 .. 3.00)" in text
    assert "third: left out, no compiler" in text
