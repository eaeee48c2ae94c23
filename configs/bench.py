"""SpidR as small as the smoke recipe, on the bench corpus: 3 h of 20 synthetic speakers.

  python -m spidr_jax.main --config=configs/bench.py --config.corpus=bench

`bench_dinosr.py` is the baseline at equal cost: the same size, batch, data, steps and schedules.
`corpus` is a folder with train, dev-seen and dev-unseen, each with manifest.csv and alignment.txt
(and triphone.item for ABX); the README says where the corpus comes from, and what came of it.

Made for two CPU cores: 500 steps of 23 s of audio take about 4 min where the cores are free.
Expected, over three seeds: PNMI of the units DRAFT.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference


def get_config() -> ConfigDict:
    config = runpy.run_path(str(Path(__file__).with_name("smoke.py")))["get_config"]()
    config.steps = 500  # the rate is held to here
    config.checkpoint.keep_every = 100

    corpus = FieldReference("bench")
    config.corpus = corpus
    config.data.embedded_corpus = ""
    config.data.manifest = corpus + "/train/manifest.csv"
    seen, unseen = (corpus + f"/dev-{name}" for name in ("seen", "unseen"))
    files = "/manifest.csv:", "/alignment.txt"
    seen = "seen:" + seen + files[0] + seen + files[1]
    unseen = "unseen:" + unseen + files[0] + unseen + files[1]
    config.evaluation = seen + "," + unseen  # a field reference
    return config
