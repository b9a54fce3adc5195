"""From a fingerprint and a budget to a plan: configurations, their numbers, and a reason for each."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.fingerprint import Fingerprint, rounded
from unisegdiff_pipeline.io.dataset_json import DatasetDescription
from unisegdiff_pipeline.io.images import is_picture_ending
from unisegdiff_pipeline.planning.coarsening import (
    LOW_THICKNESS_VOX,
    MEDIAN_THICKNESS_VOX,
    CoarsePlane,
    all_resolved,
    coarsen_in_plane,
)
from unisegdiff_pipeline.planning.mirroring import ALL_AXES, plan_mirror_axes
from unisegdiff_pipeline.planning.normalization import (
    ChannelNormalization,
    choose_nonzero_mask,
    choose_normalizations,
)
from unisegdiff_pipeline.planning.plans import (
    SCHEMA_VERSION,
    Budget,
    CascadePlan,
    ConfigurationPlan,
    DenoiserPlan,
    NetworkPlan,
    Plans,
    PreprocessingPlan,
    TrainingPlan,
)
from unisegdiff_pipeline.planning.reasons import (
    denoiser_reasons,
    direction_reason,
    network_reasons,
    preprocessing_reasons,
    training_reasons,
)
from unisegdiff_pipeline.planning.sizing import Sizer
from unisegdiff_pipeline.planning.spacing import ANISOTROPY, SpacingPlan, plan_spacing, triple
from unisegdiff_pipeline.planning.topology import MIN_EDGE, denoiser_multiply_adds, multiply_adds
from unisegdiff_pipeline.planning.unified import SharedGrid, SourceFacts, shared_grid, source_facts, with_sources

CASCADE = "3d_cascade_fullres"
CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres", CASCADE)

_CPU_EPOCHS = 250
_LOWRES_BELOW_COVERAGE = 0.25
_LOWRES_STEP = 1.03
_LOWRES_MIN_SAVING = 2.0
_MIN_SLICES_3D = 8
_CHANNEL_DROPOUT = 0.2

_DENOISER_WIDTHS = ((16, 32, 64), (12, 24, 48), (8, 16, 32))
_DENOISER_FRACTION = 0.03  # of the segmenter, for one call


@dataclass(frozen=True)
class _Context:
    """What all configurations of a data set share; `decisions` collects the reasons, `sources` are those pooled."""

    fingerprint: Fingerprint
    description: DatasetDescription
    sizer: Sizer
    spacing: SpacingPlan
    decisions: dict[str, str]
    sources: tuple[SourceFacts, ...] = ()

    def decide(self, configuration: str, field: str, reason: str) -> None:
        self.decisions[f"configurations.{configuration}.{field}"] = reason

    def decide_all(self, configuration: str, part: str, reasons: Mapping[str, str]) -> None:
        for field, reason in reasons.items():
            self.decide(configuration, f"{part}.{field}", reason)


def plan_dataset(
    fingerprint: Fingerprint,
    description: DatasetDescription,
    budget: Budget,
    configurations: Sequence[str] | None = None,
    *,
    source_descriptions: Mapping[str, DatasetDescription] | None = None,
) -> Plans:
    """Plan all configurations that make sense for a data set, or those asked for.

    Args:
        fingerprint: facts of the training cases.
        description: dataset.json.
        budget: the machine to train on.
        configurations: names out of CONFIGURATIONS, a cascade with those that it stands on; all that are possible by
            default.
        source_descriptions: dataset.json of each source of a unified data set.

    Returns:
        Plans without stages; these are planned from the preprocessed labels.

    Raises:
        UsdError: a configuration is unknown or not possible for this data set, or the images are too small for any.
    """
    if description.sources:
        context, possible = _possible_of_sources(fingerprint, description, budget, source_descriptions or {})
    else:
        context = _context(fingerprint, description, budget, len(fingerprint.cases), {})
        _decide_common(context)
        possible = {"2d": _plan_2d(context)}
        if not fingerprint.is_2d:
            possible |= _plan_volumes(context)
    possible = _trainable(possible, context)
    chosen = _select(possible, configurations, context)
    recommended, context.decisions["recommended_configuration"] = _recommendation(context, chosen)
    return Plans(
        schema_version=SCHEMA_VERSION,
        dataset_name=fingerprint.dataset_name,
        labels=description.labels,
        channel_names=description.channel_names,
        file_ending=description.file_ending,
        spacing_known=context.description.spacing_known,
        budget=budget,
        recommended_configuration=recommended,
        configurations=chosen,
        decisions=_decisions_of(context.decisions, chosen),
    )


def _context(
    fingerprint: Fingerprint,
    description: DatasetDescription,
    budget: Budget,
    num_images: int,
    decisions: dict[str, str],
) -> _Context:
    inputs = len(description.channel_names) * (2 if description.missing_channels else 1)
    sizer = Sizer(budget, inputs, description.labels.num_channels, num_images)
    return _Context(fingerprint, description, sizer, plan_spacing(fingerprint), decisions)


def _possible_of_sources(
    fingerprint: Fingerprint,
    description: DatasetDescription,
    budget: Budget,
    source_descriptions: Mapping[str, DatasetDescription],
) -> tuple[_Context, dict[str, ConfigurationPlan]]:
    """Configurations of a unified data set: slices and 2D images of all sources, and volumes of those that have any."""
    sources = source_facts(fingerprint, description, source_descriptions)
    for facts in sources:
        _warn_of_channel_names(facts.description)
    grid, decisions = shared_grid(fingerprint, sources, dims=2), dict[str, str]()
    description = replace(description, spacing_known=grid.kind == "physical")
    context = replace(_context(grid.pooled, description, budget, grid.num_images, decisions), sources=grid.sources)
    decisions["budget"] = context.sizer.reason()
    if grid.kind == "relative":
        decisions["spacing_known"] = "false: not all sources know it, so that sizes and distances are nominal"
    possible = {"2d": _with_sources(context, grid, _plan_2d(context))}
    flat = [facts.source.name for facts in sources if facts.fingerprint.is_2d]
    deep = [facts for facts in sources if not facts.fingerprint.is_2d]
    if not deep:
        for name in CONFIGURATIONS[1:]:
            decisions[f"configurations.{name}"] = f"not made: all sources hold 2D images ({', '.join(flat)})"
        return context, possible
    grid = shared_grid(fingerprint, deep, dims=3)
    volumes = replace(_context(grid.pooled, description, budget, grid.num_images, decisions), sources=grid.sources)
    decisions[f"configurations.{CASCADE}"] = "not made: it takes images of one data set, and these are of several"
    for name, configuration in _plan_volumes(volumes).items():
        possible[name] = _with_sources(volumes, grid, configuration)
        if flat:
            decisions[f"configurations.{name}.sources.plans"] += (
                f"; left out, as they hold 2D images: {', '.join(flat)}"
            )
    return context if flat else volumes, possible


def _with_sources(context: _Context, grid: SharedGrid, configuration: ConfigurationPlan) -> ConfigurationPlan:
    """The configuration with a plan for each source in place of the one for typical images."""
    start = f"configurations.{configuration.name}.preprocessing."
    kept = f"{start}target_spacing_mm"
    for key in [key for key in context.decisions if key.startswith(start) and key != kept]:
        del context.decisions[key]
    configuration, reasons = with_sources(configuration, grid, context.spacing, context.description.labels)
    for key, reason in reasons.items():
        context.decide(configuration.name, key, reason)
    return configuration


# ---------------------------------------------------------------------------------------------- one configuration


def _plan_volumes(context: _Context) -> dict[str, ConfigurationPlan]:
    """The 3D configurations, by name."""
    fullres = _plan_3d(context, "3d_fullres", context.spacing.spacing_mm, context.spacing.median_shape)
    lowres = _plan_lowres(context, fullres)
    if lowres is None:
        context.decisions[f"configurations.{CASCADE}"] = "not made: it refines masks of 3d_lowres, which is not made"
        return {fullres.name: fullres}
    volumes = {fullres.name: _with_batch_dice(context, fullres), lowres.name: lowres}
    if not context.description.sources:
        volumes[CASCADE] = _plan_cascade(context, fullres, lowres)
    return volumes


def _plan_2d(context: _Context) -> ConfigurationPlan:
    """Slices: the in-plane spacing of the data, on a CPU coarsened until the budget covers a whole slice."""
    (_, sy, sx), (_, ny, nx) = context.spacing.spacing_mm, context.spacing.median_shape
    plane = CoarsePlane(1.0, None, "in-plane spacing of the data")
    if context.sizer.on_cpu:
        plane = coarsen_in_plane(context.sizer, context.fingerprint.lesions, (sy, sx), (ny, nx))
    spacing = (sy * plane.factor, sx * plane.factor)
    shape = (max(1.0, ny / plane.factor), max(1.0, nx / plane.factor))
    network = plane.network or context.sizer.fit_network(spacing, shape)
    context.decide("2d", "preprocessing.target_spacing_mm", f"{plane.reason}; slices are not resampled along Z")
    median_shape = (context.spacing.median_shape_unresampled[0], *shape)
    return _finish(context, "2d", (None, *spacing), median_shape, network, batch_dice=True)


def _plan_3d(
    context: _Context,
    name: str,
    spacing: tuple[float, float, float],
    median_shape: tuple[float, float, float],
    reason: str | None = None,
) -> ConfigurationPlan:
    context.decide(name, "preprocessing.target_spacing_mm", reason or context.spacing.spacing_reason)
    network = context.sizer.fit_network(spacing, median_shape)
    return _finish(context, name, spacing, median_shape, network, batch_dice=False)


def _plan_lowres(context: _Context, fullres: ConfigurationPlan) -> ConfigurationPlan | None:
    """A coarser configuration where the patch of 3d_fullres sees less than a quarter of the median image."""
    key = "configurations.3d_lowres"
    full_shape = context.spacing.median_shape
    coverage = math.prod(fullres.network.patch_size) / math.prod(full_shape)
    if coverage >= _LOWRES_BELOW_COVERAGE:
        context.decisions[key] = f"not made: a patch of 3d_fullres covers {coverage:.0%} of the median image"
        return None
    full_spacing = context.spacing.spacing_mm
    spacing, network = full_spacing, fullres.network
    shape = full_shape
    while math.prod(network.patch_size) / math.prod(shape) < _LOWRES_BELOW_COVERAGE:
        spacing = _coarsen_finest_axes(spacing)
        shape = triple(n * f / s for n, f, s in zip(full_shape, full_spacing, spacing, strict=True))
        network = context.sizer.fit_network(spacing, shape)
    saving = math.prod(full_shape) / math.prod(shape)
    if saving < _LOWRES_MIN_SAVING:
        context.decisions[key] = f"not made: it would have only {saving:.1f} times fewer voxels than 3d_fullres"
        return None
    reason = (
        f"a patch of 3d_fullres covers {coverage:.1%} of the median image; spacing made coarser by 3 % at a time, "
        "finest axes first, until a patch covers 25 %"
    )
    return _plan_3d(context, "3d_lowres", spacing, shape, reason)


def _plan_cascade(context: _Context, fullres: ConfigurationPlan, lowres: ConfigurationPlan) -> ConfigurationPlan:
    """3d_fullres with the mask of 3d_lowres as further channels, which cost some of the budget of a CPU."""
    num_inputs = context.sizer.num_inputs + len(context.description.labels.names)
    own = replace(context, sizer=replace(context.sizer, num_inputs=num_inputs))
    cascade = _plan_3d(own, CASCADE, context.spacing.spacing_mm, context.spacing.median_shape)
    context.decide(
        CASCADE,
        "cascade",
        f"{lowres.name} sees more of an image at once, and its mask tells where to look; {fullres.name} is beside it, "
        f"whose cases are read",
    )
    return replace(_with_batch_dice(own, cascade), cascade=CascadePlan(masks_of=lowres.name, cases_of=fullres.name))


def _with_batch_dice(context: _Context, fullres: ConfigurationPlan) -> ConfigurationPlan:
    """3d_fullres, or the cascade, where there is 3d_lowres beside it."""
    training = replace(fullres.training, batch_dice=True)
    reasons = training_reasons(training, on_cpu=context.sizer.on_cpu, dims=3, has_lowres=True)
    context.decide(fullres.name, "training.batch_dice", reasons["batch_dice"])
    return replace(fullres, training=training)


def _coarsen_finest_axes(spacing: tuple[float, float, float]) -> tuple[float, float, float]:
    largest = max(spacing)
    if any(largest / s > 2 for s in spacing):
        return triple(s * _LOWRES_STEP if largest / s > 2 else s for s in spacing)
    return triple(s * _LOWRES_STEP for s in spacing)


def _finish(
    context: _Context,
    name: str,
    spacing: tuple[float | None, float, float],
    median_shape: Sequence[float],
    network: NetworkPlan,
    batch_dice: bool,
) -> ConfigurationPlan:
    batch_size, reason = context.sizer.batch_size(network, median_shape)
    context.decide(name, "training.batch_size", reason)
    mirror_axes, reason = _mirror_axes(context)
    context.decide(name, "training.mirror_axes", reason)
    training = _training_plan(context, batch_size, batch_dice, is_flat(network), mirror_axes)
    context.decide_all(name, "training", training_reasons(training, on_cpu=context.sizer.on_cpu, dims=network.dims))
    _decide_network(context, name, network, batch_size)
    return ConfigurationPlan(
        name=name,
        preprocessing=_preprocessing(context, name, spacing),
        median_shape=(_whole(median_shape[0]), _whole(median_shape[1]), _whole(median_shape[2])),
        network=network,
        denoiser=_plan_denoiser(context, name, network),
        training=training,
    )


def _mirror_axes(context: _Context) -> tuple[tuple[int, ...], str]:
    """Axes of the network; those of the sources' images are put in order by each source's own plan."""
    if not context.sources:
        return plan_mirror_axes(context.fingerprint.class_orders, context.spacing.axis_order)
    orders = {facts.source.name: facts.spacing.axis_order for facts in context.sources}
    found = {
        name: plan_mirror_axes(facts.fingerprint.class_orders, orders[name])
        for name, facts in zip(orders, context.sources, strict=True)
    }
    if len({*orders.values()}) == 1:  # else the orders along the axes of files say nothing of all together
        found["all"] = plan_mirror_axes(context.fingerprint.class_orders, next(iter(orders.values())))
    allowed = tuple(axis for axis in ALL_AXES if all(axis in axes for axes, _ in found.values()))
    reasons = [f"{name}: {reason}" for name, (axes, reason) in found.items() if axes != ALL_AXES]
    return allowed, "; ".join(reasons) or next(reason for _, reason in found.values())


def _preprocessing(context: _Context, name: str, spacing: tuple[float | None, float, float]) -> PreprocessingPlan:
    choices = _normalizations(context.description)
    schemes = tuple(choice.scheme for choice in choices)
    first = spacing[0]
    plan = PreprocessingPlan(
        axis_order=context.spacing.axis_order,
        target_spacing_mm=(None if first is None else rounded(first), rounded(spacing[1]), rounded(spacing[2])),
        normalization=schemes,
        use_nonzero_mask=choose_nonzero_mask(schemes, context.fingerprint.median_crop_fraction),
        intensities=context.fingerprint.intensities,
        direction=context.fingerprint.direction,
        training_spacing_mm=triple(rounded(s) for s in context.spacing.median_spacing_mm),
        missing_channels=context.description.missing_channels,
    )
    context.decide(name, "preprocessing.direction", direction_reason(context.fingerprint))
    context.decide(name, "preprocessing.axis_order", context.spacing.order_reason)
    for i, choice in enumerate(choices):
        context.decide(name, f"preprocessing.normalization[{i}]", choice.reason)
    context.decide_all(name, "preprocessing", preprocessing_reasons(plan, context.fingerprint.median_crop_fraction))
    return plan


def _normalizations(description: DatasetDescription) -> tuple[ChannelNormalization, ...]:
    return choose_normalizations(description.channel_names, is_picture_ending(description.file_ending))


def _training_plan(
    context: _Context, batch_size: int, batch_dice: bool, dummy_2d: bool, mirror_axes: tuple[int, ...]
) -> TrainingPlan:
    plan = TrainingPlan(
        batch_size,
        batch_dice=batch_dice,
        dummy_2d_augmentation=dummy_2d,
        mirror_axes=mirror_axes,
        channel_dropout=_CHANNEL_DROPOUT if context.description.missing_channels else 0.0,
    )
    return replace(plan, num_epochs=_CPU_EPOCHS) if context.sizer.on_cpu else replace(plan, learning_rate=1e-3)


def is_flat(network: NetworkPlan) -> bool:
    """Whether volumes are augmented slice by slice: their patch is much shorter along Z."""
    return network.dims == 3 and max(network.patch_size) / network.patch_size[0] > ANISOTROPY


def denoiser_widths(network: NetworkPlan, num_outputs: int) -> tuple[tuple[int, ...], float]:
    """The widest denoiser of which one call costs little of the segmenter's multiply-adds, and that fraction."""
    segmenter = multiply_adds(network, num_outputs)
    for widths in _DENOISER_WIDTHS:
        fraction = denoiser_multiply_adds(network, widths, num_outputs) / segmenter
        if fraction <= _DENOISER_FRACTION:
            break
    return widths, fraction


