"""Images of a BIDS folder: what is a case, and what is refused."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.io.bids import find_bids_cases, is_bids_folder


def folder_of(root: Path, *files: str) -> Path:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def found(root: Path, *suffixes: str, missing_channels: bool = False) -> dict[str, list[str]]:
    cases = find_bids_cases(root, suffixes, missing_channels)
    return {case.case_id: [path.name for path in case.image_paths] for case in cases}


def test_what_is_a_bids_folder(tmp_path: Path) -> None:
    assert is_bids_folder(folder_of(tmp_path / "a", "sub-1/anat/sub-1_T1w.nii.gz"))
    assert is_bids_folder(folder_of(tmp_path / "b", "dataset_description.json"))
    assert not is_bids_folder(folder_of(tmp_path / "c", "sub-1/anat/IM001", "scan_0000.nii.gz"))
    assert not is_bids_folder(tmp_path / "nothing")


def test_a_session_is_a_case_and_channels_go_by_suffix(tmp_path: Path) -> None:
    names = ("sub-02/ses-b/anat/sub-02_ses-b_acq-3D_T1w.nii.gz", "sub-02/ses-b/anat/sub-02_ses-b_FLAIR.nii.gz")
    others = ("sub-02/ses-b/anat/sub-02_ses-b_FLAIR.json", "derivatives/x/sub-02/anat/sub-02_FLAIR.nii.gz")
    folder = folder_of(tmp_path, *names, *others, "sub-01/anat/sub-01_FLAIR.nii", "sub-01/anat/sub-01_T1w.nii")
    assert found(folder, "FLAIR", "T1w") == {
        "sub-01": ["sub-01_FLAIR.nii", "sub-01_T1w.nii"],
        "sub-02_ses-b": ["sub-02_ses-b_FLAIR.nii.gz", "sub-02_ses-b_acq-3D_T1w.nii.gz"],
    }
    assert found(folder, "T1w")["sub-02_ses-b_acq-3D"] == ["sub-02_ses-b_acq-3D_T1w.nii.gz"]


def test_runs_are_cases_of_their_own(tmp_path: Path) -> None:
    runs = [f"sub-1/anat/sub-1_run-{run}_{suffix}.nii.gz" for run in (1, 2) for suffix in ("T1w", "FLAIR")]
    assert list(found(folder_of(tmp_path, *runs), "T1w", "FLAIR")) == ["sub-1_run-1", "sub-1_run-2"]
    (tmp_path / runs[1]).rename(tmp_path / "sub-1/anat/sub-1_FLAIR.nii.gz")
    with pytest.raises(UsdError, match=r"sub-1 in .*/anat has several images of a channel, .* sub-1_FLAIR\.nii\.gz, "):
        found(tmp_path, "T1w", "FLAIR")


def test_missing_channels_and_suffixes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = folder_of(tmp_path, "sub-1/anat/sub-1_T1w.nii.gz", "sub-2/anat/sub-2_T1w.nii.gz")
    folder_of(tmp_path, "sub-1/anat/sub-1_FLAIR.nii.gz", "sub-3/anat/sub-3_bold.nii.gz")
    folder_of(tmp_path, "sub-4/ses-1/anat/sub-4_ses-1_T1w.json")
    without = (
        r"suffixes T1w, FLAIR in 2 sessions: sub-4_ses-1 \(has no image\), sub-3 \(has bold\)\. .*missing_channels"
    )
    with pytest.raises(UsdError, match=without):
        found(folder, "T1w", "FLAIR")
    with caplog.at_level(logging.WARNING):
        cases = find_bids_cases(folder, ("FLAIR", "T1w"), missing_channels=True)
    assert [(case.case_id, case.channels) for case in cases] == [("sub-1", None), ("sub-2", (1,))]
    assert "left out, without any of FLAIR, T1w: sub-4_ses-1 (has no image), sub-3 (has bold)" in caplog.text
    shutil.rmtree(tmp_path / "sub-3")
    shutil.rmtree(tmp_path / "sub-4")
    with pytest.raises(UsdError, match=r'1 case lacks an image: sub-2 \(FLAIR\)\. Add .*"missing_channels": true'):
        found(folder, "T1w", "FLAIR")
    with pytest.raises(UsdError, match=r"no image of the suffixes T2w; there are FLAIR, T1w\. .*--suffixes"):
        found(folder, "T2w")


def test_a_suffix_is_of_one_channel(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "sub-1/anat/sub-1_T1w.nii.gz")
    with pytest.raises(UsdError, match=r"--suffixes names T1w more than once \(T1w T1w\)"):
        found(folder, "T1w", "T1w", missing_channels=True)


def test_a_link_to_nothing_is_no_missing_channel(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "sub-1/anat/sub-1_T1w.nii.gz", "sub-2/anat/sub-2_T1w.json")
    (tmp_path / "sub-2/anat/sub-2_T1w.nii.gz").symlink_to(tmp_path / "not_downloaded")
    assert list(found(folder, "T1w")) == ["sub-1", "sub-2"]
