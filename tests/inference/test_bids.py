"""Masks as BIDS derivatives: names, files, and what is refused before anything is predicted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.inference.models import tiny_plans, write_model
from tests.inference.test_predictor import BINARY, GEOMETRY_3D, make_model, make_pictures
from tests.inference.test_unified_prediction import SOURCES, plan
from unisegdiff_pipeline.commands import predict
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.inference.bids import derivative_of, derivatives_of
from unisegdiff_pipeline.io.images import write_map


@pytest.mark.parametrize(
    ("case", "place"),
    [
        ("sub-01", "sub-01/anat/sub-01_desc-unisegdiff_dseg"),
        ("sub-01_ses-1", "sub-01/ses-1/anat/sub-01_ses-1_desc-unisegdiff_dseg"),
        ("sub-A2_run-2_FLAIR", "sub-A2/anat/sub-A2_run-2_desc-unisegdiff_dseg"),
        (
            "sub-01_ses-pre_space-T1w_acq-3D_T1w",
            "sub-01/ses-pre/anat/sub-01_ses-pre_space-T1w_acq-3D_desc-unisegdiff_dseg",
        ),
    ],
)
def test_masks_lie_where_bids_puts_them(case: str, place: str) -> None:
    assert derivative_of(case) == place


@pytest.mark.parametrize(
    "case", ["case01", "sub-01_desc-x_T1w", "sub-01_run-1_run-2", "sub-", "sub-01__T1w", "ses-1_sub-01"]
)
def test_other_names_are_refused(case: str) -> None:
    with pytest.raises(UsdError, match=f"case '{case}' is not named as BIDS"):
        derivative_of(case)


def test_two_masks_of_one_name_are_refused() -> None:
    with pytest.raises(
        UsdError, match="'sub-01_T1w' and 'sub-01_FLAIR' would both have the mask sub-01/anat/sub-01_desc"
    ):
        derivatives_of(["sub-01_T1w", "sub-01_FLAIR"])


def scan(path: Path) -> None:
    write_map(path, np.random.default_rng(0).normal(size=(9, 18, 14)).astype(np.float32), GEOMETRY_3D)


def run(images: Path, output: Path, model: Path, bids: Path, *more: str) -> int:
    words = ["-i", str(images), "-o", str(output), "-m", str(model), "--device", "cpu", "--samples", "0"]
    return predict.main([*words, "--bids", str(bids), *more])


def test_derivatives_hold_the_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, bids = make_model(tmp_path / "Dataset001_X", 3), tmp_path / "derivatives"
    scan(tmp_path / "in/sub-01_ses-1_T1w_0000.nii.gz")
    for _ in range(2):  # again, into the same folder
        assert run(tmp_path / "in", tmp_path / "out", model, bids) == 0
    assert f"BIDS derivatives: {bids}" in capsys.readouterr().out
    stem = "sub-01/ses-1/anat/sub-01_ses-1_desc-unisegdiff_dseg"
    assert {str(p.relative_to(bids)) for p in bids.rglob("*") if p.is_file()} == {
        "dataset_description.json",
        "desc-unisegdiff_dseg.tsv",
        f"{stem}.nii.gz",
        f"{stem}.json",
    }
    assert (bids / f"{stem}.nii.gz").read_bytes() == (tmp_path / "out/sub-01_ses-1_T1w.nii.gz").read_bytes()
    assert (bids / "desc-unisegdiff_dseg.tsv").read_text() == "index\tname\n0\tbackground\n1\tedge\n2\tcore\n"
    description = json.loads((bids / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"][0]["Description"] == "Dataset001_X/StagedDiffusionTrainer__tiny"
    assert json.loads((bids / f"{stem}.json").read_text())["Manual"] is False


def test_from_bids_to_bids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, bids = make_model(tmp_path / "model", 3), tmp_path / "derivatives"
    for subject in ("01", "02"):
        scan(tmp_path / f"data/sub-{subject}/ses-1/anat/sub-{subject}_ses-1_T1w.nii.gz")
    scan(tmp_path / "same/sub-01_ses-1_0000.nii.gz")
    assert run(tmp_path / "data", tmp_path / "out", model, bids) == 1
    assert "no image of the suffixes MRI; there are T1w" in " ".join(capsys.readouterr().err.split())
    assert run(tmp_path / "data", tmp_path / "out", model, bids, "--suffixes", "T1w") == 0
    mask = bids / "sub-01/ses-1/anat/sub-01_ses-1_desc-unisegdiff_dseg.nii.gz"
    assert mask.read_bytes() == (tmp_path / "out/sub-01_ses-1.nii.gz").read_bytes()
    assert run(tmp_path / "same", tmp_path / "plain", model, tmp_path / "other") == 0
    assert mask.read_bytes() == (tmp_path / "plain/sub-01_ses-1.nii.gz").read_bytes()
    inputs = [case["inputs"] for case in json.loads((tmp_path / "out/manifest.json").read_text())["cases"].values()]
    assert inputs[1] == [str(tmp_path / "data/sub-02/ses-1/anat/sub-02_ses-1_T1w.nii.gz")]
    assert run(tmp_path / "same", tmp_path / "plain", model, tmp_path / "other", "--suffixes", "T1w") == 1
    assert "--suffixes goes with a BIDS folder" in " ".join(capsys.readouterr().err.split())


def test_a_case_that_fails_costs_the_others_no_derivative(tmp_path: Path) -> None:
    model, bids = make_model(tmp_path / "m", 3), tmp_path / "derivatives"
    scan(tmp_path / "in/sub-01_0000.nii.gz")
    (tmp_path / "in/sub-02_0000.nii.gz").write_text("broken")
    assert run(tmp_path / "in", tmp_path / "out", model, bids) == 1
    assert [path.name for path in bids.rglob("*.nii.gz")] == ["sub-01_desc-unisegdiff_dseg.nii.gz"]


def test_of_a_unified_model_the_images_say_what_masks_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plans = tiny_plans(BINARY, plan(3, 1.0), ("R", "G", "B"), ".png", False)
    configuration = replace(plans.configurations["tiny"], sources=SOURCES, median_shape=(1, 24, 24))
    model, bids = write_model(tmp_path, replace(plans, configurations={"tiny": configuration})), tmp_path / "new"
    make_pictures(tmp_path / "pictures", 1).joinpath("case0_0000.png").rename(tmp_path / "sub-02_0000.png")
    assert run(tmp_path / "sub-02_0000.png", tmp_path / "out", model, bids) == 1
    assert "the mask of sub-02 will be like its image, .png" in " ".join(capsys.readouterr().err.split())
    scan(tmp_path / "in/sub-01_0000.nii.gz")
    assert run(tmp_path / "in", tmp_path / "out", model, bids) == 0
    assert [path.name for path in bids.rglob("*.nii.gz")] == ["sub-01_desc-unisegdiff_dseg.nii.gz"]


def test_nothing_is_predicted_where_derivatives_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(tmp_path / "m", 3)
    scan(tmp_path / "in/sub-01_0000.nii.gz")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    assert run(tmp_path / "in", tmp_path / "out", model, tmp_path / "mine") == 1
    assert "holds other files than derivatives" in " ".join(capsys.readouterr().err.split())
    for made_by in ([], "a person", {"Name": "unisegdiff_pipeline"}, ["fmriprep"], [{"Name": "fmriprep"}]):
        (tmp_path / "mine/dataset_description.json").write_text(json.dumps({"GeneratedBy": made_by}))
        assert run(tmp_path / "in", tmp_path / "out", model, tmp_path / "mine") == 1
        assert "holds other files than derivatives" in " ".join(capsys.readouterr().err.split())
    assert run(tmp_path / "in", tmp_path / "out", model, tmp_path / "mine/notes.txt/new") == 1
    assert "notes.txt/new cannot be written" in " ".join(capsys.readouterr().err.split())
    scan(tmp_path / "in/case_0000.nii.gz")
    assert run(tmp_path / "in", tmp_path / "out", model, tmp_path / "new") == 1
    pictures = make_pictures(tmp_path / "pictures", 1)
    assert run(pictures, tmp_path / "out", make_model(tmp_path / "m2", 2), tmp_path / "new") == 1
    assert "BIDS derivatives (--bids) are NIfTI files" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "new").exists()
