"""The names of `import unisegdiff_pipeline as usd`: light, complete, documented, and the same masks as the commands."""

from __future__ import annotations

import ast
import doctest
import runpy
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch

import unisegdiff_pipeline as usd
from tests.inference.test_predictor import GEOMETRY_3D, make_model, make_pictures
from unisegdiff_pipeline.io.images import read_image, write_map

ROOT = Path(__file__).resolve().parents[1]
PUBLIC = [name for name in usd.__all__ if name != "__version__"]
SCRIPTS = sorted((ROOT / "documentation/examples").glob("*.py"))


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything that prediction wrote but times and versions."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json" and ".cases" not in path.parts and ".lock" not in path.name
    }


# --------------------------------------------------------------------------------------------------------- the names


def test_importing_it_loads_nothing_and_names_are_found_by_dir() -> None:
    code = "import sys, unisegdiff_pipeline as usd; dir(usd); print({'numpy', 'torch'} & set(sys.modules), end='')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()"
    assert set(usd.__all__) <= set(dir(usd))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_resolves_and_is_documented(name: str) -> None:
    assert (getattr(usd, name).__doc__ or "").strip()
    namespace: dict[str, Any] = {}
    exec(f"from unisegdiff_pipeline import {name}", namespace)
    assert namespace[name] is getattr(usd, name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'predicter'"):
        usd.predicter  # noqa: B018


def test_type_checkers_see_the_names_that_are_resolved() -> None:
    tree = ast.parse((ROOT / "unisegdiff_pipeline/__init__.py").read_text("utf-8"))
    (checking,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.asname or alias.name for node in checking.body for alias in node.names}  # type: ignore[attr-defined]
    assert seen | {"__version__"} == set(usd.__all__)


def test_the_page_says_what_the_docstrings_say() -> None:
    page = (ROOT / "documentation/reference/python.md").read_text("utf-8")
    for name in PUBLIC:
        first = " ".join((getattr(usd, name).__doc__ or "").strip().split("\n\n")[0].split())
        assert f"| `usd.{name}` | {first} |" in page
    assert all(f"`{name}`" in page for name in usd.metrics.__all__ if name.islower())


# ------------------------------------------------------------------------------------------------------------ images


@pytest.fixture(scope="module")
def volume_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model3d"), 3)


@pytest.fixture(scope="module")
def picture_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model2d"), 2)


@pytest.fixture(scope="module")
def volume_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("volume") / "a_0000.nii.gz"
    write_map(path, np.random.default_rng(3).normal(size=(9, 18, 14)).astype(np.float32), GEOMETRY_3D)
    return path


def array_of(path: Path) -> tuple[Any, dict[str, Any]]:
    volume = read_image([path])
    return volume.array, {"spacing_mm": volume.geometry.spacing_mm, "direction": volume.geometry.direction}


KINDS: dict[str, Callable[[Path], tuple[Any, dict[str, Any]]]] = {
    "path": lambda path: (str(path), {}),
    "paths": lambda path: ([path], {}),
    "array": array_of,
    "arrays of channels": lambda path: (list(array_of(path)[0]), array_of(path)[1]),
    "Volume": lambda path: (read_image([path]), {}),
    "SimpleITK": lambda path: (SimpleITK.ReadImage(str(path)), {}),
    "list of SimpleITK": lambda path: ([SimpleITK.ReadImage(str(path))], {}),
    "nibabel": lambda path: (nibabel.load(path), {}),
}


@pytest.fixture(scope="module")
def expected(volume_model: Path, volume_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What usd_predict writes."""
    out = tmp_path_factory.mktemp("expected") / "out"
    request = usd.PredictRequest(
        volume_file, out, volume_model, seed=5, device="cpu", save_samples=True, save_probabilities=True
    )
    assert usd.predict(request) == out
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_gives_the_files_of_usd_predict(
    kind: str, volume_model: Path, volume_file: Path, expected: Path, tmp_path: Path
) -> None:
    image, more = KINDS[kind](volume_file)
    prediction = usd.Predictor(volume_model, device="cpu").predict(image, case_id="a", seed=5, **more)
    saved = files_of(prediction.save(tmp_path / "out", samples=True, probabilities=True))
    wanted = files_of(expected)
    if "array" in kind:  # whose origin is not known
        assert saved.keys() == wanted.keys()
        np.testing.assert_array_equal(
            read_image([tmp_path / "out/a.nii.gz"]).array, read_image([expected / "a.nii.gz"]).array
        )
    else:
        assert saved == wanted


def test_what_is_saved_counts_as_finished_and_what_is_of_other_settings_is_refused(
    volume_model: Path, volume_file: Path, expected: Path, tmp_path: Path
) -> None:
    model = usd.Predictor(volume_model, device="cpu")
    out = model.predict(volume_file, seed=5).save(tmp_path / "out")
    masks = (out / "a.nii.gz").stat().st_mtime_ns
    usd.predict(usd.PredictRequest(volume_file, out, volume_model, seed=5, device="cpu"))
    assert (out / "a.nii.gz").stat().st_mtime_ns == masks
    with pytest.raises(usd.UsdError, match="seed 5 there, 6 asked for"):
        model.predict(volume_file, seed=6).save(out)


def test_lesions_and_volumes_are_those_of_the_tables(volume_model: Path, volume_file: Path, expected: Path) -> None:
    prediction = usd.Predictor(volume_model, device="cpu").predict(volume_file, seed=5)
    rows = (expected / "lesions.csv").read_text().splitlines()
    assert len(prediction.lesions) == len(rows) - 1 > 0
    assert sum(lesion.voxels for lesion in prediction.lesions) == np.count_nonzero(prediction.mask)
    assert [volume.class_name for volume in prediction.volumes] == list(prediction.labels.names)


def test_a_2d_image_has_no_z(picture_model: Path, tmp_path: Path) -> None:
    model = usd.Predictor(picture_model, device="cpu")
    path = make_pictures(tmp_path / "in", 1) / "case0_0000.png"
    by_path, array = model.predict(path, seed=2), read_image([path]).array[:, 0]
    by_array = model.predict(array, case_id="case0", seed=2)  # pictures do not know their spacing, and need none
    assert by_path.mask.shape == (20, 25)
    with pytest.raises(ValueError, match="read-only"):
        by_path.mask[0, 0] = 1
    for name in ("mask", "samples", "probabilities", "uncertainty"):
        np.testing.assert_array_equal(getattr(by_path, name), getattr(by_array, name))


def test_wrong_images_are_named(volume_model: Path, volume_file: Path) -> None:
    model = usd.Predictor(volume_model, device="cpu")
    with pytest.raises(ValueError, match=r"image\[None\]"):
        model.predict(np.ones((9, 18, 14)), (1, 1, 1))
    with pytest.raises(ValueError, match="needs its spacing"):
        model.predict(np.ones((1, 9, 18, 14)))
    with pytest.raises(ValueError, match="leave them out"):
        model.predict(volume_file, (1, 1, 1))
    with pytest.raises(TypeError, match="allowed is a numpy array"):
        model.predict(3)
    with pytest.raises(usd.UsdError, match="image 1 of the list"):
        model.predict([np.ones((9, 18, 14)), np.ones((9, 18, 15))], (1, 1, 1))
    with pytest.raises(ValueError, match="complex128"):
        model.predict(np.ones((1, 9, 18, 14), complex), (1, 1, 1))
    with pytest.raises(ValueError, match="no voxels"):
        model.predict(np.ones((1, 0, 18, 14)), (1, 1, 1))
    with pytest.raises(usd.UsdError, match=r"the image has no valid geometry: the spacing is \(0, 1, 1\)"):
        model.predict(np.ones((1, 9, 18, 14)), (0, 1, 1))
    with pytest.raises(usd.UsdError, match="sheared"):
        model.predict(np.ones((1, 9, 18, 14)), (1, 1, 1), direction=(1, 0.5, 0, 0, 1, 0, 0, 0, 1))
    with pytest.raises(usd.UsdError, match="the case"):
        model.predict(np.ones((1, 9, 18, 14)), (1, 1, 1), case_id="../a")
    with pytest.raises(TypeError, match="image is a Tensor; allowed is a numpy array"):
        model.predict(torch.ones(1, 9, 18, 14), (1, 1, 1))
    with pytest.raises(usd.UsdError, match="list of 2 files, but case a has 1"):
        model.predict([volume_file, volume_file])
    with pytest.raises(usd.UsdError, match="image 'array' holds 1"):
        model.predict(np.full((1, 1, 1, 1), np.nan), (1, 1, 1))
    for spacing in (1.0, "abc"):
        with pytest.raises(ValueError, match="expected is one number for each axis"):
            model.predict(np.ones((1, 9, 18, 14)), spacing)
    for seed in (-1, 0.5, "a"):
        with pytest.raises(ValueError, match=r"seed is .*; allowed is 0 or more"):
            model.predict(volume_file, seed=seed)


def test_folders_and_devices_of_no_model_are_named(volume_model: Path, tmp_path: Path) -> None:
    with pytest.raises(usd.UsdError, match=r"fold_0 is a fold of the model .*; name that folder, with fold 0"):
        usd.Predictor(volume_model / "fold_0")
    with pytest.raises(usd.UsdError, match=r"holds no plans\.json, so it is no model folder"):
        usd.Predictor(tmp_path)
    with pytest.raises(ValueError, match="device is 'gpu'; allowed are auto, cpu"):
        usd.Predictor(volume_model, device="gpu")


def test_a_folder_without_dataset_json_is_no_raw_data_set(tmp_path: Path) -> None:
    with pytest.raises(usd.UsdError, match=r"holds no dataset\.json, so it is no raw data set; .* usd_convert folder"):
        usd.plan_and_preprocess(tmp_path, tmp_path / "preprocessed")
    assert not (tmp_path / "preprocessed").exists()


def test_requests_take_numbers_and_text() -> None:
    roots = usd.Roots("raw", None, "results")  # type: ignore[arg-type]
    request = usd.TrainRequest(4, 0, roots)  # type: ignore[arg-type]
    assert (request.dataset, request.fold, roots) == ("4", "0", usd.Roots(Path("raw"), None, Path("results")))
    with pytest.raises(ValueError, match=r"num_samples is 1\.5"):
        usd.PredictRequest("images", "out", "model", num_samples=1.5)  # type: ignore[arg-type]


def test_threads_give_the_masks_of_one_after_the_other(volume_model: Path) -> None:
    model = usd.Predictor(volume_model, device="cpu")
    images = [np.random.default_rng(i).normal(size=(1, 9, 18 + i % 3, 14)) for i in range(8)]

    def answer(index: int) -> tuple[bytes, bytes]:
        found = model.predict(images[index], (2.0, 1.0, 1.0), case_id=f"case{index}", num_samples=3)
        return found.mask.tobytes(), found.samples.tobytes()

    one_by_one = [answer(i) for i in range(len(images))]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(answer, range(len(images)))) == one_by_one


def test_threads_save_into_one_folder(volume_model: Path, tmp_path: Path) -> None:
    model = usd.Predictor(volume_model, device="cpu")

    def save(index: int) -> None:
        image = np.random.default_rng(index).normal(size=(1, 9, 18, 14))
        model.predict(image, (2.0, 1.0, 1.0), case_id=f"case{index}").save(tmp_path / "out")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(save, range(4)))
    assert {path.name for path in (tmp_path / "out").glob("*.nii.gz")} == {f"case{i}.nii.gz" for i in range(4)}
    cases = {line.split(",")[0] for line in (tmp_path / "out/volumes.csv").read_text().splitlines()[1:]}
    assert cases == {f"case{i}" for i in range(4)}


def test_representations_say_what_something_is(volume_model: Path, picture_model: Path, volume_file: Path) -> None:
    model = usd.Predictor(volume_model, device="cpu")
    volume = usd.Volume(np.zeros((1, 2, 3, 4), np.float32), usd.Geometry((3.0, 1.0, 0.5)))
    assert repr(volume) == (
        "Volume(1 channel of float32, shape (2, 3, 4) (Z, Y, X), spacing (3, 1, 0.5) mm, orientation LPS)"
    )
    picture = usd.Volume(np.zeros((3, 1, 5, 6), np.uint8), usd.Geometry(is_2d=True))
    assert repr(picture) == "Volume(3 channels of uint8, shape (5, 6) (Y, X), spacing (1, 1) mm)"
    prediction = repr(model.predict(volume_file))
    for part in ("Prediction('a', shape (9, 18, 14) (Z, Y, X)", "orientation", "2 samples", "folds 0"):
        assert part in prediction
    assert repr(model).startswith("Predictor(StagedDiffusionTrainer__tiny of Dataset001_X, folds 0")
    assert "tiny (patch (8, 16, 16), spacing (2, 1, 1) mm, recommended)" in repr(model.model.plans)
    pictures = usd.Predictor(picture_model, device="cpu").model.plans
    assert "tiny (patch (16, 16), spacing (own, 1, 1) as the images have it, recommended)" in repr(pictures)


def test_held_out_images_are_turned_into_scores_as_the_page_of_guarantees_says(
    picture_model: Path, tmp_path: Path
) -> None:
    page = (ROOT / "documentation/how-to/guarantees.md").read_text("utf-8")
    example = page[page.index("```python\n") + len("```python\n") :].split("```")[0]
    image, reference = make_pictures(tmp_path / "in", 1) / "case0_0000.png", np.zeros((20, 25), np.uint8)
    reference[3, 4] = 1
    names: dict[str, Any] = {"usd": usd, "image": image, "reference": reference}
    exec(example, names | {"model": usd.Predictor(picture_model, device="cpu")}, names)
    assert names["scores"].tolist() == [names["probability"][3, 4]]
    np.testing.assert_array_equal(names["sampled_volumes"], [np.count_nonzero(s) for s in names["prediction"].samples])


# --------------------------------------------------------------------------------------------------------- the scores


def test_two_arrays_are_scored_as_two_folders_are(tmp_path: Path) -> None:
    reference, predicted = np.zeros((4, 12, 12), np.uint8), np.zeros((4, 12, 12), np.uint8)
    reference[1:3, 2:6, 2:6], predicted[1:3, 2:6, 3:7] = 1, 1
    predicted[0, 10, 10] = 2
    for name, array in (("reference", reference), ("prediction", predicted)):
        write_labels_of(tmp_path / name / "a.nii.gz", array)
    folders, output = (tmp_path / "reference", tmp_path / "prediction"), tmp_path / "scores"
    of_folders = usd.evaluate(*folders, labels=[1, 2], output=output)
    of_arrays = usd.evaluate(reference, predicted, spacing_mm=(2.0, 1.0, 1.0))
    assert repr(of_arrays.classes) == repr(of_folders.cases[0].classes)
    assert of_arrays.classes[0].overlap.dice == 0.75  # 2 * 24 / (32 + 32)
    assert of_arrays.classes[1].overlap.outcome == "false_positive"
    assert (output / "metrics.csv").is_file()
    assert repr(of_folders) == "Evaluation(1 cases, classes: 1, 2, mean Dice 0.750)"


def test_folders_are_scored_on_a_subset_beside_another_run(tmp_path: Path) -> None:
    mask, empty = np.zeros((2, 4, 4), np.uint8), np.zeros((2, 4, 4), np.uint8)
    mask[0, 1:3, 1:3] = 1
    for name, array in (("reference/a", mask), ("reference/b", mask), ("mine/a", mask), ("other/a", empty)):
        write_labels_of(tmp_path / f"{name}.nii.gz", array)
    (tmp_path / "patients.csv").write_text("case,group\na,x\n")
    options = usd.EvaluationOptions(
        subset=True, against=(str(tmp_path / "other"),), groups=str(tmp_path / "patients.csv"), workers=0
    )
    found = usd.evaluate(tmp_path / "reference", tmp_path / "mine", labels=[1], options=options)
    assert ([case.group for case in found.cases], found.not_predicted) == (["x"], ("b",))
    assert [run.name for run in found.report.ranking] == ["mine", "other"]
    missing = usd.EvaluationOptions(raters=tmp_path / "nobody")
    with pytest.raises(usd.UsdError, match=r"raters is .*nobody, which is no folder"):
        usd.evaluate(tmp_path / "reference", tmp_path / "mine", labels=[1], options=missing)


def write_labels_of(path: Path, array: np.ndarray) -> None:
    from unisegdiff_pipeline.io.images import write_labels

    write_labels(path, array, usd.Geometry((2.0, 1.0, 1.0)))


def test_without_a_spacing_voxels_count_as_one_millimetre_wide() -> None:
    for shape, size in (((10, 10, 10), 1.0), ((10, 10), 100.0)):  # thousands of voxels, and pixels
        mask = np.ones(shape, int)
        overlap = usd.evaluate(mask, mask).classes[0].overlap
        assert (overlap.reference_ml, overlap.volumes_nominal) == (pytest.approx(size), True)


def test_arrays_that_do_not_fit_are_named() -> None:
    ones = np.ones((4, 4), int)
    with pytest.raises(ValueError, match="must be equal"):
        usd.evaluate(ones, np.ones((4, 5), int))
    with pytest.raises(ValueError, match="both must be integers"):
        usd.evaluate(ones, 0.5 * ones)
    with pytest.raises(ValueError, match="one number above 0 for each axis"):
        usd.evaluate(ones, ones, spacing_mm=(1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="no class to score"):
        usd.evaluate(0 * ones, 0 * ones)
    with pytest.raises(ValueError, match=r"labels are \[0\]; allowed are whole numbers from 1 on"):
        usd.evaluate(ones, ones, labels=[0])
    with pytest.raises(ValueError, match=r"a mask holds 0\.7, but .* p > 0\.5"):
        usd.metrics.dice(ones, ones * 0.7)
    assert usd.metrics.dice(ones, ones * 3.0) == 1.0
    with pytest.raises(ValueError, match="a mask holds NaN"):
        usd.metrics.dice(ones, ones * np.nan)
    with pytest.raises(ValueError, match="must be equal"):
        usd.metrics.dice(ones, np.ones((4, 5)))
    with pytest.raises(ValueError, match="spacing_mm"):
        usd.metrics.hd(ones, ones, (1.0, 0.0))


def test_arguments_that_do_not_go_together_are_named(tmp_path: Path) -> None:
    ones: Any = np.ones((4, 4), int)
    for other, kind in (("masks", "str"), (None, "NoneType"), (object(), "object")):
        with pytest.raises(TypeError, match=f"prediction is a {kind}; allowed are two integer arrays"):
            usd.evaluate(ones, other)
    with pytest.raises(ValueError, match="dataset_json and output go with folders"):
        usd.evaluate(ones, ones, output=tmp_path / "scores")
    folder: Any = tmp_path
    with pytest.raises(ValueError, match="spacing_mm goes with arrays"):
        usd.evaluate(folder, folder, spacing_mm=(1.0, 1.0))
    with pytest.raises(usd.UsdError, match="nowhere does not exist; give two folders"):
        usd.evaluate(tmp_path / "nowhere", tmp_path)


def test_masks_may_be_lists() -> None:
    one, other = [[1, 0, 0, 0]], [[0, 0, 0, 1]]
    assert usd.metrics.surface_distances(one, other, (1.0, 2.0)).reference_to_predicted.tolist() == [6.0]  # type: ignore[arg-type]
    assert usd.metrics.volume_ml(one, (1.0, 2.0)) == 2.0  # type: ignore[arg-type]


def test_the_volume_is_that_of_a_mask() -> None:
    mask = np.ones((4, 4))
    mask[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        usd.metrics.volume_ml(mask, (1.0, 1.0))
    with pytest.raises(ValueError, match=r"\(Z, Y, X\) or \(Y, X\)"):  # channels in front would count as an axis
        usd.metrics.volume_ml(np.ones((2, 3, 4, 5)), (1.0, 1.0, 1.0, 1.0))


def test_empty_masks_are_undefined() -> None:
    empty, one = np.zeros((4, 4)), np.eye(4)
    assert np.isnan(usd.metrics.dice(empty, empty))
    assert np.isnan(usd.metrics.hd95(one, empty, (1.0, 1.0)))
    assert usd.metrics.surface_dice(one, empty, (1.0, 1.0), 1.0) == 0
    assert usd.metrics.surface_distances(one, empty, (1.0, 1.0)).reference_to_predicted.size == 0


# ------------------------------------------------------------------------------------------------------- the examples


@pytest.fixture(scope="module")
def trained(phantom_2d: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that train_and_predict.py has worked in."""
    work = tmp_path_factory.mktemp("work")
    run_script("train_and_predict", phantom_2d, work, phantom_2d / "imagesTs", 2)
    return work


@pytest.fixture(scope="module")
def trained_model(trained: Path, phantom_2d: Path) -> Path:
    return trained / "results" / phantom_2d.name / "StagedDiffusionTrainer__2d"


def run_script(name: str, *arguments: object) -> None:
    """Run an example script in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(ROOT / f"documentation/examples/{name}.py"), run_name="__main__")


TESTED_ELSEWHERE = {
    "grand_challenge": "test_containers.py",
    "http_service": "test_http_service.py",
    "onnx_masks": "inference/test_onnx_export.py",
}


def test_every_script_is_run_here_or_in_a_test_of_its_own() -> None:
    text = Path(__file__).read_text("utf-8")
    assert [p.stem for p in SCRIPTS if f'run_script("{p.stem}"' not in text] == sorted(TESTED_ELSEWHERE)
    for name, test in TESTED_ELSEWHERE.items():
        assert f"documentation/examples/{name}.py" in (ROOT / "tests" / test).read_text("utf-8")


def test_scripts_that_need_a_model(
    trained: Path, trained_model: Path, phantom_2d: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = sorted((phantom_2d / "imagesTs").glob("*.png"))
    assert len(list((trained / "masks").glob("*.png"))) == len(images)
    run_script("predict_array", trained_model, tmp_path / "saved")
    assert (tmp_path / "saved/noise.png").is_file()
    run_script("samples_and_uncertainty", trained_model, images[0])
    run_script("service", trained_model, *images, tmp_path / "missing.png")
    run_script("evaluate_folders", phantom_2d / "labelsTs", trained / "masks", tmp_path / "scores")
    printed = capsys.readouterr().out
    for part in ("Predictor(", "most uncertain voxel", "missing.png is refused", "mean Dice"):
        assert part in printed
    assert (tmp_path / "scores/summary.json").is_file()


def test_the_script_that_needs_none(capsys: pytest.CaptureFixture[str]) -> None:
    run_script("evaluate_arrays")
    assert capsys.readouterr().out.splitlines() == [
        "Dice 0.875",
        "HD95 0.5 mm",
        "largest distance 0.5 mm",
        "lesion F1 1.0, area 16 mm2",
    ]


@pytest.mark.parametrize("name", [*PUBLIC, *(f"metrics.{name}" for name in usd.metrics.__all__)])
def test_examples_of_docstrings_give_what_they_say(
    name: str, trained: Path, trained_model: Path, phantom_2d: Path, phantom_3d: Path, tmp_path: Path
) -> None:
    roots = usd.Roots(phantom_2d.parent, trained / "preprocessed", tmp_path)
    short = {"iterations": 1, "batch_size": 2, "workers": 0, "device": "cpu"}
    known: dict[str, Any] = {
        "usd": usd,
        "np": np,
        "Path": Path,
        "roots": roots,
        "raw": roots.raw,
        "preprocessed": roots.preprocessed,
        "request": usd.TrainRequest("902", "0", roots, trainer="SegmentationTrainer", **short),
        "model_folder": trained_model,
        "images": phantom_2d / "imagesTs",
        "output": trained / "masks",
        "image": np.random.default_rng(0).normal(size=(1, 64, 64)),
    }
    if name == "unify":  # which writes a data set beside its sources
        known["raw"] = tmp_path
        for folder in (phantom_2d, phantom_3d):
            (tmp_path / folder.name).symlink_to(folder)
    if name in ("Prediction", "Predictor"):
        known["model"] = usd.Predictor(trained_model, device="cpu")
    documented = getattr(usd.metrics if name.startswith("metrics.") else usd, name.split(".")[-1])
    found = [test for test in doctest.DocTestFinder(recurse=False).find(documented, name) if test.examples]
    assert found, f"{name} has no example"
    for test in found:
        test.globs.update(known)
        result = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS).run(test)
        assert result.failed == 0
