"""Move a plan between data sets: grid, patch and network of another, intensities and everything else of one's own.

Two data sets planned in the same way can be compared, and weights of the one start trainings on the other.
"""

from __future__ import annotations

from dataclasses import replace

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.planning.for_weights import scaled_shape
from unisegdiff_pipeline.planning.plans import ConfigurationPlan, Plans


def move_plans(own: Plans, other: Plans, name: str) -> Plans:
    """The configurations of another plan, for the data that `own` was planned for.

    Target spacing, interpolation, network, denoiser and training come from the other plan. Axis order, orientation,
    normalisation, intensities, channels, mirrored axes, labels and budget are those of the data; stages are planned
    from their labels.

    Args:
        own: plan of the data set.
        other: plan whose decisions are taken over.
        name: of the other plan, for the reasons.

    Raises:
        UsdError: what cannot be moved, with the key's path in the other plan.
    """
    if other.spacing_known != own.spacing_known:
        raise _refused(name, "spacing_known", other.spacing_known, f"{own.dataset_name} has {own.spacing_known}")
    configurations, decisions = {}, dict(own.decisions)
    for key, planned in other.configurations.items():
        path = f"configurations.{key}"
        base = own.configurations.get(key) or _of_dimension(own, planned.network.dims)
        if base is None:
            dims = planned.network.dims
            raise _refused(name, f"{path}.network.dims", dims, f"{own.dataset_name} has no {dims}D configuration")
        for plan, whose in ((planned, "other"), (base, "own")):
            if plan.sources is not None:
                raise _refused(name, f"{path}.sources", f"that of the {whose} data set", "unified plans are not moved")
        configurations[key] = _moved(base, planned, own.num_masks(planned))
        decisions = {k: v for k, v in decisions.items() if not k.startswith(f"{path}.") or _is_own(k)}
        for part in ("preprocessing.target_spacing_mm", "network.patch_size", "network.levels", "training.batch_size"):
            decisions[f"{path}.{part}"] = f"moved from {name} ({other.dataset_name})"
    decisions = {k: v for k, v in decisions.items() if _configuration(k) in (None, *configurations)}
    decisions["recommended_configuration"] = f"moved from {name} ({other.dataset_name})"
    return replace(
        own,
        configurations=configurations,
        decisions=decisions,
        recommended_configuration=other.recommended_configuration,
    )


def _moved(base: ConfigurationPlan, planned: ConfigurationPlan, num_masks: int) -> ConfigurationPlan:
    spacing = planned.preprocessing.target_spacing_mm
    preprocessing = replace(
        base.preprocessing,
        target_spacing_mm=spacing,
        image_order=planned.preprocessing.image_order,
        separate_z=planned.preprocessing.separate_z,
    )
    return replace(
        planned,
        preprocessing=preprocessing,
        median_shape=scaled_shape(base.median_shape, base.preprocessing.target_spacing_mm, spacing),
        network=replace(planned.network, num_input_channels=preprocessing.num_inputs + num_masks),
        training=replace(
            planned.training,
            mirror_axes=base.training.mirror_axes,
            channel_dropout=base.training.channel_dropout,
        ),
        stages=None,
    )


def _of_dimension(plans: Plans, dims: int) -> ConfigurationPlan | None:
    return next((c for c in plans.configurations.values() if c.network.dims == dims), None)


def _is_own(key: str) -> bool:
    """Whether a reason is of a field that stays that of the data."""
    own = ["axis_order", "direction", "normalization", "use_nonzero_mask", "intensities", "training_spacing_mm"]
    own.append("missing_channels")
    return any(f".preprocessing.{name}" in key for name in own) or key.endswith((".mirror_axes", ".channel_dropout"))


def _configuration(key: str) -> str | None:
    """The configuration that a reason is of; None for one of the whole plan, or of why one was not made."""
    parts = key.split(".")
    return parts[1] if parts[0] == "configurations" and len(parts) > 2 else None


def _refused(name: str, path: str, value: object, why: str) -> UsdError:
    return UsdError(f"{name}: {path} is {value} and cannot be moved: {why}. Take it out there, or plan without --from.")
