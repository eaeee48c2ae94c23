"""ABX against fastabx's numbers, values worked out by hand, and general laws."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spidr_jax.eval import abx
from spidr_jax.eval.abx import measure
from spidr_jax.eval.items import Items, Spans, locate, places, read_items

FIXTURES = np.load(Path(__file__).parents[1] / "fixtures" / "abx.npz")


@pytest.fixture(scope="module")
def located(tmp_path_factory):
    path = tmp_path_factory.mktemp("abx") / "abx.item"
    path.write_text("\n".join(FIXTURES["items"]) + "\n")
    items = read_items(path)
    files = zip(FIXTURES["files"].tolist(), FIXTURES["lengths"].tolist(), strict=True)
    return items, locate(items, places(files))


@pytest.mark.parametrize(
    "key", sorted({key.rsplit(" ", 1)[0] for key in FIXTURES["keys"].tolist()})
)
def test_errors_are_those_of_fastabx(located, key):
    expected = dict(zip(FIXTURES["keys"].tolist(), FIXTURES["errors"].tolist(), strict=True))
    name, distance, context = key.split()
    found = measure(FIXTURES[name], *located, distance=distance, context=context)
    for speakers in ("within", "across"):
        assert found[speakers].error == pytest.approx(expected[f"{key} {speakers}"], abs=1e-7)
        assert 0.01 < found[speakers].error < 0.4


def items_of(rows):
    """Items of one unit or frame each, from "phone previous following speaker"."""
    phone, previous, following, speaker = np.array([row.split() for row in rows]).T
    numbers = np.arange(len(rows))
    items = Items(numbers.astype(str), 0 * numbers, 0 * numbers + 1, phone, previous, following,
                  speaker)  # fmt: skip
    return items, Spans(numbers, 0 * numbers + 1, 0, 0)


def test_within_speakers_by_hand():
    rows = ["P a b s", "P a b s", "T a b s", "T a b s", "T a b s", "K c d s"]
    values = np.array([[0.0], [2.0], [1.5], [4.0], [-3.0], [9.0]])
    found = measure(values, *items_of(rows), distance="euclidean")["within"]
    # P against T: X=0 has A at 2; B at 1.5 (nearer), 4, 3. X=2 has A at 2; B at 0.5, 2 (tie), 5.
    p_t = (1 + 1 + 0.5) / 6
    # T against P: X=1.5 has A at 2.5, 4.5; B at 1.5, 0.5: all four nearer. X=4 has A at 2.5, 7;
    # B at 4, 2: (2.5: 2), (7: 4, 2). X=-3 has A at 4.5, 7; B at 3, 5: (4.5: 3), (7: 3, 5).
    t_p = (4 + 3 + 3) / 12
    assert found.error == pytest.approx((p_t + t_p) / 2)
    assert (found.cells, found.triplets) == (2, 18)


def test_average_is_over_contexts_then_speakers_then_phones():
    # Units: an error is 0 where A and X are alike and B is not, 1/2 where all are, 1 the other way.
    rows, units = [], []

    def add(context, speaker, phones, values):
        for phone, unit in zip(phones, values, strict=True):
            rows.append(f"{phone} {context} {speaker}")
            units.append(unit)

    add("a b", "s", "PPT", [0, 0, 0])  # P-T of s: 1/2
    add("a c", "s", "PPT", [0, 0, 1])  # 0
    add("a d", "s", "PPT", [0, 0, 1])  # 0
    add("a b", "r", "PPT", [0, 1, 1])  # P-T of r: X=0: 1/2, X=1: 1; 3/4
    add("a c", "s", "PPK", [0, 1, 1])  # P-K of s: X=0, X=1 as above: 3/4
    found = measure(np.array(units), *items_of(rows), distance="identical")["within"]
    # P of (a c) by s are four items 0 0 0 1. P-T there, B=1: X=0 (three) A: 0 0 1 against 1: 0 0
    # 1/2; X=1: A: 0 0 0 against 1: 1 1 1: (3 * 1/2 + 3) / 12. P-K, B=1: the same.
    four = 4.5 / 12
    p_t = ((1 / 2 + four + 0) / 3 + 3 / 4) / 2
    assert found.error == pytest.approx((p_t + four) / 2)
    assert found.cells == 5


def test_across_speakers_by_hand():
    # A and B by one speaker, X by another; r has no T, so that only s gives A and B.
    rows = ["P a b s", "T a b s", "P a b r", "P a b q", "T a b q", "P x b r"]
    values = np.array([[0.0], [4.0], [1.0], [3.0], [3.5], [7.0]])
    found = measure(values, *items_of(rows), distance="euclidean")["across"]
    # P-T of s: X=1 (r): A at 1, B at 3: 0; X=3 (q): A at 3, B at 1: 1. Of q: X=1 (r): A at 2, B at
    # 2.5: 0; X=0 (s): A at 3, B at 3.5: 0. T-P of s: X=3.5: A 0.5, B 3.5: 0. Of q: X=4: A 0.5,
    # B 1: 0.
    assert found.error == pytest.approx((1 / 2 + 0) / 2 / 2)
    assert found.cells == found.triplets == 6


def test_any_context_averages_over_all_cells_of_a_pair_across_speakers():
    rows = ["P a b s", "T c d s", "P e f r", "P g h q", "T i j q"]
    values = np.array([[0.0], [4.0], [1.0], [3.0], [3.5]])
    items = items_of(rows)
    assert math.isnan(measure(values, *items, distance="euclidean")["across"].error)
    found = measure(values, *items, context="any", distance="euclidean")["across"]
    # as above
    assert found.error == pytest.approx((1 / 4 + 0) / 2)
    assert found.cells == 6


def test_no_cell_is_no_error():
    found = measure(np.zeros((2, 1)), *items_of(["P a b s", "T a b s"]), distance="euclidean")
    assert all(math.isnan(each.error) for each in found.values())
    assert {each[1:] for each in found.values()} == {(0, 0)}


@st.composite
def tasks(draw):
    labels = st.tuples(st.sampled_from("PTK"), st.sampled_from("ab"), st.just("c"),
                       st.sampled_from("sr"))  # fmt: skip
    rows = draw(st.lists(labels, min_size=4, max_size=24))
    return [" ".join(row) for row in rows]


@settings(deadline=None, max_examples=25)
@given(tasks(), st.randoms())
def test_order_of_the_items_does_not_matter(rows, random):
    items, spans = items_of(rows)
    values = np.random.default_rng(0).integers(0, 4, len(rows))
    order = list(range(len(rows)))
    random.shuffle(order)
    shuffled = Items(*(column[order] for column in items))
    moved = spans._replace(start=spans.start[order])
    found = measure(values, items, spans, distance="identical")
    again = measure(values, shuffled, moved, distance="identical")
    for name, expected in found.items():
        assert again[name][1:] == expected[1:]
        assert again[name].error == pytest.approx(expected.error, nan_ok=True)


def test_subsampling_keeps_so_many(located):
    items, spans = located
    frames = FIXTURES["real"]
    whole = measure(frames, items, spans)
    assert measure(frames, items, spans, max_size_group=99, max_x_across=9, seed=1) == whole
    few = measure(frames, items, spans, max_size_group=2, seed=1)
    assert few["within"].cells == whole["within"].cells
    # groups of two: 2 x 1 x (1 or 2) triplets in a cell
    assert few["within"].triplets <= 4 * few["within"].cells
    assert few["across"].triplets <= 8 * few["across"].cells < whole["across"].triplets
    assert few == measure(frames, items, spans, max_size_group=2, seed=1)
    assert few != measure(frames, items, spans, max_size_group=2, seed=2)
    one = measure(frames, items, spans, max_x_across=1, seed=1)
    assert one["within"] == whole["within"]
    both = set(zip(items.phone, items.previous, items.following, items.speaker, strict=True))
    # one X for each A and B that had any
    pairs = {
        (a, b[0])
        for a in both
        for b in both
        if a[1:] == b[1:] and a[0] != b[0]
        and any(x[:3] == a[:3] and x[3] != a[3] for x in both)
    }  # fmt: skip
    assert one["across"].cells == len(pairs)
    assert abs(few["across"].error - whole["across"].error) < 0.1


@pytest.mark.parametrize("most", [1, 7, 100])
def test_how_many_triplets_are_compared_at_once_does_not_matter(located, monkeypatch, most):
    expected = measure(FIXTURES["units"], *located, distance="identical")
    monkeypatch.setattr(abx, "_MOST_TRIPLETS", most)
    assert measure(FIXTURES["units"], *located, distance="identical") == expected


def test_too_many_distances_are_refused(located, monkeypatch):
    monkeypatch.setattr(abx, "_MOST_DISTANCES", 1_000)
    with pytest.raises(ValueError, match=r"^\d+ items have \d+ distances within their contexts; "):
        measure(FIXTURES["real"], *located)


def test_items_without_frames_take_no_part(located):
    items, spans = located
    some = np.arange(len(items.phone)) % 3 > 0
    cut = spans._replace(length=np.where(some, spans.length, 0))
    fewer = Items(*(column[some] for column in items))
    there = Spans(spans.start[some], spans.length[some], 0, 0)
    frames = FIXTURES["real"]
    assert measure(frames, items, cut) == measure(frames, fewer, there)


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ({"context": "across"}, "context = 'across': allowed is within or any"),
        ({"max_size_group": 1}, "max_size_group = 1: allowed is 2 or more, or None"),
        ({"max_x_across": 0}, "max_x_across = 0: allowed is 1 or more, or None"),
    ],
)
def test_choices_that_are_not_there_are_refused(option, reason):
    with pytest.raises(ValueError, match=f"^{reason}$"):
        measure(np.zeros((1, 1)), *items_of(["P a b s"]), **option)
