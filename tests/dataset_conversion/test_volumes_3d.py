"""Converters of 3D data sets, on miniatures of the folders that their owners distribute."""

from __future__ import annotations

import shutil

import numpy as np

from tests.dataset_conversion.conftest import groups_of, label_volume, labels_of, refused, volume


def test_covid_ct(tmp_path, converted):
    for name in ("coronacases_001", "radiopaedia_10_85902_1", "radiopaedia_10_85902_3"):
        volume(tmp_path / f"z/COVID-19-CT-Seg_20cases/{name}.nii.gz")
        label_volume(tmp_path / f"z/Infection_Mask/{name}.nii.gz", 1)
    raw = converted("covid_ct", tmp_path / "z")
    assert raw.description.channel_names == ("CT",)
    assert groups_of(raw) == {
        "coronacases_001": "coronacases_001",
        "radiopaedia_10_85902_1": "radiopaedia_10",
        "radiopaedia_10_85902_3": "radiopaedia_10",
    }
    assert labels_of(raw, "coronacases_001").sum() == 1
    label_volume(tmp_path / "z/Infection_Mask/coronacases_001.nii.gz", 3)
    refused("covid_ct", tmp_path / "z", r"coronacases_001\.nii\.gz holds the values \[3\], known are \[0, 1\]")


def test_covid_ct_as_kaggle_has_it(tmp_path, converted):
    volume(tmp_path / "k/ct_scans/radiopaedia_org_covid-19-pneumonia-14_85914_0-dcm.nii")
    label_volume(tmp_path / "k/infection_mask/radiopaedia_14_85914_0.nii", 1)
    volume(tmp_path / "k/ct_scans/coronacases_org_002.nii")
    label_volume(tmp_path / "k/infection_mask/coronacases_002.nii", 1)
    raw = converted("covid_ct", tmp_path / "k")
    assert [case.case_id for case in raw.cases] == ["coronacases_002", "radiopaedia_14_85914_0"]
    refused("covid_ct", tmp_path / "k/ct_scans", "holds none of the folders COVID-19-CT-Seg_20cases and ct_scans")


def test_brats_2021_makes_the_values_consecutive(tmp_path, converted):
    folder = tmp_path / "BraTS2021_Training_Data/BraTS2021_00002"
    for seed, channel in enumerate(("t1", "t1ce", "t2", "flair")):
        volume(folder / f"BraTS2021_00002_{channel}.nii.gz", seed)
    label_volume(folder / "BraTS2021_00002_seg.nii.gz", 1, 2, 4)
    (tmp_path / "__MACOSX/BraTS2021_00002").mkdir(parents=True)
    (tmp_path / "__MACOSX/BraTS2021_00002/._BraTS2021_00002_t1.nii.gz").touch()
    raw = converted("brats2021", tmp_path)
    assert labels_of(raw, "BraTS2021_00002")[:4, 2, 1].tolist() == [1, 2, 3, 0]
    assert raw.description.labels.names == ("whole_tumour", "tumour_core", "enhancing_tumour")
    found = raw.cases[0].image_paths[1]
    assert found.read_bytes() == (folder / "BraTS2021_00002_t1ce.nii.gz").read_bytes()
    label_volume(folder / "BraTS2021_00002_seg.nii.gz", 3)
    refused("brats2021", tmp_path, r"_seg\.nii\.gz holds the values \[3\], known are \[0, 1, 2, 4\]")
    (folder / "BraTS2021_00002_t2.nii.gz").unlink()
    refused("brats2021", tmp_path, r"BraTS2021_00002_t2\.nii\.gz does not exist")


def test_brats_2023_groups_the_scans_of_a_patient(tmp_path, converted):
    for seed, case in enumerate(("BraTS-GLI-00005-000", "BraTS-GLI-00005-001")):
        for channel in ("t1n", "t1c", "t2w", "t2f"):
            volume(tmp_path / f"{case}/{case}-{channel}.nii.gz", seed)
        label_volume(tmp_path / f"{case}/{case}-seg.nii.gz", 1, 2, 3)
    raw = converted("brats2023", tmp_path)
    assert set(groups_of(raw).values()) == {"BraTS-GLI-00005"}
    assert labels_of(raw, "BraTS-GLI-00005-001")[:3, 2, 1].tolist() == [1, 2, 3]


