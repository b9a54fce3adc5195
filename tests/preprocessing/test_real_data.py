"""A few real cases: what preprocessing keeps of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unisegdiff_pipeline.io.images import read_image, read_labels
from unisegdiff_pipeline.io.raw_dataset import open_raw_dataset
from unisegdiff_pipeline.planning.plans import IntensityStatistics, Normalization, PreprocessingPlan
from unisegdiff_pipeline.preprocessing.preprocessor import preprocess_image, preprocess_labels
from unisegdiff_pipeline.preprocessing.restore import restore_labels

STATISTICS = IntensityStatistics(0, 1, 0, 0, 1, 0, 1)


@pytest.mark.parametrize(
    ("dataset", "spacing", "scheme", "least_dice"),
    [
        ("Dataset004_Hippocampus", (1.0, 1.0, 1.0), "zscore", 1.0),
        ("Dataset101_BUSI", (None, 4.0, 4.0), "zscore", 0.92),
        ("Dataset102_Polyp", (None, 2.0, 2.0), "rgb_to_0_1", 0.96),
    ],
)
def test_there_and_back(raw_data: Path, dataset: str, spacing: tuple, scheme: Normalization, least_dice: float) -> None:
    raw = open_raw_dataset(raw_data / dataset)
    channels = len(raw.description.channel_names)
    plan = PreprocessingPlan((0, 1, 2), spacing, (scheme,) * channels, (False,) * channels, (STATISTICS,) * channels)
    for case in raw.cases[:3]:
        assert case.label_path is not None
        labels = read_labels(case.label_path).array
        image, properties = preprocess_image(read_image(case.image_paths), plan, case.case_id)
        assert image.shape == (channels, *properties.shape)
        if scheme == "zscore":
            assert abs(float(image.mean())) < 0.1
            assert 0.7 < float(image.std()) < 1.05
        else:
            assert 0 <= image.min() < image.max() <= 1
        rows = preprocess_labels(labels, properties)
        restored = restore_labels(raw.description.labels.encode(rows[0]), properties, raw.description.labels)
        for (_, before), (_, after) in zip(
            raw.description.labels.class_masks(labels[0]), raw.description.labels.class_masks(restored), strict=True
        ):
            overlap = 2 * np.count_nonzero(before & after)
            assert overlap >= least_dice * (np.count_nonzero(before) + np.count_nonzero(after))
