"""Scores as public challenges count them: one module a challenge, the table of all in `registry`."""
