"""What all folds say of a case, row by row: whole arrays of a large volume do not fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from unisegdiff_pipeline.core.labels import Coding, LabelScheme
from unisegdiff_pipeline.core.scratch import Scratch
from unisegdiff_pipeline.inference.case_prediction import CasePrediction, SamplingFacts
from unisegdiff_pipeline.inference.cases import PresenceCalibration
from unisegdiff_pipeline.inference.decision import NEUTRAL, ExpectedDice, shift_threshold
from unisegdiff_pipeline.inference.lesion_filter import NO_FILTER, LesionFilter
from unisegdiff_pipeline.inference.uncertainty_parts import PARTS, split_uncertainty
from unisegdiff_pipeline.preprocessing.lazy_rows import LazyRows


@dataclass(frozen=True)
class EnsemblePrediction:
    """Prediction of one case by all folds on the plan's grid.

    Attributes:
        members: the folds' predictions.
        sample_places: (member, index there) of every sample.
        mean: mean probabilities over the folds (K, Z, Y, X), where there are several; one fold's are put together.
        threshold: of the probabilities, above which a voxel is in the mask.
        lesion_filter: which lesions of the mask stay in it.
        case_calibration: of the probability that the case holds any lesion.
        scratch: where the arrays of this case live.
    """

    members: tuple[CasePrediction, ...]
    sample_places: tuple[tuple[int, int], ...]
    facts: SamplingFacts
    mean: Tensor | None = None
    threshold: float = NEUTRAL
    lesion_filter: LesionFilter = NO_FILTER
    case_calibration: PresenceCalibration | None = None
    scratch: Scratch = field(default_factory=Scratch)

    @property
    def probabilities(self) -> LazyRows:
        """Final probabilities (K, Z, Y, X)."""
        return self._lazy(self._probabilities)

    def decided(self, coding: Coding) -> LazyRows:
        """Probabilities to decode into the mask (K, Z, Y, X)."""
        return self._lazy(lambda a, b: shift_threshold(self._probabilities(a, b), self.threshold, coding))

    def samples(self) -> Iterator[LazyRows]:
        """Probabilities of each sample (K, Z, Y, X)."""
        for member, index in self.sample_places:
            prediction = self.members[member]
            yield self._lazy(partial(_sample_rows, prediction, index))

    def uncertainty_parts(self, coding: Coding) -> dict[str, Tensor]:
        """What folds and samples contribute to the uncertainty, (Z, Y, X) each, those that there are."""
        parts: dict[str, Tensor] = {}
        shape = self.members[0].p_det.shape
        for first, last in self.probabilities.slabs():
            split = split_uncertainty([member.rows(first, last) for member in self.members], coding)
            for name in PARTS:
                values = getattr(split, name)
                if values is not None:
                    if name not in parts:
                        parts[name] = torch.from_numpy(self.scratch.empty(shape[1:]))
                    parts[name][first:last] = values
            self.scratch.release()
        return parts

    def best_threshold(self, scheme: LabelScheme) -> float:
        """The threshold with the highest expected Dice; see `decision`."""
        dice = ExpectedDice(scheme)
        for first, last in self.probabilities.slabs():
            drawn = (sample.rows(first, last) for sample in self.samples())
            dice.add(self._probabilities(first, last), (scheme.decode(rows.numpy()) for rows in drawn))
            self.scratch.release()
        return dice.best()

    def _probabilities(self, first: int, last: int) -> Tensor:
        if self.mean is not None:
            return self.mean[:, first:last]
        return self.members[0].rows(first, last).probabilities()

    def _lazy(self, make: Callable[[int, int], Tensor]) -> LazyRows:
        def rows(first: int, last: int) -> Tensor:
            self.scratch.release()  # what was touched for earlier rows
            return make(first, last)

        return LazyRows(tuple(self.members[0].p_det.shape), rows)


def _sample_rows(prediction: CasePrediction, index: int, first: int, last: int) -> Tensor:
    return prediction.rows(first, last).sample(index)
