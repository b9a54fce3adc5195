"""A self-configuring lesion-segmentation pipeline whose network is a staged diffusion model, after UniSegDiff."""

__version__ = "0.1.0"
