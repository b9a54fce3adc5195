"""The split of uncertainty on a few voxels, worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.inference.case_prediction import CasePrediction, SampledBox, SamplingFacts
from unisegdiff_pipeline.inference.uncertainty import normalised_entropy
from unisegdiff_pipeline.inference.uncertainty_parts import require_splittable, split_uncertainty

FACTS = SamplingFacts(1, 1, 0, 0.0, 0.0)


def h(p: float) -> float:
    """Binary entropy in bits."""
    return 0.0 if p in (0, 1) else -p * math.log2(p) - (1 - p) * math.log2(1 - p)


def line(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(1, 1, 1, -1)


def fold(
    p_det: Tensor, *samples: Tensor, soft: Tensor | None = None, first: int = 0, segmenter_weight: float = 0.5
) -> CasePrediction:
    """A fold whose samples lie in the voxels `first` .. of a line; `soft` is their mean where they are masks."""
    if not samples:
        return CasePrediction(p_det, (), 0, segmenter_weight, FACTS)
    stacked = torch.stack(samples)
    width = stacked.shape[-1]
    slices = (slice(0, 1), slice(0, 1), slice(first, first + width))
    mean = stacked.mean(dim=0) if soft is None else soft
    box = SampledBox(slices, torch.ones(1, 1, width, dtype=torch.bool), mean, stacked.half())
    return CasePrediction(p_det, (box,), len(samples), segmenter_weight, FACTS)


def test_two_folds_of_two_soft_samples() -> None:
    """Voxel 0: folds differ, samples do not. 1: samples of a fold differ, folds do not. 2: all say 0.5. 3: both."""
    anything = line(0.3, 0.3, 0.3, 0.3)
    a = fold(anything, line(0, 0, 0.5, 0), line(0, 1, 0.5, 0.5))
    b = fold(anything, line(1, 0, 0.5, 1), line(1, 1, 0.5, 0.5))
    parts = split_uncertainty([a, b], "binary")
    assert parts.between_folds is not None
    assert parts.within_samples is not None
    # Voxel 3: p_f = 0.25 and 0.75, p = 0.5; H(p_fn) = 0, 1, 0, 1.
    assert parts.between_folds.ravel().tolist() == pytest.approx([1, 0, 0, 1 - h(0.25)], abs=1e-6)
    assert parts.within_samples.ravel().tolist() == pytest.approx([0, 1, 0, h(0.25) - 0.5], abs=1e-6)
    assert parts.single_samples.ravel().tolist() == pytest.approx([0, 0, 1, 0.5], abs=1e-6)


def test_parts_add_up_to_the_entropy_of_the_mean_of_samples() -> None:
    generator = torch.Generator().manual_seed(0)

    def random() -> Tensor:
        return torch.rand(3, 1, 1, 50, generator=generator).softmax(dim=0).mul(3).softmax(dim=0)

    folds = [fold(random(), *(random() for _ in range(n)), segmenter_weight=0.0) for n in (3, 2)]
    parts = split_uncertainty(folds, "softmax")
    assert parts.between_folds is not None
    assert parts.within_samples is not None
    total = normalised_entropy((folds[0].probabilities() + folds[1].probabilities()) / 2, "softmax")
    added = parts.between_folds + parts.within_samples + parts.single_samples
    assert torch.allclose(added, total, atol=2e-3)  # samples are kept in half precision
    for part in (parts.between_folds, parts.within_samples, parts.single_samples):
        assert part.shape == (1, 1, 50)
        assert part.min() >= 0


def test_drawn_masks_leave_nothing_open() -> None:
    """Both masks happen to be 1 where their probabilities were 0.75 in the mean: the probabilities count."""
    parts = split_uncertainty([fold(line(0.5), line(1), line(1), soft=line(0.75))], "binary")
    assert parts.between_folds is None
    assert parts.within_samples is not None
    assert float(parts.within_samples) == pytest.approx(h(0.75))
    assert float(parts.single_samples) == 0


def test_outside_of_what_was_sampled_p_det_stands() -> None:
    a = fold(line(0.5, 0.25), line(1), line(0), first=0)
    b = fold(line(0.5, 0.75), line(1), line(0), first=0)
    parts = split_uncertainty([a, b], "binary")
    assert parts.between_folds is not None
    assert parts.within_samples is not None
    assert parts.between_folds.ravel().tolist() == pytest.approx([0, 1 - h(0.25)], abs=1e-6)
    assert parts.within_samples.ravel().tolist() == pytest.approx([1, 0], abs=1e-6)
    assert parts.single_samples.ravel().tolist() == pytest.approx([0, h(0.25)], abs=1e-6)


def test_a_fold_without_samples_stands_for_its_p_det() -> None:
    """p_f = 0.5 of two opposite samples and 0 of p_det, so p = 0.25."""
    parts = split_uncertainty([fold(line(0.9), line(0), line(1)), fold(line(0))], "binary")
    assert parts.between_folds is not None
    assert parts.within_samples is not None
    assert float(parts.between_folds) == pytest.approx(h(0.25) - 0.5, abs=1e-6)
    assert float(parts.within_samples) == pytest.approx(0.5, abs=1e-6)
    assert float(parts.single_samples) == pytest.approx(0, abs=1e-6)


def test_plain_segmenters_have_no_samples_to_differ() -> None:
    parts = split_uncertainty([fold(line(0.25)), fold(line(0.75).half())], "binary")
    assert parts.within_samples is None
    assert parts.between_folds is not None
    assert float(parts.between_folds) == pytest.approx(1 - h(0.25))
    assert float(parts.single_samples) == pytest.approx(h(0.25))


def test_regions_take_the_parts_of_the_least_sure() -> None:
    """Whole: samples 0 and 1, p = 0.5. Core: 0.25 in both, H = 0.81 < 1, which must not be mixed in."""

    def regions(whole: float, core: float) -> Tensor:
        return torch.tensor([whole, core]).reshape(2, 1, 1, 1)

    parts = split_uncertainty([fold(regions(0.5, 0.5), regions(0, 0.25), regions(1, 0.25))], "regions")
    assert parts.within_samples is not None
    assert float(parts.within_samples) == pytest.approx(1)
    assert float(parts.single_samples) == pytest.approx(0)


def test_one_fold_without_samples_is_refused() -> None:
    require_splittable(2, 0)
    require_splittable(1, 2)
    with pytest.raises(UsdError, match=r"one fold without samples, which cannot disagree; use several folds"):
        require_splittable(1, 0)
