"""How audio is cut into windows and lengths are rounded."""

import pytest

from spidr_jax.inference import stream
from spidr_jax.model.config import ModelConfig

MAX, FRAMING = 160_000, ModelConfig().framing


@pytest.mark.parametrize("num_samples", [400, 160_000, 160_001, 161_234, 480_000, 1_234_567])
def test_every_frame_comes_once_in_its_place(num_samples: int) -> None:
    cuts = stream.cut(num_samples, FRAMING, MAX)
    seen = []
    for window in cuts:
        assert window.stop - window.start <= MAX
        assert window.first + window.frames <= FRAMING.num_frames(window.stop - window.start)
        assert window.start % 320 == 0
        seen += range(
            window.start // 320 + window.first, window.start // 320 + window.first + window.frames
        )
    assert seen == list(range(FRAMING.num_frames(num_samples)))
    assert cuts[0].start == 0
    assert cuts[-1].stop == num_samples


def test_frames_inside_have_two_seconds_of_context() -> None:
    cuts = stream.cut(1_000_000, FRAMING, MAX)
    assert len(cuts) > 6
    for window in cuts[1:]:
        assert window.first == 100
    for window in cuts[:-1]:
        after = FRAMING.num_frames(window.stop - window.start) - window.first - window.frames
        assert after == 100


def test_windows_shorter_than_their_context_are_refused() -> None:
    with pytest.raises(ValueError, match="max_seconds = 3: allowed is more than 4"):
        stream.cut(100_000, FRAMING, 48_000)


def test_few_lengths_are_compiled_and_little_is_padded() -> None:
    lengths = {n: stream.round_up(n) for n in range(400, 640_001, 7)}
    assert len(set(lengths.values())) <= 32
    assert all(n <= rounded <= max(1.25 * n, 4_096) for n, rounded in lengths.items())
