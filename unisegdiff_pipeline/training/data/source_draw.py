"""Which source of a unified data set a training example comes from, and what that means for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.io.sources import cases_by_source, repeated_channels
from unisegdiff_pipeline.planning.plans import ConfigurationPlan, PreprocessingPlan


@dataclass(frozen=True)
class SourceDraw:
    """The sources that cases are drawn from.

    Attributes:
        index_of: case => row of its source in the network's tables.
        cases: of each source that has any.
        probabilities: of drawing each of these sources.
        masked: of each source of the plan, see `masked_channels`.
        annotated: of each source of the plan, which coded channels it says anything about.
        hidden_fraction: examples whose source the network is not told.
    """

    index_of: dict[str, int]
    cases: tuple[tuple[str, ...], ...]
    probabilities: tuple[float, ...]
    masked: tuple[list[int], ...]
    annotated: tuple[tuple[bool, ...], ...]
    hidden_fraction: float

    @classmethod
    def of(cls, configuration: ConfigurationPlan, case_ids: Sequence[str], hiding: bool) -> SourceDraw | None:
        """The sources of some cases by a plan; None for an ordinary data set.

        Raises:
            UsdError: the plan does not know the source of a case.
        """
        sources = configuration.sources
        if sources is None:
            return None
        found = cases_by_source(case_ids)
        for name in found.keys() - sources.plans.keys():
            raise UsdError(
                f"case {found[name][0]!r} is of a source {name!r} that the plan of configuration {configuration.name} "
                f"does not have; its sources are {', '.join(sources.plans)}. Plan and preprocess again."
            )
        drawn = {name: tuple(found[name]) for name in sources.plans if name in found}
        weights = np.array([float(max(1, sources.plans[name].num_images)) ** sources.temperature for name in drawn])
        width = configuration.network.num_input_channels
        return cls(
            {case: sources.index(name) for name, cases in drawn.items() for case in cases},
            tuple(drawn.values()),
            tuple((weights / weights.sum()).tolist()),
            tuple(masked_channels(plan.preprocessing, width) for plan in sources.plans.values()),
            tuple(plan.annotated for plan in sources.plans.values()),
            sources.unknown_fraction if hiding else 0.0,
        )

    def draw_cases(self, rng: np.random.Generator) -> tuple[str, ...]:
        """The cases of a source that is drawn."""
        return self.cases[rng.choice(len(self.cases), p=self.probabilities)]

    def hides(self, rng: np.random.Generator) -> bool:
        """Whether an example is to be learned without its source."""
        return bool(rng.random() < self.hidden_fraction)

    def annotated_voxels(self, index: int, valid: np.ndarray | None, shape: Sequence[int]) -> np.ndarray | None:
        """Where an example carries loss (1 or K, *patch); None where all sources say all of every voxel.

        Args:
            index: row of the source.
            valid: (1, *patch) of voxels that are not ignored, None for all.
            shape: of the patch.
        """
        if all(all(flags) for flags in self.annotated):
            return valid
        flags = np.array(self.annotated[index - 1]).reshape(-1, *(1,) * len(shape))
        return np.broadcast_to(flags if valid is None else flags & valid, (len(flags), *shape))


def masked_channels(plan: PreprocessingPlan, width: int) -> list[int]:
    """Channels of the network's input that are zero outside a mask; those of the image are repeated up to `width`."""
    flags = plan.use_nonzero_mask
    return [i for i, channel in enumerate(repeated_channels(len(flags), width)) if flags[channel]] if flags else []
