"""Unit quality against the reference package."""

import csv
import wave

import numpy as np
import pytest

from spidr_jax.eval.alignment import read_alignment
from spidr_jax.eval.quality import bitrate, count_matrix, proba_phone_code, units_quality

pytest.importorskip("spidr")
from spidr.models import metrics as reference

NUM_UNITS = 64
# The reference computes in float32 and adds eps to every cell; its default 1e-10 alone moves PNMI
# by about 1e-6, so that it is called with an eps that float32 does not see.
TOLERANCE, INVISIBLE = 1e-6, 1e-30


def in_lists(pairs):
    return {
        fileid: ([str(p) for p in phones], [int(u) for u in units])
        for fileid, (phones, units) in pairs.items()
    }


def random_pairs(seed, tie):
    """Phones of a steep distribution in runs, and units that depend on them with weight `tie`."""
    rng = np.random.default_rng(seed)
    chance = 1.0 / np.arange(1, 41)
    pairs = {}
    for name in range(30):
        phones = np.repeat(rng.choice(40, 60, p=chance / chance.sum()), rng.integers(3, 18, 60))
        frames = (len(phones) + 1) // 2 - rng.integers(0, 2)
        near = phones[np.minimum(2 * np.arange(frames), len(phones) - 1)]
        noise = rng.integers(0, NUM_UNITS, frames)
        units = np.where(rng.random(frames) < tie, near * 3 % NUM_UNITS, noise)
        pairs[f"file{name}"] = (np.array([f"p{number}" for number in phones]), units)
    return pairs


def speech_pairs(folder):
    """True phones of synthetic speech, and units from the energies of eight bands."""
    labels = read_alignment(folder / "alignment.txt")
    pairs = {}
    with (folder / "manifest.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            with wave.open(str(folder / row["path"])) as wav:
                audio = np.frombuffer(wav.readframes(wav.getnframes()), "<i2").astype(float)
            frames = (len(audio) - 80) // 320
            power = np.abs(np.fft.rfft(audio[: 320 * frames].reshape(frames, 320))) ** 2
            bands = power[:, :160].reshape(frames, 8, 20).sum(axis=2)
            loudness = np.digitize(np.log10(bands.sum(axis=1)), np.arange(5, 12))
            pairs[row["fileid"]] = (labels[row["fileid"]], 8 * bands.argmax(axis=1) + loudness)
    return pairs


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    from spidr_jax.toy import make_corpus

    folder = tmp_path_factory.mktemp("toy") / "corpus"
    make_corpus(folder, train_utterances_per_speaker=2, dev_sentences=1)
    return speech_pairs(folder / "train")


@pytest.fixture(params=["independent", "related", "close", "speech"])
def pairs(request):
    if request.param == "speech":
        return request.getfixturevalue("speech")
    return random_pairs(3, {"independent": 0.0, "related": 0.4, "close": 0.95}[request.param])


def test_units_quality(pairs):
    counts, phones = count_matrix(pairs, NUM_UNITS)
    expected = reference.units_quality(
        in_lists(pairs), num_units=NUM_UNITS, num_phones=len(phones), eps=INVISIBLE
    )
    quality = units_quality(pairs, NUM_UNITS)
    assert quality["phone_purity"] == pytest.approx(expected.phone_purity, rel=TOLERANCE)
    assert quality["cluster_purity"] == pytest.approx(expected.cluster_purity, rel=TOLERANCE)
    assert quality["pnmi"] == pytest.approx(expected.pnmi, rel=TOLERANCE)
    perplexity = expected.codebook_perplexity
    assert quality["codebook_perplexity"] == pytest.approx(perplexity, rel=TOLERANCE)
    assert quality["active_codes"] == expected.active_codewords
    assert quality["bitrate"] == pytest.approx(expected.bitrate, rel=TOLERANCE)
    assert 0 < quality["pnmi"] < 1
    assert counts.sum() > 5_000


def test_default_eps_of_the_reference_matters_little(pairs):
    _, phones = count_matrix(pairs, NUM_UNITS)
    expected = reference.units_quality(in_lists(pairs), num_units=NUM_UNITS, num_phones=len(phones))
    assert units_quality(pairs, NUM_UNITS)["pnmi"] == pytest.approx(expected.pnmi, rel=2e-6)


def test_bitrate(pairs):
    sequences = [units.tolist() for _, units in pairs.values()]
    expected = reference.bitrate(num_units=NUM_UNITS, sequences=sequences)
    assert bitrate(sequences, NUM_UNITS) == pytest.approx(expected, rel=TOLERANCE)


def test_proba_phone_code(pairs):
    counts, names = count_matrix(pairs, NUM_UNITS)
    expected, phones, units = reference.proba_phone_code(
        in_lists(pairs), num_units=NUM_UNITS, num_phones=len(names), only_active=True
    )
    matrix = proba_phone_code(counts, names)
    frequency = dict(zip(names, counts.sum(axis=1).tolist(), strict=True))
    # Phones of equal frequency, and units of equal probability, may stand either way round.
    assert [frequency[phone] for phone in matrix.phones] == [frequency[p] for p in phones]
    assert sorted(matrix.units) == sorted(units.tolist())
    rows = [phones.index(phone) for phone in matrix.phones]
    columns = [units.tolist().index(unit) for unit in matrix.units]
    np.testing.assert_allclose(matrix.probability, expected.numpy()[rows][:, columns], rtol=1e-6)


def test_order_of_the_matrix_where_nothing_ties():
    rng = np.random.default_rng(0)
    phones = np.repeat(rng.choice(6, 3_000, p=[0.3, 0.25, 0.18, 0.12, 0.1, 0.05]), 4)
    units = np.where(rng.random(6_000) < 0.5, phones[::2] * 2, rng.integers(0, 14, 6_000))
    pairs = {"file": (np.array(list("fedcba"))[phones], units)}
    counts, names = count_matrix(pairs, 14)
    _, expected_phones, expected_units = reference.proba_phone_code(
        in_lists(pairs), num_units=14, num_phones=6, only_active=True
    )
    matrix = proba_phone_code(counts, names)
    assert matrix.phones == expected_phones == list("fedcba")
    assert matrix.units.tolist() == expected_units.tolist()
