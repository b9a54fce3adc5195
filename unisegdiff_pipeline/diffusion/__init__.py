"""The mathematics of the staged diffusion as pure functions; no files, no networks, no loops over data."""
