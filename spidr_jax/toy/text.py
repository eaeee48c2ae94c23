"""Sentences for the embedded corpus: a small template grammar over everyday words.

The words are chosen so that every one of the 39 phones occurs, the rare ones often enough to count.
"""

import random
from collections.abc import Iterator

WORDS = {
    "determiner": "the a this that every another some my your his her our their each",
    "adjective": (
        "small big red blue green yellow bright dark quiet loud happy sad early late young old "
        "warm cold heavy light smooth rough narrow wide empty full hungry thirsty lazy busy "
        "gentle fierce clever foolish rich poor sharp dull fresh stale sour sweet bitter clean "
        "dirty thin thick royal loyal annoying enjoyable usual casual brown purple gray golden "
        "wooden leather foreign wealthy healthy northern southern curious serious precious "
        "ancient modern simple broken frozen hidden silent orange cheap huge strange large "
        "charming joyful noisy"
    ),
    "noun": (
        "dog cat fox bird horse fish mouse sheep lion tiger bear wolf boy girl child woman man "
        "teacher doctor farmer sailor judge lawyer painter singer writer brother sister mother "
        "father cousin uncle neighbor stranger thief house garden kitchen bedroom office school "
        "church market bridge river mountain valley forest island beach ocean village city garage "
        "mirage treasure measure pleasure leisure vision decision television explosion division "
        "illusion casserole table chair window mirror picture letter book paper pencil basket "
        "bottle hammer engine bicycle train carriage ship boat plane wheel road path field cloud "
        "storm thunder weather shadow sunshine moon star planet coin oil soil voice choice toy "
        "joy noise poison oyster moisture bush cushion sugar wood hook cook foot wool bull "
        "pudding bread butter cheese apple onion potato pepper chocolate coffee juice water milk "
        "honey soup sandwich cabbage king queen prince castle tower bell thing song ring wing "
        "tongue youth tooth mouth truth bath cloth breath feather language question azure beige "
        "rouge zebra puzzle lizard wizard crowd cow owl towel power flower hour"
    ),
    "verb": (
        "saw heard found lost bought sold carried followed watched chased caught pushed pulled "
        "lifted dropped opened closed painted measured cooked washed cleaned fixed broke stole "
        "borrowed shared enjoyed avoided destroyed touched kissed teased praised raised chose "
        "used judged changed arranged reached taught brought shook finished joined boiled spoiled "
        "noticed visited wanted needed loved hated feared ignored remembered forgot described "
        "answered wrote read drew held threw knew grew"
    ),
    "intransitive": (
        "slept waited shouted laughed cried smiled jumped danced swam walked ran travelled "
        "arrived departed disappeared whispered yawned listened worked rested stood sat froze "
        "sang prayed changed exploded rejoiced returned vanished hurried wandered played argued "
        "coughed sneezed"
    ),
    "adverb": (
        "slowly quickly quietly loudly gently carefully easily usually often never always "
        "sometimes suddenly finally together yesterday tomorrow tonight again already almost "
        "nearly simply casually joyfully truly thoroughly early soon"
    ),
    "preposition": (
        "in on under over beside behind near through across toward without around beyond above "
        "below past from with"
    ),
    "number": (
        "two three four five six seven eight nine ten eleven twelve thirteen fifteen twenty "
        "thirty fifty ninety"
    ),
    "conjunction": "and but so because while although unless when before after until",
    "pronoun": (
        "he she they we you i it someone everybody nobody joyce george vivian thomas catherine "
        "roy yolanda zachary"
    ),
}

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
    **{name: words.split() for name, words in WORDS.items()},
}  # fmt: skip
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
