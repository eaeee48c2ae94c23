"""Item files: their frames, and what is refused."""

import re

import numpy as np
import pytest

from spidr_jax.eval.items import COLUMNS, locate, places, read_items

HEADER = " ".join(COLUMNS)


def write(tmp_path, *lines, header=HEADER):
    path = tmp_path / "t.item"
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def test_frames_begin_and_end_where_fastabx_has_them(tmp_path):
    # frames ceil(50 onset - 0.5) up to and with floor(50 offset - 0.5)
    items = read_items(write(tmp_path, "f 0 0.1 A B C s", "f 0.0301 0.0999 A B C s"))
    assert items.first.tolist() == [0, 2]
    assert items.end.tolist() == [5, 5]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    items = read_items(write(tmp_path, "f 0 0.1 A B C s", header="\ufeff" + HEADER))
    assert items.fileid.tolist() == ["f"]


def test_frames_are_counted_in_decimal_numbers(tmp_path):
    # In binary 50 * 0.57 - 0.5 is below 28, and 50 * 1.11 - 0.5 above 55.
    assert 50 * 0.57 - 0.5 < 28
    assert 50 * 1.11 - 0.5 > 55
    items = read_items(write(tmp_path, "f 0.01 0.57 A B C s", "f 1.11 1.15 A B C s"))
    assert items.first.tolist() == [0, 55]
    assert items.end.tolist() == [29, 58]


def test_columns_are_found_by_name(tmp_path):
    header = "speaker #phone #file onset offset next-phone prev-phone word"
    items = read_items(write(tmp_path, "s A f 0.1 0.2 C B w", "", header=header))
    labels = items.fileid, items.phone, items.previous, items.following, items.speaker
    assert [column.tolist() for column in labels] == [["f"], ["A"], ["B"], ["C"], ["s"]]
    assert (items.first.tolist(), items.end.tolist()) == ([5], [10])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("f 0 0.1 A B C", "6 fields where the first line has 7"),
        ("f 0 0.1 A B C s t", "8 fields where the first line has 7"),
        ("f zero 0.1 A B C s", "onset and offset must be seconds: zero 0.1"),
        ("f 0.2 0.1 A B C s", "onset and offset must be times, in order: 0.2 0.1"),
        ("f -1 0.1 A B C s", "onset and offset must be times, in order: -1 0.1"),
        ("f nan 0.1 A B C s", "onset and offset must be times, in order: nan 0.1"),
        ("f 0 inf A B C s", "onset and offset must be times, in order: 0 inf"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, reason):
    path = write(tmp_path, "f 0 0.1 A B C s", line)
    with pytest.raises(ValueError, match=f"^{re.escape(f'{path}:3: {reason}')}$"):
        read_items(path)


def test_a_missing_column_is_named(tmp_path):
    path = write(tmp_path, "f 0 0.1 A s", header="#file onset offset #phone speaker")
    with pytest.raises(ValueError, match=rf"^{path}:1: has no column 'prev-phone': allowed is `#f"):
        read_items(path)


@pytest.mark.parametrize("text", ["", "\n"])
def test_an_empty_file_is_refused(tmp_path, text):
    path = tmp_path / "t.item"
    path.write_text(text)
    with pytest.raises(ValueError, match="the first line must be `#file onset offset"):
        read_items(path)
    with pytest.raises(ValueError, match="holds no item"):
        read_items(write(tmp_path))


def test_items_are_clipped_to_their_file_and_counted(tmp_path):
    lines = ["b 0.02 0.1 A B C s", "a 0.02 0.1 A B C s", "a 0.08 0.1 A B C s", "b 0.1 0.1 A B C s"]
    spans = locate(read_items(write(tmp_path, *lines)), places([("a", 3), ("b", 7)]))
    # a has frames 0 to 2, b 3 to 9; 1 to 4 are asked of both, 4 of a, and none of b
    assert spans.start[:2].tolist() == [4, 1]
    assert spans.length.tolist() == [4, 2, 0, 0]
    assert (spans.clipped, spans.empty) == (2, 2)
    assert spans.length.dtype == np.int64


def test_a_file_without_frames_is_named(tmp_path):
    items = read_items(write(tmp_path, "a 0 0.1 A B C s", "c 0 0.1 A B C s"))
    with pytest.raises(ValueError, match=r"^there are no frames of 'c', which has ABX items$"):
        locate(items, places([("a", 9)]))


def test_frames_of_another_rate(tmp_path):
    items = read_items(write(tmp_path, "f 0 0.1 A B C s"), 100)
    assert (items.first.tolist(), items.end.tolist()) == ([0], [10])
