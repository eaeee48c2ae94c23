"""Evaluation of features and units: numpy in, numbers out."""
