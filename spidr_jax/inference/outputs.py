"""The outputs of a whole corpus: of each layer of a model, MFCC, or their k-means units.

F frames of all files one after another, D width.
"""

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spidr_jax.data import audio, parallel
from spidr_jax.data.corpus import Corpus, Row
from spidr_jax.eval import kmeans
from spidr_jax.eval.items import places
from spidr_jax.eval.results import Source
from spidr_jax.inference.forward import Forward
from spidr_jax.inference.stream import stream
from spidr_jax.model import model
from spidr_jax.model.config import ModelConfig

MFCC = "MFCC"
_TITLE = "evaluate"


class Outputs(NamedTuple):
    """Outputs of a corpus.

    Attributes:
        files: first frame and number of frames of each file.
        arrays: outputs by kind and layer, [F, D] or, of units, [F].
    """

    files: dict[str, tuple[int, int]]
    arrays: dict[Source, np.ndarray]


@contextlib.contextmanager
def collected(
    outputs: Iterable[tuple[str, Mapping[str, np.ndarray]]],
    layers: Mapping[str, tuple[int | str, ...]],
) -> Iterator[Outputs]:
    """Put file ids with outputs [n, T, ...] of the n layers of each kind together.

    They lie in temporary files: all layers may be many gigabytes.
    """
    lengths: list[tuple[str, int]] = []
    shapes: dict[Source, tuple[Any, tuple[int, ...]]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="spidr-jax-") as folder,
        contextlib.ExitStack() as stack,
    ):
        sources = [(kind, layer) for kind, numbers in layers.items() for layer in numbers]
        paths = {source: Path(folder, "-".join(map(str, source))) for source in sources}
        files = {source: stack.enter_context(path.open("wb")) for source, path in paths.items()}
        for fileid, found in outputs:
            for kind, numbers in layers.items():
                for layer, array in zip(numbers, found[kind], strict=True):
                    files[kind, layer].write(np.ascontiguousarray(array).data)
                    shapes[kind, layer] = array.dtype, array.shape[1:]
            lengths.append((fileid, found[kind].shape[1]))
        for file in files.values():
            file.flush()
        yield Outputs(
            places(lengths),
            {
                source: np.memmap(paths[source], dtype, "r").reshape(-1, *shape)
                for source, (dtype, shape) in shapes.items()
            },
        )


def of_model(
    forward: Forward,
    params: model.Params,
    config: ModelConfig,
    corpus: Corpus,
    batch_samples: int,
    title: str = _TITLE,
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Outputs of every utterance by one forward pass, as `collected` takes them.

    Args:
        forward: forward pass from `forward.make_forward`.
        params: the student side's parameters.
        config: the architecture.
        corpus: the utterances.
        batch_samples: padded samples of a batch.
        title: text of the progress bar; empty for none.

    Raises:
        audio.AudioError: a file cannot be used.
        ValueError: one is too short for a frame.
    """

    def standardised(row: Row) -> np.ndarray:
        pcm = audio.read_pcm(row)
        if config.framing.num_frames(len(pcm)) < 1:
            raise ValueError(f"{row.place}: {len(pcm)} samples are too short for a frame")
        return audio.standardised(pcm)

    utterances = _read(corpus, standardised, title)
    return stream(forward, params, config.framing, utterances, batch_samples=batch_samples)


def of_mfcc(corpus: Corpus) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """MFCC of every utterance as features of one layer, as `collected` takes them.

    Raises:
        audio.AudioError: a file cannot be used.
        ValueError: one is too short for a frame.
    """
    from spidr_jax.eval.mfcc import mfcc

    def features(row: Row) -> np.ndarray:
        try:
            return mfcc(audio.read_pcm(row) / np.float32(32_768))
        except ValueError as error:
            raise ValueError(f"{row.place}: {error}") from None

    for fileid, values in _read(corpus, features, _TITLE):
        yield fileid, {"features": values[None]}


def with_kmeans(outputs: Outputs, fitted_on: Outputs, clusters: int, seed: int) -> Outputs:
    """Add k-means units of all features, with centres fitted on those of `fitted_on`.

    Raises:
        ValueError: see `kmeans.fit`.
    """
    arrays = dict(outputs.arrays)
    for (kind, layer), array in outputs.arrays.items():
        if kind == "features":
            centres = kmeans.fit(fitted_on.arrays[kind, layer], clusters, seed)
            arrays["kmeans", layer] = kmeans.assign(array, centres)
    return outputs._replace(arrays=arrays)


def _read(corpus: Corpus, function: Any, title: str) -> Iterator[tuple[str, np.ndarray]]:
    """What the function makes of each row, in order of length, by threads that run ahead."""
    order = np.argsort(corpus.num_samples, kind="stable").tolist()
    rows = [corpus.row(index) for index in order]
    found = parallel.each(lambda i: function(rows[i]), len(rows), jobs=0, title=title)
    return ((row.fileid, values) for row, values in zip(rows, found, strict=True))
