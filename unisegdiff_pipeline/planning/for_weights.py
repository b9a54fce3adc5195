"""A plan that follows trained weights where it must, so that they can be started from.

Architecture (levels, strides, kernels, features, kind of encoder) is that of the weights. The patch stays the planned
one, brought to a size that the strides divide. The spacing is that of the weights where both sides know millimetres and
it is within SPACING_FACTOR of the planned one, since features know objects by their size in voxels. Beyond that the
objects of the two data sets are of another order of size anyhow, and the planned spacing stays. So it does of 3d_lowres
where that of 3d_fullres is nearer, or the other way round: equal, one of the two would be of no use. The sources of a
unified data set follow on a physical grid, which they share; on a relative one there are no millimetres to follow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.planning.planner import denoiser_widths, is_flat
from unisegdiff_pipeline.planning.plans import ConfigurationPlan, NetworkPlan, Plans, SourcesPlan
from unisegdiff_pipeline.planning.reasons import training_reasons
from unisegdiff_pipeline.planning.sizing import Sizer
from unisegdiff_pipeline.planning.topology import MIN_EDGE

SPACING_FACTOR = 2.0
Spacing = tuple[float | None, float, float]


@dataclass(frozen=True)
class WeightsToFollow:
    """What a plan needs to know of weights.

    Attributes:
        network: their architecture.
        spacing_mm: voxel size (Z, Y, X) that their images were resampled to; None where millimetres were not known.
        description: what they are, for the reasons.
    """

    network: NetworkPlan
    spacing_mm: Spacing | None
    description: str


def plan_for_weights(plans: Plans, weights: WeightsToFollow, num_cases: int) -> Plans:
    """The plan with the configurations of the weights' dimension following them; the others stay as planned.

    Args:
        plans: of the data set, as planned without the weights.
        weights: what is to be started from.
        num_cases: of the data set, which bounds the batch.

    Raises:
        UsdError: no configuration has the dimension of the weights.
    """
    dims = weights.network.dims
    following = [name for name, c in plans.configurations.items() if c.network.dims == dims]
    if not following:
        there = ", ".join(plans.configurations)
        raise UsdError(
            f"{plans.dataset_name}: {weights.description} is a {dims}D network, and planned are {there} alone; start "
            f"from weights of another dimension."
        )
    configurations, decisions = dict(plans.configurations), dict(plans.decisions)
    spacings = [configurations[name].preprocessing.target_spacing_mm for name in following]
    nearest = min(spacings, key=lambda planned: _distance(planned, weights.spacing_mm))
    for name in following:
        configurations[name], reasons = _following(plans, configurations[name], weights, num_cases, nearest)
        decisions |= {f"configurations.{name}.{field}": reason for field, reason in reasons.items()}
    recommended = plans.recommended_configuration
    if recommended not in following:
        decisions["recommended_configuration"] = (
            f"of the {dims}D configurations, which {weights.description} can start; without it {recommended}"
        )
        recommended = following[0]
    return replace(plans, configurations=configurations, decisions=decisions, recommended_configuration=recommended)


def _following(
    plans: Plans, planned: ConfigurationPlan, weights: WeightsToFollow, num_cases: int, nearest: Spacing
) -> tuple[ConfigurationPlan, Mapping[str, str]]:
    channels, outputs = planned.network.num_input_channels, plans.labels.num_channels
    if planned.sources is not None:  # whose median shape is that of a slice in 2D
        num_cases = sum(source.num_images for source in planned.sources.plans.values())
    sizer = Sizer(plans.budget, channels, outputs, num_cases)
    spacing, reasons = _spacing(plans.in_mm(planned), planned, weights, nearest)
    shape = scaled_shape(planned.median_shape, planned.preprocessing.target_spacing_mm, spacing)
    network, reasons["network.patch_size"] = _network(planned.network, weights.network, shape, sizer)
    same = f"as in {weights.description}, which this plan is made to start from"
    reasons |= {"network.encoder": f"{network.encoder}: {same}", "network.levels": same}
    batch_size, reason = sizer.batch_size(network, shape)
    reasons["training.batch_size"] = reason
    training = replace(planned.training, batch_size=batch_size, dummy_2d_augmentation=is_flat(network))
    of_training = training_reasons(training, on_cpu=sizer.on_cpu, dims=network.dims)
    reasons["training.dummy_2d_augmentation"] = of_training["dummy_2d_augmentation"]
    widths, fraction = denoiser_widths(network, outputs)
    reasons["denoiser.features"] = f"one call costs {fraction:.1%} of the segmenter"
    configuration = replace(
        planned,
        preprocessing=replace(planned.preprocessing, target_spacing_mm=spacing),
        median_shape=shape,
        network=network,
        denoiser=replace(planned.denoiser, features=widths),
        training=training,
        sources=None if planned.sources is None else _sources(planned.sources, spacing),
    )
    return configuration, reasons


def _sources(planned: SourcesPlan, spacing: Spacing) -> SourcesPlan:
    """The sources of a unified data set, on a physical grid with the spacing that it has now."""
    if planned.grid != "physical":
        return planned
    plans = {
        name: replace(plan, preprocessing=replace(plan.preprocessing, target_spacing_mm=spacing))
        for name, plan in planned.plans.items()
    }
    return replace(planned, plans=plans)


def _distance(planned: Spacing, other: Spacing | None) -> float:
    """How far two spacings are apart, by the sum of the logarithms of their ratios; 0 where one is not known."""
    return sum(abs(math.log(a / b)) for a, b in _known_pairs(planned, other))


def _known_pairs(planned: Spacing, other: Spacing | None) -> list[tuple[float, float]]:
    pairs = zip(planned, planned if other is None else other, strict=True)
    return [(a, b) for a, b in pairs if a is not None and b is not None]


def _spacing(
    known: bool, planned: ConfigurationPlan, weights: WeightsToFollow, nearest: Spacing
) -> tuple[Spacing, dict[str, str]]:
    own, other = planned.preprocessing.target_spacing_mm, weights.spacing_mm
    key = "preprocessing.target_spacing_mm"
    if planned.sources is not None and planned.sources.grid != "physical":
        return own, {key: "as planned without weights: on the relative grid of the sources there are no millimetres"}
    if not known or other is None:
        return own, {}
    says = f"that of {weights.description} is {_shown(other)} mm"
    if own != nearest:
        return own, {key: f"as planned without weights; {says}, nearer to another configuration's {_shown(nearest)}"}
    if any(max(a / b, b / a) > SPACING_FACTOR for a, b in _known_pairs(own, other)):
        return own, {key: f"as planned without weights; {says}, over {SPACING_FACTOR:g} times off"}
    z = own[0] if own[0] is None or other[0] is None else other[0]
    return (z, other[1], other[2]), {key: f"{says}, within {SPACING_FACTOR:g} times of the planned {_shown(own)}"}


def scaled_shape(shape: tuple[int, int, int], former: Spacing, spacing: Spacing) -> tuple[int, int, int]:
    """A shape in voxels at another spacing."""
    z, y, x = (
        n if a is None or b is None else max(1, round(n * a / b))
        for n, a, b in zip(shape, former, spacing, strict=True)
    )
    return z, y, x


def _network(
    planned: NetworkPlan, trained: NetworkPlan, median_shape: Sequence[int], sizer: Sizer
) -> tuple[NetworkPlan, str]:
    """The trained architecture with the planned patch, brought to sizes that its strides divide and shrunk to fit."""
    divisor = [math.prod(level.stride[axis] for level in trained.levels) for axis in range(trained.dims)]
    limits = median_shape[-trained.dims :]
    most = [math.ceil(limit / step) for limit, step in zip(limits, divisor, strict=True)]  # that an image fills
    # A single voxel at the deepest level would be normalised to 0, or be an error of torch's, and of two in all, along
    # one axis, normalisation would leave nothing but which is the larger.
    if max(most) == 1:
        most = [2] * trained.dims
    least = [min(MIN_EDGE, count) * step for count, step in zip(most, divisor, strict=True)]
    patch = [
        max(floor, min(round(edge / step), count) * step)
        for edge, step, count, floor in zip(planned.patch_size, divisor, most, least, strict=True)
    ]

    def network() -> NetworkPlan:
        return NetworkPlan(trained.dims, tuple(patch), planned.num_input_channels, trained.levels, trained.encoder)

    reason = f"the planned {_times(planned.patch_size)}, in multiples of {_times(divisor)}, by which the strides divide"
    while not sizer.fits(network()):
        axes = [axis for axis in range(trained.dims) if patch[axis] > least[axis]]
        if not axes:
            return network(), f"{reason}; no smaller one is of use to the weights, though it exceeds the budget"
        axis = max(axes, key=lambda i: patch[i] / limits[i])
        patch[axis] -= divisor[axis]
    return network(), f"{reason}, within the budget"


def _times(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def _shown(spacing: Spacing) -> str:
    return " x ".join("own" if s is None else f"{s:.6g}" for s in spacing)
