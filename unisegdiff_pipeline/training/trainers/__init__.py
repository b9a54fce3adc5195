"""The trainers: the segmenter alone, the staged diffusion model, and its ablations."""
