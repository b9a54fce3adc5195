"""Normalisation by channel name."""

from __future__ import annotations

import warnings

import pytest

from unisegdiff_pipeline.planning.normalization import choose_nonzero_mask, choose_normalizations


def scheme_of(name: str, natural: bool = False) -> str:
    return choose_normalizations([name], natural)[0].scheme


@pytest.mark.parametrize("name", ["ct", "zscore", "nonorm", "rescale_to_0_1", "rgb_to_0_1"])
def test_names_of_schemes_in_any_case(name: str) -> None:
    assert scheme_of(name) == scheme_of(name.upper()) == name


def test_other_names_are_z_score_with_a_reason() -> None:
    for name in ("FLAIR", "T1c", "US", "CT_8bit", "OCT"):
        choice = choose_normalizations([name], False)[0]
        assert (choice.scheme, choice.warning) == ("zscore", None)
        assert name in choice.reason


@pytest.mark.parametrize(
    ("name", "meant"),
    [("CTA", "ct"), ("CT scan", "ct"), ("CT_", "ct"), ("z-score", "zscore"), ("rgb_to_01", "rgb_to_0_1")],
)
def test_near_misses_warn_but_stay_z_score(name: str, meant: str) -> None:
    choice = choose_normalizations([name], False)[0]
    assert choice.scheme == "zscore"
    assert choice.warning is not None
    assert repr(meant) in choice.warning


def test_colours_of_pictures_are_divided_by_255() -> None:
    assert [c.scheme for c in choose_normalizations(["R", "G", "B"], True)] == ["rgb_to_0_1"] * 3
    assert [c.scheme for c in choose_normalizations(["R", "G", "B"], False)] == ["zscore"] * 3
    assert [c.scheme for c in choose_normalizations(["R", "G"], True)] == ["zscore"] * 2


def test_planning_passes_the_warning_on() -> None:
    from dataclasses import replace
    from pathlib import Path

    from unisegdiff_pipeline.core.serialization import read_dataclass
    from unisegdiff_pipeline.fingerprint import Fingerprint
    from unisegdiff_pipeline.io.dataset_json import DatasetDescription
    from unisegdiff_pipeline.planning.planner import plan_dataset
    from unisegdiff_pipeline.planning.plans import Budget, Plans

    folder = Path(__file__).resolve().parents[2] / "plans" / "Dataset103_CovidCT"
    plans = read_dataclass(Plans, folder / "plans_cuda_8_gb.json")
    fingerprint = replace(read_dataclass(Fingerprint, folder / "fingerprint.json"), channel_names=("CTA",))
    description = DatasetDescription(("CTA",), plans.labels, ".nii.gz", False, None, None, {})
    with pytest.warns(UserWarning, match="'CTA' looks like the normalisation 'ct'"):
        plan_dataset(fingerprint, description, Budget("cuda", 8.0, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan_dataset(fingerprint, replace(description, channel_names=("CT_8bit",)), Budget("cuda", 8.0, 2))


def test_mask_only_for_z_score_of_well_cropped_images() -> None:
    assert choose_nonzero_mask(("ct", "zscore", "nonorm"), 0.5) == (False, True, False)
    assert choose_nonzero_mask(("zscore",), 0.75) == (False,)
