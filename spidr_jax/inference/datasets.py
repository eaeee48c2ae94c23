"""Evaluation sets: corpora with phone alignments and ABX items."""

import os.path
from typing import Any, NamedTuple

from spidr_jax.data.corpus import Corpus, open_manifest
from spidr_jax.data.sources import parse_named
from spidr_jax.eval.alignment import FRAMES_PER_SECOND, read_alignment
from spidr_jax.eval.items import Items, read_items


class EvaluationSet(NamedTuple):
    """A named corpus with phones, ABX items or both.

    Attributes:
        name: name in logs.
        corpus: the utterances.
        phones: phones of each file, one every 10 ms, or None.
        items: items of an ABX task, or None.
        frames_per_second: rate of the outputs that it is for.
    """

    name: str
    corpus: Corpus
    phones: dict[str, Any] | None
    items: Items | None = None
    frames_per_second: float = FRAMES_PER_SECOND


class Spec(NamedTuple):
    """An entry of `config.evaluation`: a set's name and the paths of its files."""

    name: str
    manifest: str
    alignment: str | None
    item: str | None


def parse_sets(text: str) -> list[Spec]:
    """Read "name:manifest:alignment:item,..."; either the alignment or the item may be left out.

    Raises:
        ValueError: naming the entry and what is wrong with it.
    """
    form = (
        "name:manifest:alignment:item (name:manifest:alignment without ABX, name:manifest::item "
        "without phones)"
    )
    sets = []
    for name, rest in parse_named(text, "evaluation", form).items():
        manifest, alignment, item, *more = [*rest.split(":"), "", ""]
        if not manifest or not (alignment or item) or any(more):
            raise ValueError(f"config.evaluation: '{name}:{rest}' is not {form}")
        sets.append(Spec(name, manifest, alignment or None, item or None))
    return sets


def open_sets(text: str, frames_per_second: float = FRAMES_PER_SECOND) -> list[EvaluationSet]:
    """Open what `parse_sets` reads, for outputs of a rate.

    Raises:
        ValueError: an entry is malformed, or a set's files are or do not fit each other.
        FileNotFoundError: a file is missing.
    """
    sets = []
    for spec in parse_sets(text):
        try:
            sets.append(open_set(*spec, frames_per_second))
        except FileNotFoundError as error:
            reason = f"{error.filename}: there is no such file" if error.filename else str(error)
            raise FileNotFoundError(f"config.evaluation: {spec.name}: {reason}") from None
        except ValueError as error:
            raise ValueError(f"config.evaluation: {spec.name}: {error}") from None
    return sets


def open_set(
    name: str,
    manifest: str,
    alignment: str | None = None,
    item: str | None = None,
    frames_per_second: float = FRAMES_PER_SECOND,
) -> EvaluationSet:
    """Open a corpus with its alignment, its ABX items, or both, for outputs of a rate.

    Raises:
        ValueError: an utterance has no alignment, an item's file is no utterance, or a file is
            malformed.
        FileNotFoundError: a file is missing.
    """
    alignment, item = (path and os.path.expanduser(path) for path in (alignment, item))
    corpus = open_manifest(manifest)
    phones = None if alignment is None else read_alignment(alignment)
    known = {row.fileid for row in corpus}
    if phones is not None and (missing := sorted(known - phones.keys())):
        raise ValueError(f"{alignment}: has no phones of {missing[0]!r} of {manifest}")
    found = None if item is None else read_items(item, frames_per_second)
    if found is not None and (missing := sorted(set(found.fileid.tolist()) - known)):
        raise ValueError(f"{item}: {missing[0]!r} is no utterance of {manifest}")
    return EvaluationSet(name, corpus, phones, found, frames_per_second)
