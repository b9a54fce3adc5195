"""What a training reads: splits, patches, augmentation, and the loader over them."""