def _plan_denoiser(context: _Context, name: str, network: NetworkPlan) -> DenoiserPlan:
    widths, fraction = denoiser_widths(network, context.sizer.num_outputs)
    reason = f"one call costs {fraction:.1%} of the segmenter, {_DENOISER_FRACTION:.0%} is allowed"
    context.decide(name, "denoiser.features", reason)
    plan = DenoiserPlan(features=widths)
    context.decide_all(name, "denoiser", denoiser_reasons(plan))
    return plan


# ----------------------------------------------------------------------------------------------------- decisions


def _decide_common(context: _Context) -> None:
    context.decisions["budget"] = context.sizer.reason()
    if not context.description.spacing_known:
        nominal = "false: spacings are nominal, and so is every result in mm"
        in_pixels = "false: sizes and distances are given in pixels"
        context.decisions["spacing_known"] = in_pixels if context.fingerprint.is_2d else nominal
    _warn_of_channel_names(context.description)


def _warn_of_channel_names(description: DatasetDescription) -> None:
    for choice in _normalizations(description):
        if choice.warning:
            warnings.warn(choice.warning, UserWarning, stacklevel=5)


def _decide_network(context: _Context, name: str, network: NetworkPlan, batch_size: int) -> None:
    gmac = context.sizer.gmac(network)
    widths = ", ".join(str(level.features) for level in network.levels)
    context.decide_all(name, "network", network_reasons(network))
    context.decide(name, "network.patch_size", "aspect of the spacing, within the median image, shrunk to the budget")
    context.decide(name, "network.levels", f"features {widths}; {gmac:.2f} GMAC a patch, {batch_size} patches at once")


