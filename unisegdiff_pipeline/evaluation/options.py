"""What can be chosen in an evaluation; every choice is written into summary.json."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.units import VOLUMES, Units
from unisegdiff_pipeline.evaluation.lesion_matching import MatchingRule

CaseConfidence = Literal["samples", "probabilities", "uncertainty"]
CASE_CONFIDENCE: dict[CaseConfidence, str] = {
    "samples": "mean Dice between the samples of the case",
    "probabilities": "expected Dice of the mask by its own probabilities over the whole image",
    "uncertainty": "1 - mean uncertainty within the predicted mask",
}

LesionConfidence = Literal["samples", "probabilities"]
LESION_CONFIDENCE: dict[LesionConfidence, str] = {
    "samples": "fraction of the samples that overlap the lesion",
    "probabilities": "mean probability within the lesion",
}


@dataclass(frozen=True)
class EvaluationOptions:
    """Choices of an evaluation: tolerances, matching of lesions, strata of their sizes, intervals.

    Example:
        >>> options = usd.EvaluationOptions(tolerances_mm=(0.5,), rule=usd.MatchingRule("dilated", dilation_mm=2.0))
        >>> one, other = np.array([[1, 0, 0]]), np.array([[0, 1, 0]])
        >>> usd.evaluate(one, other, spacing_mm=(1.0, 1.0), options=options).classes[0].boundary.surface_dice
        (0.0,)

    Attributes:
        tolerances_mm: of surface Dice, one column each.
        rule: when a predicted lesion counts as matched to a reference lesion.
        strata_edges_ml: inner edges of the lesions' size strata, of 2D images areas in the unit of
            the data set; None = thirds of the reference lesions of each class.
        resamples: bootstrap draws of each interval; 0 = no intervals.
        level: fraction of the intervals.
        seed: of the bootstrap and of ties in the rank histogram.
        subset: of folders, score only the cases that the prediction and all runs in `against` hold; otherwise a
            reference that one of them lacks is an error.
        against: folders of other predictions to compare with on the same cases; what else they hold is left out.
        probabilities, samples, raters, uncertainty: folders that belong to the masks of folders; None takes those in
            the default places, see `evaluation.inputs`. A folder that is named must serve every case.
        groups: groups.csv, cases of one patient; None takes the one beside the references.
        profiles: names of challenges by whose rules the masks are scored as well; see `evaluation.profiles.registry`.
        min_lesion_ml: smaller lesions do not count in the profile panoptic, of 2D images an area.
        workers: processes that score folders; 0 works in this one, None decides by the amount of data. The result is
            the same.
        scheduler: address of a Dask scheduler whose workers score folders instead; they see the same files at the same
            paths.

    Raises:
        ValueError: for a value outside what is allowed; before anything is scored, which may take hours.
    """

    tolerances_mm: tuple[float, ...] = (1.0, 2.0)
    rule: MatchingRule = field(default_factory=MatchingRule)
    strata_edges_ml: tuple[float, ...] | None = None
    resamples: int = 2000
    level: float = 0.95
    seed: int = 0
    subset: bool = False
    against: tuple[Path | str, ...] = ()
    probabilities: Path | str | None = None
    samples: Path | str | None = None
    raters: Path | str | None = None
    uncertainty: Path | str | None = None
    groups: Path | str | None = None
    profiles: tuple[str, ...] = ()
    min_lesion_ml: float = 0.0
    workers: int | None = None
    scheduler: str | None = None

    def __post_init__(self) -> None:
        for name in ("against", "profiles"):
            if isinstance(value := getattr(self, name), (str, Path)):
                raise ValueError(f"{name} is {str(value)!r}; give a tuple, ({str(value)!r},)")
        names = [f"{tolerance:g}" for tolerance in self.tolerances_mm]
        if not all(0 <= tolerance < math.inf for tolerance in self.tolerances_mm) or len(set(names)) < len(names):
            raise ValueError(
                f"tolerances_mm is {self.tolerances_mm}; give distances of 0 or more that differ in six digits, "
                f"by which columns are named"
            )
        bounds = (0.0, *(self.strata_edges_ml or ()), math.inf)
        if not all(low < high for low, high in itertools.pairwise(bounds)):  # also for an edge that is not a number
            raise ValueError(f"strata_edges_ml is {self.strata_edges_ml}; give positive sizes in ascending order")
        if not 0 < self.level < 1:
            raise ValueError(f"level is {self.level}; give a fraction between 0 and 1, such as 0.95")
        for name in ("resamples", "seed", "min_lesion_ml", "workers"):
            if (value := getattr(self, name)) is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}; give a number of 0 or more")


@dataclass(frozen=True)
class CaseSettings:
    """What scoring one case depends on besides its files.

    Attributes:
        scheme: classes or regions.
        spacing_known: False says that distances and volumes are nominal, and sets the margin of the region in which
            probabilities are judged by the size of the image.
        check_values: refuse label values that the scheme does not know.
        tolerances_mm, rule: see `EvaluationOptions`.
        rater_tolerances_mm: per class a further tolerance of surface Dice, by the distance between raters; empty
            without raters.
        source_tolerances_mm: of a unified data set the same for each source that has raters, in place of it.
        confidence: what the confidence of a case is taken from; None = there is nothing to take it from.
        lesion_confidence: the same of a predicted lesion; the lesions of a case without it have none.
        units: what sizes and distances are measured in.
        profiles, min_lesion_ml: see `EvaluationOptions`.
    """

    scheme: LabelScheme
    spacing_known: bool = True
    check_values: bool = True
    tolerances_mm: tuple[float, ...] = (1.0, 2.0)
    rule: MatchingRule = field(default_factory=MatchingRule)
    rater_tolerances_mm: tuple[float, ...] = ()
    source_tolerances_mm: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    confidence: CaseConfidence | None = None
    lesion_confidence: LesionConfidence | None = None
    units: Units = VOLUMES
    profiles: tuple[str, ...] = ()
    min_lesion_ml: float = 0.0
