"""Temperatures and soft caps of logits whose law is known."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from unisegdiff_pipeline.core.labels import Coding
from unisegdiff_pipeline.diffusion.coding import NO_CALIBRATION, LogitCalibration, probabilities_from_logits
from unisegdiff_pipeline.selection import calibration
from unisegdiff_pipeline.selection.calibration import (
    FEWEST_FOR_CALIBRATION,
    FittedCalibration,
    choose_source_calibrations,
    fit_calibrations,
)


def fit_calibration(logits: torch.Tensor, target: torch.Tensor, coding: Coding) -> LogitCalibration:
    """Of voxels that count alike and belong to one group."""
    num_voxels = logits.shape[2]
    weights, owners = torch.ones(num_voxels), torch.zeros(num_voxels, dtype=torch.long)
    return fit_calibrations(logits, target, weights, coding, owners, 1)[0]


def test_temperatures_of_a_segmenter_that_is_too_sure_of_its_objects_only() -> None:
    """Foreground of which a quarter of the log odds is true, at all of them; background as sure as it says, e^-3."""
    sure, right = torch.linspace(0.1, 12, 1000).repeat(20), torch.full((1000,), -3.0)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(len(sure), generator=generator) < (sure / 4).sigmoid()
    target = torch.cat([drawn, torch.arange(1000) < 47]).float()
    logits = torch.cat([sure, right])[None, None]
    found = fit_calibration(logits, target[None, None], "binary")
    assert found.soft_cap is None
    assert found.foreground == pytest.approx(4.0, rel=0.06)  # the grid's steps are 9 % wide
    assert found.background == pytest.approx(1.0, rel=0.06)


def test_objects_that_are_there_in_doubt_get_a_ceiling() -> None:
    """Whole objects that readers mark in seven of ten cases: sure in the middle, unsure at the edge, both 0.7."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.empty(1, 1, 4000).uniform_(0.5, 9.0, generator=generator)
    target = (torch.rand(4000, generator=generator) < 0.7).float()
    found = fit_calibration(logits, target[None, None], "binary")
    assert found.soft_cap in (0.75, 1.0)  # log(0.7 / 0.3) = 0.85
    p = probabilities_from_logits(logits, "binary", found)
    assert (p - 0.7).abs().mean() < 0.03


def test_a_segmenter_that_finds_nothing_keeps_its_temperature_of_foreground() -> None:
    found = fit_calibration(torch.full((1, 1, 100), -2.0), torch.zeros(1, 1, 100), "binary")
    assert (found.foreground, found.soft_cap) == (1.0, None)
    assert found.background == 0.5


