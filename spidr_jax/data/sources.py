"""Sources: the one or several weighted manifests that a run trains on."""

import math
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from spidr_jax.data.corpus import Corpus, Row, open_manifest


class Source(NamedTuple):
    """A named corpus and its weight: its share of the audio is weight / sum of weights."""

    name: str
    corpus: Corpus
    weight: float = 1.0


def parse_named(text: str, field: str, form: str) -> dict[str, str]:
    """Read "name:value,..." into values by name.

    A comma belongs to a value unless a name and a colon follow it, as paths may hold commas.

    Args:
        text: the entries.
        field: config field of the text, for messages.
        form: form of an entry, for messages.

    Raises:
        ValueError: an entry is malformed, or a name is given twice.
    """
    found: dict[str, str] = {}
    for entry in filter(None, re.split(r"\s*,\s*(?=[\w-]+:|$)", text.strip())):
        name, _, value = entry.partition(":")
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or not value:
            raise ValueError(f"config.{field}: {entry!r} is not {form}")
        if name in found:
            raise ValueError(f"config.{field}: the name {name!r} is given twice")
        found[name] = value
    return found


def parse_sources(text: str) -> dict[str, tuple[str, float]]:
    """Read "name:manifest:weight,..." into manifests and weights by name.

    Raises:
        ValueError: naming the entry and what is wrong with it.
    """
    found = {}
    for name, rest in parse_named(text, "data.sources", "name:manifest:weight").items():
        manifest, _, number = rest.rpartition(":")
        try:
            weight = float(number) if manifest else math.nan
        except ValueError:
            weight = math.nan
        if not 0 < weight < math.inf:
            raise ValueError(
                f"config.data.sources: {name}:{rest} is not name:manifest:weight with a weight "
                "above 0"
            )
        found[name] = manifest, weight
    if not found:
        raise ValueError(f"config.data.sources = {text!r} holds no entry: name:manifest:weight,...")
    return found


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
        Source(name, open_manifest(manifest), weight)
        for name, (manifest, weight) in parse_sources(sources or "").items()
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
