"""Run folders as training leaves them, of any length, without training."""

import json
import math
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import tiny


def write(folder: Path, lines: int = 2_000, steps: int = 400_000, seed: int = 0) -> Path:
    """Write a run of the published size: config, metrics with validation and PNMI, evaluation.

    Its values have the published run's form with noise, every 100th training line one peak.
    """
    folder.mkdir(parents=True)
    config = runpy.run_path(str(tiny.REPOSITORY / "configs" / "base.py"))["get_config"]()
    config.update(workdir=str(folder), seed=seed, steps=steps)
    (folder / "config.json").write_text(config.to_json(indent=2) + "\n")
    random = np.random.default_rng(seed)
    written = [_line(i, round((i + 1) * steps / lines), steps, random) for i in range(lines)]
    written.insert(0, {"step": 0} | _validated(0, steps, random))
    text = "".join(json.dumps(line) + "\n" for line in written)
    (folder / "metrics.jsonl").write_text(text)
    return folder


def _line(i: int, step: int, steps: int, random: Any) -> dict[str, Any]:
    layers = _layers("", step, steps, random)
    line = {"step": step}
    for name in ("loss", "target_ppl", "pred_ppl"):
        line[name] = float(np.mean([layers[f"{name}/{k}"] for k in range(5, 13)]))
    line |= {"active_codes": 220.0, "learning_rate": 5e-4 * (1 - step / steps)}
    line |= {"teacher_decay": 1 - 1e-3 * math.exp(-step / 20_000), "skipped": 0, "bad_rows": 0}
    line["grad_norm"] = 50.0 if i % 100 == 50 else float(0.5 + random.random())
    line |= {"audio_seconds_per_second": 1e4 + 500 * random.random(), "data_wait": 0.01}
    line |= layers
    return line | (_validated(step, steps, random) if (i + 1) % 10 == 0 else {})


def _validated(step: int, steps: int, random: Any) -> dict[str, Any]:
    pnmi = {f"dev/pnmi/{k}": 0.66 * step / steps - 0.02 * (k - 5) + 0.2 for k in range(5, 13)}
    return _layers("dev/", step, steps, random) | {"dev/loss": 1.0} | pnmi


def _layers(prefix: str, step: int, steps: int, random: Any) -> dict[str, float]:
    values = {}
    for k in range(5, 13):
        noise = 1 + 0.02 * random.standard_normal()
        values[f"{prefix}loss/{k}"] = (1 + 0.04 * (k - 5) + 4.5 * math.exp(-step / 2e3)) * noise
        values[f"{prefix}target_ppl/{k}"] = (190 - 100 * math.exp(-step / 2e3)) * noise
        values[f"{prefix}pred_ppl/{k}"] = (195 + 50 * math.exp(-step / 2e3)) * noise
        values[f"{prefix}active_codes/{k}"] = float(round(200 * noise))
    return values
