"""Names of the files that a prediction writes beside its masks, and that evaluation and ensembles read."""

LESIONS = "lesions.csv"
VOLUMES = "volumes.csv"
CASES = "cases.csv"
MANIFEST = "manifest.json"
SUMMARY_FILES = (LESIONS, VOLUMES, CASES, MANIFEST)
