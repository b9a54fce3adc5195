"""Cases to predict of any ending and number of channels in one folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.io.images import spacing_known
from unisegdiff_pipeline.io.mixed_cases import ending_of, find_mixed_cases, num_channels_to_read


def files(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_endings_and_numbers_of_files_may_differ_from_case_to_case(tmp_path: Path) -> None:
    names = [
        "a.png",
        "b_0000.nii.gz",
        "b_0001.nii.gz",
        "c_0000.jpg",
        "d.mha",
        "e_0000.tif",
        "e.json",
        "notes.txt",
        ".f.png",
    ]
    cases = find_mixed_cases(files(tmp_path, *names))
    assert {case.case_id: [path.name for path in case.image_paths] for case in cases} == {
        "a": ["a.png"],
        "b": ["b_0000.nii.gz", "b_0001.nii.gz"],
        "c": ["c_0000.jpg"],
        "d": ["d.mha"],
        "e": ["e_0000.tif"],
    }
    assert [ending_of(case.image_paths) for case in cases] == [".png", ".nii.gz", ".jpg", ".mha", ".tif"]
    assert [spacing_known(case.image_paths) for case in cases] == [False, True, False, True, True]
    assert [num_channels_to_read(case.image_paths) for case in cases] == [None, 2, None, None, None]


def test_of_a_named_file_the_other_channels_are_found(tmp_path: Path) -> None:
    folder = files(tmp_path, "a_0000.png", "a_0001.png", "a_b_0000.png", "c.nii")
    (case,) = find_mixed_cases(folder / "a_0001.png")
    assert [path.name for path in case.image_paths] == ["a_0000.png", "a_0001.png"]
    both = find_mixed_cases([folder / "c.nii", folder / "a_0000.png", folder / "a_0001.png"])
    assert [case.case_id for case in both] == ["a", "c"]


@pytest.mark.parametrize(
    "names", [("a.png", "a.nii.gz"), ("a.png", "a_0000.png"), ("a_0000.png", "a_0001.nii.gz"), ("a.jpg", "a.png")]
)
def test_two_inputs_of_one_name_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(UsdError, match="two inputs would both be case 'a'"):
        find_mixed_cases(files(tmp_path, *names))


def test_a_missing_channel_is_an_error_of_its_case_alone(tmp_path: Path) -> None:
    gap, alone = find_mixed_cases(files(tmp_path, "a_0000.png", "a_0002.png", "b_0001.png"))
    for case in (gap, alone):
        with pytest.raises(UsdError, match="expected are the suffixes _0000"):
            num_channels_to_read(case.image_paths)


def test_images_of_formats_that_are_not_read_are_named_not_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "a.webp").touch()  # a copy of the image
    assert [case.image_paths for case in find_mixed_cases(tmp_path)] == [(tmp_path / "a.png",)]
    (tmp_path / "b.webp").touch()
    with pytest.raises(UsdError, match=r"b\.webp is of a format that is not read, and would be left out; convert"):
        find_mixed_cases(tmp_path)


def test_nothing_to_predict_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsdError, match="holds no image; supported endings are"):
        find_mixed_cases(files(tmp_path, "notes.txt"))
    with pytest.raises(UsdError, match=r"x\.png does not exist"):
        find_mixed_cases(tmp_path / "x.png")
    with pytest.raises(UsdError, match=r"notes\.txt has no known ending"):
        find_mixed_cases(tmp_path / "notes.txt")
    with pytest.raises(UsdError, match="the list of input files is empty"):
        find_mixed_cases([])