@pytest.mark.parametrize("coding", ["softmax", "regions"])
def test_a_ceiling_is_found_for_several_channels_too(coding: Coding) -> None:
    """One object, in doubt as a whole; which class it is, is known."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.empty(1, 2, 4000).uniform_(1.0, 9.0, generator=generator)
    there = (torch.rand(4000, generator=generator) < 0.7).float()
    target = torch.stack([there, there])[None]
    if coding == "softmax":
        logits = torch.cat([torch.zeros(1, 1, 4000), logits[:, :1], torch.full((1, 1, 4000), -9.0)], dim=1)
        target = torch.stack([1 - there, there, torch.zeros(4000)])[None]
    found = fit_calibration(logits, target, coding)
    assert found.soft_cap in (0.75, 1.0)


def test_temperatures_without_any_voxel_are_one() -> None:
    found = fit_calibration(torch.zeros(1, 2, 0), torch.zeros(1, 2, 0), "softmax")
    assert (found.foreground, found.background) == (1.0, 1.0)


def test_a_group_is_judged_by_the_temperature_of_all_others() -> None:
    """Two groups are half as sure as they say; the third says the opposite of what is."""
    generator = torch.Generator().manual_seed(0)
    z = torch.linspace(-8, 8, 3000).repeat(3)
    target = (torch.rand(9000, generator=generator) < (z / 2).sigmoid()).float()
    owners = torch.arange(3).repeat_interleave(3000)
    target[owners == 2] = (z[owners == 2] < 0).float()
    data = z[None, None], target[None, None], torch.ones(9000), "binary", owners
    of_all, without = fit_calibrations(*data, 3)
    assert [t.foreground > 3 for t in (of_all, *without)] == [True, True, True, False]
    assert without[2].foreground == pytest.approx(2.0, rel=0.1)
    assert without[2].background == pytest.approx(2.0, rel=0.1)
    kept = owners != 2
    alone, _ = fit_calibrations(data[0][..., kept], data[1][..., kept], data[2][kept], "binary", owners[kept], 2)
    assert without[2] == alone


def test_a_large_source_does_not_choose_the_temperature_of_small_ones() -> None:
    """6000 voxels of one patient that are a quarter as sure as they say, 300 each of two patients that are right."""
    generator = torch.Generator().manual_seed(0)
    z = torch.cat([torch.linspace(-8, 8, 6000), torch.linspace(-8, 8, 300), torch.linspace(-8, 8, 300)])
    owners = torch.tensor([0] * 6000 + [1] * 300 + [2] * 300)
    truth = torch.where(owners == 0, z / 4, z).sigmoid()
    target = (torch.rand(len(z), generator=generator) < truth).float()
    data, weights = (z[None, None], target[None, None]), torch.ones(len(z))
    whole, _ = fit_calibrations(*data, weights, "binary", owners, 3)
    by_source, without = fit_calibrations(*data, weights, "binary", owners, 3, ["large", "small", "small"])
    even = torch.where(owners == 0, 0.1, 1.0)  # 600 voxels' weight for either source
    assert by_source == fit_calibrations(*data, even, "binary", owners, 3)[0]
    assert 1 < by_source.background < whole.background
    assert without[1] == fit_calibrations(*data, torch.where(owners == 0, 0.05, 1.0), "binary", owners, 3)[1][1]


def test_what_only_one_group_shows_is_unknown_without_it() -> None:
    """The other group has nothing that is found, a third no voxel at all."""
    z, owners = torch.tensor([3.0] * 50 + [-3.0] * 50), torch.tensor([0] * 50 + [1] * 50)
    target = (z > 0).float()
    data = z[None, None], target[None, None], torch.ones(100), "binary", owners
    of_all, without = fit_calibrations(*data, 3)
    assert (of_all.foreground, of_all.background) == (0.5, 0.5)
    assert without[0] == LogitCalibration(1.0, 0.5)
    assert without[2] == of_all
    empty = (torch.zeros(1, 1, 0), torch.zeros(1, 1, 0), torch.zeros(0), "binary", torch.zeros(0, dtype=torch.long))
    assert fit_calibrations(*empty, 2) == (NO_CALIBRATION, [NO_CALIBRATION, NO_CALIBRATION])


@pytest.mark.parametrize("num_open", [0, 2, 4])
def test_channels_that_are_not_annotated_decide_nothing(num_open: int) -> None:
    """A soft cap of 4 is true; it gains 0.5 % of the annotated loss, and less than that with log 2 added."""
    logits = torch.linspace(0.1, 8.0, 20000)[None, None]
    target = (4 * torch.tanh(logits / 4)).sigmoid()
    nothing = torch.zeros(1, num_open, 20000)
    found = fit_calibration(torch.cat([logits, nothing], dim=1), torch.cat([target, nothing], dim=1), "regions")
    assert (found.foreground, found.soft_cap) == (1.0, 4.0)


def test_sources_with_patients_enough_have_a_calibration_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fitted on their cases alone; the calibration of all serves the others."""
    cases = [f"MR__{i}" for i in range(FEWEST_FOR_CALIBRATION + 1)] + ["CT__1", "CT__2"]

    def fit(held_out: object, model: object, own: Sequence[str]) -> FittedCalibration:
        assert own == cases[:-2]
        return FittedCalibration(LogitCalibration(2.0), dict.fromkeys(own, LogitCalibration(3.0)))

    monkeypatch.setattr(calibration, "choose_calibration", fit)
    monkeypatch.setattr(calibration, "num_informative", lambda held_out, own: len(own))
    held_out: Any = SimpleNamespace(leave_if_asked=lambda: None)
    found = choose_source_calibrations(held_out, held_out, cases)
    assert found == {"MR": FittedCalibration(LogitCalibration(2.0), dict.fromkeys(cases[:-2], LogitCalibration(3.0)))}
