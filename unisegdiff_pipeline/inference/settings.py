"""fold_k/inference.json: what training learned or chose for prediction, on cases it held out for that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, get_args

from unisegdiff_pipeline.core.bounds import MAX_SAMPLES, Fraction, LogSignalToNoise, Range
from unisegdiff_pipeline.core.serialization import formerly, read_dataclass, write_json
from unisegdiff_pipeline.diffusion.coding import NO_CALIBRATION, LogitCalibration
from unisegdiff_pipeline.diffusion.samplers import SamplerSettings
from unisegdiff_pipeline.diffusion.schedule import StageEdges, Target
from unisegdiff_pipeline.inference.cases import PresenceCalibration
from unisegdiff_pipeline.inference.guarantees import Guarantees
from unisegdiff_pipeline.inference.lesion_filter import NO_FILTER, LesionFilter
from unisegdiff_pipeline.inference.utility import OperatingPoint
from unisegdiff_pipeline.planning.plans import SourcesPlan

FILE_NAME = "inference.json"

Decision = Literal["half", "dice"]
# No voxel's probability:
OF_LESIONS = (
    "lesion_filter",
    "filter_in_words",
    "operating_points",
    "case_calibration",
    "guarantees",
    "source_guarantees",
)
DECISIONS: tuple[Decision, ...] = get_args(Decision)


@dataclass(frozen=True, kw_only=True)
class InferenceSettings:
    """How one fold predicts.

    Attributes:
        lam_a, lam_c: edges of the stages, as planned unless training refined them.
        input_scale: factor b of each channel, as planned; empty for 1 everywhere.
        target: what the denoiser was trained to predict.
        calibration: of the segmenter's logits, for p_det.
        source_calibrations: the same for images of single sources of a unified data set, where held-out cases tell it.
        denoiser_calibration: the same for the denoiser's input, as in its training: the segmenter's when that began.
        segmenter_weight: w; final probability = w * p_det + (1 - w) * mean of the samples; 1 is the plain segmenter.
        decision: how the final probability becomes a mask: "half" thresholds it at 0.5 (or takes the likeliest class),
            "dice" where the samples of the case promise the highest Dice (see `decision`).
        num_samples: masks drawn a case unless the user asks for another number.
        sampler: method, start, number of calls, end of the schedule, length of the field (see `SamplerSettings`).
        mask_sampler: samples the masks where `sampler`, which then makes the mean alone, is not the best to draw them.
        weights: which weights the fold holds: "ema" at the end, or the "best" ones seen on held-out cases.
        lesion_filter: which lesions of the mask stay in it (see `lesion_filter`).
        filter_in_words: what was chosen for each class, its gain and the number of cases.
        operating_points: other rules of each class and their scores, to choose from by a utility (see `utility`).
        case_calibration: of the probability that a case holds any lesion; None where it is the samples' own.
        guarantees: what the fold's validation cases allow to be promised; None before they are predicted.
        source_guarantees: the same of a unified data set, for images of each source.
        chosen_on: the cases that calibration, segmenter weight and sampler were chosen on, in words.
    """

    lam_a: LogSignalToNoise
    lam_c: LogSignalToNoise
    input_scale: tuple[Annotated[float, Range(1e-3, 1e3)], ...] = ()
    target: Target = "staged"
    calibration: LogitCalibration = field(default=NO_CALIBRATION, metadata=formerly("temperature"))
    source_calibrations: Mapping[str, LogitCalibration] = field(default_factory=dict)
    denoiser_calibration: LogitCalibration = field(default=NO_CALIBRATION, metadata=formerly("denoiser_temperature"))
    segmenter_weight: Fraction = field(default=0.5, metadata=formerly("w"))
    decision: Decision = "half"
    num_samples: Annotated[int, Range(0, MAX_SAMPLES)] = 8
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    mask_sampler: SamplerSettings | None = None
    weights: str = "ema"
    lesion_filter: LesionFilter = NO_FILTER
    filter_in_words: tuple[str, ...] = ()
    operating_points: Mapping[str, tuple[OperatingPoint, ...]] = field(default_factory=dict)
    case_calibration: PresenceCalibration | None = None
    guarantees: Guarantees | None = None
    source_guarantees: Mapping[str, Guarantees] = field(default_factory=dict)
    chosen_on: str = "nothing: all settings are the defaults"

    def __post_init__(self) -> None:
        if not 0 <= self.segmenter_weight <= 1:
            raise ValueError(
                f"segmenter_weight is {self.segmenter_weight}; allowed is 0 (samples only) to 1 (segmenter only)"
            )
        if self.num_samples < 0:
            raise ValueError(f"num_samples is {self.num_samples}; it must be 0 or more")
        if not self.lam_a < self.lam_c:
            raise ValueError(f"lam_a is {self.lam_a:g} and lam_c {self.lam_c:g}; lam_a must lie below lam_c")

    @property
    def edges(self) -> StageEdges:
        """Stage edges in the form that the samplers take."""
        return StageEdges(self.lam_a, self.lam_c, self.input_scale, self.target)

    def for_source(self, sources: SourcesPlan | None, source: str | None) -> InferenceSettings:
        """The settings for images of a source, with what is its own: `input_scale` and calibration."""
        if sources is None or source is None:
            return self
        stages = sources.plans[source].stages
        return replace(
            self,
            input_scale=self.input_scale if stages is None else stages.input_scale,
            calibration=self.source_calibrations.get(source, self.calibration),
            source_calibrations={},
        )

    def calibrated(self, calibration: LogitCalibration) -> InferenceSettings:
        """The settings with this calibration for images of any source."""
        return replace(self, calibration=calibration, source_calibrations={})

    @property
    def drawn_by(self) -> SamplerSettings:
        """The sampler that samples the masks."""
        return self.mask_sampler or self.sampler


def decision_of_folds(decisions: Iterable[Decision]) -> Decision:
    """What more than half of the folds chose; "half" where they are divided."""
    chosen = list(decisions)
    return "dice" if 2 * chosen.count("dice") > len(chosen) else "half"


def write_settings(fold_folder: Path, settings: InferenceSettings) -> None:
    """Write inference.json of a fold, atomically."""
    write_json(fold_folder / FILE_NAME, settings)


def read_settings(fold_folder: Path) -> InferenceSettings:
    """Read inference.json of a fold; a wrong key or value is a UsdError that names the file."""
    return read_dataclass(InferenceSettings, fold_folder / FILE_NAME)
