"""From raw images to arrays a patch can be read from: crop, normalise, resample, store."""
