"""A unified data set as reference: label maps of its sources in its own values, scores by source."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

import unisegdiff_pipeline as usd
from unisegdiff_pipeline.commands.evaluate import main as usd_evaluate
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.core.serialization import to_jsonable
from unisegdiff_pipeline.core.units import Units
from unisegdiff_pipeline.evaluation.calibration import evaluation_region
from unisegdiff_pipeline.evaluation.evaluate import Evaluation, evaluate_folders
from unisegdiff_pipeline.evaluation.meaning import find_meaning
from unisegdiff_pipeline.evaluation.options import EvaluationOptions
from unisegdiff_pipeline.io.dataset_json import parse_labels, read_dataset_json
from unisegdiff_pipeline.io.images import write_labels
from unisegdiff_pipeline.io.unify import UnifyRequest, unify
from unisegdiff_pipeline.reports.evaluation_report import write_evaluation_report

TUMOUR, ORGAN = 2, 1  # values of the volumes
OPTIONS = EvaluationOptions(resamples=50, workers=0)


def picture(path: Path, *rows: int, value: int = 1) -> None:
    """An image (8, 8) whose rows hold `value` in four columns."""
    array = np.zeros((8, 8), np.uint8)
    array[list(rows), :4] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def volume(path: Path, rows: dict[int, int]) -> None:
    """A volume (2, 8, 8) whose rows hold a value each, in four columns."""
    array = np.zeros((2, 8, 8), np.uint8)
    for row, value in rows.items():
        array[:, row, :4] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))


def describe(folder: Path, labels: dict[str, int], ending: str) -> None:
    content = {"channel_names": {"0": "x"}, "labels": labels, "file_ending": ending}
    (folder / "dataset.json").write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Pictures of a cyst (two cases of one patient, and one without a cyst), a volume of an organ and its tumour."""
    flat, solid = tmp_path / "Dataset001_Flat", tmp_path / "Dataset002_Solid"
    for case, rows in (("a", (0, 1)), ("b", (0, 1)), ("c", ())):
        picture(flat / f"labelsTr/{case}.png", *rows)
        picture(flat / f"imagesTr/{case}_0000.png", *rows, value=200)
    picture(flat / "ratersTr/a_rater1.png", 0, 1)
    picture(flat / "ratersTr/a_rater2.png", 0, 1)
    (flat / "groups.csv").write_text("case,group\na,p\nb,p\n")
    describe(flat, {"background": 0, "cyst": 1}, ".png")
    volume(solid / "labelsTr/v.nii.gz", {0: TUMOUR, 1: TUMOUR, 4: ORGAN, 5: ORGAN})
    volume(solid / "imagesTr/v_0000.nii.gz", {0: TUMOUR})
    describe(solid, {"background": 0, "organ": ORGAN, "tumour": TUMOUR}, ".nii.gz")
    return tmp_path


@pytest.fixture
def unified(root: Path) -> Path:
    maps = {"Flat": {"cyst": "lesion"}, "Solid": {"organ": "background", "tumour": "lesion"}}
    return unify(root, UnifyRequest(500, "U", (1, 2), label_maps=maps))


@pytest.fixture
def predicted(root: Path) -> Path:
    """Dice 1, 2/3 and undefined of Flat, 2/3 of Solid, whose mask has another ending than its pictures'."""
    folder = root / "pred"
    picture(folder / "Flat__a.png", 0, 1)
    picture(folder / "Flat__b.png", 0)
    picture(folder / "Flat__c.png")
    volume(folder / "Solid__v.nii.gz", {0: 1})
    return folder


def evaluated(unified: Path, predicted: Path, options: EvaluationOptions = OPTIONS) -> Evaluation:
    return evaluate_folders(unified, predicted, find_meaning(unified, predicted), options)


