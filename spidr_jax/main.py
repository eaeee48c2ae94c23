"""python -m spidr_jax.main --config=configs/base.py [--config.FIELD=VALUE ...]: train a model."""

from spidr_jax.data.files import local_path
from spidr_jax.method.config import Config
from spidr_jax.pretraining import Pretraining
from spidr_jax.report import draw
from spidr_jax.toy import make_corpus
from spidr_jax.train import command, distributed

CORPUS_SECONDS = 1800  # that the other processes wait for the one that makes the corpus


def make_task(config: Config) -> Pretraining:
    """The task of a config, with its corpus if that is embedded."""
    folder = config.data.embedded_corpus
    read = config.data.sources or config.data.manifest, config.evaluation, config.validation
    if folder and any(folder in (text or "") for text in read):
        if distributed.is_first():
            make_corpus(local_path(folder))
        distributed.barrier("the embedded corpus", CORPUS_SECONDS)
    return Pretraining(config)


if __name__ == "__main__":
    command.main(Config, make_task, draw)
