"""Alignments and unit quality against values worked out by hand, and general laws."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spidr_jax.eval.alignment import read_alignment
from spidr_jax.eval.quality import bitrate, count_matrix, proba_phone_code, units_quality

# Phones a a a a, b b, c c meet units 0 0, 1, 1: counts a: [2, 2, 0], b: [0, 2, 0], c: [0, 2, 0].
BY_HAND = {"one": (list("aaaa"), [0, 1]), "two": (list("bbcc"), [1, 1])}


def write(tmp_path, text):
    path = tmp_path / "alignment.txt"
    path.write_text(text)
    return path


def test_labels_are_the_phones_in_the_middle_of_10_ms(tmp_path):
    path = write(
        tmp_path,
        "u1 0.0000 0.0149 SIL\nu2 0 0.02 N\nu1 0.0149 0.0151 T\nu1 0.0151 0.0350 AA\n\n",
    )
    labels = read_alignment(path)
    assert {fileid: list(phones) for fileid, phones in labels.items()} == {
        "u1": ["SIL", "T", "AA"],
        "u2": ["N", "N"],
    }


def test_a_byte_order_mark_is_no_part_of_the_first_file_id(tmp_path):
    assert list(read_alignment(write(tmp_path, "\ufeffu 0 0.02 A\n"))["u"]) == ["A", "A"]


def test_label_bounds_are_decimal(tmp_path):
    # In binary 0.555 * 100 - 0.5 lies above 55.
    labels = read_alignment(write(tmp_path, "u 0 0.555 A\nu 0.555 0.6 B\n"))["u"]
    assert list(labels) == ["A"] * 55 + ["B"] * 5


def test_what_no_line_covers_is_silence(tmp_path):
    labels = read_alignment(write(tmp_path, "u 0.02 0.04 A\nu 0.05 0.06 B\n"))["u"]
    assert list(labels) == ["SIL", "SIL", "A", "A", "SIL", "B"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("u 0.1 0.2", "is not `fileid onset offset phone`"),
        ("u 0.1 0.2 A B", "is not `fileid onset offset phone`"),
        ("u zero 0.2 A", "is not `fileid onset offset phone`"),
        ("u 0.2 0.1 A", "onset and offset must be times, in order"),
        ("u -0.1 0.1 A", "onset and offset must be times, in order"),
        ("u nan 0.1 A", "onset and offset must be times, in order"),
        ("u 0.1 inf A", "onset and offset must be times, in order"),
        ("u 0.05 0.2 A", "u is at 0.1 s already"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, reason):
    path = write(tmp_path, f"u 0 0.1 SIL\n{line}\n")
    with pytest.raises(ValueError, match=f"alignment.txt:2: {reason}"):
        read_alignment(path)


def test_an_empty_alignment_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"alignment\.txt: holds no alignment"):
        read_alignment(write(tmp_path, "\n"))


def test_counts_by_hand():
    counts, phones = count_matrix(BY_HAND, 3)
    assert counts.tolist() == [[2, 2, 0], [0, 2, 0], [0, 2, 0]]
    assert phones == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("phones", "counts"),
    [("ab", [[1], [1]]), ("aab", [[2], [1]]), ("aaabbb", [[3], [1]]), ("aaaabb", [[4]])],
)
def test_two_phones_more_or_less_are_tolerated(phones, counts):
    assert count_matrix({"u": (list(phones), [0, 0])}, 1)[0].tolist() == counts


@pytest.mark.parametrize("phones", ["a", "aaaabbb"])
def test_three_phones_more_or_less_are_refused(phones):
    with pytest.raises(ValueError, match=f"^bad: {len(phones)} phones do not fit 2 units"):
        count_matrix({"fine": (["a", "a"], [0]), "bad": (list(phones), [0, 0])}, 1)


@pytest.mark.parametrize("units", [[0, 4], [-1, 0], [0.0, 1.0]])
def test_units_out_of_range_are_refused(units):
    with pytest.raises(ValueError, match=r"^u: units must be whole numbers from 0 to 3$"):
        count_matrix({"u": (list("aaaa"), units)}, 4)


@pytest.mark.parametrize("pairs", [{}, {"u": ([], [])}])
def test_nothing_to_count_is_refused(pairs):
    with pytest.raises(ValueError, match="no phones and units to count"):
        units_quality(pairs, 4)


def test_quality_by_hand():
    quality = units_quality(BY_HAND, 3)
    # Units: p(0) = 1/4, p(1) = 3/4. Most probable phones: a with 2/8, then a or b or c with 2/8.
    assert quality["phone_purity"] == pytest.approx(4 / 8)
    # Most probable units: of a 2/8, of b 2/8, of c 2/8.
    assert quality["cluster_purity"] == pytest.approx(6 / 8)
    # H(phone) = 1.5 bits; H(phone | unit 0) = 0, H(phone | unit 1) = log2(3).
    assert quality["pnmi"] == pytest.approx(1 - 0.75 * math.log2(3) / 1.5)
    assert quality["codebook_perplexity"] == pytest.approx(4 / 3**0.75)
    assert quality["active_codes"] == 2
    # Without repetitions 0 1 and 1: 3 units of log2(3) bits in 80 ms.
    assert quality["bitrate"] == pytest.approx(3 * math.log2(3) / 0.08)


def test_pnmi_of_a_single_phone_is_undefined():
    with warnings.catch_warnings(action="error"):
        quality = units_quality({"u": (list("aaaa"), [0, 1])}, 2)
    assert math.isnan(quality["pnmi"])
    assert quality["codebook_perplexity"] == 2


def test_bitrate_by_hand():
    assert bitrate([[1, 1], [1]], 4) == pytest.approx(2 * 2 / 0.06)
    assert bitrate([[0, 1, 2, 3], []], 8) == pytest.approx(3 * 50)
    with pytest.raises(ValueError, match="no units"):
        bitrate([[]], 4)


def test_matrix_is_ordered_by_phone_frequency_then_probable_phone_then_probability():
    #            unit 0  1  2  3  4
    counts = np.array(
        [
            [0, 1, 0, 0, 3],  # rare
            [6, 9, 0, 2, 3],  # frequent
            [4, 0, 0, 8, 0],  # middle
        ]
    )
    matrix = proba_phone_code(counts, ["rare", "frequent", "middle"])
    assert matrix.phones == ["frequent", "middle", "rare"]
    # Of `frequent`: unit 1 (0.9), 0 (0.6), 4 (0.5, a tie goes to the more frequent phone).
    assert matrix.units.tolist() == [1, 0, 4, 3]
    np.testing.assert_allclose(
        matrix.probability,
        [[0.9, 0.6, 0.5, 0.2], [0, 0.4, 0, 0.8], [0.1, 0, 0.5, 0]],
    )


@st.composite
def pairs(draw):
    files = {}
    for name in range(draw(st.integers(1, 4))):
        units = draw(st.lists(st.integers(0, 6), min_size=1, max_size=30))
        size = 2 * len(units)
        phones = draw(st.lists(st.sampled_from("abcde"), min_size=size, max_size=size + 2))
        files[str(name)] = (phones, units)
    return files


@settings(deadline=None)
@given(pairs())
def test_measures_stay_within_their_bounds(data):
    counts, phones = count_matrix(data, 7)
    quality = units_quality(data, 7)
    assert counts.sum() == sum(2 * len(units) for _, units in data.values())
    assert 1 / len(phones) - 1e-9 <= quality["phone_purity"] <= 1 + 1e-9
    assert 1 / quality["active_codes"] - 1e-9 <= quality["cluster_purity"] <= 1 + 1e-9
    assert 1 - 1e-9 <= quality["codebook_perplexity"] <= quality["active_codes"] + 1e-9
    assert 0 < quality["bitrate"] <= math.log2(7) * 50 + 1e-9
    if len(phones) > 1:
        assert -1e-9 <= quality["pnmi"] <= 1 + 1e-9


@settings(deadline=None)
@given(pairs())
def test_units_that_are_the_phones_explain_them_all(data):
    told = {
        fileid: (np.repeat(phones[::2], 2), ["abcde".index(p) for p in phones[::2]])
        for fileid, (phones, _) in data.items()
    }
    quality = units_quality(told, 5)
    assert quality["phone_purity"] == pytest.approx(1)
    assert quality["cluster_purity"] == pytest.approx(1)
    assert math.isnan(quality["pnmi"]) or quality["pnmi"] == pytest.approx(1)


def test_units_of_another_rate_meet_the_phones_of_their_time() -> None:
    phones = list("aabbbb")
    at_100, _ = count_matrix({"u": (phones, [0, 0, 1, 1, 2, 2])}, 3, 100)
    assert at_100.tolist() == [[2, 0, 0], [0, 2, 2]]
    at_25, _ = count_matrix({"u": (phones, [0, 1])}, 2, 25)
    assert at_25.tolist() == [[2, 0], [2, 2]]
    assert bitrate([[0, 1]], 4, 25) == pytest.approx(2 * 25)
