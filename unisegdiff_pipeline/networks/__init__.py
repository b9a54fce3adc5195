"""The planned U-Net, its use as condition network, and the denoiser."""
