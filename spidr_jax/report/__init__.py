"""A picture of a run, or of several beside each other: one HTML file that opens offline."""

from spidr_jax.report.page import draw, write

__all__ = ["draw", "write"]
