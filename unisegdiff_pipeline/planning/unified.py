"""The shared grid of a unified data set: how images of sources with sizes and spacings of their own become comparable.

All sources are planned as one data set in which each of them is one typical image, so that a source of a thousand
images decides no more than one of ten. The spacing that comes out is then turned back into each source's own unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.progress import counted
from unisegdiff_pipeline.fingerprint import CaseFingerprint, Fingerprint, LesionSummary, Percentiles, rounded
from unisegdiff_pipeline.io.dataset_json import DatasetDescription
from unisegdiff_pipeline.io.images import is_picture_ending
from unisegdiff_pipeline.io.sources import Source, annotated_classes
from unisegdiff_pipeline.planning.coarsening import resolving_limit
from unisegdiff_pipeline.planning.normalization import choose_nonzero_mask, choose_normalizations
from unisegdiff_pipeline.planning.plans import (
    ConfigurationPlan,
    Normalization,
    PreprocessingPlan,
    SourcePlan,
    SourcesPlan,
)
from unisegdiff_pipeline.planning.spacing import SpacingPlan, image_size, plan_spacing, triple

Triple = tuple[float, float, float]

SOURCE_RATE = 4.0  # times the learning rate; measured beside 1 and 10, chosen by Dice on held-out cases


@dataclass(frozen=True)
class SourceFacts:
    """What planning knows of one source: its entry in the unified dataset.json, its own dataset.json, its cases."""

    source: Source
    description: DatasetDescription
    fingerprint: Fingerprint

    @property
    def spacing(self) -> SpacingPlan:
        """Spacing, size and order of axes as the source would have them alone."""
        return plan_spacing(self.fingerprint)

    def num_images(self, dims: int) -> int:
        """Training images, or slices of its volumes for a 2D network."""
        cases, order = self.fingerprint.cases, self.spacing.axis_order
        return len(cases) if dims == 3 else sum(case.shape[order[0]] for case in cases)


@dataclass(frozen=True)
class SharedGrid:
    """The grid on which the sources of a configuration meet.

    Attributes:
        dims: 2 for slices and 2D images, 3 for volumes.
        kind: "physical" in mm, "relative" where images are brought to the size of the median image.
        sources: facts of the sources that take part.
        spacings: of each source, in its own unit (Z, Y, X, the coarsest axis first), the voxel size that stands for the
            spacing of `pooled`.
        pooled: a data set of one typical image a source, on the shared grid, which the network is planned for.
        reason: for the plan's decisions.
    """

    dims: int
    kind: Literal["physical", "relative"]
    sources: tuple[SourceFacts, ...]
    spacings: Mapping[str, Triple]
    pooled: Fingerprint
    reason: str

    @property
    def num_images(self) -> int:
        """Images or slices of all sources."""
        return sum(facts.num_images(self.dims) for facts in self.sources)


def source_facts(
    fingerprint: Fingerprint, description: DatasetDescription, source_descriptions: Mapping[str, DatasetDescription]
) -> tuple[SourceFacts, ...]:
    """Facts of all sources that have usable cases, in the order of the unified dataset.json."""
    return tuple(
        SourceFacts(source, source_descriptions[source.name], fingerprint.sources[source.name])
        for source in description.sources
        if source.name in fingerprint.sources
    )


def shared_grid(fingerprint: Fingerprint, sources: Sequence[SourceFacts], dims: int) -> SharedGrid:
    """The grid of a 2D or 3D configuration: physical where all sources know their spacing, else relative."""
    unknown = [facts.source.name for facts in sources if not facts.description.spacing_known]
    typical = {facts.source.name: _typical(facts, dims) for facts in sources}
    if unknown:
        factors = _size_factors({name: shape for name, (_, shape) in typical.items()}, dims)
        in_common = {
            name: (_unit_plane(spacing, dims), _divided(shape, factors[name], dims))
            for name, (spacing, shape) in typical.items()
        }
        reason = (
            f"relative: {', '.join(unknown)} {'does' if len(unknown) == 1 else 'do'} not know the spacing, so that the "
            f"median image of each source is brought to the size of the common one, the median over the sources"
        )
    else:
        in_common = typical
        reason = "physical: all sources know their spacing, and get the same, the median over the sources"
    cases = tuple(_typical_case(facts, *in_common[facts.source.name]) for facts in sources)
    pooled = replace(fingerprint, is_2d=dims == 2, cases=cases, sources={})
    common = plan_spacing(pooled)
    if unknown:
        spacings = {name: _in_plane_multiple(spacing, factors[name], dims) for name, (spacing, _) in typical.items()}
    else:
        spacings = dict.fromkeys(typical, common.spacing_mm)
    lesions = _typical_lesions(sources, {n: _plane(common.spacing_mm) / _plane(s) for n, s in spacings.items()})
    return SharedGrid(
        dims, "relative" if unknown else "physical", tuple(sources), spacings, replace(pooled, lesions=lesions), reason
    )


def with_sources(
    configuration: ConfigurationPlan, grid: SharedGrid, common: SpacingPlan, labels: LabelScheme
) -> tuple[ConfigurationPlan, dict[str, str]]:
    """The configuration planned for the pooled data set, with a plan for each source and for images of no source.

    Returns:
        The configuration, and reasons for what was added (key = path within the configuration).
    """
    planned = configuration.preprocessing.target_spacing_mm
    coarser = triple(1.0 if t is None else t / s for t, s in zip(planned, common.spacing_mm, strict=True))
    plans: dict[str, SourcePlan] = {}
    reasons: dict[str, str] = {}
    for facts in grid.sources:
        name = facts.source.name
        spacing = triple(s * factor for s, factor in zip(grid.spacings[name], coarser, strict=True))
        if grid.kind == "relative":
            spacing, kept_fine = _with_lesions_resolved(facts, spacing)
            if kept_fine:
                reasons[f"sources.plans.{name}.preprocessing.target_spacing_mm"] = kept_fine
        z, y, x = map(rounded, spacing)
        plans[name], of_source = _source_plan(facts, (None if grid.dims == 2 else z, y, x), labels, grid.dims)
        reasons |= {f"sources.plans.{name}.{key}": reason for key, reason in of_source.items()}
    channels = configuration.network.num_input_channels
    directions = [f.fingerprint.direction for f in grid.sources if f.fingerprint.direction is not None]
    zscore: Normalization = "zscore"
    unknown = replace(
        configuration.preprocessing,
        axis_order=(0, 1, 2),
        normalization=(zscore,) * channels,
        use_nonzero_mask=(False,) * channels,
        intensities=(),
        direction=directions[0] if directions else None,
        training_spacing_mm=configuration.preprocessing.training_spacing_mm if grid.kind == "physical" else None,
    )
    names = ", ".join(plans)
    reasons |= {
        "preprocessing": "for images of no known source: z-score of each channel, which fits any intensities",
        "sources.grid": grid.reason,
        "sources.plans": f"{counted(len(plans), 'source')}: {names}",
        "sources.channel_rule": "all images have one channel"
        if channels == 1
        else f"images of fewer than {channels} channels repeat theirs: nothing has to be learned",
        "sources.temperature": "between all images alike (1) and all sources alike (0)",
        "sources.learning_rate_factor": f"{SOURCE_RATE:g}: what is of one source learns from a part of the "
        "examples alone; Dice rose faster and higher with it than with 1",
    }
    sources = SourcesPlan(plans, grid=grid.kind, learning_rate_factor=SOURCE_RATE)
    return replace(configuration, preprocessing=unknown, sources=sources), reasons


def _source_plan(
    facts: SourceFacts, target: tuple[float | None, float, float], labels: LabelScheme, dims: int
) -> tuple[SourcePlan, dict[str, str]]:
    description, found, own = facts.description, facts.fingerprint, facts.spacing
    choices = choose_normalizations(found.channel_names, is_picture_ending(description.file_ending))
    schemes = tuple(choice.scheme for choice in choices)
    preprocessing = PreprocessingPlan(
        axis_order=own.axis_order,
        target_spacing_mm=target,
        normalization=schemes,
        use_nonzero_mask=choose_nonzero_mask(schemes, found.median_crop_fraction),
        intensities=found.intensities,
        direction=found.direction,
        training_spacing_mm=triple(rounded(s) for s in own.median_spacing_mm),
    )
    plan = SourcePlan(
        modality=facts.source.modality,
        channel_names=found.channel_names,
        file_ending=description.file_ending,
        spacing_known=description.spacing_known,
        preprocessing=preprocessing,
        annotated=_annotated(facts.source, labels),
        num_images=facts.num_images(dims),
        labels=description.labels,
        label_map=dict(facts.source.label_map),
    )
    reasons = {f"preprocessing.normalization[{i}]": choice.reason for i, choice in enumerate(choices)}
    reasons["preprocessing.axis_order"] = own.order_reason
    if not all(plan.annotated):
        missing = [name for name, said in zip(labels.names, plan.annotated, strict=True) if not said]
        reasons["annotated"] = f"no class of the source becomes {', '.join(missing)}: no loss there"
    return plan, reasons


def _with_lesions_resolved(facts: SourceFacts, spacing: Triple) -> tuple[Triple, str]:
    """The spacing of a source on a relative grid, and why it is finer than the grid asks for; "" where it is not.

    Lesions that are small beside those of other sources would be too thin for the network to see.
    """
    _, *own = facts.spacing.spacing_mm
    limit = resolving_limit(facts.fingerprint.lesions, max(own))
    factor = max(planned / data for planned, data in zip(spacing[1:], own, strict=True))
    if factor <= limit:
        return spacing, ""
    z, y, x = (value * limit / factor for value in spacing)
    reason = (
        f"{limit:.3g} times the spacing of the data and not {factor:.3g} times, as on the common grid: its lesions "
        f"would be too thin; its images are larger than the common one"
    )
    return (max(z, min(spacing[0], facts.spacing.spacing_mm[0])), y, x), reason


def _annotated(source: Source, labels: LabelScheme) -> tuple[bool, ...]:
    """Per coded channel; a softmax shares its probability among all classes, so that none of them can be left out."""
    if labels.coding != "regions":
        return (True,) * labels.num_channels
    return annotated_classes(source, labels)


def _typical(facts: SourceFacts, dims: int) -> tuple[Triple, Triple]:
    """Median spacing and size (Z, Y, X) of a source in its plan's order of axes; a slice has the thickness 1."""
    own = facts.spacing
    spacing = own.spacing_mm
    z, y, x = own.median_shape
    return ((1.0, *spacing[1:]), (1.0, y, x)) if dims == 2 else (spacing, (z, y, x))


