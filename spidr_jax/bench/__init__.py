"""Measurements of what a run's speed depends on."""
