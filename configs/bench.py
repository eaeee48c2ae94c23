"""SpidR as small as the smoke recipe, on the bench corpus: 3.3 h of ten synthetic speakers.

  python -m spidr_jax.toy bench --train-utterances-per-speaker=300 --dev-sentences=50
  python -m spidr_jax.main --config=configs/bench.py --config.corpus=bench

`bench_dinosr.py` is the baseline at equal cost: the same size, batch, data, steps and rates. The
corpus can be any folder with train, dev-seen and dev-unseen, each with manifest.csv, and the last
two with alignment.txt and triphone.item too.

Two shared CPU cores: 600 steps of 23 s of audio take 4 to 10 min. Expected: PNMI of units on
unseen speakers, layer 3, from 0.004 at step 0 to 0.103 with seed 0; seeds differ as much as in the
table of docs/results.md. Until step 200 to 350 a run stays on a plateau where the
loss is ln pred_ppl: it has learnt how frequent the codes are, and no more.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference


def get_config() -> ConfigDict:
    config = runpy.run_path(str(Path(__file__).with_name("smoke.py")))["get_config"]()
    config.checkpoint.keep_every = 100

    corpus = FieldReference("bench")
    config.corpus = corpus
    config.data.embedded_corpus = ""
    config.data.manifest = corpus + "/train/manifest.csv"
    sets = []
    for name in ("seen", "unseen"):
        folder = ":" + corpus + f"/dev-{name}"
        files = folder + "/manifest.csv" + folder + "/alignment.txt" + folder + "/triphone.item"
        sets.append(name + files)
    config.evaluation = sets[0] + "," + sets[1]  # += would no longer follow the corpus
    config.evaluation_every = 200
    return config
