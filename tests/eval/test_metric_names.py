"""The names of metrics in logs, and how their values are written."""

import math

import pytest

from spidr_jax.eval.metrics import METRICS, Key, Metric, describe, key_text, parse_key


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("loss", Key("", None, "loss")),
        ("loss/4", Key("", 4, "loss")),
        ("dev/loss", Key("dev", None, "loss")),
        ("dev/loss/12", Key("dev", 12, "loss")),
        ("4/loss", Key("4", None, "loss")),
        ("pnmi/loss/0", Key("pnmi", 0, "loss")),
        ("dev-clean_2/abx_within/MFCC", Key("dev-clean_2", "MFCC", "abx_within")),
        ("step", Key("", None, "step")),
    ],
)
def test_a_key_is_written_and_read(text: str, key: Key) -> None:
    assert key_text(key) == text
    assert parse_key(text) == key


def test_values_are_written_with_their_unit_and_deviation() -> None:
    assert METRICS["abx_within"].text(0.12345) == "12.35 %"
    assert METRICS["abx_within"].text(0.5, 0.0102) == "50.00 ±1.02 %"
    assert METRICS["pnmi"].text(0.25, 0.001) == "0.250 ±0.001"
    assert METRICS["active_codes"].text(5) == "5"
    assert METRICS["audio_seconds_per_second"].text(12345.6) == "12,346"
    assert METRICS["pnmi"].text(math.nan) == "-"


def test_a_metric_without_an_entry_is_called_by_its_name() -> None:
    assert describe("feature_penalty") == Metric("feature penalty", "")