def _recommendation(context: _Context, chosen: dict[str, ConfigurationPlan]) -> tuple[str, str]:
    """The configuration to train, and why."""
    if len(chosen) == 1:
        return next(iter(chosen)), "the only configuration"
    if context.description.sources and context.fingerprint.is_2d:
        return "2d", "the one that takes all sources: some hold 2D images"
    if context.fingerprint.is_2d or "3d_fullres" not in chosen:
        return "2d", "2D images" if context.fingerprint.is_2d else "3d_fullres was not asked for"
    slices = context.spacing.median_shape[0]
    anisotropic = context.spacing.spacing_mm[0] > ANISOTROPY * max(context.spacing.spacing_mm[1:])
    if anisotropic and slices < _MIN_SLICES_3D and "2d" in chosen:
        return "2d", (
            f"slices are over 3 times thicker than voxels are wide and the median image has {slices:.0f} of them: too "
            "few to be halved even once, so that a 3D network sees little more than single slices"
        )
    lowres = chosen.get("3d_lowres")
    if lowres is not None and context.sizer.on_cpu and all_resolved(context.fingerprint.lesions, _coarsest(lowres)):
        return "3d_lowres", (
            "on this CPU a patch of 3d_fullres covers less than a quarter of the image; at the spacing of 3d_lowres "
            f"the objects of all classes are still {MEDIAN_THICKNESS_VOX:g} voxels thick in the median and "
            f"{LOW_THICKNESS_VOX:g} in the 10th percentile"
        )
    return "3d_fullres", "volumes with enough slices for 3D context, at the resolution of the data"


