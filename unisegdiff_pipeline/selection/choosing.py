"""What a fold predicts with, chosen on the inner hold-out: calibration, sampler, segmenter weight, threshold.

The cases are few, and what the best of many candidates gains on a dozen of them is mostly luck; so each choice has a
default, and the burden of proof lies with the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from unisegdiff_pipeline.core.progress import counted, is_or_are
from unisegdiff_pipeline.diffusion.coding import LogitCalibration
from unisegdiff_pipeline.inference.settings import InferenceSettings
from unisegdiff_pipeline.networks.staged_model import StagedModel
from unisegdiff_pipeline.selection.calibration import (
    FEWEST_FOR_CALIBRATION,
    choose_calibration,
    choose_source_calibrations,
)
from unisegdiff_pipeline.selection.field_length import planned_length_mm
from unisegdiff_pipeline.selection.hold_out import HoldOut
from unisegdiff_pipeline.selection.objects import num_informative
from unisegdiff_pipeline.selection.sampler import (
    FULL_SEARCH,
    SamplerTrial,
    Search,
    default_sampler,
    drawing,
    try_samplers,
)
from unisegdiff_pipeline.selection.segmenter_weight import MeanTrial, rank_means, try_means, with_samplers
from unisegdiff_pipeline.selection.surface import try_surfaces

FEWEST_FOR_SETTINGS = 6  # sampler, segmenter weight, threshold and spread
TEMPERATURE = "temperature"
LATER_SETTINGS = "sampler, segmenter weight, threshold and spread of the samples"  # chosen after the temperature


@dataclass(frozen=True)
class Choice:
    """What was chosen, and what was tried, best first; other lengths of the field than the one taken stand last.

    `calibrations` are those that the cases were predicted with. `warning` says what too few patients left at its
    default; nothing was tried then, or the temperature was not fitted either.
    """

    settings: InferenceSettings
    calibrations: Mapping[str, LogitCalibration]
    samplers: tuple[SamplerTrial, ...]
    means: tuple[MeanTrial, ...]
    warning: str = ""

    @property
    def left_at_default(self) -> str:
        """What was not chosen yet, in words; empty where all is, or too few patients allow no more."""
        if self.warning or self.means:
            return ""
        return "segmenter weight and threshold of the mask" if self.samplers else LATER_SETTINGS


def too_few(patients: int) -> str:
    """What stays at its default with so few patients, and why; empty where they suffice."""
    if patients >= FEWEST_FOR_SETTINGS:
        return ""
    left, needed = LATER_SETTINGS, f"{FEWEST_FOR_SETTINGS} are needed"
    if patients < FEWEST_FOR_CALIBRATION:
        left = f"{TEMPERATURE}, {left}"
        needed = f"{FEWEST_FOR_CALIBRATION} are needed for the temperature, {FEWEST_FOR_SETTINGS} for the others"
    shown = f"{counted(patients, 'held-out patient')} with annotated objects"
    return f"{left} are the defaults, because {shown} {is_or_are(patients)} too few ({needed})"


def chosen_on(cases: Sequence[str], warning: str) -> str:
    """What was chosen on which held-out cases, in words.

    Args:
        cases: held-out cases.
        warning: what too few patients (`Choice.warning`) or a lack of time left at its default.
    """
    if warning.startswith(TEMPERATURE):
        return f"nothing: {warning}"
    on = f"{counted(len(cases), 'case')} of the inner hold-out: {', '.join(cases)}"
    if not warning:
        return on
    chosen = TEMPERATURE if warning.startswith(LATER_SETTINGS) else f"{TEMPERATURE} and sampler"
    return f"{chosen} on {on}; {warning}"


def choose_settings(
    held_out: HoldOut,
    model: StagedModel,
    settings: InferenceSettings,
    cases: Sequence[str],
    search: Search = FULL_SEARCH,
    source_cases: Sequence[str] = (),
) -> Iterator[Choice]:
    """Temperature, the sampler of the masks, then segmenter weight and decision, on held-out cases.

    A caller that runs out of time keeps the last choice.

    Args:
        held_out, model: as trained.
        settings: the defaults (`default_settings`), whose field is as long as planned.
        cases: held-out ones to choose on; too few patients among them (`too_few`) leave the default settings.
        search: samplers to try.
        source_cases: held-out cases of a unified data set that tell the temperatures of its single sources.

    Yields:
        After each of the three what is chosen by then, all else at its default; the last one is complete. Temperatures
        of single sources come after that of all.
    """
    fitted = choose_calibration(held_out, model, cases)
    settings, calibrations = replace(settings, calibration=fitted.of_all), dict(fitted.of_others)
    warning = too_few(num_informative(held_out, cases))
    yield Choice(settings, calibrations, (), (), warning)
    if source_cases:
        by_source = choose_source_calibrations(held_out, model, source_cases)
        of_sources = {source: of_source.of_all for source, of_source in by_source.items()}
        settings = replace(settings, source_calibrations=of_sources)
        for of_source in by_source.values():
            calibrations = {**calibrations, **of_source.of_others}
        yield Choice(settings, calibrations, (), (), warning)
    of_others = {case_id: calibrations[case_id] for case_id in fitted.of_others}
    if warning:
        return
    samplers = try_samplers(held_out, model, settings, of_others, search)
    if len(search.surface_parts) > 1 and samplers[0].sampler.surface_length_mm is not None:
        surfaces = try_surfaces(held_out, model, settings, samplers[0].sampler, of_others, search.surface_parts)
        samplers = [surfaces[0], *samplers[1:], *surfaces[1:]]
    settings = with_samplers(settings, samplers[0].sampler)
    yield Choice(settings, calibrations, tuple(samplers), ())
    means = rank_means(try_means(held_out, model, settings, of_others))
    chosen = replace(
        with_samplers(settings, samplers[0].sampler, means[0].segmenter_weight), decision=means[0].decision
    )
    yield Choice(chosen, calibrations, tuple(samplers), tuple(means))


def default_settings(held_out: HoldOut, settings: InferenceSettings) -> InferenceSettings:
    """The defaults, before anything is chosen, or where a fold holds no case out."""
    return with_samplers(settings, drawing(default_sampler(settings), planned_length_mm(held_out)))
