"""Converters of 2D data sets, on miniatures of the folders that their owners distribute."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from tests.dataset_conversion.conftest import groups_of, labels_of, mask, picture, refused
from unisegdiff_pipeline.io.raw_dataset import find_cases


def test_busi_joins_the_masks_of_an_image_and_keeps_normal_ones(tmp_path, converted, capsys):
    folder = tmp_path / "Dataset_BUSI_with_GT"
    for kind in ("benign", "malignant", "normal"):
        picture(folder / f"{kind}/{kind} (1).png")
        mask(folder / f"{kind}/{kind} (1)_mask.png", value=0 if kind == "normal" else 255)
    mask(folder / "benign/benign (1)_mask_1.png", rows=slice(4, 5))
    raw = converted("busi", tmp_path)
    assert "3 training cases found, the owners publish 780" in capsys.readouterr().err
    assert raw.folder.name == "Dataset201_BUSI"
    assert labels_of(raw, "benign_001").sum() == (2 + 1) * 3
    assert labels_of(raw, "normal_001").sum() == 0
    assert Image.open(raw.cases[0].image_paths[0]).mode == "L"
    assert "none stated" in (raw.folder / "LICENCE.txt").read_text()
    mask(folder / "benign/benign (2)_mask.png")
    refused("busi", tmp_path, r"benign \(2\)_mask\.png is a mask without image")
    for name in ("benign (1)_mask.png", "benign (1)_mask_1.png", "benign (2)_mask.png"):
        (folder / "benign" / name).unlink()
    refused("busi", tmp_path, r"benign \(1\)\.png has no mask benign \(1\)_mask\.png")
    (tmp_path / "elsewhere").mkdir()
    refused("busi", tmp_path / "elsewhere", "holds no benign")


def amd_picture(path: Path, *colours: tuple[int, int, int]) -> None:
    """A picture whose right half holds each colour in one column of grey."""
    pixels = np.full((10, 40, 3), 200, np.uint8)
    pixels[:, :20] = np.random.default_rng(0).integers(0, 256, (10, 20, 1), np.uint8)
    for column, colour in enumerate(colours, start=20):
        pixels[:, column] = colour
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_amd_sd_splits_its_pictures_into_scan_and_classes(tmp_path, converted):
    colours = ((250, 3, 255), (0, 255, 0), (255, 0, 0), (255, 255, 0), (0, 0, 255))
    amd_picture(tmp_path / "AMD-SD/images/7/2.png", *colours)
    amd_picture(tmp_path / "AMD-SD/images/12/1.png")
    (tmp_path / "AMD-SD/images/.ipynb_checkpoints").mkdir()
    raw = converted("amd_sd", tmp_path / "AMD-SD")
    np.testing.assert_array_equal(labels_of(raw, "7_2")[0], [1, 2, 3, 4, 5] + [0] * 15)
    original = np.asarray(Image.open(tmp_path / "AMD-SD/images/7/2.png"))
    np.testing.assert_array_equal(np.asarray(Image.open(raw.folder / "imagesTr/7_2_0000.png")), original[:, :20, 0])
    assert groups_of(raw) == {"7_2": "7", "12_1": "12"}
    amd_picture(tmp_path / "AMD-SD/images/7/3.png", (0, 255, 255))
    refused("amd_sd", tmp_path, r"3\.png holds 10 pixels of the colour \[0, 255, 255\] in its right half")
    picture(tmp_path / "AMD-SD/images/7/3.png", size=(6, 9))
    refused("amd_sd", tmp_path, r"3\.png is 9 pixels wide")


def test_figshare_brain_says_what_it_lacks(tmp_path, monkeypatch):
    (tmp_path / "mat").mkdir()
    monkeypatch.setitem(sys.modules, "h5py", None)
    refused("figshare_brain", tmp_path / "mat", r"HDF5 .*pip install h5py")
    monkeypatch.setitem(sys.modules, "h5py", ModuleType("h5py"))
    refused("figshare_brain", tmp_path / "mat", r"holds no file 1\.mat")


def test_figshare_brain_reads_matlab_files(tmp_path, converted):
    h5py = pytest.importorskip("h5py")
    image = np.arange(48, dtype=np.int16).reshape(6, 8) * 30
    tumour = np.zeros((6, 8), np.uint8)
    tumour[1, 2:5] = 1
    for number, patient in ((1, "100360"), (2, "MR040240B"), (3, "MR040240")):
        path = tmp_path / f"mat/brainTumorDataPublic_1-766/{number}.mat"
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:  # MATLAB stores columns first, and texts as columns of codes
            data = file.create_group("cjdata")
            data["PID"] = np.array([[ord(letter)] for letter in patient], np.uint16)
            data["label"] = np.array([[float(number)]])
            data["image"], data["tumorMask"] = image.T, tumour.T
    raw = converted("figshare_brain", tmp_path / "mat")
    assert groups_of(raw) == {"glioma_0002": "MR040240", "meningioma_0001": "100360", "pituitary_0003": "MR040240"}
    np.testing.assert_array_equal(np.asarray(Image.open(raw.folder / "imagesTr/glioma_0002_0000.png")), image)
    np.testing.assert_array_equal(labels_of(raw, "glioma_0002"), tumour)


@pytest.mark.parametrize("names", [("images", "masks"), ("image", "mask")])
def test_polyp_keeps_the_split(tmp_path, converted, names):
    source = tmp_path / "data"
    for stem in ("25", "26", "612", "cju0qkwl35piu0993l0dewei2"):
        picture(source / f"TrainDataset/{names[0]}/{stem}.png")
        mask(source / f"TrainDataset/{names[1]}/{stem}.png", value=250)
    for name in ("CVC-300", "CVC-ClinicDB", "CVC-ColonDB", "ETIS-LaribPolypDB", "Kvasir"):
        picture(source / f"TestDataset/{name}/images/149.png")
        mask(source / f"TestDataset/{name}/masks/149.png")
    raw = converted("polyp", source)
    assert groups_of(raw) == {
        "CVC-ClinicDB_25": "CVC-ClinicDB_sequence_01",
        "CVC-ClinicDB_26": "CVC-ClinicDB_sequence_02",
        "CVC-ClinicDB_612": "CVC-ClinicDB_sequence_29",
        "Kvasir_cju0qkwl35piu0993l0dewei2": None,
    }
    assert labels_of(raw, "CVC-ClinicDB_25").sum() == 2 * 3
    held_out = find_cases(raw.folder / "imagesTs", ".png", 3)
    assert len(held_out) == 5
    assert [path.stem for path in sorted((raw.folder / "labelsTs").iterdir())] == [case.case_id for case in held_out]
    (source / "TestDataset/Kvasir/masks/149.png").unlink()
    refused("polyp", source, r"Kvasir/masks holds no image")
    refused("polyp", source / "TrainDataset", "must hold TrainDataset and TestDataset")


def ebhi(source: Path) -> None:
    for kind in ("Adenocarcinoma", "High-grade IN", "Low-grade IN", "Polyp", "Serrated adenoma", "Normal"):
        picture(source / f"EBHI-SEG/{kind}/image/GT2012118-1-400-001.png")
        mask(source / f"EBHI-SEG/{kind}/label/GT2012118-1-400-001.png", value=253)


def test_ebhi_labels_the_tissue_of_the_folder(tmp_path, converted):
    ebhi(tmp_path)
    raw = converted("ebhi", tmp_path)
    names = raw.description.labels.names
    assert names == ("Adenocarcinoma", "High-grade_IN", "Low-grade_IN", "Polyp", "Serrated_adenoma", "Normal")
    for label, kind in enumerate(names, start=1):
        assert labels_of(raw, f"{kind}_GT2012118-1-400-001").max() == label
    assert set(groups_of(raw).values()) == {"GT2012118"}


def test_the_adenocarcinomas_of_ebhi_alone(tmp_path, converted):
    ebhi(tmp_path)
    raw = converted("ebhi_adenocarcinoma", tmp_path)
    assert raw.folder.name == "Dataset207_EBHIAdenocarcinoma"
    assert raw.description.labels.names == ("Adenocarcinoma",)
    assert [case.case_id for case in raw.cases] == ["Adenocarcinoma_GT2012118-1-400-001"]


def test_isic_2018_holds_out_what_the_owners_hold_out(tmp_path, converted):
    for number, part in enumerate(("Training", "Validation", "Test")):
        picture(tmp_path / f"ISIC2018_Task1-2_{part}_Input/ISIC_000000{number}.jpg")
        (tmp_path / f"ISIC2018_Task1-2_{part}_Input/ATTRIBUTION.txt").write_text("CC0")
        mask(tmp_path / f"ISIC2018_Task1_{part}_GroundTruth/ISIC_000000{number}_segmentation.png")
    raw = converted("isic2018", tmp_path)
    assert [case.case_id for case in raw.cases] == ["ISIC_0000000"]
    original = tmp_path / "ISIC2018_Task1-2_Training_Input/ISIC_0000000.jpg"
    assert raw.cases[0].image_paths[0].read_bytes() == original.read_bytes()
    held_out = find_cases(raw.folder / "imagesTs", ".jpg", 3)
    assert [case.case_id for case in held_out] == ["ISIC_0000002", "validation_ISIC_0000001"]
    assert len(list((raw.folder / "labelsTs").glob("*.png"))) == 2
    picture(tmp_path / "ISIC2018_Task1-2_Test_Input/ISIC_0000009.jpg")
    refused("isic2018", tmp_path, r"an image without mask.*ISIC_0000009\.jpg")


def test_ph2(tmp_path, converted):
    folder = tmp_path / "PH2Dataset/PH2 Dataset images/IMD002"
    pixels = picture(folder / "IMD002_Dermoscopic_Image/IMD002.bmp")
    lesion = np.zeros((6, 8), bool)
    lesion[2, 2:5] = True
    (folder / "IMD002_lesion").mkdir()
    Image.fromarray(lesion).save(folder / "IMD002_lesion/IMD002_lesion.bmp")  # of one bit
    raw = converted("ph2", tmp_path)
    np.testing.assert_array_equal(labels_of(raw, "IMD002"), lesion)
    np.testing.assert_array_equal(np.asarray(Image.open(raw.cases[0].image_paths[0])), pixels)
    (folder / "IMD002_lesion/IMD002_lesion.bmp").unlink()
    refused("ph2", tmp_path, r"an image without mask.*IMD002\.bmp")


@pytest.mark.parametrize("name", ["Warwick QU Dataset (Released 2016_07_08)", "Warwick_QU_Dataset"])
def test_glas_joins_the_glands_and_groups_by_patient(tmp_path, converted, name):
    folder = tmp_path / name  # as the owners' archive has it, and a copy
    for name in ("train_1", "train_2", "testA_1", "testB_1"):
        picture(folder / f"{name}.bmp")
        mask(folder / f"{name}_anno.bmp", value=2)
    lines = ["name,patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)"]
    lines += [f"{name},{patient}, benign, adenomatous" for name, patient in (("train_1", 4), ("train_2", 7))]
    lines += ["testA_1,9, benign, healthy", "testB_1,4, malignant, moderately"]
    (folder / "Grade.csv").write_text("\n".join(lines))
    raw = converted("glas", tmp_path)
    assert groups_of(raw) == {"train_1": "patient_4", "train_2": "patient_7"}
    assert labels_of(raw, "train_1").max() == 1
    assert len(list((raw.folder / "imagesTs").iterdir())) == len(list((raw.folder / "labelsTs").iterdir())) == 2
    (folder / "Grade.csv").write_text(lines[0])
    refused("glas", tmp_path, r"Grade\.csv has no line for testA_1")
    (folder / "Grade.csv").write_text("")
    refused("glas", tmp_path, r"Grade\.csv has the columns ; name and patient ID are expected")


def test_lidc_slices_keep_the_masks_of_four_readers(tmp_path, converted):
    nodule = tmp_path / "LIDC-IDRI-slices/LIDC-IDRI-0003/nodule-2"
    picture(nodule / "images/slice-0.png", colour=False)
    rows = (slice(0, 2), slice(1, 3), slice(1, 2), slice(0, 0))  # the last reader marks nothing
    for number, marked in enumerate(rows):
        mask(nodule / f"mask-{number}/slice-0.png", rows=marked)
    raw = converted("lidc_slices", tmp_path)
    case = "LIDC-IDRI-0003_nodule-2_slice-0"
    np.testing.assert_array_equal(labels_of(raw, case)[:, 2], [0, 1, 0, 0, 0, 0])
    raters = [np.asarray(Image.open(path))[:, 2].tolist() for path in raw.cases[0].rater_paths]
    assert raters == [[1, 1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0] * 6]
    assert groups_of(raw) == {case: "LIDC-IDRI-0003"}
    (nodule / "mask-3/slice-0.png").unlink()
    refused("lidc_slices", tmp_path, "mask-3 holds no image")
