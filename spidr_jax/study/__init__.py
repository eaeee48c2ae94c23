"""Sweeps: one config under several values and seeds, compared."""
