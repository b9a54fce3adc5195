"""The cascade from raw images to masks: what it needs first, what its network sees, in training and in prediction."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import unisegdiff_pipeline as usd
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.inference import predictor as predicting
from unisegdiff_pipeline.inference.archive_reading import read_manifest
from unisegdiff_pipeline.inference.model_export import export_model
from unisegdiff_pipeline.inference.model_folder import open_model_folder
from unisegdiff_pipeline.inference.model_import import import_model
from unisegdiff_pipeline.inference.model_inputs import ModelInputs
from unisegdiff_pipeline.inference.onnx_export import export_onnx, require_onnx
from unisegdiff_pipeline.io.images import read_image, read_labels, write_labels, write_map
from unisegdiff_pipeline.preprocessing.storage import PreprocessedFolder
from unisegdiff_pipeline.training import cascade as taking_over
from unisegdiff_pipeline.training import run as training
from unisegdiff_pipeline.training.data.patches import PatchSource
from unisegdiff_pipeline.training.dry_run import preview
from unisegdiff_pipeline.training.request import TrainRequest
from unisegdiff_pipeline.training.run import train
from unisegdiff_pipeline.training.validated_models import find_validated_models

SHAPE = (40, 48, 48)
BORDER = (slice(3, -2), slice(4, -4), slice(2, -5))  # outside of it images are zero, and cropped
TRAINER = "SegmentationTrainer"  # the quickest: what a cascade adds are input channels, which all trainers read
NAME = f"{TRAINER}__3d_cascade_fullres"
CASES = [f"case_{i}" for i in range(6)]


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> usd.Roots:
    """Volumes of two classes, planned for a machine so small that a patch sees little of them; two folds."""
    root = tmp_path_factory.mktemp("cascade")
    roots = usd.Roots(root / "raw", root / "preprocessed", root / "results")
    folder = root / "raw" / "Dataset077_Large"
    folder.mkdir(parents=True)
    labels = {"background": 0, "organ": 1, "tumour": 2}
    description = {"channel_names": {"0": "MRI"}, "labels": labels, "file_ending": ".nii.gz", "numTraining": 6}
    (folder / "dataset.json").write_text(json.dumps(description))
    for number in range(7):
        rng = np.random.default_rng(number)
        mask, image = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.float32)
        z, y, x = rng.integers(8, 16, 3)
        mask[z : z + 16, y : y + 18, x : x + 18] = 1
        mask[z + 4 : z + 10, y + 4 : y + 10, x + 4 : x + 10] = 2
        image[BORDER] = (2 + mask + rng.normal(0, 0.2, SHAPE))[BORDER]
        part = "Ts" if number == 6 else "Tr"
        write_map(folder / f"images{part}/case_{number}_0000.nii.gz", image, Geometry())
        if number < 6:
            write_labels(folder / f"labelsTr/case_{number}.nii.gz", mask, Geometry())
    prepared = usd.plan_and_preprocess(folder, root / "preprocessed", budget=usd.Budget("cpu", 0.01, 1), workers=0)
    assert list(prepared.plans.configurations) == ["2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres"]
    assert not (prepared.folder / "3d_cascade_fullres").exists()  # it reads the cases of 3d_fullres
    folds = [{"train": CASES[3:], "val": CASES[:3]}, {"train": CASES[:3], "val": CASES[3:]}]
    (prepared.folder / "splits_final.json").write_text(json.dumps(folds))
    return roots


def request(roots: usd.Roots, configuration: str, fold: str = "cv") -> TrainRequest:
    small = {"iterations": 2, "batch_size": 2, "workers": 0, "device": "cpu"}
    return TrainRequest("77", fold, roots, configuration, trainer=TRAINER, **small)


def made_mask(case_id: str) -> np.ndarray:
    """A mask of a case that no network would make."""
    blocks = np.random.default_rng(int(case_id[-1])).integers(0, 3, (5, 6, 6)).astype(np.uint8)
    return blocks.repeat(8, 0).repeat(8, 1).repeat(8, 2)


def results(roots: usd.Roots) -> Path:
    assert roots.results is not None
    return roots.results / "Dataset077_Large"


def mask_file(roots: usd.Roots, case_id: str) -> Path:
    """What the fold of 3d_lowres that held the case out predicted of it."""
    fold = 0 if case_id in CASES[:3] else 1
    path = results(roots) / f"{TRAINER}__3d_lowres/fold_{fold}/validation/{case_id}.nii.gz"
    assert path.is_file()
    return path


@pytest.fixture(scope="module")
def model(roots: usd.Roots) -> Path:
    """Both models trained, all folds; on the way what a cascade says as long as masks are missing."""
    for folds in ("it has no finished fold", "finished and validated are its folds 1. Train all"):
        for ask in (train, preview):
            with pytest.raises(UsdError, match=f"{folds}.*: usd_train 77 cv -c 3d_lowres --trainer {TRAINER};"):
                ask(request(roots, "3d_cascade_fullres", "0"))
        assert not (results(roots) / NAME).exists()
        train(request(roots, "3d_lowres", "1"))
    train(request(roots, "3d_lowres"))
    for case_id in CASES:
        write_labels(mask_file(roots, case_id), made_mask(case_id), Geometry())
    assert [found.state for found in preview(request(roots, "3d_cascade_fullres"))] == ["new", "new"]
    assert not (results(roots) / NAME).exists()
    train(request(roots, "3d_cascade_fullres"))
    return results(roots) / NAME


def test_each_case_is_trained_on_with_the_mask_of_the_fold_that_did_not_know_it(roots: usd.Roots, model: Path) -> None:
    data = PreprocessedFolder(roots.preprocessed / "Dataset077_Large/3d_fullres", model / "3d_lowres/masks")
    opened = open_model_folder(model)
    configuration, labels = opened.configuration, opened.plans.labels
    for case_id in CASES:
        stored = data.open(case_id)
        assert stored.mask is not None
        assert stored.properties.shape == tuple(len(range(n)[part]) for n, part in zip(SHAPE, BORDER, strict=True))
        # One millimetre in the images and in the plan: the grids differ by the crop alone.
        assert (stored.mask[...][0] == made_mask(case_id)[BORDER]).all()
    plain = PatchSource(data, CASES, configuration, labels, seed=0, augment=False).batch(0)
    assert plain.image.shape[1] == 1 + 2
    assert set(np.unique(plain.image[:, 1:].numpy())) == {0.0, 1.0}
    source = PatchSource(data, CASES, configuration, labels, seed=0)
    many = [source.batch(i).image[:, 1:] for i in range(4)]
    assert all(float(channels.sum(dim=1).max()) == 1 for channels in many)
    assert all((source.batch(i).image[:, 1:] == channels).all() for i, channels in enumerate(many))


def test_the_copy_is_a_model_of_its_own(roots: usd.Roots, model: Path, tmp_path: Path) -> None:
    other = open_model_folder(model).masks_from
    assert other is not None
    assert (other.configuration.name, other.folds) == ("3d_lowres", ("0", "1"))
    assert not other.folder.is_symlink()
    train(request(roots, "3d_cascade_fullres"))  # finished: nothing is done, and what it began with stays
    cut = shutil.copytree(model, tmp_path / NAME, ignore=shutil.ignore_patterns("3d_lowres"))
    with pytest.raises(UsdError, match="lacks 3d_lowres/"):
        open_model_folder(cut)


def test_prediction_begins_with_the_other_model(
    roots: usd.Roots, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = roots.raw / "Dataset077_Large/imagesTs"
    usd.predict(usd.PredictRequest(images, tmp_path / "low", model / "3d_lowres", device="cpu"))
    seen: list[np.ndarray] = []
    add = predicting.with_mask

    def spied(image: np.ndarray, mask: np.ndarray, *others: object) -> np.ndarray:
        seen.append(add(image, mask, *others))
        return seen[-1]

    monkeypatch.setattr(predicting, "with_mask", spied)
    asked = usd.PredictRequest(images, tmp_path / "out", model, device="cpu")
    usd.predict(asked)
    low = read_labels(tmp_path / "low/case_6.nii.gz").array[0]
    assert (seen[0][1] == (low[BORDER] == 1)).all()
    assert (seen[0][2] == (low[BORDER] == 2)).all()
    mask = read_labels(tmp_path / "out/case_6.nii.gz")
    assert mask.array[0].shape == SHAPE
    one = usd.Predictor(model, device="cpu")
    assert (one.predict(images / "case_6_0000.nii.gz").mask == mask.array[0]).all()
    model_inputs = ModelInputs(one.model)
    case = model_inputs.find_cases(images)[0]
    volume = read_image(case.image_paths, 1)
    left = iter((2.0, 1.0))  # asked once for each network
    one.predict_preprocessed(
        *model_inputs.prepare(model_inputs.plan_for(volume, case), volume, case),
        for_masks=model_inputs.prepare_for_masks(volume, case),
        memory_gb=lambda: next(left),
    )
    assert not list(left)
    monkeypatch.setattr(usd.Predictor, "mask_of", lambda *_, **__: made_mask("case_0"))
    one.predict(images / "case_6_0000.nii.gz")
    assert (seen[-1][1:] == [made_mask("case_0")[BORDER] == value for value in (1, 2)]).all()
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["masks_from"]["folds"] == ["0", "1"]
    monkeypatch.undo()
    single = replace(asked, output=tmp_path / "single", folds=0)
    usd.predict(single)  # a fold asks the same fold, which knows no case that it holds out
    assert json.loads((tmp_path / "single/manifest.json").read_text())["masks_from"]["folds"] == ["0"]


def test_another_model_of_masks_is_another_prediction(roots: usd.Roots, model: Path, tmp_path: Path) -> None:
    images, own = roots.raw / "Dataset077_Large/imagesTs", tmp_path / NAME
    shutil.copytree(model, own)
    asked = usd.PredictRequest(images, tmp_path / "out", own, folds=0, device="cpu")
    usd.predict(asked)
    settings = own / "3d_lowres/fold_0/inference.json"
    content = json.loads(settings.read_text())
    settings.write_text(json.dumps({**content, "lam_a": content["lam_a"] - 1}))
    with pytest.raises(UsdError, match=r"made otherwise.*masks_from\.settings\.0\.lam_a"):
        usd.predict(asked)


def test_folds_of_another_model_of_masks_are_refused(model: Path, tmp_path: Path) -> None:
    own = shutil.copytree(model, tmp_path / NAME)
    weights = [own / f"3d_lowres/fold_{fold}/weights.safetensors" for fold in (0, 1)]
    weights[0].write_bytes(weights[1].read_bytes())
    with pytest.raises(UsdError, match="was trained with masks of another model"):
        usd.Predictor(own, device="cpu")
    with pytest.raises(UsdError, match="was trained with masks of another model"):
        export_model(own, tmp_path / "model.zip")
    assert not (tmp_path / "model.zip").exists()
    models, left_out = find_validated_models(tmp_path, ("0", "1"))
    assert not models
    assert [line.split(" (")[0] for line in left_out] == [f"{NAME}: fold 0", f"{NAME}: fold 1"]
    assert all("masks of another model" in line for line in left_out)


def test_damaged_masks_are_found_before_a_fold_goes_on(roots: usd.Roots, model: Path, tmp_path: Path) -> None:
    own = replace(roots, results=tmp_path)
    shutil.copytree(results(roots), tmp_path / "Dataset077_Large")
    path = tmp_path / "Dataset077_Large" / NAME / "3d_lowres/masks/case_2.b2nd"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UsdError, match=r"case_2\.b2nd is missing or is not what was taken over"):
        train(request(own, "3d_cascade_fullres", "0"))


def copied(roots: usd.Roots, folder: Path) -> tuple[usd.Roots, Path, Path]:
    """The trained models in results of their own, with the folders of 3d_lowres and of the cascade."""
    dataset = shutil.copytree(results(roots), folder / "Dataset077_Large")
    return replace(roots, results=folder), dataset / f"{TRAINER}__3d_lowres", dataset / NAME


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".lock"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda plans: plans.update(channel_names=["T2"]), r"channel_names \('T2',\), the plan has \('MRI',\) now"),
        (lambda plans: plans["labels"].update(names=["tumour", "organ"]), "was trained with labels"),
    ],
)
def test_masks_of_other_images_or_classes_are_refused(
    roots: usd.Roots, model: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    own, lowres, cascade = copied(roots, tmp_path)
    shutil.rmtree(cascade)
    plans = json.loads((lowres / "plans.json").read_text())
    change(plans)
    (lowres / "plans.json").write_text(json.dumps(plans))
    for ask in (train, preview):
        with pytest.raises(UsdError, match=said):
            ask(request(own, "3d_cascade_fullres"))
    assert not cascade.exists()


def test_folds_of_former_splits_are_refused(roots: usd.Roots, model: Path, tmp_path: Path) -> None:
    own, lowres, cascade = copied(roots, tmp_path)
    shutil.rmtree(cascade)
    shutil.copytree(lowres / "fold_0", lowres / "fold_2")
    with pytest.raises(UsdError, match=r"fold_0/validation and .*fold_2/validation both hold a mask of case_0"):
        train(request(own, "3d_cascade_fullres"))
    assert not cascade.exists()


@pytest.mark.parametrize("moment", ["_take_over_mask", "train_fold"])
@pytest.mark.parametrize("began", [True, False], ids=["restart", "first"])
def test_a_training_that_cannot_begin_leaves_the_copy_as_it_was(
    roots: usd.Roots, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, began: bool
) -> None:
    own, lowres, cascade = copied(roots, tmp_path)
    weights = lowres / "fold_0/weights.safetensors"
    weights.write_bytes((lowres / "fold_1/weights.safetensors").read_bytes())  # as if trained again
    if not began:
        shutil.rmtree(cascade)
    before = content(tmp_path)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(taking_over if moment == "_take_over_mask" else training, moment, interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(replace(request(own, "3d_cascade_fullres"), restart=began))
    assert content(tmp_path) == before
    assert cascade.exists() == began


def test_a_copy_is_put_back_after_a_kill_and_removed_once_a_fold_has_begun(
    roots: usd.Roots, model: Path, tmp_path: Path
) -> None:
    own, _, cascade = copied(roots, tmp_path)
    former, copy, fold = cascade / ".former-3d_lowres", cascade / "3d_lowres", cascade / "fold_0"
    shutil.copytree(copy, former)
    (copy / "plans.json").write_text("of the new one")
    train(request(own, "3d_cascade_fullres"))
    assert (copy / "plans.json").read_bytes() == (model / "3d_lowres/plans.json").read_bytes()
    assert not former.exists()
    shutil.copytree(copy, former)
    (former / "plans.json").write_text("of the former one")
    (fold / ".former").mkdir()
    train(request(own, "3d_cascade_fullres"))
    assert (copy / "plans.json").read_bytes() == (model / "3d_lowres/plans.json").read_bytes()
    assert not former.exists()
    assert not (fold / ".former").exists()


def test_the_best_model_counts_both_networks(roots: usd.Roots, model: Path) -> None:
    found = usd.find_best(roots, "77").recipe
    sizes = {candidate.name: candidate.num_parameters for candidate in found.candidates}
    assert sizes[NAME] > 1.5 * sizes[f"{TRAINER}__3d_lowres"]
    assert f"{TRAINER}__3d_lowres + {NAME}" in {" + ".join(sorted(c.models, reverse=True)) for c in found.candidates}


def test_an_archive_carries_both(roots: usd.Roots, model: Path, tmp_path: Path) -> None:
    export_model(model, tmp_path / "model.zip")
    files = read_manifest(tmp_path / "model.zip").files
    assert {"3d_lowres/plans.json", "3d_lowres/fold_1/weights.safetensors", "3d_lowres/fold_1/inference.json"} <= {
        *files
    }
    assert not any("masks" in name for name in files)
    imported = import_model(tmp_path / "model.zip", tmp_path / "results")
    images = roots.raw / "Dataset077_Large/imagesTs"
    for name, folder in (("here", model), ("zip", tmp_path / "model.zip"), ("imported", imported.folder)):
        usd.predict(usd.PredictRequest(images, tmp_path / name, folder, device="cpu"))
    here = (tmp_path / "here/case_6.nii.gz").read_bytes()
    assert here == (tmp_path / "zip/case_6.nii.gz").read_bytes() == (tmp_path / "imported/case_6.nii.gz").read_bytes()
    train_anew = request(replace(roots, results=tmp_path / "results"), "3d_cascade_fullres", "0")
    with pytest.raises(UsdError, match="is missing or is not what was taken over"):
        train(train_anew)


def test_no_graph_holds_a_cascade(model: Path, tmp_path: Path) -> None:
    try:
        require_onnx()
    except UsdError:
        pytest.skip("the extra onnx is not installed")
    with pytest.raises(UsdError, match="is a cascade"):
        export_onnx(model, tmp_path / "graphs", fold="0")
