"""Scores of masks and probabilities, with one rule for empty masks."""
