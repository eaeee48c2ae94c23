"""k-means and MFCC."""

import librosa
import numpy as np
import pytest

from spidr_jax.eval import kmeans
from spidr_jax.eval.mfcc import mfcc


def clustered(count=5_000, clusters=12, width=4, seed=0):
    """Frames around centres far from one another, with the cluster of each."""
    random = np.random.default_rng(seed)
    centres = 30 * random.permutation(clusters)[:, None] + random.standard_normal((clusters, width))
    number = random.integers(0, clusters, count)
    noise = random.standard_normal((count, width))
    return (centres[number] + noise).astype(np.float32), number


def test_separated_clusters_are_found_whatever_the_seed():
    frames, number = clustered()
    for seed in (0, 1):
        centres = kmeans.fit(frames, 12, seed)
        found = kmeans.assign(frames, centres)
        assert found.dtype == np.int32
        assert len(set(zip(number.tolist(), found.tolist(), strict=True))) == 12
        means = [frames[found == k].mean(axis=0) for k in range(12)]
        np.testing.assert_allclose(centres, means, atol=0.1)


def test_the_seed_decides_and_a_file_s_frames_are_frames(tmp_path):
    frames = np.random.default_rng(2).standard_normal((3_000, 3)).astype(np.float32)
    np.save(tmp_path / "frames.npy", frames)
    first, other = (kmeans.fit(frames, 20, seed) for seed in (0, 1))
    mapped = kmeans.fit(np.load(tmp_path / "frames.npy", mmap_mode="r"), 20, 0)
    np.testing.assert_array_equal(first, mapped)
    assert not np.array_equal(first, other)


def test_more_clusters_than_different_frames_are_finite():
    frames = np.repeat(np.arange(4, dtype=np.float32)[:, None], 5, axis=0)
    centres = kmeans.fit(frames, 6)
    np.testing.assert_allclose(np.unique(centres.round(3)), [0, 1, 2, 3])


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
