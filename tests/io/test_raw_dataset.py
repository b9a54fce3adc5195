"""Raw folders: what is listed as a case, and finding the cases of an input."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.io.mixed_cases import find_mixed_cases
from unisegdiff_pipeline.io.raw_dataset import (
    channel_problem,
    channels_of_files,
    find_cases,
    largest_case_gb,
    open_raw_dataset,
    read_groups,
)


def _make(folder: Path, files: list[str], **changes) -> Path:
    description = {
        "channel_names": {"0": "A", "1": "B"},
        "labels": {"background": 0, "lesion": 1},
        "file_ending": ".png",
    }
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((2, 3), np.uint8)).save(path)
    folder.mkdir(exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(description | changes))
    return folder


def test_cases_channels_raters_groups_and_strays(tmp_path):
    folder = _make(
        tmp_path / "Dataset001_X",
        [
            "imagesTr/b_0001.png",
            "imagesTr/b_0000.png",
            "imagesTr/a_1_0000.png",
            "imagesTr/nosuffix.png",
            "imagesTr/._b_0000.png",
            "labelsTr/b.png",
            "labelsTr/onlylabel.png",
            "ratersTr/b_rater10.png",
            "ratersTr/b_rater2.png",
            "ratersTr/z_rater1.png",
        ],
    )
    (folder / "groups.csv").write_text("case,group\nb,p1\nghost,p2\n")
    raw = open_raw_dataset(folder)
    assert raw.name == "Dataset001_X"
    assert [case.case_id for case in raw.cases] == ["a_1", "b", "onlylabel"]
    a, b, only = raw.cases
    assert [path.name for path in a.image_paths] == ["a_1_0000.png"]
    assert a.label_path is None
    assert [path.name for path in b.image_paths] == ["b_0000.png", "b_0001.png"]
    assert b.label_path is not None
    assert [path.name for path in b.rater_paths] == ["b_rater2.png", "b_rater10.png"]
    assert (a.group, b.group) == (None, "p1")
    assert only.image_paths == ()
    assert {file.path.name for file in raw.stray_files} == {"nosuffix.png", "z_rater1.png"}
    assert raw.unknown_groups == ("ghost",)


def test_dataset_dictionary_with_variables(tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    _make(elsewhere, ["i0.png", "i1.png"])
    entries = {"case": {"images": ["${MY_IMAGES}/i0.png", "$MY_IMAGES/i1.png"], "label": "l.png"}}
    folder = _make(tmp_path / "Dataset001_X", ["l.png"], dataset=entries)
    with pytest.raises(UsdError, match=r"dataset\.case.*variable is not set"):
        open_raw_dataset(folder)
    monkeypatch.setenv("MY_IMAGES", str(elsewhere))
    (case,) = open_raw_dataset(folder).cases
    assert case.image_paths == (elsewhere / "i0.png", elsewhere / "i1.png")
    assert case.label_path == folder / "l.png"


def test_labels_beside_jpeg_are_png(tmp_path):
    folder = _make(tmp_path / "D", ["imagesTr/a_0000.jpg", "labelsTr/a.png"], file_ending=".jpg")
    (case,) = open_raw_dataset(folder).cases
    assert case.label_path == folder / "labelsTr" / "a.png"


@pytest.mark.parametrize(
    ("beside", "changes", "known"),
    [
        (("a", "b_0000"), {}, True),
        (("a",), {}, False),  # b has none
        (("a", "b"), {"spacing_known": False}, False),
        ((), {"spacing_known": True}, True),
    ],
)
def test_the_spacing_of_tiff_is_known_where_each_case_has_it_beside_it(tmp_path, beside, changes, known):
    names = [f"{folder}/{case}.tif" for folder, case in (("imagesTr", "a_0000"), ("imagesTr", "b_0000"))]
    folder = _make(tmp_path / "Dataset001_X", names, file_ending=".tif", channel_names={"0": "A"}, **changes)
    for name in beside:
        (folder / "imagesTr" / f"{name}.json").write_text('{"spacing": [3.0, 1.0, 1.0]}')
    description = open_raw_dataset(folder).description
    assert description.spacing_known is known
    assert description.raw.get("spacing_known", False) is known  # as the copies of dataset.json say it


def test_errors_of_opening(tmp_path):
    with pytest.raises(UsdError, match="is no folder"):
        open_raw_dataset(tmp_path / "absent")
    folder = _make(tmp_path / "D", [])
    with pytest.raises(UsdError, match="imagesTr is missing"):
        open_raw_dataset(folder)
    _make(folder, ["imagesTr/a.png"])
    with pytest.raises(UsdError, match=r"CASE_0000\.png"):
        open_raw_dataset(folder)


def test_groups_file(tmp_path):
    path = tmp_path / "groups.csv"
    assert read_groups(path) == {}
    path.write_text("\ufeffcase,group\r\na, g1\r\n\r\nb,g1\r\na,g1\r\n", encoding="utf-8")
    assert read_groups(path) == {"a": "g1", "b": "g1"}
    for text, message in [
        ("a,b\n", "case,group"),
        ("case,group\na\n", "line 2"),
        ("case,group\na,g\na,h\n", "two groups for the case 'a'"),
    ]:
        path.write_text(text)
        with pytest.raises(UsdError, match=message):
            read_groups(path)


def test_find_cases_in_a_folder_a_file_and_a_list(tmp_path):
    _make(tmp_path, [f"{case}_000{i}.png" for case in "ab" for i in range(2)])
    both = find_cases(tmp_path, ".png", 2)
    assert [(case.case_id, [p.name for p in case.image_paths]) for case in both] == [
        ("a", ["a_0000.png", "a_0001.png"]),
        ("b", ["b_0000.png", "b_0001.png"]),
    ]
    (single,) = find_cases(tmp_path / "b_0000.png", ".png", 2)
    assert single == both[1]
    assert find_cases([tmp_path / "a_0001.png", tmp_path / "a_0000.png", tmp_path / "b_0001.png"], ".png", 2) == both
    (one,) = find_cases(_make(tmp_path / "flat", ["scan.png"]) / "scan.png", ".png", 1)
    assert one.case_id == "scan"


def test_find_cases_names_every_incomplete_case(tmp_path):
    _make(tmp_path, ["a_0000.png", "b_0001.png", "c_0000.png", "c_0001.png"])
    with pytest.raises(UsdError) as caught:
        find_cases(tmp_path, ".png", 2)
    message = str(caught.value)
    assert "2 of 3" in message
    assert "a: channel _0001 is missing" in message
    assert "b: channel _0000 is missing" in message


def test_a_gap_in_the_channel_numbers_is_a_problem(tmp_path):
    _make(tmp_path, ["a_0000.png", "a_0002.png"])
    with pytest.raises(UsdError, match=r"suffixes are \[0, 2\], expected \[0, 1\]"):
        find_cases(tmp_path, ".png", 2)


def test_one_rgb_file_is_complete_for_three_channels(tmp_path):
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(tmp_path / "a_0000.png")
    (case,) = find_cases(tmp_path, ".png", 3)
    assert len(case.image_paths) == 1
    with pytest.raises(UsdError, match=r"3 channels found, 5 expected"):
        find_cases(tmp_path, ".png", 5)
    Image.fromarray(np.zeros((2, 3), np.uint8)).save(tmp_path / "a_0000.png")
    with pytest.raises(UsdError, match=r"a_0000\.png is a grey picture, but 3 channels are expected"):
        find_cases(tmp_path, ".png", 3)
    (tmp_path / "b_0000.png").write_bytes((tmp_path / "a_0000.png").read_bytes()[:30])
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(tmp_path / "a_0000.png")
    assert [case.case_id for case in find_cases(tmp_path, ".png", 3)] == ["a", "b"]  # b is refused when it is read


def test_too_many_channel_files_have_their_own_remedy(tmp_path):
    _make(tmp_path, ["a_0000.png", "a_0001.png"])
    with pytest.raises(UsdError, match=r"2 channel files for 1 channel; remove a_0001\.png"):
        find_cases(tmp_path, ".png", 1)


def test_names_without_suffix_in_a_folder(tmp_path):
    _make(tmp_path, ["patient7.png", "patient8_0000.png"])
    cases = find_cases(tmp_path, ".png", 1)
    assert [(case.case_id, case.image_paths[0].name) for case in cases] == [
        ("patient7", "patient7.png"),
        ("patient8", "patient8_0000.png"),
    ]
    with pytest.raises(UsdError, match=r"channel _0001 is missing beside patient8_0000\.png; add the file"):
        find_cases(tmp_path, ".png", 2)
    _make(tmp_path, ["patient8.png"])  # may be a label map
    with pytest.raises(UsdError, match=r"both be case 'patient8'"):
        find_cases(tmp_path, ".png", 1)


def test_images_that_would_be_left_out_are_named(tmp_path):
    _make(tmp_path, ["a_0000.png", "b_0000.PNG", "c_0000.bmp", "notes.txt.png"])
    (tmp_path / "notes.txt.png").rename(tmp_path / "notes.txt")
    (tmp_path / "d_0000.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "e_0000.png").mkdir()
    os.mkfifo(tmp_path / "f_0000.png")
    with pytest.raises(UsdError) as caught:
        find_cases(tmp_path, ".png", 1)
    message = str(caught.value)
    assert "5 images would be left out" in message
    assert "e_0000.png: it is a folder, not a file" in message
    assert "f_0000.png: it is a device or pipe, not a file" in message
    for words in (
        "b_0000.PNG: it ends in .PNG, expected is .png. Rename it to b_0000.png;",
        "c_0000.bmp: it ends in .bmp, expected is .png. Convert it",
        "d_0000.png: it is a link to a file that does not exist",
    ):
        assert words in message
    assert [case.case_id for case in find_cases([tmp_path / "a_0000.png"], ".png", 1)] == ["a"]


def test_pictures_beside_volumes_are_previews_unless_named_like_a_channel(tmp_path):
    _make(tmp_path, ["preview.png"])
    (tmp_path / "a_0000.nii.gz").write_bytes(b"")
    assert [case.case_id for case in find_cases(tmp_path, ".nii.gz", 1)] == ["a"]
    _make(tmp_path, ["b_0000.png"])
    with pytest.raises(UsdError, match=r"b_0000\.png: it ends in \.png"):
        find_cases(tmp_path, ".nii.gz", 1)


def test_a_folder_beside_other_inputs_is_called_one(tmp_path):
    (one, two) = (_make(tmp_path / name, ["a_0000.png"]) for name in ("one", "two"))
    for find in (lambda paths: find_cases(paths, ".png", 1), find_mixed_cases):
        with pytest.raises(UsdError, match="one is a folder, named beside other inputs; name one folder, or image"):
            find([one, two])


@pytest.mark.parametrize("name", ["b_0000.mhd", "b.IMG", "b.dcm", "b_0000.nii.bz2", "preview_0001.webp"])
def test_images_of_formats_that_are_not_read_are_named_not_left_out(tmp_path, name):
    (tmp_path / "a_0000.nii.gz").write_bytes(b"")
    (tmp_path / "preview.gif").write_bytes(b"")  # a picture beside volumes
    (tmp_path / "a_0000.hdr").write_bytes(b"")  # a copy of the image
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UsdError, match=rf"1 image would be left out.*{name}: it ends in .*[Cc]onvert it to .nii.gz"):
        find_cases(tmp_path, ".nii.gz", 1)


def test_a_copy_of_any_image_that_is_read_is_no_image_that_is_left_out(tmp_path):
    """The one rule of `unread_images`; the image itself, which is of another ending, is named."""
    for name in ("a_0000.nii.gz", "b_0000.nrrd", "b_0000.mhd"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UsdError, match=r"1 image would be left out.*b_0000\.nrrd: it ends in \.nrrd"):
        find_cases(tmp_path, ".nii.gz", 1)


def test_names_in_two_unicode_forms_are_one_name(tmp_path):
    one, two = "M\u00fcller", "Mu\u0308ller"  # what macOS makes of the first
    folder = _make(tmp_path / "D", [f"imagesTr/{two}_0000.png", f"labelsTr/{one}.png", f"ratersTr/{two}_rater1.png"])
    (folder / "groups.csv").write_text(f"case,group\n{two},p\n", encoding="utf-8")
    (case,) = open_raw_dataset(folder).cases
    assert (case.case_id, case.group, len(case.rater_paths)) == (one, "p", 1)
    assert case.image_paths[0].is_file()
    assert case.label_path is not None
    assert case.label_path.is_file()
    (found,) = find_cases(folder / "imagesTr", ".png", 1)
    assert found.case_id == one
    assert find_cases(found.image_paths[0], ".png", 1) == (found,)
    _make(folder, [f"imagesTr/{one}_0000.png"])
    with pytest.raises(UsdError, match="differ only in their Unicode form"):
        open_raw_dataset(folder)


def test_one_rater_with_and_without_zeros_is_named_twice(tmp_path):
    raters = ["ratersTr/a_rater3.png", "ratersTr/a_rater03.png"]
    folder = _make(tmp_path / "D", ["imagesTr/a_0000.png", "labelsTr/a.png", *raters])
    with pytest.raises(UsdError, match=r"a_rater03\.png and .*a_rater3\.png count as one .*zeros before the number"):
        open_raw_dataset(folder)


def test_the_folder_of_a_data_set_is_answered_with_that_of_its_images(tmp_path):
    _make(tmp_path / "imagesTs", ["a_0000.png"])
    with pytest.raises(UsdError, match=r"holds no file ending in \.png, .*; name .*/imagesTs\."):
        find_cases(tmp_path, ".png", 1)


def test_find_cases_errors(tmp_path):
    with pytest.raises(UsdError, match="no file ending in"):
        find_cases(tmp_path, ".png", 1)
    _make(tmp_path, ["scan.png"])
    assert [case.case_id for case in find_cases(tmp_path, ".png", 1)] == ["scan"]
    with pytest.raises(UsdError, match="does not exist"):
        find_cases(tmp_path / "ghost.png", ".png", 1)
    with pytest.raises(UsdError, match=r"does not end in \.nii\.gz"):
        find_cases(tmp_path / "scan.png", ".nii.gz", 1)
    with pytest.raises(UsdError, match="empty"):
        find_cases([], ".png", 1)
    _make(tmp_path / "other", ["scan.png"])
    with pytest.raises(UsdError, match="both be case 'scan'"):
        find_cases([tmp_path / "scan.png", tmp_path / "other" / "scan.png"], ".png", 1)


def test_memory_of_the_largest_case(phantom_3d):
    raw = open_raw_dataset(phantom_3d)
    # 16 x 32 x 32 voxels: float32 twice, a label map and four raters
    assert largest_case_gb(raw.cases) == pytest.approx(16 * 32 * 32 * (8 + 1 + 4) / 1e9)


def test_real_folders(raw_data):
    lidc = open_raw_dataset(raw_data / "Dataset108_LIDC4R")
    assert len(lidc.cases) == 714
    assert all(len(case.rater_paths) == 4 and case.group is not None for case in lidc.cases)
    assert len(open_raw_dataset(raw_data / "Dataset104_Glioma").cases[0].image_paths) == 2


def test_a_folder_is_listed_once_however_many_of_its_files_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _make(tmp_path, [f"{case}_{channel:04d}.png" for case in "abcdefgh" for channel in (0, 1)])
    real, listed = os.scandir, []
    monkeypatch.setattr(os, "scandir", lambda folder: listed.append(folder) or real(folder))
    files = [tmp_path / f"{case}_0000.png" for case in "abcdefgh"]
    assert [len(case.image_paths) for case in find_cases(files, ".png", 2)] == [2] * 8
    assert listed == [tmp_path]
    assert find_mixed_cases(files) == find_cases(files, ".png", 2)
    assert listed == [tmp_path] * 3


def test_what_goes_to_a_worker_with_a_case_says_nothing_of_other_cases(tmp_path: Path) -> None:
    files = [f"imagesTr/{case}_{channel:04d}.png" for case in "abcdefgh" for channel in (0, 1)]
    labels = [f"labelsTr/{case}.png" for case in "abcdefgh"]
    entries = {
        case: {"images": [f"imagesTr/{case}_{channel:04d}.png" for channel in (0, 1)], "label": f"labelsTr/{case}.png"}
        for case in "abcdefgh"
    }
    raw = open_raw_dataset(_make(tmp_path, files + labels, dataset=entries, test=["b"]))
    description = raw.description_of(raw.cases[0])
    assert len(raw.cases) == 8
    assert "imagesTr" not in repr(description)
    assert description.labels == raw.description.labels


def test_names_say_which_channels_are_missing(tmp_path: Path) -> None:
    images = [f"imagesTr/{name}.png" for name in ("a_0000", "a_0001", "b_0001")]
    folder = _make(tmp_path / "Dataset001_X", [*images, "labelsTr/a.png", "labelsTr/b.png"], missing_channels=True)
    cases = {case.case_id: case for case in open_raw_dataset(folder).cases}
    assert (cases["a"].channels, cases["b"].channels) == (None, (1,))
    assert (cases["b"].missing("AB"), cases["b"].num_channels(2), cases["a"].num_channels(2)) == (("A",), 1, 2)
    (found,) = find_cases(folder / "imagesTr/b_0001.png", ".png", 2, missing_channels=True)
    assert found.channels == (1,)
    with pytest.raises(UsdError, match=r'channel _0000 is missing .*"missing_channels": true in dataset\.json'):
        find_cases(folder / "imagesTr/b_0001.png", ".png", 2)


def test_null_is_a_missing_channel_where_it_is_allowed(tmp_path: Path) -> None:
    entries = {"a": {"images": [None, "x.png"], "label": "y.png"}}
    (case,) = open_raw_dataset(_make(tmp_path / "Dataset001_X", [], missing_channels=True, dataset=entries)).cases
    assert (case.channels, [path.name for path in case.image_paths]) == ((1,), ["x.png"])
    with pytest.raises(UsdError, match=r'dataset\.a\.images holds null; .*"missing_channels": true'):
        open_raw_dataset(_make(tmp_path / "Dataset001_X", [], dataset=entries))
    for images in ([None, None], [None, "x.png", "y.png"]):
        entries["a"]["images"] = images
        with pytest.raises(UsdError, match="one for each of the 2 channels, null for those that are"):
            open_raw_dataset(_make(tmp_path / "Dataset001_X", [], missing_channels=True, dataset=entries))


def test_a_list_without_null_says_nothing_of_what_is_missing(tmp_path: Path) -> None:
    names = ["t1/p_0000.png", "flair/p_0000.png", "t1/scan_0001.png"]
    folder, three = tmp_path / "Dataset001_X", {"0": "A", "1": "B", "2": "C"}
    for images, found in ((names[:2], "2 channels"), (names[2:], "1 channel")):
        entries = {"a": {"images": images, "label": "y.png"}}
        _make(folder, names, channel_names=three, missing_channels=True, dataset=entries)
        with pytest.raises(UsdError, match=rf"dataset\.a\.images names {found} of 3; write null in the place of each"):
            open_raw_dataset(folder)
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(folder / names[2])  # in colour it holds all of them
    assert open_raw_dataset(folder).cases[0].channels is None


def test_in_a_list_the_place_says_the_channel(tmp_path: Path) -> None:
    names = ["t1/p_0000.png", "flair/p_0000.png", "t1/001.png", "flair/001.png"]
    entries = {
        "a": {"images": names[:2], "label": "a.png"},
        "b": {"images": names[2:], "label": "b.png"},
        "c": {"images": [None, names[1]], "label": "c.png"},
    }
    folder = _make(tmp_path / "Dataset001_X", names, missing_channels=True, dataset=entries)
    cases = open_raw_dataset(folder).cases
    assert [case.channels for case in cases] == [None, None, (1,)]
    assert [channel_problem(case.image_paths, 2, case.channels) for case in cases] == [None] * 3
    turned = (folder / "t1/p_0001.png", folder / "t1/p_0000.png")
    assert channel_problem(turned, 2) == "channel suffixes are [1, 0], expected [0, 1]; rename the files"


def test_two_files_of_one_channel_are_refused() -> None:
    with pytest.raises(UsdError, match="two files are named after the same channel"):
        channels_of_files([Path("t1/p_0000.png"), Path("flair/p_0000.png")], 3)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"channel_names": {"0": "T1"}, "missing_channels": True}, "there is one channel, which each case needs"),
        ({"missing_channels": "yes"}, "missing_channels is 'yes', allowed is true or false"),
    ],
)
def test_missing_channels_that_cannot_be(tmp_path: Path, more: dict[str, object], message: str) -> None:
    with pytest.raises(UsdError, match=message):
        open_raw_dataset(_make(tmp_path / "Dataset001_X", [], **more))
