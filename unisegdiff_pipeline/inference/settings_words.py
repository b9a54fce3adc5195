"""What was chosen for prediction, and what it means for the masks, in plain sentences for logs and reports."""

from __future__ import annotations

import math

from unisegdiff_pipeline.core.units import VOLUMES, Units
from unisegdiff_pipeline.diffusion.coding import LogitCalibration
from unisegdiff_pipeline.diffusion.samplers import SamplerSettings
from unisegdiff_pipeline.inference.settings import InferenceSettings

SAME = 0.05  # a temperature this near to 1 changes nothing that anyone would see


def settings_in_words(settings: InferenceSettings, units: Units = VOLUMES) -> list[str]:
    """A sentence for each choice: the mask, its probability, the samples, the segmenter's probabilities.

    Args:
        settings: of a fold.
        units: of the data set.
    """
    sentences = [_mask(settings), _probability(settings)]
    if settings.num_samples:
        sentences.append(f"{settings.num_samples} samples a case: {sampler_in_words(settings.drawn_by, units)}.")
    sentences.append(_calibration(settings.calibration))
    sentences += [_calibration(own, f" of {source}") for source, own in settings.source_calibrations.items()]
    return [*sentences, *settings.filter_in_words]


def sampler_in_words(sampler: SamplerSettings, units: Units = VOLUMES) -> str:
    """How one sample comes about, with the number of all its network calls."""
    return f"{_way(sampler)}{_end(sampler, units)}"


def _mask(settings: InferenceSettings) -> str:
    if settings.decision == "dice" and settings.num_samples:
        return "The mask is what promises the highest Dice over the samples of the case."
    return "The mask is where the probability is above 0.5, or of several classes the likeliest one."


def _probability(settings: InferenceSettings) -> str:
    if settings.segmenter_weight == 1 or not settings.num_samples:
        return "The probability is the segmenter's alone."
    if settings.segmenter_weight == 0:
        return (
            "The probability is the mean over the samples; the segmenter's own does not enter it (segmenter weight 0)."
        )
    return (
        f"The probability is {settings.segmenter_weight:.0%} the segmenter's and "
        f"{1 - settings.segmenter_weight:.0%} the mean over the samples "
        f"(segmenter weight {settings.segmenter_weight:g})."
    )


def _way(sampler: SamplerSettings) -> str:
    if sampler.total_calls == 0:
        return "each is drawn from the segmenter's probability, without a call of the denoiser"
    calls = "1 network call" if sampler.total_calls == 1 else f"{sampler.total_calls} network calls"
    start = "pure noise" if sampler.start == "stage_a" else "the segmenter's probability"
    between = {
        "hard": "between them a mask is drawn and noised again",
        "renoise": "between them the mean is noised again",
        "ddim": "without new noise between them",
    }
    shared = ", the first for all at once" if sampler.start == "stage_a" else ""
    way = f"each takes {calls} from {start}{shared}"
    return way + (f"; {between[sampler.method]}" if sampler.total_calls > 1 else "")


def _end(sampler: SamplerSettings, units: Units) -> str:
    if not sampler.draw:
        return ", and its last probabilities get a threshold of 0.5"
    if sampler.surface_length_mm is not None:
        return (
            f", and the sample is drawn from the last probabilities: whole objects come or stay away together within "
            f"about {sampler.correlation_length_mm:.3g} {units.length}, their surfaces run alike over "
            f"{sampler.surface_length_mm:.3g} {units.length}, and {units.element}s above {sampler.certain:.0%} are in "
            f"every sample"
        )
    if sampler.correlation_length_mm == 0:
        return f", and every {units.element} is drawn on its own"
    return (
        f", and the sample is drawn from the last probabilities so that {units.element}s within about "
        f"{sampler.correlation_length_mm:.3g} {units.length} fall together"
    )


def _calibration(calibration: LogitCalibration, images: str = "") -> str:
    if all(abs(value - 1) < SAME for value in (calibration.foreground, calibration.background)):
        changed = "are taken as they are"
    else:
        parts = ((calibration.foreground, "foreground"), (calibration.background, "background"))
        changed = f"are made {', '.join(f'{_strength(value)} for {name}' for value, name in parts)}"
    soft_cap = "" if calibration.soft_cap is None else f", and never above {_percent(calibration.soft_cap)}"
    return f"The segmenter's probabilities{images} {changed}{soft_cap}."


def _strength(value: float) -> str:
    if abs(value - 1) < SAME:
        return "no other"
    return f"{'softer' if value > 1 else 'sharper'} (logits divided by {value:g})"


def _percent(log_odds: float) -> str:
    return f"{1 / (1 + math.exp(-log_odds)):.0%}"
