"""A model in use: one utterance, a batch, a stream, a corpus."""
