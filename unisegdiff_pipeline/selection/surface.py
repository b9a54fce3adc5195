"""The length of the field that samples surfaces: the default, unless sampled volumes are too wide."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from unisegdiff_pipeline.diffusion.coding import LogitCalibration
from unisegdiff_pipeline.diffusion.samplers import SamplerSettings
from unisegdiff_pipeline.evaluation.spread import mean_place, size_score
from unisegdiff_pipeline.inference.settings import InferenceSettings
from unisegdiff_pipeline.networks.staged_model import StagedModel
from unisegdiff_pipeline.selection.hold_out import HoldOut, annotated_classes, sample_tiles, sources_of_cases, tiled
from unisegdiff_pipeline.selection.sampler import SamplerTrial, drawing
from unisegdiff_pipeline.selection.spread import annotators, spread_of_case


def try_surfaces(
    held_out: HoldOut,
    model: StagedModel,
    settings: InferenceSettings,
    sampler: SamplerSettings,
    cases: Mapping[str, LogitCalibration],
    parts: Sequence[float],
) -> list[SamplerTrial]:
    """A sampler with fields of several lengths for the surfaces, the one that is taken first.

    How much a sampled volume varies depends on it. The default, the first of `parts`, stays unless its volumes are too
    wide. That is asked of the places of the references, since a dozen cases tell it by several standard errors where
    they tell the scores of two lengths apart by one or two; no other length costs anything where it is not so.
    """
    tried = [drawing(sampler, sampler.correlation_length_mm, part) for part in parts]
    trials = score_surfaces(held_out, model, settings, tried[:1], cases)
    if trials[0].too_wide():
        trials += score_surfaces(held_out, model, settings, tried[1:], cases)
    return rank_surfaces(trials)


def score_surfaces(
    held_out: HoldOut,
    model: StagedModel,
    settings: InferenceSettings,
    samplers: Sequence[SamplerSettings],
    cases: Mapping[str, LogitCalibration],
) -> list[SamplerTrial]:
    """Samplers with their energy, sizes and places in each case, means over its classes; all draw with equal noise."""
    dims, groups = held_out.configuration.network.dims, []
    scores: dict[SamplerSettings, list[np.ndarray]] = defaultdict(list)
    for case_id, calibration in cases.items():
        held_out.leave_if_asked()
        stored = held_out.data.open(case_id)
        groups.append(stored.group)
        tiles, raters = tiled(held_out, model, stored), annotators(stored)
        annotated = annotated_classes(held_out, stored)
        for one in samplers:
            with_one = replace(settings.calibrated(calibration), sampler=one, mask_sampler=None)
            prediction = sample_tiles(held_out, tiles, with_one, stored, first_sample=2 * settings.num_samples)
            spreads = spread_of_case(prediction, raters, held_out.labels, case_id, annotated)
            scores[one].append(np.mean([(s.energy, size_score(s, dims), mean_place(s)) for s in spreads], axis=0))
    sources = sources_of_cases(held_out.configuration.sources, cases)
    columns = {one: np.transpose(rows).tolist() for one, rows in scores.items()}
    return [
        SamplerTrial(one, tuple(energies), tuple(groups), tuple(sizes), tuple(places), sources)
        for one, (energies, sizes, places) in columns.items()
    ]


def rank_surfaces(trials: Sequence[SamplerTrial]) -> list[SamplerTrial]:
    """Trials by the score of the sizes; those with significantly worse masks than the first one, the default, last."""
    return sorted(trials, key=lambda t: (t.significantly_above(trials[0]), t.size))
