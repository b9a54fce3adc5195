"""BIDS data with masks in derivatives, or beside the images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from tests.dataset_conversion.conftest import groups_of, label_volume, labels_of, refused, volume

OPTIONS = ("--dataset-id", "9", "--name", "Stroke")


def refused_bids(root: Path, message: str, **options: Any) -> None:
    refused("bids", root, message, **{"number": 9, "name": "Stroke", "channels": ("FLAIR", "T1w"), **options})


def session(root: Path, subject: str, number: str, seed: int) -> str:
    """Two images of a session; returns the beginning of its file names."""
    name = f"sub-{subject}_ses-{number}"
    for channel, suffix in enumerate(("FLAIR", "T1w")):
        volume(root / f"sub-{subject}/ses-{number}/anat/{name}_{suffix}.nii.gz", 10 * seed + channel)
    return name


def test_masks_in_derivatives(tmp_path, converted, capsys):
    root = tmp_path / "data"
    for seed, (subject, number) in enumerate((("01", "1"), ("01", "2"), ("02", "1"))):
        name = session(root, subject, number, seed)
        label_volume(root / f"derivatives/prep/sub-{subject}/ses-{number}/anat/{name}_desc-brain_mask.nii.gz", 1)
        label_volume(root / f"derivatives/manual/sub-{subject}/ses-{number}/anat/{name}_label-lesion_dseg.nii.gz", 1)
    session(root, "03", "1", 3)
    (root / "participants.tsv").write_text("participant_id\n")
    raw = converted("bids", root, *OPTIONS, "--channels", "FLAIR", "T1w")
    assert "1 session(s) without a mask are left out, among them sub-03_ses-1" in " ".join(
        capsys.readouterr().err.split()
    )
    assert raw.description.channel_names == ("FLAIR", "T1w")
    assert groups_of(raw) == {"sub-01_ses-1": "sub-01", "sub-01_ses-2": "sub-01", "sub-02_ses-1": "sub-02"}
    found = nibabel.load(raw.folder / "imagesTr/sub-01_ses-2_0001.nii.gz")
    expected = nibabel.load(root / "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz")
    np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(expected.dataobj))


def test_masks_beside_the_images_without_sessions(tmp_path, converted):
    root = tmp_path / "data"
    volume(root / "sub-a/anat/sub-a_T1w.nii.gz")
    label_volume(root / "sub-a/anat/sub-a_label-lesion_roi.nii.gz", 1)
    raw = converted("bids", root, *OPTIONS, "--channels", "T1w")
    assert labels_of(raw, "sub-a").sum() == 1


def test_a_subject_named_after_lesions_makes_no_lesion_of_its_brain_mask(tmp_path, converted):
    root = tmp_path / "data"
    name = session(root, "lesion01", "1", 0)
    label_volume(root / f"derivatives/prep/sub-lesion01/ses-1/anat/{name}_desc-brain_mask.nii.gz", 1, 1, 1)
    refused_bids(root, "holds no mask named")
    label_volume(root / f"derivatives/manual/sub-lesion01/ses-1/anat/{name}_dseg.nii.gz", 1)
    raw = converted("bids", root, *OPTIONS, "--channels", "FLAIR", "T1w")
    assert labels_of(raw, name).sum() == 1


def test_subjects_whose_folders_are_links_are_cases(tmp_path, converted):
    root = tmp_path / "data"
    session(root, "01", "1", 0)
    session(tmp_path / "store", "02", "1", 1)
    (root / "sub-02").symlink_to(tmp_path / "store/sub-02")
    (root / "sub-02/ses-1/anat/again").symlink_to(tmp_path / "store")  # a link to a folder above it
    for subject in ("01", "02"):
        label_volume(root / f"sub-{subject}/ses-1/anat/sub-{subject}_ses-1_label-lesion_mask.nii.gz", 1)
    raw = converted("bids", root, *OPTIONS, "--channels", "FLAIR", "T1w")
    assert [case.case_id for case in raw.cases] == ["sub-01_ses-1", "sub-02_ses-1"]


def test_the_space_of_the_mask_chooses_the_image(tmp_path, converted):
    root = tmp_path / "data"
    volume(root / "sub-a/anat/sub-a_T1w.nii.gz", shape=(3, 3, 3))
    folder = root / "derivatives/norm/sub-a/anat"
    volume(folder / "sub-a_space-MNI_T1w.nii.gz")
    label_volume(folder / "sub-a_space-MNI_label-lesion_mask.nii.gz", 1)
    raw = converted("bids", root, *OPTIONS, "--channels", "T1w")
    assert nibabel.load(raw.cases[0].image_paths[0]).shape == (5, 6, 4)


def test_raw_images_are_raw_wherever_the_data_lie(tmp_path, converted):
    root = tmp_path / "derivatives/data"
    volume(root / "sub-a/anat/sub-a_T1w.nii.gz")
    volume(root / "derivatives/prep/sub-a/anat/sub-a_desc-preproc_T1w.nii.gz", 1)
    label_volume(root / "derivatives/manual/sub-a/anat/sub-a_label-lesion_mask.nii.gz", 1)
    raw = converted("bids", root, *OPTIONS, "--channels", "T1w")
    assert raw.cases[0].image_paths[0].read_bytes() == (root / "sub-a/anat/sub-a_T1w.nii.gz").read_bytes()


def test_the_run_of_the_mask_chooses_the_image_and_ambiguity_is_refused(tmp_path, converted):
    root = tmp_path / "data"
    for run in (1, 2):
        volume(root / f"sub-a/anat/sub-a_run-{run}_FLAIR.nii.gz", run)
    label_volume(root / "derivatives/m/sub-a/anat/sub-a_run-2_dseg.nii.gz", 1)
    raw = converted("bids", root, *OPTIONS, "--channels", "FLAIR")
    expected = root / "sub-a/anat/sub-a_run-2_FLAIR.nii.gz"
    assert raw.cases[0].image_paths[0].read_bytes() == expected.read_bytes()
    (root / "derivatives/m/sub-a/anat/sub-a_run-2_dseg.nii.gz").rename(
        root / "derivatives/m/sub-a/anat/sub-a_dseg.nii.gz"
    )
    refused_bids(root, r"sub-a_dseg\.nii\.gz: 2 images \(.*of the suffix FLAIR", channels=("FLAIR",))
    refused_bids(root, "no image of the suffix T2w", channels=("T2w",))


def test_two_masks_of_a_session_need_a_pattern(tmp_path, converted):
    root = tmp_path / "data"
    name = session(root, "01", "1", 0)
    for rater in ("a", "b"):
        label_volume(root / f"derivatives/m/sub-01/ses-1/anat/{name}_desc-{rater}_dseg.nii.gz", 1)
    refused_bids(root, r"are two masks of sub-01_ses-1; choose by --mask PATTERN, for example '\*_desc-b_dseg'")
    refused_bids(root, r"holds no mask named \*_lesion;", mask="*_lesion")
    refused_bids(root, "give --dataset-id N, --name NAME and --channels", channels=())
    raw = converted("bids", root, *OPTIONS, "--channels", "FLAIR", "T1w", "--mask", "*_desc-b_dseg")
    assert len(raw.cases) == 1
