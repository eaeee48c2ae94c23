"""A corpus in a format of one's own, NeMo's manifests: a function and an entry."""

import json
from pathlib import Path

import driver
import tiny

from spidr_jax.data.corpus import open_manifest

EXPERIMENT = '''
import json
import runpy
from pathlib import Path
from spidr_jax.data import tables


def read_nemo(path):
    """Lines of {"audio_filepath": path, "duration": seconds}."""
    records = [json.loads(line) for line in Path(path).read_text().splitlines()]
    rows = []
    for record in records:
        name, samples = record["audio_filepath"], round(16_000 * record["duration"])
        rows.append((Path(name).stem, name, str(samples)))
    yield tables.Block(tables.REQUIRED, 1, rows)


tables.READERS[".json"] = read_nemo


def get_config():
    folder = Path(__file__).parent
    config = runpy.run_path(str(folder / "base.py"))["get_config"]()
    config.data.manifest = str(folder / "corpus" / "train.json")
    return config
'''


def test_nemo_manifest(tmp_path: Path) -> None:
    corpus = open_manifest(tiny.write_corpus(tmp_path / "corpus"))
    manifest = tmp_path / "corpus" / "train.json"
    records = [
        {"audio_filepath": Path(row.path).name, "duration": row.num_samples / 16_000}
        for row in corpus
    ]
    manifest.write_text("".join(json.dumps(record) + "\n" for record in records))
    driver.run(tmp_path, EXPERIMENT)
    assert list(open_manifest(manifest)) == list(corpus)  # as the run has compiled it