def _size_factors(shapes: Mapping[str, Triple], dims: int) -> dict[str, float]:
    """How many times larger a source's median image is along its edges than the common one."""
    sizes = {name: image_size(shape, dims) for name, shape in shapes.items()}
    common = float(np.median(list(sizes.values())))
    return {name: size / common for name, size in sizes.items()}


def _typical_lesions(sources: Sequence[SourceFacts], units: Mapping[str, float]) -> tuple[LesionSummary, ...]:
    """Each class with the median over the sources of its sizes, in the shared grid's unit."""
    summaries = []
    for summary in sources[0].fingerprint.lesions:
        name = summary.class_name
        of_sources = [
            (units[facts.source.name], lesion)
            for facts in sources
            for lesion in facts.fingerprint.lesions
            if lesion.class_name == name
        ]
        thickness = [
            [unit * value for value in _values(lesion.main_thickness_mm)]
            for unit, lesion in of_sources
            if lesion.main_thickness_mm is not None
        ]
        typical = Percentiles(*np.median(thickness, axis=0).tolist()) if thickness else None
        summaries.append(replace(summary, main_thickness_mm=typical))
    return tuple(summaries)


def _values(percentiles: Percentiles) -> tuple[float, ...]:
    return percentiles.p10, percentiles.p25, percentiles.p50, percentiles.p75, percentiles.p90


def _typical_case(facts: SourceFacts, spacing: Triple, shape: Triple) -> CaseFingerprint:
    z, y, x = (max(1, round(n)) for n in shape)
    case = facts.fingerprint.cases[0]
    return replace(case, case_id=facts.source.name, shape=(z, y, x), spacing_mm=spacing, shape_after_crop=(z, y, x))


def _unit_plane(spacing: Triple, dims: int) -> Triple:
    """The same shape of a voxel with an edge of 1 in its plane."""
    unit = _plane(spacing)
    z, y, x = (s / unit for s in spacing)
    return (1.0 if dims == 2 else z), y, x


def _in_plane_multiple(spacing: Triple, factor: float, dims: int) -> Triple:
    z, y, x = spacing
    return (z if dims == 2 else z * factor), y * factor, x * factor


def _divided(shape: Triple, factor: float, dims: int) -> Triple:
    z, y, x = shape
    return (z if dims == 2 else z / factor), y / factor, x / factor


def _plane(spacing: Sequence[float]) -> float:
    """Edge of the square that is as large as a voxel in its plane."""
    return math.sqrt(spacing[1] * spacing[2])
