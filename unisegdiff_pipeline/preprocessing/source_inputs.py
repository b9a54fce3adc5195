"""How images of several sources become inputs of one network: which plan treats an image, and how channels are filled.

The plan of an image of a known source is that of the source. An image of no known source is treated by its own number
of channels and, where the sources meet on a relative grid, brought to the size of the median training image.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from unisegdiff_pipeline.core.boxes import nonzero_box, whole_box
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.geometry import Volume
from unisegdiff_pipeline.core.progress import counted
from unisegdiff_pipeline.io.orientation import Reorientation, reorientation_of
from unisegdiff_pipeline.io.sources import repeated_channels
from unisegdiff_pipeline.planning.plans import ConfigurationPlan, PreprocessingPlan, StagePlan
from unisegdiff_pipeline.planning.spacing import image_size
from unisegdiff_pipeline.preprocessing.presence import for_channels

SCALED_BEYOND_NATS = 2.0


def preprocessing_of(
    configuration: ConfigurationPlan, source: str | None, volume: Volume, case_id: str = ""
) -> PreprocessingPlan:
    """The plan that an image is preprocessed by.

    Args:
        configuration: the configuration; one of an ordinary data set has one plan for all images.
        source: name of the source that the image comes from; None where it is not known.
        volume: the image (C, Z, Y, X) as it was read.
        case_id: for messages.

    Raises:
        UsdError: the configuration has no such source, or the image of no known source has more channels than the
            network.
    """
    if configuration.sources is None:
        if source is not None:
            raise UsdError(
                f"the source {source!r} was named, but this model was not trained on several sources; leave it out."
            )
        return configuration.preprocessing
    if source is not None:
        return _plan_of(configuration, source)
    plan = configuration.preprocessing
    channels = _require_channels(volume.array.shape[0], configuration.network.num_input_channels, case_id)
    plan = for_channels(plan, range(channels))
    if volume.geometry.is_2d:  # perhaps a picture, which lies nowhere, though other sources are volumes
        plan = replace(plan, direction=None)
    size = common_image_size(configuration, source)
    return plan if size is None else _brought_to_size(plan, volume, configuration.network.dims, size)


def common_image_size(configuration: ConfigurationPlan, source: str | None) -> float | None:
    """Edge in voxels (see `image_size`) that an image of no known source is brought to; None where spacing decides."""
    if source is not None or configuration.sources is None or configuration.sources.grid == "physical":
        return None
    return image_size(configuration.median_shape, configuration.network.dims)


def to_network_channels(image: np.ndarray, width: int, case_id: str = "") -> np.ndarray:
    """Repeat the channels of an image (C, ...) in their order up to `width`: 1 -> 111, 2 -> 121, 3 -> 123.

    The image itself is returned where it has that many channels.

    Raises:
        UsdError: the image has more channels than the network.
    """
    channels = _require_channels(image.shape[0], width, case_id)
    return image if channels == width else image[repeated_channels(channels, width)]


def preprocessing_plans(configuration: ConfigurationPlan) -> dict[str | None, PreprocessingPlan]:
    """The plan of each source's training images; that of an ordinary data set has the key None."""
    if configuration.sources is None:
        return {None: configuration.preprocessing}
    return {name: plan.preprocessing for name, plan in configuration.sources.plans.items()}


def brought_to_mixture(own: StagePlan, mixture: StagePlan) -> StagePlan:
    """Stages of a source with the input scale b that moves its lam_a onto the mixture's: 2 ln b is a move on lam.

    Edges that lie within SCALED_BEYOND_NATS of each other need none.
    """
    gap = own.lam_a - mixture.lam_a
    scale = round(math.exp(gap / 2), 4) if abs(gap) > SCALED_BEYOND_NATS else 1.0
    return replace(own, input_scale=(scale,) * len(own.input_scale))


def reorientation_to(plan: PreprocessingPlan, volume: Volume) -> Reorientation:
    """From the axes of the file to those of the plan."""
    turn = Reorientation() if plan.direction is None else reorientation_of(volume.geometry, plan.direction)
    return turn.then(plan.axis_order)


def _plan_of(configuration: ConfigurationPlan, source: str) -> PreprocessingPlan:
    assert configuration.sources is not None
    plans = configuration.sources.plans
    if source not in plans:
        raise UsdError(
            f"the source {source!r} is not one of configuration {configuration.name}; allowed are "
            f"{', '.join(plans)}, or none for images of another source."
        )
    return plans[source].preprocessing


def _brought_to_size(plan: PreprocessingPlan, volume: Volume, dims: int, size: float) -> PreprocessingPlan:
    """The plan with a target spacing at which this very image has an edge of so many voxels (see `image_size`)."""
    turn = reorientation_to(plan, volume)
    box = nonzero_box(*volume.array) or whole_box(volume.array.shape[1:])
    shape = [box[axis][1] - box[axis][0] for axis in turn.axis_order]
    z, y, x = (float(volume.geometry.spacing_mm[axis]) for axis in turn.axis_order)
    factor = image_size(shape, dims) / size
    target = (None if dims == 2 else z * factor, y * factor, x * factor)
    return replace(plan, target_spacing_mm=target, training_spacing_mm=(z, y, x))


def _require_channels(channels: int, width: int, case_id: str) -> int:
    if not 1 <= channels <= width:
        raise UsdError(
            f"case {case_id!r} has {counted(channels, 'channel')}, the network takes 1 to {width}; leave out channels, "
            f"or give the images of each channel apart."
        )
    return channels