def test_atlas_holds_out_what_has_no_mask(tmp_path, converted):
    space = "space-MNI152NLin2009aSym"
    for part, site, subject in (("Training", "R001", "sub-r001s001"), ("Testing", "R002", "sub-r002s001")):
        folder = tmp_path / f"ATLAS_2/{part}/{site}/{subject}/ses-1/anat"
        volume(folder / f"{subject}_ses-1_{space}_T1w.nii.gz")
        if part == "Training":
            label_volume(folder / f"{subject}_ses-1_{space}_label-L_desc-T1lesion_mask.nii.gz", 1)
    raw = converted("atlas", tmp_path)
    assert groups_of(raw) == {"sub-r001s001_ses-1": "sub-r001s001"}
    assert [path.name for path in (raw.folder / "imagesTs").iterdir()] == ["sub-r002s001_ses-1_0000.nii.gz"]
    assert not (raw.folder / "labelsTs").exists()
    refused("atlas", tmp_path / "ATLAS_2/Testing", "holds no Training")


def test_isles_2022_takes_the_images_on_the_grid_of_the_mask(tmp_path, converted):
    case = "sub-strokecase0001_ses-0001"
    folder = tmp_path / "ISLES-2022/sub-strokecase0001/ses-0001"
    for suffix in ("dwi", "adc"):
        volume(folder / f"dwi/{case}_{suffix}.nii.gz")
    volume(folder / f"anat/{case}_FLAIR.nii.gz", shape=(9, 9, 9))
    label_volume(tmp_path / f"ISLES-2022/derivatives/sub-strokecase0001/ses-0001/{case}_msk.nii.gz", 1)
    raw = converted("isles2022", tmp_path)
    assert raw.description.channel_names == ("DWI", "ADC")
    assert groups_of(raw) == {case: "sub-strokecase0001"}
    volume(tmp_path / "ISLES-2022/sub-strokecase0002/ses-0001/dwi/sub-strokecase0002_ses-0001_dwi.nii.gz")
    refused("isles2022", tmp_path, "sub-strokecase0002_ses-0001_adc.nii.gz does not exist")
    shutil.rmtree(tmp_path / "ISLES-2022/sub-strokecase0002")
    volume(folder / f"dwi/{case}_adc.nii.gz", shape=(5, 6, 3))
    refused(
        "isles2022", tmp_path, r"_adc\.nii\.gz has the shape \(3, 6, 5\) \(Z, Y, X\), .*_dwi\.nii\.gz.* \(4, 6, 5\)"
    )


def test_emidec(tmp_path, converted):
    for case in ("Case_P001", "Case_N006"):
        volume(tmp_path / f"emidec-dataset-1.0.1/{case}/Images/{case}.nii.gz")
        label_volume(tmp_path / f"emidec-dataset-1.0.1/{case}/Contours/{case}.nii.gz", 1, 2, 3, 4)
    volume(tmp_path / "emidec-segmentation-testset-1.0.0/Case_101/Images/Case_101.nii.gz")
    raw = converted("emidec", tmp_path)
    assert [case.case_id for case in raw.cases] == ["Case_N006", "Case_P001"]
    assert raw.description.labels.names == ("cavity", "normal_myocardium", "infarction", "no_reflow")
    assert [path.name for path in (raw.folder / "imagesTs").iterdir()] == ["Case_101_0000.nii.gz"]
    shutil.rmtree(tmp_path / "emidec-dataset-1.0.1/Case_N006/Images")
    refused("emidec", tmp_path, r"Case_N006/Images/Case_N006\.nii\.gz does not exist")


def test_kits23_with_regions(tmp_path, converted):
    volume(tmp_path / "kits23/dataset/case_00000/imaging.nii.gz")
    label_volume(tmp_path / "kits23/dataset/case_00000/segmentation.nii.gz", 1, 2, 3)
    raw = converted("kits23", tmp_path / "kits23/dataset")
    assert raw.description.labels.names == ("kidney_and_masses", "masses", "tumour")
    (tmp_path / "kits23/dataset/case_00000/imaging.nii.gz").unlink()
    refused("kits23", tmp_path / "kits23/dataset", r"case_00000/imaging\.nii\.gz does not exist")


