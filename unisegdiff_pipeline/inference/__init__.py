"""From a trained model and an image to masks, samples and uncertainty."""