def _coarsest(configuration: ConfigurationPlan) -> float:
    return max(s for s in configuration.preprocessing.target_spacing_mm if s is not None)


def _trainable(possible: dict[str, ConfigurationPlan], context: _Context) -> dict[str, ConfigurationPlan]:
    """The configurations whose images can be halved once: a U-Net has two levels at least."""
    reasons = {}
    for name, configuration in possible.items():
        if len(configuration.network.levels) < 2:
            shape = " x ".join(map(str, configuration.median_shape))
            reasons[name] = (
                f"the median image has {shape} voxels (Z, Y, X) at the planned spacing, too few to be halved even "
                f"once: a U-Net needs {2 * MIN_EDGE} along two axes, or {3 * MIN_EDGE} along one"
            )
    if CASCADE in possible and (gone := [name for name in ("3d_fullres", "3d_lowres") if name in reasons]):
        reasons[CASCADE] = f"it stands on {gone[0]}, which is not made"
    if len(reasons) == len(possible):
        raise UsdError(
            f"{context.fingerprint.dataset_name} cannot be trained: {next(iter(reasons.values()))}. Pad the images and "
            "their label maps, or correct their spacing."
        )
    for name, reason in reasons.items():
        context.decisions[f"configurations.{name}"] = f"not made: {reason}"
    return {name: configuration for name, configuration in possible.items() if name not in reasons}


def _select(
    possible: dict[str, ConfigurationPlan], wanted: Sequence[str] | None, context: _Context
) -> dict[str, ConfigurationPlan]:
    if wanted is None:
        return possible
    for name in wanted:
        if name not in CONFIGURATIONS:
            raise UsdError(f"configuration {name!r} is unknown; allowed are {', '.join(CONFIGURATIONS)}.")
        if name not in possible:
            reason = context.decisions.get(f"configurations.{name}", "the images are 2D")
            raise UsdError(
                f"configuration {name!r} is not planned for {context.fingerprint.dataset_name} ({reason}); possible "
                f"are {', '.join(possible)}."
            )
    needed = {"3d_fullres", "3d_lowres"} if CASCADE in wanted else set()
    return {name: possible[name] for name in possible if name in {*wanted, *needed}}


def _decisions_of(decisions: dict[str, str], chosen: dict[str, ConfigurationPlan]) -> dict[str, str]:
    """Leave out reasons for configurations that were made on the way but not asked for."""
    dropped = tuple(f"configurations.{name}." for name in CONFIGURATIONS if name not in chosen)
    return {key: reason for key, reason in decisions.items() if not key.startswith(dropped)}


def _whole(value: float) -> int:
    return max(1, round(value))
