"""Coarser spacing for slices on a CPU: a whole image at lower resolution beats small parts of it at full resolution.

The limit are the objects: each class must stay so thick that its shape is still drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from unisegdiff_pipeline.fingerprint import LesionSummary
from unisegdiff_pipeline.planning.plans import NetworkPlan
from unisegdiff_pipeline.planning.sizing import Sizer

MEDIAN_THICKNESS_VOX = 8.0
LOW_THICKNESS_VOX = 3.0  # 10th percentile
_MAX_FACTOR = 4.0
_STEP = 1.05
_FACTORS_COMPARED = 3


@dataclass(frozen=True)
class CoarsePlane:
    """Factor on the in-plane spacing; `network` covers the median image there, None if none within the budget does."""

    factor: float
    network: NetworkPlan | None
    reason: str


def coarsen_in_plane(
    sizer: Sizer, lesions: Sequence[LesionSummary], spacing: tuple[float, float], shape: tuple[float, float]
) -> CoarsePlane:
    """The finest in-plane spacing (Y, X) at which a patch within the budget covers the median image.

    Of the first factor that does and the next two the one is taken that fills its patch best: patches are multiples
    of 32 or so, and what they hold beyond the image is wasted.
    """
    limit, limit_reason = coarsening_limit(lesions, max(spacing))
    found: list[tuple[float, NetworkPlan]] = []
    for factor in _factors_up_to(limit):
        network = sizer.whole_image_network(_divided(spacing, 1 / factor), _divided(shape, factor))
        if network is not None:
            found.append((factor, network))
        if len(found) == _FACTORS_COMPARED or (found and found[0][0] == 1.0):
            break
    if not found:
        return CoarsePlane(limit, None, f"in-plane spacing of the data{_made_coarser(limit)}; {limit_reason}")
    factor, best = max(found, key=lambda f: math.prod(_divided(shape, f[0])) / math.prod(f[1].patch_size))
    return CoarsePlane(
        factor, best, f"in-plane spacing of the data{_made_coarser(factor)}; a patch covers the median image"
    )


def coarsening_limit(lesions: Sequence[LesionSummary], spacing_mm: float) -> tuple[float, str]:
    """Largest factor on `spacing_mm` at which the objects of every class stay resolved, and what sets it."""
    limit, reason = _MAX_FACTOR, f"{_MAX_FACTOR:g} times is the limit; the patch was shrunk instead"
    for lesion in lesions:
        allowed = _coarsest_spacing_mm(lesion) / spacing_mm
        if allowed < limit:
            limit = max(1.0, math.floor(allowed * 1e4) / 1e4)
            reason = (
                f"not coarser, because {lesion.class_name} would be thinner than {MEDIAN_THICKNESS_VOX:g} voxels in "
                f"the median or {LOW_THICKNESS_VOX:g} in the 10th percentile; the patch was shrunk instead"
            )
    return limit, reason


def resolving_limit(lesions: Sequence[LesionSummary], spacing_mm: float) -> float:
    """Largest factor from 1 on `spacing_mm` at which the objects of every class stay resolved; infinite without any."""
    return max(1.0, min((_coarsest_spacing_mm(lesion) / spacing_mm for lesion in lesions), default=math.inf))


def all_resolved(lesions: Sequence[LesionSummary], spacing_mm: float) -> bool:
    """Whether the objects of every class are thick enough at a spacing."""
    return all(_coarsest_spacing_mm(lesion) >= spacing_mm for lesion in lesions)


def _coarsest_spacing_mm(lesion: LesionSummary) -> float:
    thickness_mm = lesion.main_thickness_mm
    if thickness_mm is None:
        return math.inf
    return min(thickness_mm.p50 / MEDIAN_THICKNESS_VOX, thickness_mm.p10 / LOW_THICKNESS_VOX)


def _factors_up_to(limit: float) -> list[float]:
    steps = int(math.log(limit) / math.log(_STEP))
    factors = [round(_STEP**i, 4) for i in range(steps + 1)]
    return factors if factors[-1] >= limit else [*factors, limit]


def _divided(values: tuple[float, float], factor: float) -> tuple[float, float]:
    return values[0] / factor, values[1] / factor


def _made_coarser(factor: float) -> str:
    return "" if factor == 1.0 else f", made {factor:g} times coarser for the CPU"