def test_masks_are_scored_by_source(unified: Path, predicted: Path, tmp_path: Path) -> None:
    evaluation = evaluated(unified, predicted)
    dice = {case.case_id: case.classes[0].overlap.dice for case in evaluation.cases}
    assert [dice[name] for name in ("Flat__a", "Flat__b", "Solid__v")] == pytest.approx([1, 2 / 3, 2 / 3])
    assert [case.group for case in evaluation.cases] == ["Flat__p", "Flat__p", "Flat__c", "Solid__v"]
    stored = json.loads(evaluation.write(tmp_path / "out").summary.read_text())
    sources = {entry["source"]: entry for entry in stored["by_source"]["sources"]}
    assert sources["Flat"]["mean"]["dice"]["mean"] == pytest.approx(5 / 6)
    assert sources["Flat"]["classes"][0]["outcomes"] == {"scored": 2, "both_empty": 1, "false_positive": 0}
    assert stored["mean"]["dice"]["mean"] == pytest.approx(7 / 9)  # over cases
    assert stored["by_source"]["macro_mean"]["dice"]["mean"] == pytest.approx(3 / 4)  # over sources
    assert stored["by_source"]["macro_mean"]["dice"]["n"] == 2
    with open(tmp_path / "out/metrics.csv", newline="") as stream:
        assert [row["source"] for row in csv.DictReader(stream)] == ["Flat", "Flat", "Flat", "Solid"]
    with open(tmp_path / "out/lesion_scores.csv", newline="") as stream:
        assert {row["source"] for row in csv.DictReader(stream)} == {"Flat", "Solid"}


def test_sizes_of_pictures_beside_volumes_are_marked_as_made_up(root: Path, predicted: Path, tmp_path: Path) -> None:
    content = json.loads((root / "Dataset001_Flat/dataset.json").read_text())
    (root / "Dataset001_Flat/dataset.json").write_text(json.dumps({**content, "spacing_known": True}))
    evaluation = evaluated(unify(root, UnifyRequest(500, "U", (1, 2))), predicted)
    assert evaluation.report.units == Units("mm", "ml", nominal=True)
    assert {(case.source, case.classes[0].overlap.volumes_nominal) for case in evaluation.cases} == {
        ("Flat", True),
        ("Solid", False),
    }


def test_raters_of_a_source_are_read_in_the_values_of_the_unified_set(root: Path, predicted: Path) -> None:
    describe(root / "Dataset001_Flat", {"background": 0, "skin": 1, "cyst": 2}, ".png")
    for path in (*(root / "Dataset001_Flat/labelsTr").iterdir(), *(root / "Dataset001_Flat/ratersTr").iterdir()):
        picture(path, *(() if path.name == "c.png" else (0, 1)), value=2)
    maps = {"Flat": {"skin": "background", "cyst": "lesion"}, "Solid": {"organ": "background", "tumour": "lesion"}}
    evaluation = evaluated(unify(root, UnifyRequest(500, "U", (1, 2), label_maps=maps)), predicted)
    assert evaluation.cases[0].classes[0].overlap.dice == 1
    assert evaluation.cases[0].classes[0].surface_dice_rater == 1  # of two raters that agree
    assert math.isnan(evaluation.cases[3].classes[0].surface_dice_rater)  # raters of one source say nothing of others


def test_a_class_that_a_source_does_not_annotate_is_not_scored_there(root: Path, predicted: Path) -> None:
    maps = {"Flat": {"cyst": "lesion"}, "Solid": {"organ": "organ", "tumour": "lesion"}}
    picture(predicted / "Flat__a.png", 0, 1, 6)
    volume(predicted / "Solid__v.nii.gz", {0: 1, 4: 2, 5: 2})
    array = np.array(Image.open(predicted / "Flat__a.png"))
    array[6] *= 2  # an organ is predicted where nobody annotated one
    Image.fromarray(array).save(predicted / "Flat__a.png")
    unified = unify(root, UnifyRequest(501, "Partial", (1, 2), label_maps=maps))
    evaluation = evaluated(unified, predicted)
    values = {
        (case.case_id, result.overlap.class_name): result.overlap.dice
        for case in evaluation.cases
        for result in case.classes
    }
    assert values["Flat__a", "lesion"] == 1
    assert values["Solid__v", "organ"] == 1
    assert ("Flat__a", "organ") not in values
    organ = next(entry for entry in evaluation.report.classes if entry.class_name == "organ")
    assert organ.outcomes.scored == 1
    assert organ.outcomes.false_positive == 0
    assert [len(source.classes) for source in evaluation.report.by_source.sources] == [1, 2]  # type: ignore[union-attr]