def test_lits_joins_the_batches_and_compresses(tmp_path, converted):
    for number, batch in ((3, 1), (28, 2)):
        volume(tmp_path / f"Training Batch {batch}/volume-{number}.nii", number)
        label_volume(tmp_path / f"Training Batch {batch}/segmentation-{number}.nii", 1, 2)
    raw = converted("lits", tmp_path)
    assert [case.case_id for case in raw.cases] == ["liver_003", "liver_028"]
    assert labels_of(raw, "liver_028")[:3, 2, 1].tolist() == [1, 2, 0]
    label_volume(tmp_path / "copy/segmentation-3.nii", 1)
    refused("lits", tmp_path, r"segmentation-3\.nii and .*segmentation-3\.nii are both 3; name a folder")


def test_autopet_groups_the_studies_of_a_patient(tmp_path, converted):
    for seed, study in enumerate(("03-23-2003-NA-PET-CT", "01-02-2004-NA-PET-CT")):
        folder = tmp_path / f"FDG-PET-CT-Lesions/PETCT_0011f3deaf/{study}"
        for name in ("CTres", "SUV", "CT"):
            volume(folder / f"{name}.nii.gz", seed)
        label_volume(folder / "SEG.nii.gz", 1)
    raw = converted("autopet", tmp_path)
    assert raw.description.channel_names == ("CT", "PET")
    assert set(groups_of(raw).values()) == {"PETCT_0011f3deaf"}
    assert raw.cases[0].case_id == "PETCT_0011f3deaf_01-02-2004-NA-PET-CT"
    (folder / "SEG.nii.gz").unlink()
    refused("autopet", tmp_path, r"01-02-2004-NA-PET-CT/SEG\.nii\.gz does not exist")


def test_uls23_keeps_the_lesions_of_a_patient_together(tmp_path, converted):
    folder = tmp_path / "ULS23/novel_data/ULS23_DeepLesion3D"
    for seed, name in enumerate(("000038_01_01_050_lesion_01", "000038_01_01_058_lesion_01")):
        volume(folder / f"images/{name}.nii.gz", seed)
        label_volume(folder / f"labels/{name}.nii.gz", 1)
    raw = converted("uls23", tmp_path)
    assert set(groups_of(raw).values()) == {"DeepLesion_000038"}
    assert raw.cases[0].case_id == "ULS23_DeepLesion3D_000038_01_01_050_lesion_01"
    refused("uls23", folder / "labels", "holds no folder with images and labels")


def test_uls23_keeps_the_lesions_of_a_scan_together_whose_names_end_in_a_sample(tmp_path, converted):
    folder = tmp_path / "ULS23/processed_data/fully_annotated/LiTS"
    for part in ("images", "labels"):  # of macOS, beside what was packed there
        (tmp_path / "__MACOSX/LiTS" / part).mkdir(parents=True)
    for seed, name in enumerate(("liver_0_lesion_01", "liver_0_lesion_02", "liver_1_lesion_01")):
        volume(folder / f"images/{name}_sample_0.nii.gz", seed)
        label_volume(folder / f"labels/{name}_sample_0.nii.gz", 1)
    assert list(groups_of(converted("uls23", tmp_path)).values()) == ["LiTS_liver_0", "LiTS_liver_0", "LiTS_liver_1"]


def test_mr_ms_takes_images_of_one_grid_only(tmp_path, converted):
    for seed, name in enumerate(("FLAIR", "T1W", "T1WKS", "T2W")):
        volume(tmp_path / f"coregistered/patient01/patient01_{name}.nii.gz", seed)
        volume(tmp_path / f"raw/patient01/patient01_{name}.nii.gz", seed, shape=(5, 6, 4 + seed))
    (tmp_path / "coregistered/patient01/._patient01_consensus_gt.nii.gz").write_bytes(b"of macOS")
    for part in ("coregistered", "raw"):
        label_volume(tmp_path / f"{part}/patient01/patient01_consensus_gt.nii.gz", 1)
    raw = converted("mr_ms", tmp_path / "coregistered")
    assert raw.description.channel_names == ("T1", "T1c", "T2", "FLAIR")
    found, expected = raw.cases[0].image_paths[3], tmp_path / "coregistered/patient01/patient01_FLAIR.nii.gz"
    np.testing.assert_equal(found.read_bytes(), expected.read_bytes())
    refused("mr_ms", tmp_path / "raw", "Resample the images of a case onto one grid first")
    refused("mr_ms", tmp_path, "are both patient01")
