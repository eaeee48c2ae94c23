"""SpidR as small as the smoke recipe, on the bench corpus: 3 h of 20 synthetic speakers.

  python make_bench.py --out bench --train-utts 150 --dev-sents 50  # not part of this package
  python -m spidr_jax.main --config=configs/bench.py --config.corpus=bench

`bench_dinosr.py` is the baseline at equal cost: the same size, batch, data, steps and rates. The
corpus can be any folder with train, dev-seen and dev-unseen, each with manifest.csv, and the last
two with alignment.txt and triphone.item too.

Two shared CPU cores: 600 steps of 23 s of audio take 4 to 10 min. Expected: PNMI of units on
unseen speakers, best layer, from 0.003 at step 0 to 0.150, 0.094 and 0.075 with seeds 0, 1, 2;
MFCC with k-means and as many codes reach 0.37. Until step 200 to 350 a run stays on a
plateau where the loss is ln pred_ppl: it has learnt how frequent the codes are, and no more.
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
