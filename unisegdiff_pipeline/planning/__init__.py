"""Decisions made once per data set: spacing, patch, topology, batch and stage boundaries."""
