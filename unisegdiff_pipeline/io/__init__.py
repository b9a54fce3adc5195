"""Reading and writing: images, labels, dataset.json, strict JSON, paths, and running work over cases."""
