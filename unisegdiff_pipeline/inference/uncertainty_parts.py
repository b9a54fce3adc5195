"""Where uncertainty comes from: folds that disagree, samples of a fold that disagree, samples that are unsure.

The entropy H of the mean p over all samples is split by the chain rule of mutual information, once over folds f and
once over the samples n of a fold (one level of it: Houlsby et al. 2011, "Bayesian active learning for classification
and preference learning"; Depeweg et al. 2018, "Decomposition of uncertainty in Bayesian deep learning"):

    H(p) = [ H(p) - mean_f H(p_f) ]                       between folds
         + mean_f [ H(p_f) - mean_n H(p_fn) ]             within the samples of a fold
         + mean_f mean_n H(p_fn)                          left open by single samples

with p_f the mean of a fold's samples and p the mean of the p_f. No part is negative. Rules:

- p is the mean of samples; p_det is no part of it. So the three add up to the uncertainty map of the prediction only
  where w is 0 and its grid is that of the image; else parts are interpolated, and the map is not.
- Samples are what the sampler hands out. Of masks, p_fn is 0 or 1 and leaves nothing open: the second part
  is H(p_f), with p_f the mean of the probabilities that the masks were drawn from, which is their expectation. Where
  another sampler samples the masks, p_f is still the mean that enters the prediction.
- A fold without samples stands for its p_det, as one soft sample; so does p_det outside of what was sampled.
- Regions: the parts are those of the region with the largest H(p), whose entropy the uncertainty map shows.
- Few samples differ less than many: with n samples the second part is on average too small, and 0 with one soft sample.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.labels import Coding
from unisegdiff_pipeline.inference.case_prediction import CasePrediction
from unisegdiff_pipeline.inference.uncertainty import entropies


@dataclass(frozen=True)
class UncertaintyParts:
    """Fractions of the largest possible entropy (Z, Y, X), in [0, 1]; None where there is nothing to tell it from.

    Attributes:
        between_folds: None with one fold.
        within_samples: None without samples.
        single_samples: what is left open by each of them; without samples, by p_det of each fold.
    """

    between_folds: Tensor | None
    within_samples: Tensor | None
    single_samples: Tensor


PARTS = tuple(f.name for f in dataclasses.fields(UncertaintyParts))


def require_splittable(num_folds: int, num_samples: int) -> None:
    """Raise a UsdError where a prediction has neither folds nor samples that could disagree."""
    if num_folds == 1 and num_samples == 0:
        raise UsdError(
            "uncertainty is to be split, but the prediction is one fold without samples, which cannot disagree; use "
            "several folds (-f, folds), ask for samples (--samples N, num_samples=N), or leave the split out."
        )


def split_uncertainty(members: Sequence[CasePrediction], coding: Coding) -> UncertaintyParts:
    """Split the uncertainty of one case, given each fold's prediction; one fold's full arrays are made at a time."""
    first = members[0].p_det
    p = torch.zeros(first.shape)  # (K, Z, Y, X)
    of_folds = within = torch.zeros(1)
    for member in members:
        p_f = dataclasses.replace(member, p_det=member.p_det.float()).mean
        p += p_f
        of_folds = of_folds + entropies(p_f, coding)  # (E, Z, Y, X)
        within = within + _within_samples(member, coding)
    number = len(members)
    of_folds, within = of_folds / number, within / number
    total = entropies(p / number, coding)
    chosen = total.argmax(dim=0, keepdim=True)

    def part(values: Tensor) -> Tensor:
        return values.gather(0, chosen)[0].clamp_min(0)  # below 0 by rounding only

    return UncertaintyParts(
        part(total - of_folds) if number > 1 else None,
        part(within) if any(member.num_samples for member in members) else None,
        part(of_folds - within),
    )


def _within_samples(member: CasePrediction, coding: Coding) -> Tensor:
    """H(p_f) - mean_n H(p_fn) of one fold, (E, Z, Y, X); 0 outside of what was sampled, where all p_fn are p_det."""
    channels = len(entropies(member.p_det[:, :1, :1, :1], coding))
    out = torch.zeros((channels, *member.p_det.shape[1:]))
    for box in member.boxes:
        if box.samples is None:
            raise ValueError("samples were not kept; predict with keep_samples=True")
        single = torch.zeros((channels, *box.inside.shape))
        for index in range(len(box.samples)):
            single += entropies(box.samples[index], coding)
        explained = entropies(box.mean, coding) - single / len(box.samples)
        part = out[(slice(None), *box.slices)]
        part.copy_(torch.where(box.inside, explained, part))
    return out