def test_runs_are_compared_by_source(unified: Path, predicted: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for name in ("a", "b", "c"):
        picture(other / f"Flat__{name}.png", *(() if name == "c" else (0,)))
    volume(other / "Solid__v.nii.gz", {0: 1, 1: 1})
    (run,) = evaluated(unified, predicted, EvaluationOptions(resamples=50, workers=0, against=(other,))).report.against
    found = {
        part.source: next(row.mean_difference for row in part.classes if row.metric == "dice") for part in run.sources
    }
    assert found == pytest.approx({"Flat": (1 / 3 + 0) / 2, "Solid": -1 / 3})


def test_the_command_prints_and_draws_sources(
    unified: Path, predicted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert usd_evaluate([str(unified), str(predicted), "--bootstrap", "50", "--workers", "0"]) == 0
    said = capsys.readouterr().out
    assert "mean of sources" in said
    page = (predicted / "evaluation/report.html").read_text()
    assert "<h2" in page
    assert "mean of sources" in page
    assert "Dice by source" in page


def test_a_subset_of_one_source_is_enough(unified: Path, predicted: Path, tmp_path: Path) -> None:
    (predicted / "Solid__v.nii.gz").unlink()
    with pytest.raises(UsdError, match="Solid__v"):
        evaluated(unified, predicted)
    evaluation = evaluated(unified, predicted, EvaluationOptions(resamples=50, workers=0, subset=True))
    assert evaluation.not_predicted == ("Solid__v",)
    assert [source.source for source in evaluation.report.by_source.sources] == ["Flat"]  # type: ignore[union-attr]
    evaluation.write(tmp_path / "out")
    assert write_evaluation_report(tmp_path / "out", evaluation).is_file()


def test_what_does_not_fit_is_refused(unified: Path, predicted: Path, root: Path) -> None:
    with pytest.raises(UsdError, match="--dataset-json"):
        find_meaning(unified, predicted, labels=[1])
    with pytest.raises(UsdError, match="--raters"):
        evaluated(unified, predicted, EvaluationOptions(raters=root / "Dataset001_Flat/ratersTr"))
    describe(predicted, {"background": 0, "organ": 1, "lesion": 2}, ".png")
    with pytest.raises(UsdError, match=r"organ \(1\), lesion \(2\)"):
        find_meaning(unified, predicted)


def test_an_unknown_value_of_a_source_is_named(unified: Path, predicted: Path, root: Path) -> None:
    picture(root / "Dataset001_Flat/labelsTr/a.png", 0, value=7)
    with pytest.raises(UsdError, match=r"label value\(s\) 7"):
        evaluated(unified, predicted)


def test_probabilities_are_judged_within_millimetres_where_a_source_knows_them(tmp_path: Path) -> None:
    """Pixels of 0.25 mm beside pictures of unknown pixel size, because of which all sizes are in pixels."""
    geometry = Geometry((1.0, 0.25, 0.25), is_2d=True)
    mask = np.zeros((1, 64, 64), np.uint8)
    mask[0, 30:34, 30:34] = 1
    fine, plain, predicted = tmp_path / "Dataset001_Fine", tmp_path / "Dataset002_Plain", tmp_path / "pred"
    for path in (fine / "labelsTr/a.nii.gz", fine / "imagesTr/a_0000.nii.gz", predicted / "Fine__a.nii.gz"):
        write_labels(path, mask, geometry)
    picture(plain / "imagesTr/b_0000.png", 0, value=200)
    for path in (plain / "labelsTr/b.png", predicted / "Plain__b.png"):
        picture(path, 0, 1)
    (predicted / "probabilities").mkdir()
    for name, size in (("Fine__a", 64), ("Plain__b", 8)):
        array = np.full((1, 1, size, size), 0.5, np.float32)
        np.savez(predicted / f"probabilities/{name}.npz", probabilities=array)
    for folder, ending in ((fine, ".nii.gz"), (plain, ".png")):
        describe(folder, {"background": 0, "x": 1}, ending)
    evaluation = evaluated(unify(tmp_path, UnifyRequest(500, "U", (1, 2))), predicted)
    assert evaluation.report.units == Units("pixels", "pixels2")
    found = [case.classes[0].calibration.num_voxels for case in evaluation.cases]  # type: ignore[union-attr]
    assert found[0] == evaluation_region(mask == 1, mask == 1, geometry.spacing_mm).sum()
    assert found[1] == 14  # two rows of four pixels, and one pixel around them
    words = "5 mm around it where the spacing of the source is known, else 1.5 % of the image diagonal around it"
    assert evaluation.report.settings["probability_region"] == f"union of masks and {words}"


@pytest.mark.parametrize("place", ["beside", "manifest"])
def test_labels_of_one_source_are_read_in_the_classes_that_a_unified_model_has(
    root: Path, unified: Path, tmp_path: Path, place: str
) -> None:
    """A value of the source is an organ, of the model a lesion: taken as they are, they would agree."""
    volume(root / "Dataset002_Solid/labelsTs/t.nii.gz", {0: TUMOUR, 4: ORGAN})
    masks = tmp_path / "deep/er/masks"
    volume(masks / "t.nii.gz", {4: 1})
    model = masks if place == "beside" else tmp_path / "model"
    model.mkdir(exist_ok=True)
    (model / "dataset.json").write_bytes((unified / "dataset.json").read_bytes())
    if place == "manifest":
        (masks / "manifest.json").write_text(json.dumps({"model": str(model)}))
    references = root / "Dataset002_Solid/labelsTs"
    evaluation = evaluate_folders(references, masks, find_meaning(references, masks), OPTIONS)
    (case,) = evaluation.cases
    assert [(result.overlap.class_name, result.overlap.dice) for result in case.classes] == [("lesion", 0.0)]
    assert (case.classes[0].overlap.fn, case.classes[0].overlap.fp) == (8, 8)
    assert case.source == "Solid"


def test_label_maps_of_a_source_at_baseline_are_followed_in_the_classes_of_a_unified_model(
    root: Path, tmp_path: Path
) -> None:
    """An organ has the value of a cyst, which the source says nothing about."""
    maps = {"Flat": {"cyst": "cyst"}, "Solid": {"organ": "background", "tumour": "lesion"}}
    unified = unify(root, UnifyRequest(500, "U", (1, 2), label_maps=maps))
    masks, baseline = tmp_path / "deep/er/masks", root / "Dataset002_Solid/labelsTr"
    volume(masks / "v.nii.gz", {0: 2, 6: 1})
    (masks / "manifest.json").write_text(json.dumps({"model": str(unified)}))
    assert read_dataset_json(unified / "dataset.json").labels.names == ("cyst", "lesion")
    assert usd_evaluate(["--follow-up", str(baseline), str(masks)]) == 0
    with open(masks / "follow_up/follow_up.csv", newline="") as stream:
        rows = [(row["class_name"], row["status"], row["change_percent"]) for row in csv.DictReader(stream)]
    assert rows == [("lesion", "shrinking", "-50")]
    written = json.loads((masks / "follow_up/follow_up.json").read_text())
    assert written["settings"]["classes"] == {"lesion": [2]}


def test_masks_of_a_source_at_follow_up_of_a_unified_model_are_refused(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The values are the same, but 1 is a cyst of the one and an organ of the other."""
    maps = {"Flat": {"cyst": "cyst"}, "Solid": {"organ": "background", "tumour": "lesion"}}
    unified = unify(root, UnifyRequest(500, "U", (1, 2), label_maps=maps))
    baseline, masks = tmp_path / "deep/er/masks", tmp_path / "deep/er/later"
    for folder in (baseline, masks):
        volume(folder / "v.nii.gz", {0: 2, 6: 1})
        (folder / "manifest.json").write_text(json.dumps({"model": str(unified)}))
    labels = root / "Dataset002_Solid/labelsTr"
    assert usd_evaluate(["--follow-up", str(baseline), str(labels)]) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "labelsTr has the classes organ (1), tumour (2) by" in told
    assert "of the unified classes cyst (1), lesion (2)" in told
    scheme = to_jsonable(parse_labels({"background": 0, "organ": ORGAN, "tumour": TUMOUR}))
    (masks / "manifest.json").write_text(json.dumps({"model": "of/the/source", "labels": scheme}))
    with pytest.raises(UsdError, match=r"organ \(1\), tumour \(2\) by its manifest\.json, but"):
        find_meaning(baseline, masks)
    assert find_meaning(baseline, labels, root / "Dataset002_Solid/dataset.json").scheme.names == ("organ", "tumour")
    (masks / "manifest.json").write_text(json.dumps({"model": str(unified)}))
    assert find_meaning(baseline, masks).scheme.names == ("cyst", "lesion")


def test_a_manifest_of_another_program_says_nothing(root: Path, predicted: Path) -> None:
    (predicted / "manifest.json").write_text("[]")
    labels = root / "Dataset001_Flat/labelsTr"
    assert find_meaning(labels, predicted).scheme.names == ("cyst",)


@pytest.mark.parametrize(
    ("labels", "is_refused"),
    [
        ({"background": 0, "organ": ORGAN, "tumour": TUMOUR}, False),
        ({"background": 0, "a": 1, "b": 2}, False),  # other names of the same values
        ({"background": 0, "whole": [1, 2], "core": [2]}, False),  # regions of the same values
        ({"background": 0, "lesion": 1}, True),  # as of a unified model in an archive: 1 is the organ of the references
        ({"background": 0, "organ": TUMOUR, "tumour": ORGAN}, True),
    ],
)
def test_masks_whose_manifest_says_other_values_are_refused(
    root: Path, labels: dict[str, Any], is_refused: bool
) -> None:
    references, masks = root / "Dataset002_Solid/labelsTr", root / "far/away/masks"
    volume(masks / "v.nii.gz", {0: 1})
    scheme = parse_labels(labels, [1, 2] if "whole" in labels else None)
    (masks / "manifest.json").write_text(json.dumps({"model": "model.zip", "labels": to_jsonable(scheme)}))
    if is_refused:
        with pytest.raises(UsdError, match=r"by its manifest\.json, but .*organ \(1\), tumour \(2\)"):
            find_meaning(references, masks)
    else:
        assert find_meaning(references, masks).scheme.names == ("organ", "tumour")
    assert find_meaning(references, masks, root / "Dataset002_Solid/dataset.json").scheme.names == ("organ", "tumour")


@pytest.mark.parametrize(
    ("labels", "is_refused"),
    [
        ({"background": 0, "tumour": 1, "organ": 2}, True),
        ({"background": 0, "organ": 1, "tumour": 2}, False),
        ({"background": 0, "organ": 1}, False),  # a value of the references that it lacks is refused where it is read
        ({"background": 0, "tumour": 2, "a": 1}, False),  # another name of the organ
        ({"0": "background", "1": "tumour"}, False),  # no dataset.json of nnU-Net's form
    ],
)
@pytest.mark.parametrize("form", ["dataset.json", "manifest.json"])
def test_masks_that_say_other_values_of_a_class_are_refused(
    root: Path, labels: dict[str, Any], is_refused: bool, form: str
) -> None:
    """A model that was trained on 1 as the tumour, beside references where 1 is the organ; so with --against."""
    references, masks, other = root / "Dataset002_Solid/labelsTr", root / "far/away/masks", root / "far/off/other"
    for folder in (masks, other):
        volume(folder / "v.nii.gz", {0: 1})
    if form == "dataset.json":
        describe(other, labels, ".nii.gz")
    elif "organ" in labels and "tumour" in labels:
        (other / form).write_text(json.dumps({"labels": to_jsonable(parse_labels(labels, None))}))
    own = root / "Dataset002_Solid/dataset.json"
    if not is_refused:
        find_meaning(references, masks, against=[other])
        return
    with pytest.raises(UsdError, match=r"other.* has the classes tumour \(1\), organ \(2\)"):
        find_meaning(references, masks, against=[other])
    with pytest.raises(UsdError, match=r"other.* has the classes tumour \(1\), organ \(2\)|organ \(1\), tumour \(2\)"):
        find_meaning(references, other)
    assert find_meaning(references, masks, own, against=[other]).scheme.names == ("organ", "tumour")
    assert find_meaning(references, other, own).scheme.names == ("organ", "tumour")
    assert find_meaning(references, masks, labels=[1], against=[other]).scheme.names == ("1",)


def test_a_run_of_other_classes_is_not_compared_with(unified: Path, predicted: Path, root: Path) -> None:
    (root / "other").mkdir()
    describe(root / "other", {"background": 0, "organ": 1, "lesion": 2}, ".png")
    with pytest.raises(UsdError, match=r"other has the classes organ \(1\), lesion \(2\)"):
        find_meaning(unified, predicted, against=[root / "other"])
    (root / "far/away/masks").mkdir(parents=True)
    volume(root / "far/away/masks/v.nii.gz", {0: 1})
    scheme = parse_labels({"background": 0, "lesion": 1}, None)
    (root / "far/away/masks/manifest.json").write_text(json.dumps({"labels": to_jsonable(scheme)}))
    volume(root / "labels/a/b/v.nii.gz", {0: 1})
    with pytest.raises(UsdError, match=r"other/dataset\.json has the classes organ \(1\), lesion \(2\)"):
        find_meaning(root / "labels/a/b", root / "far/away/masks", against=[root / "other"])
    with pytest.raises(UsdError, match="organ"):
        usd.evaluate(root / "labels/a/b", root / "far/away/masks", options=EvaluationOptions(against=(root / "other",)))


def test_regions_of_one_name_must_hold_the_same_values(tmp_path: Path) -> None:
    """The core of one set is another part of the tumour than that of the other: their values are the same."""
    regions = {"background": 0, "tumour": [1, 2, 3], "core": [2, 3], "rim": 3}
    for folder in ("set/labelsTr", "masks"):
        volume(tmp_path / folder / "v.nii.gz", {0: 3})
    own = {**regions, "core": [1, 3]}
    described = {"channel_names": {"0": "CT"}, "labels": regions, "regions_class_order": [1, 2, 3]}
    (tmp_path / "set/dataset.json").write_text(json.dumps({**described, "file_ending": ".nii.gz", "numTraining": 1}))
    for labels, is_refused in ((regions, False), ({**regions, "core": [3, 2]}, False), (own, True)):
        content = {"labels": to_jsonable(parse_labels(labels, [2, 1, 3] if labels is own else [1, 2, 3]))}
        (tmp_path / "masks/manifest.json").write_text(json.dumps(content))
        if is_refused:
            with pytest.raises(UsdError, match=r"core \(1, 3\).* by its manifest\.json, but .*core \(2, 3\)"):
                find_meaning(tmp_path / "set/labelsTr", tmp_path / "masks")
        else:
            assert find_meaning(tmp_path / "set/labelsTr", tmp_path / "masks").scheme.coding == "regions"


def test_masks_of_an_archive_of_other_classes_are_refused_beside_a_unified_set(unified: Path, predicted: Path) -> None:
    for labels, is_refused in ((read_dataset_json(unified / "dataset.json").labels, False), (None, True)):
        scheme = labels or parse_labels({"background": 0, "cyst": 1}, None)
        (predicted / "manifest.json").write_text(json.dumps({"model": "m.zip", "labels": to_jsonable(scheme)}))
        if is_refused:
            with pytest.raises(UsdError, match=r"cyst \(1\) by its manifest\.json, but .*give the data set that"):
                find_meaning(unified, predicted)
        else:
            assert find_meaning(unified, predicted).scheme == labels


def test_ordinary_references_have_no_sources(root: Path, tmp_path: Path) -> None:
    labels = root / "Dataset001_Flat/labelsTr"
    evaluation = evaluate_folders(labels, labels.parent / "labelsTr", find_meaning(labels, labels), OPTIONS)
    assert "by_source" not in json.loads(evaluation.write(tmp_path / "out").summary.read_text())
    assert "source" not in (tmp_path / "out/metrics.csv").read_text().splitlines()[0].split(",")


def test_the_labels_folder_that_a_unified_data_set_lacks_leads_to_its_folder(unified: Path) -> None:
    with pytest.raises(UsdError, match=r"labelsTr does not exist; .*Dataset500.* is a unified data set.*folder itself"):
        find_meaning(unified / "labelsTr", unified)
