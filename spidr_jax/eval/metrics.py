"""The metrics by name, with unit and direction, and the names that logs give them."""

import math
import re
from collections.abc import Mapping
from typing import Literal, NamedTuple


class Metric(NamedTuple):
    """Label, unit and direction of a metric.

    Attributes:
        label: name in tables and charts.
        unit: unit of its values; those with "%" are shares, shown times 100.
        direction: which values are better; "" where that cannot be said, as of purities, which the
            number of units alone can raise.
        digits: shown after the decimal point.
    """

    label: str
    unit: str
    direction: Literal["higher", "lower", ""] = ""
    digits: int = 3

    def text(self, value: float, deviation: float | None = None) -> str:
        """A value for a table, with its standard deviation if there is one; "-" for NaN."""
        if math.isnan(value):
            return "-"
        scale, sign = (100, " %") if self.unit == "%" else (1, "")
        digits = 0 if isinstance(value, int) else self.digits
        spread = "" if deviation is None else f" ±{scale * deviation:,.{digits}f}"
        return f"{scale * value:,.{digits}f}{spread}{sign}"


METRICS: dict[str, Metric] = {
    "loss": Metric("loss", "nats", "lower"),
    "target_ppl": Metric("target perplexity", "codes", digits=1),
    "pred_ppl": Metric("prediction perplexity", "codes", digits=1),
    "active_codes": Metric("active codes", "codes", digits=1),
    "masked_frames": Metric("masked frames", "frames", digits=0),
    "learning_rate": Metric("learning rate", "per step", digits=6),
    "grad_norm": Metric("gradient norm before clipping", "L2"),
    "teacher_decay": Metric("teacher decay", "share kept per step", digits=6),
    "skipped": Metric("skipped updates, since the start", "updates", digits=0),
    "bad_rows": Metric("bad rows, since the last (re)start", "rows", digits=0),
    "audio_seconds_per_second": Metric("audio s/s", "s of audio per s", "higher", digits=0),
    "data_wait": Metric("waiting for data", "s since the line before", "lower"),
    "pnmi": Metric("PNMI", "share of H(phone)", "higher"),
    "phone_purity": Metric("phone purity", "probability"),
    "cluster_purity": Metric("cluster purity", "probability"),
    "codebook_perplexity": Metric("perplexity", "codes", digits=1),
    "bitrate": Metric("bits/s", "bits/s", digits=0),
    "abx_within": Metric("ABX within", "%", "lower", digits=2),
    "abx_across": Metric("ABX across", "%", "lower", digits=2),
}
_LAYER = re.compile("[0-9]+|MFCC")


class Key(NamedTuple):
    """Name of a metric with its set and layer.

    Attributes:
        set: name of the validation or evaluation set, "" for training.
        layer: its number, "MFCC", or None for all.
        name: metric's name in `METRICS`.
    """

    set: str
    layer: int | str | None
    name: str


def describe(name: str) -> Metric:
    """The metric's entry in `METRICS`, or one made of the name of a metric that has none."""
    return METRICS.get(name) or Metric(name.replace("_", " "), "")


def key_text(key: Key) -> str:
    """The key as logs have it: `loss`, `loss/4`, `dev/loss` or `dev/loss/4`."""
    return "/".join(str(part) for part in (key.set, key.name, key.layer) if part not in ("", None))


def parse_key(text: str) -> Key:
    """Read what `key_text` wrote."""
    parts = text.split("/")
    last = parts.pop() if len(parts) > 1 and _LAYER.fullmatch(parts[-1]) else None
    layer = int(last) if last is not None and last.isdigit() else last
    return Key("/".join(parts[:-1]), layer, parts[-1])


def of_set(name: str, values: Mapping[str, float]) -> dict[str, float]:
    """Metrics of no set, by text, as those of a set."""
    return {key_text(parse_key(text)._replace(set=name)): v for text, v in values.items()}
