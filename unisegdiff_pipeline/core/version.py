"""Version of the package, for all that is written; a leaf, so that whatever names it imports nothing else."""

__version__ = "0.1.0"
