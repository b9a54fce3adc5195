"""A start that no data was needed for: pictures of lesions that are generated, and a segmenter trained on them."""
