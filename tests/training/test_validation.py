"""Held-out cases during training are scored by the masks that the settings decide on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.inference.case_prediction import CasePrediction, SampledBox, SamplingFacts
from unisegdiff_pipeline.inference.guarantees import Guarantees
from unisegdiff_pipeline.inference.model_folder import WEIGHTS_NAME
from unisegdiff_pipeline.inference.settings import Decision, InferenceSettings, read_settings
from unisegdiff_pipeline.preprocessing.provenance import CaseProvenance
from unisegdiff_pipeline.preprocessing.reference import write_cases, write_reference
from unisegdiff_pipeline.selection import hold_out
from unisegdiff_pipeline.training import validation

BINARY = LabelScheme(("lesion",), ((1,),), "binary", (1,))


@pytest.mark.parametrize(("decision", "dice"), [("half", 0.0), ("dice", 1.0)])
def test_an_object_in_doubt_counts_where_its_mask_is_cut_for_dice(
    monkeypatch: pytest.MonkeyPatch, decision: Decision, dice: float
) -> None:
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:6, 2:6] = 1
    stored = SimpleNamespace(
        case_id="case",
        group="patient",
        image=np.zeros((1, 1, 8, 8), np.float32),
        labels=mask.numpy().astype(np.uint8),
        properties=SimpleNamespace(spacing_mm=(1.0, 1.0, 1.0), source=None),
    )

    def predict(*args: object, keep_samples: bool, **options: object) -> CasePrediction:
        """Every second sample holds the object, but its mean probability is 0.4."""
        samples = torch.stack([mask, torch.zeros_like(mask)]).half() if keep_samples else None
        box = SampledBox((slice(None),) * 3, torch.ones(1, 8, 8, dtype=torch.bool), 0.4 * mask, samples)
        return CasePrediction(0.4 * mask, (box,), 2, 0.0, SamplingFacts(1, 1, 0, 0.0, 0.0))

    configuration = SimpleNamespace(
        network=SimpleNamespace(patch_size=(8, 8)), sources=None, field_spacing_mm=lambda spacing_mm: spacing_mm
    )
    run: Any = SimpleNamespace(
        monitored_cases=("case",),
        data=SimpleNamespace(open=lambda case_id: stored),
        plans=SimpleNamespace(labels=BINARY, spacing_known=True),
        configuration=configuration,
        held_out=SimpleNamespace(seed=0, labels=BINARY, spacing_known=True, configuration=configuration),
    )
    monkeypatch.setattr(hold_out, "tiled", lambda *_: None)
    monkeypatch.setattr(hold_out, "sample_case", predict)
    model: Any = torch.nn.Identity()
    settings = InferenceSettings(lam_a=-3.0, lam_c=0.5, decision=decision)
    found = validation.validate_cases(run, model, 2, settings)
    assert found.means == {"dice_mean": dice, "dice_lesion": dice}
    assert (found.of_cases, found.groups) == ((dice,), ("patient",))


@pytest.mark.parametrize(("group", "learned"), [("p", "train"), ("p", "held"), ("q", "")])
def test_patients_that_the_fold_was_trained_on_or_chosen_by_allow_no_guarantees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str, learned: str
) -> None:
    groups = {"train": "a", "held": "b", "val": group} | ({learned: "p"} if learned else {})
    for case_id, own in groups.items():
        write_reference(
            tmp_path, np.ones((1, 1, 2, 2), np.uint8), (1, 1, 1), BINARY, case_id, own, CaseProvenance((), "")
        )
    write_cases(tmp_path, groups)
    fold = tmp_path / "fold_0"
    fold.mkdir()
    (fold / WEIGHTS_NAME).write_bytes(b"")
    made = Guarantees(9, 0, ("0" * 64,), "ml", {}, ("made",))
    monkeypatch.setattr(validation, "calibrate_for", lambda *_: (made, {}))
    said: list[str] = []
    run: Any = SimpleNamespace(
        fold="0",
        folder=fold,
        configuration=SimpleNamespace(sources=None),
        data=SimpleNamespace(folder=tmp_path / "2d"),
        train_cases=("train",),
        holdout_cases=("held",),
        validation_cases=("val",),
        log=SimpleNamespace(say=said.append),
    )
    evidence: list[Any] = ["of val"]
    validation._keep_guarantees(run, InferenceSettings(lam_a=-3.0, lam_c=0.5), evidence)
    assert read_settings(fold).guarantees == (None if learned else made)
    assert said[0].startswith("guarantees: none; 1 group of validation cases ('p')" if learned else "guarantees: made")
