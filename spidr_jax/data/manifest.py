"""Manifests: the public face of `corpus`."""

from spidr_jax.data.corpus import Corpus, Row, open_manifest

__all__ = ["Corpus", "Row", "open_manifest"]
