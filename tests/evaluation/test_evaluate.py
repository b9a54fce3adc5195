"""Folders of masks: pairing, geometry before scores, unknown values, and what is written."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from unisegdiff_pipeline.commands.evaluate import main as usd_evaluate
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.evaluation.evaluate import evaluate_folders, run_names
from unisegdiff_pipeline.evaluation.meaning import Meaning, find_meaning
from unisegdiff_pipeline.evaluation.options import EvaluationOptions
from unisegdiff_pipeline.evaluation.overview import evaluation_table
from unisegdiff_pipeline.io.images import write_labels
from unisegdiff_pipeline.reports.evaluation_report import write_evaluation_report

BINARY = LabelScheme(("lesion",), ((1,),), "binary", (1,))
SPACING = (4.0, 5.0, 10.0)  # 200 mm3 = 0.2 ml a voxel


def write(folder: Path, case: str, *voxels: int, ending: str = ".nii.gz", geometry: Geometry | None = None) -> None:
    folder.mkdir(exist_ok=True)
    labels = np.array(voxels, np.uint8).reshape(1, 2, -1)
    write_labels(folder / f"{case}{ending}", labels, geometry or Geometry(SPACING))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    reference, prediction = tmp_path / "labelsTs", tmp_path / "pred"
    write(reference, "case_1", 1, 1, 0, 0)
    write(prediction, "case_1", 1, 0, 0, 0)  # Dice 2/3
    write(reference, "case_2", 0, 0, 0, 0)
    write(prediction, "case_2", 0, 0, 0, 0)
    return reference, prediction


def test_scores_and_files(folders: tuple[Path, Path], tmp_path: Path) -> None:
    evaluation = evaluate_folders(*folders, Meaning(BINARY))
    assert evaluation.summary.mean_dice == pytest.approx(2 / 3)
    assert evaluation.summary.classes[0].num_both_empty == 1
    files = evaluation.write(tmp_path / "out")
    stored = json.loads(files.summary.read_text())
    assert stored["mean"]["dice"]["mean"] == pytest.approx(2 / 3)
    assert (stored["mean"]["dice"]["n"], stored["mean"]["dice"]["n_undefined"]) == (1, 1)
    assert stored["mean"]["dice"]["std"] is None
    assert stored["classes"][0]["outcomes"] == {"scored": 1, "both_empty": 1, "false_positive": 0}
    assert stored["classes"][0]["case_specificity"] == 1
    with open(files.metrics, newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["case"] for row in rows] == ["case_1", "case_2"]
    assert float(rows[0]["volume_error_ml"]) == pytest.approx(-0.2)
    assert (rows[1]["dice"], rows[1]["hd95_mm"], rows[1]["outcome"]) == ("", "", "both_empty")
    with open(files.lesions, newline="") as stream:
        lesions = list(csv.DictReader(stream))
    assert [(row["case"], row["side"], row["matched_id"]) for row in lesions] == [
        ("case_1", "reference", "1"),
        ("case_1", "prediction", "1"),
    ]
    assert float(lesions[0]["volume_ml"]) == pytest.approx(0.4)
    assert [float(lesions[0][f"centroid_{axis}_mm"]) for axis in "xyz"] == [5.0, 0.0, 0.0]
    assert (lesions[0]["confidence"], lesions[0]["area_mm2"]) == ("", "100")


def test_names_in_two_unicode_forms_and_planes_with_a_third_axis_are_paired_and_scored(tmp_path: Path) -> None:
    reference, prediction = tmp_path / "labelsTs", tmp_path / "pred"
    flat, single = Geometry((1.0, 5.0, 10.0), is_2d=True), Geometry((4.0, 5.0, 10.0))
    write(reference, "M\u00fcller", 1, 1, 0, 0, geometry=flat)
    write(prediction, "Mu\u0308ller", 1, 0, 0, 0, geometry=single)
    assert evaluate_folders(reference, prediction, Meaning(BINARY)).summary.mean_dice == pytest.approx(2 / 3)


def test_a_sagittal_slice_is_scored_and_drawn_against_its_plane(tmp_path: Path) -> None:
    reference, prediction = tmp_path / "labelsTs", tmp_path / "pred"
    plane = np.zeros((3, 4), np.uint8)
    plane[1, 1:3] = 1
    write_labels(reference / "a.nii.gz", plane[None], Geometry((1.0, 0.8, 0.7), is_2d=True))
    write_labels(prediction / "a.nii.gz", plane[:, :, None], Geometry((0.8, 0.7, 5.0)))
    assert usd_evaluate([str(reference), str(prediction), "--labels", "1"]) == 0
    assert json.loads((prediction / "evaluation" / "summary.json").read_text())["mean"]["dice"]["mean"] == 1


def test_a_third_of_a_voxel_is_another_grid_and_three_micrometres_are_not(tmp_path: Path) -> None:
    reference, prediction = tmp_path / "labelsTs", tmp_path / "pred"
    write(reference, "a", 1, 1, 0, 0)
    for shift_mm, agrees in ((0.003, True), (1.3, False)):
        write(prediction, "a", 1, 0, 0, 0, geometry=Geometry(SPACING, (0.0, 0.0, shift_mm)))
        if agrees:
            assert evaluate_folders(reference, prediction, Meaning(BINARY)).summary.mean_dice == pytest.approx(2 / 3)
        else:
            with pytest.raises(UsdError, match=r"origin .*a corner lies 0\.325 voxels off"):
                evaluate_folders(reference, prediction, Meaning(BINARY))


def test_another_format_with_the_same_geometry_is_scored(folders: tuple[Path, Path]) -> None:
    reference, prediction = folders
    (prediction / "case_1.nii.gz").unlink()
    write(prediction, "case_1", 1, 1, 0, 0, ending=".nrrd")
    assert evaluate_folders(reference, prediction, Meaning(BINARY)).summary.mean_dice == 1.0


def test_all_geometry_differences_are_named_before_scoring(folders: tuple[Path, Path]) -> None:
    reference, prediction = folders
    write(prediction, "case_1", 1, 1, 0, 0, geometry=Geometry((4.0, 5.0, 30.0)))
    write(prediction, "case_2", 0, 0, 0, 0, 0, 0)
    with pytest.raises(UsdError) as failure:
        evaluate_folders(reference, prediction, Meaning(BINARY))
    assert "case_1: spacing (4, 5, 10) against (4, 5, 30) mm" in str(failure.value)
    assert "case_2: shape (1, 2, 2) (Z, Y, X), predicted (1, 2, 3)" in str(failure.value)


def test_missing_predictions_are_an_error_unless_a_subset_is_wanted(folders: tuple[Path, Path]) -> None:
    reference, prediction = folders
    (prediction / "case_2.nii.gz").unlink()
    with pytest.raises(UsdError, match=r"case_2.*--subset"):
        evaluate_folders(reference, prediction, Meaning(BINARY))
    evaluation = evaluate_folders(reference, prediction, Meaning(BINARY), EvaluationOptions(subset=True))
    assert evaluation.not_predicted == ("case_2",)
    assert len(evaluation.cases) == 1


def test_prediction_without_reference_is_an_error(folders: tuple[Path, Path]) -> None:
    reference, prediction = folders
    (reference / "case_2.nii.gz").unlink()
    with pytest.raises(UsdError, match=r"no reference in .*: case_2"):
        evaluate_folders(reference, prediction, Meaning(BINARY), EvaluationOptions(subset=True))


def test_unknown_label_value_is_named_with_its_file(folders: tuple[Path, Path]) -> None:
    reference, prediction = folders
    write(prediction, "case_2", 0, 7, 0, 0)
    with pytest.raises(UsdError, match=r"pred/case_2\.nii\.gz holds the label value\(s\) 7.*allows 0, 1"):
        evaluate_folders(reference, prediction, Meaning(BINARY))


def test_empty_folder(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UsdError, match="holds no label file"):
        evaluate_folders(folders[0], tmp_path / "nothing", Meaning(BINARY))


def test_a_cross_validation_that_was_not_gathered_says_what_gathers_it(folders: tuple[Path, Path]) -> None:
    with pytest.raises(UsdError, match=r"cross_validation does not exist; usd_train DATASET cv makes it"):
        find_meaning(folders[0], folders[1].parent / "cross_validation")


def test_a_raw_data_set_in_place_of_its_labels(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    (tmp_path / "Dataset001_A" / "labelsTr").mkdir(parents=True)
    with pytest.raises(UsdError, match=r"its labels lie in labelsTr: give .*Dataset001_A/labelsTr"):
        evaluate_folders(tmp_path / "Dataset001_A", folders[1], Meaning(BINARY))


def test_the_same_bytes_with_processes(folders: tuple[Path, Path], tmp_path: Path) -> None:
    written = []
    for workers in (0, 2):
        evaluation = evaluate_folders(*folders, Meaning(BINARY), EvaluationOptions(workers=workers))
        files = evaluation.write(tmp_path / str(workers))
        written.append([path.read_bytes() for path in (files.metrics, files.lesions, files.summary)])
    assert written[0] == written[1]


def test_a_failing_case_is_named(folders: tuple[Path, Path]) -> None:
    path = folders[1] / "case_2.nii.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UsdError, match=r"case_2\.nii\.gz cannot be read"):
        evaluate_folders(*folders, Meaning(BINARY))


def test_cases_of_a_group_are_drawn_together(folders: tuple[Path, Path]) -> None:
    """Cases of one group say nothing about the spread between groups; so many cases, but no interval."""
    for number in range(3, 7):
        write(folders[0], f"case_{number}", 1, 1, 1, 1)
        write(folders[1], f"case_{number}", 1, 1, number % 2, 1)
    dice = evaluate_folders(*folders, Meaning(BINARY)).report.mean["dice"]
    assert dice.ci_low < dice.mean < dice.ci_high
    lines = [f"case_{number},anna" for number in range(1, 7)]
    (folders[0].parent / "groups.csv").write_text("\n".join(["case,group", *lines]))
    evaluation = evaluate_folders(*folders, Meaning(BINARY))
    assert {case.group for case in evaluation.cases} == {"anna"}
    assert np.isnan(evaluation.report.mean["dice"].ci_low)


def test_command_finds_dataset_json_and_writes_beside_the_prediction(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "tumour": 1},
        "numTraining": 2,
        "file_ending": ".nii.gz",
        "spacing_known": False,
    }
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    assert usd_evaluate([*(str(folder) for folder in folders), "--no-report"]) == 0
    printed = capsys.readouterr().out
    assert "tumour" in printed
    assert "nominal" in printed
    assert (folders[1] / "evaluation" / "metrics.csv").is_file()
    assert json.loads((folders[1] / "evaluation" / "summary.json").read_text())["spacing_known"] is False


def test_label_values_that_are_left_out_are_said_and_some_must_be_there(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    reference, prediction = folders
    write(prediction, "case_1", 255, 0, 0, 2)
    assert usd_evaluate([str(reference), str(prediction), "--labels", "1", "--no-report"]) == 0
    assert "Label values of the prediction that are not scored: 2, 255." in capsys.readouterr().out
    stored = json.loads((prediction / "evaluation" / "summary.json").read_text())
    assert stored["settings"]["not_scored_values"] == {"reference": [], "prediction": [2, 255]}
    assert usd_evaluate([str(reference), str(prediction), "--labels", "7", "8", "--no-report"]) == 1
    shown = " ".join(capsys.readouterr().err.split())
    assert "no mask holds any of the label values 7, 8 that are to be scored; they hold 1, 2, 255" in shown


def test_a_folder_that_serves_no_case_is_named(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    reference, prediction = folders
    write(prediction / "samples", "another_sample0", 1, 0, 0, 0)
    assert usd_evaluate([str(reference), str(prediction), "--labels", "1", "--no-report"]) == 0
    assert f"{prediction / 'samples'} holds no samples of these cases" in capsys.readouterr().out


def test_command_with_label_values_and_without(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*(str(folder) for folder in folders), "--no-report"]
    assert usd_evaluate([*arguments, "--labels", "1", "-o", str(tmp_path / "out")]) == 0
    assert "0.667" in capsys.readouterr().out
    assert usd_evaluate(arguments) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: no dataset.json")
    assert "--labels" in message


@pytest.mark.parametrize("dataset_json", [True, False])
@pytest.mark.parametrize(
    ("ending", "spacing", "known"),
    [
        (".png", None, False),
        (".nii.gz", SPACING, True),
        (".tif", None, False),
        (".tif", (1.0, 0.5, 0.5), True),  # beside the picture
    ],
)
def test_the_pixel_size_of_pictures_is_known_where_a_file_beside_them_says_it(
    tmp_path: Path, ending: str, spacing: tuple[float, float, float] | None, known: bool, dataset_json: bool
) -> None:
    geometry = Geometry(is_2d=True) if spacing is None else Geometry(spacing, is_2d=ending == ".tif")
    description = {"channel_names": {"0": "A"}, "labels": {"background": 0, "lesion": 1}, "file_ending": ending}
    if dataset_json:
        (tmp_path / "dataset.json").write_text(json.dumps(description))
    for folder in ("labels", "pred"):
        (tmp_path / folder).mkdir()
        write_labels(tmp_path / folder / f"case_1{ending}", np.ones((1, 3, 4), np.uint8), geometry)
    folders = [str(tmp_path / "labels"), str(tmp_path / "pred")]
    labels = [] if dataset_json else ["--labels", "1"]
    assert usd_evaluate([*folders, *labels, "--no-report"]) == 0
    summary = json.loads((tmp_path / "pred" / "evaluation" / "summary.json").read_text())
    assert summary["spacing_known"] is known


def test_a_folder_as_nnunet_leaves_it(tmp_path: Path) -> None:
    """Masks as NIfTI in (X, Y, Z), probabilities as (C, Z, Y, X) with the background first, and its other files."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 3, 5, 7))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=0)
    reference = rng.integers(0, 3, (3, 5, 7))
    for folder, labels in (("labelsTs", reference), ("pred", probabilities.argmax(axis=0))):
        (tmp_path / folder).mkdir()
        image = nib.Nifti1Image(labels.transpose(2, 1, 0).astype(np.uint8), np.diag([0.5, 0.6, 0.7, 1]))
        nib.save(image, tmp_path / folder / "la_003.nii.gz")
    pred = tmp_path / "pred"
    np.savez_compressed(pred / "la_003.npz", probabilities=probabilities.astype(np.float32))
    (pred / "la_003.pkl").write_bytes(b"properties")
    description = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "a": 1, "b": 2}}
    (pred / "dataset.json").write_text(json.dumps(description | {"numTraining": 1, "file_ending": ".nii.gz"}))
    for name in ("plans.json", "predict_from_raw_data_args.json"):
        (pred / name).write_text("{}")
    assert usd_evaluate([str(tmp_path / "labelsTs"), str(pred), "--no-report"]) == 0
    with open(pred / "evaluation" / "metrics.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for value, row in enumerate(rows, start=1):  # all voxels lie within 5 mm of the masks
        expected = ((probabilities[value] - (reference == value)) ** 2).mean()
        assert float(row["brier"]) == pytest.approx(expected, rel=1e-6)


def test_two_files(folders: tuple[Path, Path], tmp_path: Path) -> None:
    files = [str(folder / "case_1.nii.gz") for folder in folders]
    assert usd_evaluate([*files, "--labels", "1", "-o", str(tmp_path), "--no-report"]) == 0
    with open(tmp_path / "metrics.csv", newline="") as stream:
        assert [row["case"] for row in csv.DictReader(stream)] == ["case_1"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--match", "iou"], "--iou 0.5"),
        (["--match", "overlap", "--iou", "0.5"], "--iou 0.5 belongs to --match iou"),
        (["--iou", "0.5", "--dilation-mm", "2"], "--dilation-mm 2 belongs to --match dilated"),
    ],
)
def test_contradicting_matching_flags(
    folders: tuple[Path, Path], flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert usd_evaluate([*map(str, folders), "--labels", "1", *flags]) == 1
    assert words in " ".join(capsys.readouterr().err.split())


def test_matching_flags_reach_the_scores(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """A predicted voxel 10 mm beside the reference is found within 12 mm, and missed by overlap."""
    write(folders[1], "case_1", 0, 0, 0, 0)
    write(folders[0], "case_1", 1, 0, 0, 0)
    write(folders[1], "case_1", 0, 1, 0, 0)
    arguments = [*map(str, folders), "--labels", "1", "--no-report", "-o", str(tmp_path / "out")]
    found = []
    for flags in ([], ["--dilation-mm", "12", "--one-to-one", "--connectivity", "6"]):
        assert usd_evaluate([*arguments, *flags]) == 0
        stored = json.loads((tmp_path / "out" / "summary.json").read_text())
        found.append((stored["settings"]["lesion_matching"]["criterion"], stored["mean"]["lesion_f1"]["mean"]))
    assert found == [("overlap", 0.0), ("dilated", 1.0)]


@pytest.mark.parametrize("ending", [".png", ".nii.gz"])
def test_2d_images_of_unknown_pixel_size_are_measured_in_pixels(tmp_path: Path, ending: str) -> None:
    """Two of four reference pixels are found and none is wrong; a made-up spacing of 5 x 10 mm changes nothing."""
    geometry = Geometry(is_2d=True) if ending == ".png" else Geometry((1.0, 5.0, 10.0), is_2d=True)
    write(tmp_path / "ref", "a", 1, 1, 0, 1, 1, 0, ending=ending, geometry=geometry)
    write(tmp_path / "pred", "a", 1, 0, 0, 1, 0, 0, ending=ending, geometry=geometry)
    evaluation = evaluate_folders(tmp_path / "ref", tmp_path / "pred", Meaning(BINARY, spacing_known=False))
    files = evaluation.write(tmp_path / "out")
    with open(files.metrics, newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert (row["reference_pixels2"], row["volume_error_pixels2"], row["hd_pixels"]) == ("4", "-2", "1")
    assert row["surface_dice_1pixels"] == "1"
    with open(files.lesions, newline="") as stream:
        (lesion, _) = csv.DictReader(stream)
    assert files.lesions.name == "lesion_scores.csv"
    assert (lesion["area_pixels2"], lesion["centroid_x_pixels"], lesion["centroid_y_pixels"]) == ("4", "0.5", "0.5")
    stored = json.loads(files.summary.read_text())
    assert stored["units"] == {"length": "pixels", "size": "pixels2", "nominal": False}
    assert stored["mean"]["predicted_pixels2"]["mean"] == 2
    assert stored["classes"][0]["strata"][0]["high_pixels2"] is None
    text = evaluation_table(evaluation.report)
    assert "HD95 pixels" in text
    written = "".join(path.read_text() for path in (files.metrics, files.lesions, files.summary)) + text
    assert not re.findall(r"_mm\b|_ml\b|\bmm\b|\bml\b", written.replace(str(tmp_path), ""))


def test_2d_images_of_known_pixel_size_have_areas(tmp_path: Path) -> None:
    geometry = Geometry((1.0, 5.0, 10.0), is_2d=True)
    write(tmp_path / "ref", "a", 1, 1, 0, 1, 1, 0, geometry=geometry)
    write(tmp_path / "pred", "a", 1, 0, 0, 1, 0, 0, geometry=geometry)
    files = evaluate_folders(tmp_path / "ref", tmp_path / "pred", Meaning(BINARY)).write(tmp_path / "out")
    with open(files.metrics, newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert (row["reference_mm2"], row["volume_error_mm2"], row["hd_mm"]) == ("200", "-100", "10")


def test_a_class_that_is_called_by_a_length_keeps_its_name_in_2d(tmp_path: Path) -> None:
    geometry = Geometry((1.0, 5.0, 10.0), is_2d=True)
    for folder in ("ref", "pred"):
        write(tmp_path / folder, "a", 1, 1, 0, 1, 1, 0, geometry=geometry)
    meaning = Meaning(LabelScheme(("nodule_6_ml",), ((1,),), "binary", (1,)))
    evaluation = evaluate_folders(tmp_path / "ref", tmp_path / "pred", meaning)
    stored = json.loads(evaluation.write(tmp_path / "out").summary.read_text())
    assert stored["settings"]["classes"] == {"nodule_6_ml": [1]}
    assert "nodule_6_ml: 1" in write_evaluation_report(tmp_path / "out", evaluation).read_text()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"level": 95}, "level is 95; give a fraction"),
        ({"strata_edges_ml": (5.0, 1.0)}, "strata_edges_ml is .* ascending"),
        ({"strata_edges_ml": (float("nan"),)}, "strata_edges_ml is"),
        ({"seed": -1}, "seed is -1"),
        ({"resamples": -1}, "resamples is -1"),
        ({"workers": -1}, "workers is -1"),
        ({"min_lesion_ml": -0.1}, "min_lesion_ml is -0.1"),
        ({"tolerances_mm": (-1.0,)}, "tolerances_mm is"),
        ({"tolerances_mm": (1.0, 1.0000001)}, "tolerances_mm is .* differ in six digits"),
        ({"against": "other"}, r"against is 'other'; give a tuple, \('other',\)"),
        ({"profiles": "isles"}, r"profiles is 'isles'; give a tuple"),
    ],
)
def test_options_that_say_nothing_are_refused_before_anything_is_scored(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EvaluationOptions(**wrong)


def test_groups_beside_the_references_that_name_no_case_are_said(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (folders[0].parent / "groups.csv").write_text("case,group\ncase_1.nii.gz,anna\n")
    assert usd_evaluate([*map(str, folders), "--labels", "1", "--no-report", "--against", str(folders[0])]) == 0
    assert "groups.csv names none of these cases, so that each" in " ".join(capsys.readouterr().out.split())


def test_tolerances_of_one_column_are_one(folders: tuple[Path, Path], tmp_path: Path) -> None:
    words = [*map(str, folders), "--labels", "1", "--no-report", "-o", str(tmp_path / "out")]
    assert usd_evaluate([*words, "--tolerance-mm", "1.0000001", "1", "0.5"]) == 0
    header = (tmp_path / "out/metrics.csv").read_text().splitlines()[0].split(",")
    assert [name for name in header if name.startswith("surface_dice")] == ["surface_dice_0.5mm", "surface_dice_1mm"]


def test_runs_are_told_apart_by_what_lies_above_them() -> None:
    """Folds of two trainings end alike; a name that nobody shares stays short."""
    assert run_names([Path("/r/A/fold_0/val"), Path("/r/B/fold_0/val"), Path("/masks")]) == [
        "A/fold_0/val",
        "B/fold_0/val",
        "masks",
    ]
    assert run_names([Path("/val"), Path("/B/val")]) == ["//val", "B/val"]
    with pytest.raises(UsdError, match="given twice"):
        run_names([Path("/r/A"), Path("/r/A")])
