"""k-means and MFCC."""

import librosa
import numpy as np
import pytest

from spidr_jax.eval import kmeans
from spidr_jax.eval.mfcc import mfcc


def clustered(count=5_000, clusters=12, width=4, seed=0):
    """Frames around centres far from one another (and from 0), with the cluster of each."""
    random = np.random.default_rng(seed)
    centres = 30 * random.permutation(clusters)[:, None] + random.standard_normal((clusters, width))
    number = random.integers(0, clusters, count)
    noise = random.standard_normal((count, width))
    return (1_000 + centres[number] + noise).astype(np.float32), number


def test_separated_clusters_are_found():
    frames, number = clustered()
    centres = kmeans.fit(frames, 12)
    found = kmeans.assign(frames, centres)
    assert len(set(zip(number.tolist(), found.tolist(), strict=True))) == 12
    means = [frames[found == k].mean(axis=0) for k in range(12)]
    np.testing.assert_allclose(centres, means, atol=2e-2)


def test_the_nearest_centre_is_assigned():
    random = np.random.default_rng(1)
    frames = random.standard_normal((4_099, 5)).astype(np.float32)
    centres = random.standard_normal((7, 5)).astype(np.float32)
    expected = np.square(frames[:, None] - centres).sum(axis=2).argmin(axis=1)
    found = kmeans.assign(frames, centres)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.int32


def test_the_seed_decides():
    frames = np.random.default_rng(2).standard_normal((3_000, 3)).astype(np.float32)
    first, again, other = (kmeans.fit(frames, 20, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_it_lowers_the_distance_of_its_start():
    frames = np.random.default_rng(3).standard_normal((5_000, 2)).astype(np.float32)

    def spread(centres):
        return np.square(frames - centres[kmeans.assign(frames, centres)]).sum(axis=1).mean()

    # 16 random frames as centres give about 0.35, 16 settled ones about 0.23
    assert spread(kmeans.fit(frames, 16)) < 0.27 < spread(frames[:16])


def test_more_frames_than_allowed_are_drawn_from():
    frames, number = clustered(count=40_000)
    centres = kmeans.fit(frames, 12, max_frames=3_000)
    found = kmeans.assign(frames, centres)
    assert len(set(zip(number.tolist(), found.tolist(), strict=True))) == 12
    assert not np.array_equal(centres, kmeans.fit(frames, 12, max_frames=4_000))


def test_as_many_clusters_as_different_frames():
    frames = np.repeat(np.arange(4, dtype=np.float32)[:, None], 5, axis=0)
    centres = kmeans.fit(frames, 6)
    assert np.isfinite(centres).all()
    assert set(centres[:, 0].tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("clusters", [0, 11])
def test_too_many_clusters_are_refused(clusters):
    with pytest.raises(ValueError, match=f"^kmeans = {clusters}: allowed is 1 to 10, the number"):
        kmeans.fit(np.zeros((10, 2), np.float32), clusters)


@pytest.fixture(scope="module")
def waveform():
    return np.random.default_rng(4).standard_normal(16_000 + 79).astype(np.float32) / 10


def test_mfcc_have_the_frames_of_the_model(waveform):
    for samples in (400, 719, 720, 16_079):
        assert mfcc(waveform[:samples]).shape == ((samples - 80) // 320, 39)
    with pytest.raises(ValueError, match=r"^399 samples are too short for a frame$"):
        mfcc(waveform[:399])


def test_mfcc_stand_where_the_model_s_frames_do(waveform):
    found = mfcc(waveform)[:, :13]
    alone = [
        librosa.feature.mfcc(
            y=waveform[320 * t : 320 * t + 400],
            sr=16_000,
            n_mfcc=13,
            n_fft=400,
            n_mels=40,
            center=False,
        )[:, 0]
        for t in range(len(found))
    ]
    # equal up to the standardisation of each coefficient
    for k in range(13):
        line = np.polyfit(np.array(alone)[:, k], found[:, k], 1)
        np.testing.assert_allclose(np.polyval(line, np.array(alone)[:, k]), found[:, k], atol=1e-3)


def test_mfcc_do_not_depend_on_loudness(waveform):
    np.testing.assert_allclose(mfcc(waveform), mfcc(waveform * 0.1), atol=1e-2)


def test_mfcc_of_silence_are_finite():
    assert np.isfinite(mfcc(np.zeros(16_000, np.float32))).all()
