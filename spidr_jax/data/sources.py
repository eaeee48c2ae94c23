"""Sources: the one or several weighted manifests that a run trains on."""

import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from spidr_jax.data.corpus import Corpus, Row, open_manifest


class Source(NamedTuple):
    """A named corpus and its weight: its share of the audio is weight / sum of weights."""

    name: str
    corpus: Corpus
    weight: float = 1.0


class SourceSpec(NamedTuple):
    """What one entry of `data.sources` says."""

    name: str
    manifest: str
    weight: float


def parse_sources(text: str) -> list[SourceSpec]:
    """Read "name:manifest:weight,..." (the manifest may itself hold colons, as URLs do).

    Raises:
        ValueError: naming the entry and what is wrong with it.
    """
    specs = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, _, rest = entry.partition(":")
        manifest, _, number = rest.rpartition(":")
        if not name or not manifest:
            raise ValueError(f"data.sources: {entry!r} is not name:manifest:weight")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not 0 < weight < math.inf:
            raise ValueError(f"data.sources: {entry!r}: weight {number!r} is not a number above 0")
        specs.append(SourceSpec(name, manifest, weight))
    names = [spec.name for spec in specs]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"data.sources: the name {twice[0]!r} stands twice")
    if not specs:
        raise ValueError("data.sources: no entry; it is name:manifest:weight,...")
    return specs


def open_sources(manifest: str | None, sources: str | None) -> list[Source]:
    """Open what `data.manifest` or `data.sources` names, whichever is set.

    Raises:
        ValueError: where both or none is set, an entry is malformed, or a manifest is.
        FileNotFoundError: where a manifest does not exist.
    """
    if manifest and sources:
        raise ValueError("data.manifest and data.sources are both set: leave one of them empty")
    if not manifest and not sources:
        raise ValueError("neither data.manifest nor data.sources is set: name a manifest")
    if manifest:
        return [Source(os.path.basename(manifest), open_manifest(manifest))]
    return [
        Source(spec.name, open_manifest(spec.manifest), spec.weight)
        for spec in parse_sources(sources or "")
    ]


class Rows:
    """All sources' rows under one running index, the one that a plan's batches hold."""

    def __init__(self, sources: Sequence[Source]) -> None:
        """Number the rows of the sources one after another."""
        self._corpora = [source.corpus for source in sources]
        self._starts = np.cumsum([0, *(len(corpus) for corpus in self._corpora)])

    def __getitem__(self, index: int) -> Row:
        """Give the row of utterance `index`."""
        source = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._corpora[source].row(int(index - self._starts[source]))
