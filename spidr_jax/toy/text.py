"""Sentences for the embedded corpus: a small template grammar over everyday words.

The words are chosen so that every one of the 39 phones occurs, the rare ones often enough to count.
"""

import importlib.resources
import random
from collections.abc import Iterator

# A name in braces is a rule of this grammar or a word class.
RULES = {
    "phrase": [
        "{determiner} {noun}",
        "{determiner} {adjective} {noun}",
        "{number} {adjective} {noun}s",
        "{determiner} {noun} {preposition} {determiner} {noun}",
    ],
    "clause": [
        "{phrase} {verb} {phrase}",
        "{pronoun} {verb} {phrase}",
        "{phrase} {intransitive} {adverb} {preposition} {phrase}",
        "{pronoun} {adverb} {verb} {phrase}",
    ],
    "sentence": [
        "{clause}.",
        "{clause} {time}.",
        "{clause} {conjunction} {clause}.",
        "{time}, {clause}.",
        "{adverb} {clause}, {conjunction} {clause}.",
        "why did {phrase} want {phrase} {time}?",
        "is {phrase} {adjective} or {adjective}?",
    ],
    "time": [
        "in the morning", "at noon", "every thursday", "on the third of july", "before breakfast",
        "after school", "last february", "all through the night", "this weekend", "for an hour",
        "at dusk", "during the voyage", "twelve years ago", "next month",
    ],
}  # fmt: skip
# words.txt: a line for each class
_LINES = (importlib.resources.files("spidr_jax.toy") / "words.txt").read_text().splitlines()
RULES |= {name: words.split() for name, words in (line.split(": ") for line in _LINES)}
MIN_WORDS, MAX_WORDS = 4, 16


def _expand(rule: str, rng: random.Random) -> str:
    text = rng.choice(RULES[rule])
    while "{" in text:
        head, _, rest = text.partition("{")
        name, _, tail = rest.partition("}")
        text = head + _expand(name, rng) + tail
    return text


def sentences(seed: int) -> Iterator[str]:
    """Yield distinct sentences of 4 to 16 words without end, the same ones for the same seed."""
    rng = random.Random(f"sentences {seed}")
    seen: set[str] = set()
    while True:
        text = _expand("sentence", rng)
        if text not in seen and MIN_WORDS <= len(text.split()) <= MAX_WORDS:
            seen.add(text)
            yield text[0].upper() + text[1:]
