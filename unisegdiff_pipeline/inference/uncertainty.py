"""One number a voxel that says how unsure a prediction is."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unisegdiff_pipeline.core.labels import Coding


def normalised_entropy(probabilities: Tensor, coding: Coding) -> Tensor:
    """Entropy of the mean probability as a fraction of the largest possible, (K, Z, Y, X) => (Z, Y, X) in [0, 1].

    Softmax: entropy over all classes / ln K. One sigmoid channel: binary entropy / ln 2, so 1 at p = 0.5. Regions: the
    largest of their binary entropies.
    """
    return entropies(probabilities, coding).amax(dim=0)


def entropies(probabilities: Tensor, coding: Coding) -> Tensor:
    """The same for every variable by itself, (K, *spatial) => (E, *spatial): E = K for regions, else 1."""
    p = probabilities.float()
    if coding == "softmax":
        return (torch.special.entr(p).sum(dim=0, keepdim=True) / math.log(p.shape[0])).clamp(0, 1)
    return ((torch.special.entr(p) + torch.special.entr(1 - p)) / math.log(2)).clamp(0, 1)
