"""The embedded speech corpus: synthetic speakers with exact phone times, without a download."""

from spidr_jax.toy.corpus import make_corpus

__all__ = ["make_corpus"]
