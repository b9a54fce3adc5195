"""Why the numbers of a configuration are what they are, where the data set has no say or only chooses between two."""

from __future__ import annotations

from collections import Counter

from unisegdiff_pipeline.fingerprint import Fingerprint
from unisegdiff_pipeline.io.orientation import axis_codes
from unisegdiff_pipeline.io.spacing import MAX_RATIO
from unisegdiff_pipeline.planning.plans import DenoiserPlan, NetworkPlan, PreprocessingPlan, TrainingPlan
from unisegdiff_pipeline.planning.spacing import ANISOTROPY


def preprocessing_reasons(plan: PreprocessingPlan, median_crop_fraction: float) -> dict[str, str]:
    """Field of `preprocessing` => reason."""
    return {
        "use_nonzero_mask": (
            f"cropping to the non-zero region keeps {median_crop_fraction:.0%} of the median image; below 75 % z-score "
            "uses it alone"
        ),
        "intensities": "statistics of the foreground of all training cases; only the scheme ct uses them",
        "training_spacing_mm": (
            f"median of the training images; one whose spacing is over {MAX_RATIO:g} times off has lost its own"
        ),
        "image_order": f"{plan.image_order}: cubic interpolation, as in nnU-Net; 1 is cheaper and cannot overshoot",
        "separate_z": (
            f"{plan.separate_z}: slices stay as they are, and no axis is resampled apart"
            if plan.target_spacing_mm[0] is None
            else f"{plan.separate_z}: the coarsest axis is resampled apart, by the nearest slice, where its spacing is "
            f"over {ANISOTROPY:g} times that of another, as in nnU-Net"
        ),
        "missing_channels": (
            "true: dataset.json lets cases lack channels"
            if plan.missing_channels
            else "false: each case has all channels; missing_channels in dataset.json lets them lack some"
        ),
    }


def direction_reason(fingerprint: Fingerprint) -> str:
    """Why volumes are turned to a direction, or are not."""
    counts = Counter(case.orientation for case in fingerprint.cases if case.orientation)
    if not counts:
        return "2D images are taken as they are stored"
    stored = ", ".join(f"{count} {codes}" for codes, count in sorted(counts.items(), key=lambda item: -item[1]))
    if fingerprint.direction is None:
        return f"single slices in different planes ({stored}) are taken as they are stored"
    codes = axis_codes(fingerprint.direction)
    return f"{codes} (where x, y, z point to), as most training images are stored ({stored}); others are turned to it"


def network_reasons(plan: NetworkPlan) -> dict[str, str]:
    """Field of `network` => reason."""
    if plan.encoder == "resenc":
        return {"encoder": "resenc: nnU-Net's residual encoder, as the preset asks for; usd_plan without it is plain"}
    return {"encoder": f"{plan.encoder}: nnU-Net's default; a residual encoder costs about the same and may be set"}


def denoiser_reasons(plan: DenoiserPlan) -> dict[str, str]:
    """Field of `denoiser` => reason."""
    levels = plan.noise_levels_per_patch
    return {
        "noise_levels_per_patch": (
            f"{levels}: {levels // 3} for each of the three stages, so that every patch trains all of them; one pass "
            "of the segmenter serves all"
        )
    }


def training_reasons(plan: TrainingPlan, *, on_cpu: bool, dims: int, has_lowres: bool = False) -> dict[str, str]:
    """Field of `training` => reason; `batch_size` is missing, because the budget decides it.

    Args:
        plan: the numbers.
        on_cpu: whether the budget is that of a CPU.
        dims: 2 or 3, of the network.
        has_lowres: this is 3d_fullres, and 3d_lowres is planned beside it.
    """
    return {
        "optimizer": (
            f"{plan.optimizer}: it adapts the step of each weight, for trainings of limited time; sgd is nnU-Net's"
        ),
        "learning_rate": _learning_rate(plan, on_cpu),
        "weight_decay": f"{plan.weight_decay:g}: AdamW's default",
        "num_epochs": _num_epochs(plan, on_cpu),
        "iterations_per_epoch": f"{plan.iterations_per_epoch}: nnU-Net's; an epoch is a unit of length and of the log",
        "foreground_fraction": (
            f"{plan.foreground_fraction:.0%} of the patches, as in nnU-Net: small objects are seen often"
        ),
        "phase_1_fraction": (
            f"{plan.phase_1_fraction:.0%}: the segmenter is the larger network, and the denoiser builds on its features"
        ),
        "ema_decay": (
            f"{plan.ema_decay:g}: an average over about {1 / (1 - plan.ema_decay):.0f} iterations; faster in the "
            "beginning, so that short trainings do not carry their random start along"
        ),
        "batch_dice": _batch_dice(plan, dims, has_lowres),
        "deep_supervision": "on: coarser outputs carry loss too, as in nnU-Net" if plan.deep_supervision else "off",
        "augmentation": "default: close to nnU-Net's and several times as fast; nnunet runs its literal recipe",
        "dummy_2d_augmentation": _dummy_2d(plan, dims),
        "pretrained_encoder_rate": (
            f"{plan.pretrained_encoder_rate:g}: of the learning rate, for an encoder that usd_train --pretrained "
            "starts from other weights; lower rates were worse where they were measured"
        ),
        "pretrained_warmup_fraction": (
            f"{plan.pretrained_warmup_fraction:.0%} of phase 1, over which the rate of such an encoder rises from zero"
        ),
        "channel_dropout": (
            f"{plan.channel_dropout:g}: each channel of an example is hidden with this probability, one stays"
            if plan.channel_dropout
            else "0: no channel is hidden"
        ),
    }


def _learning_rate(plan: TrainingPlan, on_cpu: bool) -> str:
    if on_cpu:
        return f"{plan.learning_rate:g}: suits AdamW on networks as narrow as those planned for a CPU"
    return f"{plan.learning_rate:g}: half of what AdamW takes on the narrow networks that are planned for a CPU"


def _num_epochs(plan: TrainingPlan, on_cpu: bool) -> str:
    other = "--max-time or --epochs set another length, and the learning rate follows it"
    if on_cpu:
        return f"{plan.num_epochs} epochs of about a minute are four to five hours a fold on a CPU; {other}"
    return f"{plan.num_epochs}: nnU-Net's length; {other}"


def _batch_dice(plan: TrainingPlan, dims: int, has_lowres: bool) -> str:
    if not plan.batch_dice:
        return "off: a patch covers enough of an image for a Dice of its own, as in nnU-Net"
    if dims == 2:
        return "on: many slices hold little or no foreground, as in nnU-Net"
    return "on: patches see a small part of an image, as in nnU-Net" if has_lowres else "on"


def _dummy_2d(plan: TrainingPlan, dims: int) -> str:
    if plan.dummy_2d_augmentation:
        return f"on: the patch is over {ANISOTROPY:g} times shorter along Z"
    return "off: the network works on slices" if dims == 2 else "off: the patch is not much shorter along Z"
