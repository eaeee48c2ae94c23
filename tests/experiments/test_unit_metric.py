"""Another metric of units: a function and two entries, and it is in every file and table."""

import json
import math
import runpy
from pathlib import Path
from typing import Any

import driver
import pytest

from spidr_jax.study import table
from spidr_jax.study.plan import PlannedRun
from spidr_jax.study.runs import outcome
from spidr_jax.train import metrics

EXPERIMENT = '''
import math
import runpy
from pathlib import Path

from spidr_jax.eval.metrics import METRICS, Metric
from spidr_jax.eval.quality import UNIT_METRICS, entropy


def unit_entropy(aligned):
    """Entropy of the units over that of as many that are all as frequent."""
    return entropy(aligned.counts.sum(axis=0)) / math.log2(aligned.num_units)


UNIT_METRICS["unit_entropy"] = unit_entropy
METRICS["unit_entropy"] = Metric("unit entropy", "share of log2(V)", "higher", digits=2)


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("base.py")))["get_config"]()
    corpus = Path(__file__).with_name("corpus")
    config.evaluation = f"tones:{corpus}/manifest.csv:{corpus}/alignment.txt"
    return config
'''


def test_unit_entropy(tmp_path: Path, capsys: Any) -> None:
    folder = driver.run(tmp_path, EXPERIMENT)
    assert "unit entropy" in capsys.readouterr().out
    (units,) = (
        row
        for row in json.loads((tmp_path / "out" / "scores.json").read_text())["results"]
        if row["kind"] == "units"
    )
    codes = json.loads((folder / "config.json").read_text())["model"]["codebook_size"]
    expected = math.log2(units["codebook_perplexity"]) / math.log2(codes)
    assert units["unit_entropy"] == pytest.approx(expected)

    name = f"tones/unit_entropy/{units['layer']}"
    assert metrics.read(folder / "metrics.jsonl")[-1][name] == pytest.approx(expected, abs=0.05)
    run = PlannedRun("run", {}, 3, driver.STEPS, [])
    with driver.registrations_undone():
        runpy.run_path(str(tmp_path / "experiment.py"))
        shown = table.text(table.compare([run], [outcome(tmp_path, run)]))
    assert "tones unit entropy" in shown
