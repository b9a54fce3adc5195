"""A prediction made by hand: a 2 x 3 x 4 image whose first column is empty, and two samples of its one lesion."""

from __future__ import annotations

import numpy as np
import torch

from unisegdiff_pipeline.core.geometry import Geometry, Volume
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.inference.case_prediction import CasePrediction, SampledBox, SamplingFacts
from unisegdiff_pipeline.inference.ensemble import EnsemblePrediction
from unisegdiff_pipeline.planning.plans import PreprocessingPlan
from unisegdiff_pipeline.preprocessing.preprocessor import preprocess_image
from unisegdiff_pipeline.preprocessing.properties import CaseProperties

SPACING_MM = (5.0, 2.0, 1.0)  # 10 mm3 a voxel
SOFTMAX = LabelScheme(("lesion",), ((7,),), "softmax", (7,))


def case_by_hand() -> CaseProperties:
    """What is known of the image; its crop box leaves the first column out."""
    image = np.ones((1, 2, 3, 4), np.float32)
    image[..., 0] = 0
    plan = PreprocessingPlan((0, 1, 2), SPACING_MM, ("zscore",), (False,), ())
    _, properties = preprocess_image(Volume(image, Geometry(SPACING_MM)), plan, "a")
    assert properties.crop_box == ((0, 2), (0, 3), (1, 4))
    return properties


def prediction_by_hand() -> EnsemblePrediction:
    """Probability of the lesion: 3/4 at (0, 1, 1), 1/2 at (0, 1, 2) of the cropped image, 0 elsewhere.

    The first sample holds both voxels, the second the first of them alone.
    """
    samples = torch.zeros(2, 2, 2, 3, 3)
    samples[:, 1, 0, 1, 1] = 1
    samples[0, 1, 0, 1, 2] = 1
    samples[:, 0] = 1 - samples[:, 1]
    p_det = torch.zeros(2, 2, 3, 3)
    p_det[1, 0, 1, 1:] = 0.5
    p_det[0] = 1 - p_det[1]
    everywhere = (slice(0, 2), slice(0, 3), slice(0, 3))
    box = SampledBox(everywhere, torch.ones(2, 3, 3, dtype=torch.bool), samples.mean(dim=0), samples.half())
    facts = SamplingFacts(1, 1, 0, 0.0, 0.0)
    return EnsemblePrediction((CasePrediction(p_det, (box,), 2, 0.5, facts),), ((0, 0), (0, 1)), facts)
