"""Patches, augmentation, the trainers and their checkpoints."""
