"""What was chosen, in plain sentences."""

from __future__ import annotations

import dataclasses

from unisegdiff_pipeline.core.units import units_of
from unisegdiff_pipeline.diffusion.coding import LogitCalibration
from unisegdiff_pipeline.diffusion.samplers import SamplerSettings
from unisegdiff_pipeline.inference.settings import InferenceSettings
from unisegdiff_pipeline.inference.settings_words import sampler_in_words, settings_in_words

TWO_CALLS = SamplerSettings(method="hard", start="stage_a", num_calls=1, correlation_length_mm=16.0, draw=True)
CHOSEN = InferenceSettings(
    lam_a=-7.0,
    lam_c=-1.0,
    calibration=LogitCalibration(1.7, 0.65),
    segmenter_weight=0.25,
    decision="dice",
    sampler=TWO_CALLS,
    num_samples=8,
)


def test_what_is_chosen_and_what_it_means() -> None:
    mask, probability, samples, calibration = settings_in_words(CHOSEN, units_of(is_2d=True, spacing_known=False))
    assert mask == "The mask is what promises the highest Dice over the samples of the case."
    assert (
        probability
        == "The probability is 25% the segmenter's and 75% the mean over the samples (segmenter weight 0.25)."
    )
    assert samples == (
        "8 samples a case: each takes 2 network calls from pure noise, the first for all at once; between them a mask "
        "is drawn and noised again, and the sample is drawn from the last probabilities so that pixels within about 16 "
        "pixels fall together."
    )
    assert "softer (logits divided by 1.7) for foreground, sharper (logits divided by 0.65) for back" in calibration


def test_a_plain_segmenter() -> None:
    alone = dataclasses.replace(CHOSEN, num_samples=0, segmenter_weight=1.0, calibration=LogitCalibration(1.0, 1.0))
    assert settings_in_words(alone) == [
        "The mask is where the probability is above 0.5, or of several classes the likeliest one.",
        "The probability is the segmenter's alone.",
        "The segmenter's probabilities are taken as they are.",
    ]


def test_a_ceiling_is_a_probability() -> None:
    """Log odds of 2 are 88 %."""
    capped = dataclasses.replace(CHOSEN, calibration=LogitCalibration(1.0, 1.0, 2.0))
    assert "never above 88%" in settings_in_words(capped)[-1]


def test_sources_with_temperatures_of_their_own() -> None:
    of_sources = dataclasses.replace(CHOSEN, source_calibrations={"OCT": LogitCalibration(8.0, 1.0)})
    assert settings_in_words(of_sources)[-1].startswith("The segmenter's probabilities of OCT are made softer (logits")


def test_two_fields_draw_objects_and_surfaces() -> None:
    text = sampler_in_words(dataclasses.replace(TWO_CALLS, surface_length_mm=4.0, certain=0.95))
    assert "whole objects come or stay away together within about 16 mm" in text
    assert "their surfaces run alike over 4 mm, and voxels above 95% are in every sample" in text


def test_samplers() -> None:
    drawn = SamplerSettings(method="ddim", start="det", num_calls=0, lam_end=0.0, correlation_length_mm=7.5, draw=True)
    assert sampler_in_words(drawn).startswith("each is drawn from the segmenter's probability, without a call")
    assert "1 network call from pure noise" in sampler_in_words(
        SamplerSettings(method="ddim", start="stage_a", num_calls=0)
    )
    cut = sampler_in_words(SamplerSettings(method="ddim", start="det", num_calls=4))
    assert "4 network calls from the segmenter's probability; without new noise between them" in cut
    assert cut.endswith("get a threshold of 0.5")
