"""Guarantees from validation cases: what a case says by hand, which rates its patients allow, and why others not."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.serialization import from_jsonable, to_jsonable
from unisegdiff_pipeline.core.units import Units
from unisegdiff_pipeline.evaluation.conformal import mask_volumes
from unisegdiff_pipeline.inference.case_prediction import CasePrediction, SampledBox, SamplingFacts
from unisegdiff_pipeline.inference.ensemble import EnsemblePrediction
from unisegdiff_pipeline.inference.guarantees import Guarantees, guarantees_in_words
from unisegdiff_pipeline.planning.plans import SourcesPlan
from unisegdiff_pipeline.preprocessing.properties import CaseProperties
from unisegdiff_pipeline.selection.guarantees import (
    CaseEvidence,
    ClassEvidence,
    calibrate,
    calibrate_for,
    case_evidence,
)

SCHEME = LabelScheme(("lesion",), ((1,),), "binary", (1,), ignore_value=9)
NOTHING = SamplingFacts(1, 1, 0, 0.0, 0.0)


def predicted(p: list[list[float]], *samples: list[float]) -> tuple[EnsemblePrediction, CaseProperties]:
    """Probabilities of channels, and samples of one, of a row of voxels of 10 x 10 x 10 mm, 1 ml each."""
    mean = torch.tensor(p)[:, None, None]
    width = mean.shape[-1]
    drawn = torch.tensor(samples).reshape(len(samples), 1, 1, 1, width).half()
    box = SampledBox(
        (slice(0, 1), slice(0, 1), slice(0, width)), torch.ones(1, 1, width, dtype=torch.bool), mean, drawn
    )
    case = CasePrediction(mean, (box,) if samples else (), len(samples), 1.0, NOTHING)
    shape, whole = (1, 1, width), ((0, 1), (0, 1), (0, width))
    grid = Geometry((10.0, 10.0, 10.0))
    properties = CaseProperties("c", None, grid, shape, (0, 1, 2), whole, shape, shape, grid.spacing_mm)
    places = tuple((0, index) for index in range(len(samples)))
    return EnsemblePrediction((case,), places, NOTHING), properties


def test_what_a_case_says_by_hand() -> None:
    found, properties = predicted([[0.9, 0.3, 0.1, 0.7]], [1, 1, 1, 1], [0, 0, 0, 1])
    reference = np.array([[[1, 1, 0, 1]]], np.uint8)
    evidence = case_evidence(found, properties, SCHEME, reference, "patient", spacing_known=True)
    own = evidence.classes["lesion"]
    assert (evidence.patient, evidence.units.size) == ("patient", "ml")
    assert own.lesions.tolist() == [np.float16(0.9), np.float16(0.7)]
    assert own.sampled == pytest.approx((4 ** (1 / 3), 1.0))  # cube roots of ml
    assert own.reference == pytest.approx(3 ** (1 / 3))
    at_half = own.masks.thresholds.index(0.5)
    assert (own.masks.mask[at_half], own.masks.common[at_half], own.masks.reference) == pytest.approx((2, 2, 3))


def test_ignored_voxels_count_nowhere_and_leave_the_volume_unknown() -> None:
    found, properties = predicted([[0.9, 0.9, 0.1, 0.1]], [1, 1, 0, 0])
    reference = np.array([[[1, 9, 0, 0]]], np.uint8)
    own = case_evidence(found, properties, SCHEME, reference, "p", spacing_known=True).classes["lesion"]
    assert own.masks.mask[own.masks.thresholds.index(0.5)] == pytest.approx(1)
    assert own.reference is None
    refused = calibrate([CaseEvidence("p", Units(), {"lesion": own})], ["w"], "x").classes["lesion"].refused
    assert "ignore label" in refused["volume=0.5"]
    assert "ignore label" in refused["masks=0.5"]


def test_a_case_of_a_unified_data_set_says_something_of_what_its_source_annotates() -> None:
    scheme = LabelScheme(("whole", "core"), ((1, 2), (2,)), "regions", (1, 2))
    plan: Any = SimpleNamespace(annotated=(False, True))
    found, properties = predicted([[0.9, 0.8], [0.1, 0.6]])
    evidence = case_evidence(
        found,
        dataclasses.replace(properties, case_id="a", source="CT"),
        scheme,
        np.array([[[1, 2]]], np.uint8),
        "p",
        spacing_known=True,
        sources=SourcesPlan({"MR": plan, "CT": plan}),
    )
    assert (evidence.source, list(evidence.classes)) == ("CT", ["core"])


def test_sources_are_calibrated_by_their_own_patients() -> None:
    def case(source: str, patient: int, score: float) -> CaseEvidence:
        own = ClassEvidence(np.array([score]), mask_volumes([[score]], [[1]]), (1.0,), 1.0)
        return CaseEvidence(f"{source}{patient}", Units(), {"lesion": own}, source)

    cases = [case("CT", n, 0.8) for n in range(4)] + [case("MR", n, 0.3) for n in range(9)]
    cases += [CaseEvidence("US0", Units(), {}, "US")]  # of a source that annotates nothing
    plan: Any = SimpleNamespace()
    of_all, found = calibrate_for(SourcesPlan({"MR": plan, "CT": plan}), cases, ["w"], "fold 0")
    assert of_all is None
    assert {source: own.num_patients for source, own in found.items()} == {"CT": 4, "MR": 9}
    assert {source: own.classes["lesion"].rates("lesions")[-1] for source, own in found.items()} == {
        "CT": 0.8,  # 1 / (4 + 1) = 1 - 0.8
        "MR": 0.9,
    }
    assert {one.threshold for one in found["CT"].classes["lesion"].lesions} == {0.8}
    assert found["MR"].in_words[0] == "Calibrated on 9 patients of the source MR: fold 0."
    assert guarantees_in_words(of_all, found) == [  # a line for each source, then what the kinds mean, once
        "Calibrated on 4 patients of the source CT: fold 0. lesion: up to lesions=0.8, masks=0.8, volume=0.8.",
        "Calibrated on 9 patients of the source MR: fold 0. lesion: up to lesions=0.9, masks=0.9, volume=0.9.",
        "lesions=RATE: on average at least RATE of a patient's lesions share a voxel with the mask in masks_lesions/.",
        "masks=RATE: on average at least RATE of the volume of a patient's reference lies within masks_outer/, and at "
        "least RATE of that of masks_inner/ within the reference.",
        "volume=RATE: in at least RATE of patients the volume lies between guaranteed_low and guaranteed_high of "
        "volumes.csv in all of their images.",
    ]


def test_a_kind_that_a_source_has_none_of_is_named_with_the_reason() -> None:
    own = ClassEvidence(np.array([0.5]), mask_volumes([[0.5]], [[1]]), (), 1.0)  # no samples
    cases = [CaseEvidence(f"CT{n}", Units(), {"lesion": own}, "CT") for n in range(4)]
    plan: Any = SimpleNamespace()
    first, *_ = said = guarantees_in_words(*calibrate_for(SourcesPlan({"CT": plan}), cases, ["w"], "fold 0"))
    assert "lesion, no guarantee of volume: the model samples no masks" in first
    assert not any(line.startswith("volume=RATE") for line in said)


@pytest.mark.parametrize(
    ("scheme", "channels", "scores"),
    [
        (
            LabelScheme(("edge", "core"), ((1,), (2,)), "softmax", (1, 2)),
            [[0.1, 0.2], [0.7, 0.2], [0.2, 0.6]],
            {"edge": [0.7], "core": [0.6]},
        ),
        (
            LabelScheme(("whole", "core"), ((1, 2), (2,)), "regions", (1, 2)),
            [[0.9, 0.8], [0.1, 0.6]],
            {"whole": [0.9], "core": [0.6]},
        ),
    ],
)
def test_classes_and_regions_are_taken_by_themselves(
    scheme: LabelScheme, channels: list[list[float]], scores: dict[str, list[float]]
) -> None:
    found, properties = predicted(channels)
    reference = np.array([[[1, 2]]], np.uint8)
    evidence = case_evidence(found, properties, scheme, reference, "p", spacing_known=True)
    for name, own in evidence.classes.items():
        assert own.lesions == pytest.approx(scores[name], rel=1e-3)


def images(num_patients: int, scores: list[float], num_samples: int = 3) -> list[CaseEvidence]:
    """An image for each of these patients, whose lesion of one voxel has the next of these scores."""
    return [
        CaseEvidence(
            f"p{number % num_patients}",
            Units(),
            {
                "lesion": ClassEvidence(
                    np.array([score]), mask_volumes([[score, 0.0]], [[1, 0]]), (1.0, 2.0, 3.0)[:num_samples], 2.0
                )
            },
        )
        for number, score in enumerate(scores)
    ]


def test_sizes_in_several_units_are_not_added_up() -> None:
    flat = [dataclasses.replace(case, units=Units(size="mm2")) for case in images(9, [0.5] * 9)]
    (own,) = calibrate([*flat, *images(9, [0.5] * 9)], ["w"], "x").classes.values()
    assert own.lesions
    assert not own.masks
    assert not own.volume
    assert "measured in ml and mm2" in own.refused["masks=0.5"]


def test_rates_are_those_that_the_patients_allow() -> None:
    scores = [0.1 * i for i in range(1, 10)]
    found = calibrate(images(9, scores), ["b", "a"], "fold 0")
    own = found.classes["lesion"]
    assert (found.num_patients, found.num_samples, found.weights, found.unit) == (9, 3, ("a", "b"), "ml")
    assert own.rates("lesions")[-1] == own.rates("masks")[-1] == own.rates("volume")[-1] == 0.9
    by_alpha = {one.alpha: one for one in own.lesions}
    assert by_alpha[0.1].threshold == pytest.approx(0.1)  # no lesion of 9 may be missed
    assert by_alpha[0.2].threshold == pytest.approx(0.2)  # (1 + 1) / 10
    assert by_alpha[0.5].threshold == pytest.approx(0.5)  # (4 + 1) / 10
    assert own.volume[-1].margin == pytest.approx(-1.0)  # 2 lies in the middle of 1 to 3
    assert "at least 19 are needed" in own.refused["lesions=0.95"]
    assert found.in_words[0] == "Calibrated on 9 patients: fold 0."
    assert "at least 90% of a patient's lesions share a voxel" in found.in_words[1]
    assert from_jsonable(Guarantees, to_jsonable(found)) == found


def test_images_of_a_patient_count_together() -> None:
    own = calibrate(images(3, [0.1 * i for i in range(1, 10)]), ["w"], "fold 0").classes["lesion"]
    assert own.rates("lesions")[-1] == 0.75  # of 3 patients, however many images they have
    assert "at least 4 are needed" in own.refused["lesions=0.8"]


def test_without_samples_or_with_other_numbers_of_them_there_is_no_interval() -> None:
    plain = calibrate(images(9, [0.5] * 9, 0), ["w"], "fold 0").classes["lesion"]
    assert plain.volume == ()
    assert "samples no masks" in plain.refused["volume=0.5"]
    mixed = [*images(9, [0.5] * 9), *(dataclasses.replace(one, patient="other") for one in images(1, [0.5], 2))]
    assert "have 2, 3 samples" in calibrate(mixed, ["w"], "folds").classes["lesion"].refused["volume=0.9"]
