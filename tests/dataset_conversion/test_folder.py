"""Plain folders of images and masks."""

from __future__ import annotations

import contextlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from dataset_conversion import convert
from dataset_conversion.finding import Request
from tests.dataset_conversion.conftest import groups_of, label_volume, labels_of, mask, picture, save, volume
from unisegdiff_pipeline.commands.convert import main
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.io.images import read_header, read_image, read_labels
from unisegdiff_pipeline.io.raw_dataset import open_raw_dataset

OPTIONS = ("--dataset-id", "7", "--name", "Own")


def refused(folder: Path, message: str, **options) -> None:
    raw = folder / "raw"
    raw.mkdir(exist_ok=True)
    request = Request((folder / "images", folder / "masks"), **{"number": 7, "name": "Own", **options})
    with pytest.raises(UsdError, match=message):
        convert("folder", request, raw)
    assert list(raw.iterdir()) == []


def test_colour_pictures_with_black_and_white_masks(tmp_path, converted):
    pixels = picture(tmp_path / "images/p1_2.png", 1)
    picture(tmp_path / "images/p1_10.png", 2)
    for case in ("p1_2", "p1_10"):
        mask(tmp_path / f"masks/{case}_mask.png")
    raw = converted("folder", tmp_path / "images", tmp_path / "masks", *OPTIONS, "--group-pattern", "^(p[0-9]+)_")
    assert raw.folder.name == "Dataset007_Own"
    assert raw.description.channel_names == ("R", "G", "B")
    assert raw.description.labels.names == ("lesion",)
    np.testing.assert_array_equal(np.asarray(Image.open(raw.folder / "imagesTr/p1_2_0000.png")), pixels)
    labels = labels_of(raw, "p1_2")
    assert sorted(np.unique(labels)) == [0, 1]
    assert labels.sum() == 2 * 3
    assert groups_of(raw) == {"p1_2": "p1", "p1_10": "p1"}


def test_jpeg_images_stay_as_they_are_and_their_jpeg_masks_need_a_threshold(tmp_path, converted):
    picture(tmp_path / "images/a.jpg", size=(32, 32))
    mask(tmp_path / "masks/a.jpg", size=(32, 32), rows=slice(8, 24))
    picture(tmp_path / "images/b.jpg", size=(32, 32))
    Image.fromarray(np.full((32, 32), 5, np.uint8)).save(tmp_path / "masks/b.jpg")  # black, as JPEG gives it back
    refused(tmp_path, "is a JPEG.*--threshold 127")
    raw = converted("folder", tmp_path / "images", tmp_path / "masks", *OPTIONS, "--threshold", "127")
    assert (raw.folder / "imagesTr/a_0000.jpg").read_bytes() == (tmp_path / "images/a.jpg").read_bytes()
    assert set(np.unique(labels_of(raw, "a"))) == {0, 1}
    assert not labels_of(raw, "b").any()


def test_mixed_endings_and_grey_beside_colour_become_one_kind(tmp_path, converted):
    picture(tmp_path / "images/a.bmp", 1)
    grey = picture(tmp_path / "images/b.png", 2, colour=False)
    for case in "ab":
        mask(tmp_path / f"masks/{case}.png", value=1)
    raw = converted("folder", tmp_path / "images", tmp_path / "masks", *OPTIONS)
    case = raw.cases[1]
    np.testing.assert_array_equal(read_image(case.image_paths, 3).array[:, 0], [grey] * 3)


def test_masks_without_any_background_are_named(tmp_path, converted, capsys):
    """As those that count from 1 on, where 1 is the background."""
    picture(tmp_path / "images/a.png")
    (tmp_path / "masks").mkdir()
    labels = np.full((6, 8), 1, np.uint8)
    Image.fromarray(labels).save(tmp_path / "masks/a.png")
    refused(tmp_path, "all masks of .*masks hold 1 and nothing else")
    labels[2, 2:5] = 2
    Image.fromarray(labels).save(tmp_path / "masks/a.png")
    converted("folder", tmp_path / "images", tmp_path / "masks", *OPTIONS)
    assert "No mask holds 0, which is the background" in " ".join(capsys.readouterr().err.split())


def test_a_grey_picture_among_colour_ones_takes_no_colour_from_them(tmp_path, converted):
    picture(tmp_path / "images/a.png", colour=False)
    pixels = picture(tmp_path / "images/b.png")
    for case in "ab":
        mask(tmp_path / f"masks/{case}.png")
    raw = converted("folder", tmp_path / "images", tmp_path / "masks", *OPTIONS)
    assert raw.description.channel_names == ("R", "G", "B")
    np.testing.assert_array_equal(np.asarray(Image.open(raw.cases[1].image_paths[0])), pixels)


def test_a_volume_of_three_frames_is_no_colour_picture(tmp_path, converted):
    volume(tmp_path / "images/a.nii.gz", shape=(5, 6, 4, 3))
    label_volume(tmp_path / "masks/a.nii.gz", 1)
    refused(tmp_path, r"images/a\.nii\.gz has 3 channels; name them with --channels")
    names = ("T1", "T2", "FLAIR")
    raw = converted("folder", tmp_path / "images", tmp_path / "masks", *OPTIONS, "--channels", *names)
    assert raw.description.channel_names == names


def test_every_value_becomes_a_class_with_a_warning(tmp_path, converted, capsys):
    for case, value in (("a", 128), ("b", 255)):
        picture(tmp_path / f"images/{case}.png")
        mask(tmp_path / f"masks/{case}.png", value)
    raw = converted("folder", tmp_path / "images", tmp_path / "masks", *OPTIONS)
    assert "hold the values [128, 255]" in capsys.readouterr().err
    assert raw.description.labels.names == ("value_128", "value_255")
    assert (labels_of(raw, "a").max(), labels_of(raw, "b").max()) == (1, 2)


@pytest.mark.parametrize("threshold", [None, 50])
def test_masks_whose_palettes_are_in_another_order_need_a_threshold(tmp_path, converted, threshold):
    """In one mask red is the colour 1, in the next the colour 0, as where programs number colours as they come."""
    (tmp_path / "masks").mkdir()
    lesion = np.zeros((6, 8), np.uint8)
    lesion[1:3, 2:5] = 1
    for case, index, palette in (("a", lesion, [0, 0, 0, 255, 0, 0]), ("b", 1 - lesion, [255, 0, 0, 0, 0, 0])):
        picture(tmp_path / f"images/{case}.png")
        mask_picture = Image.fromarray(index)
        mask_picture.putpalette(palette)
        mask_picture.save(tmp_path / f"masks/{case}.png")
    if threshold is None:
        refused(tmp_path, r"masks/b\.png shows the value 0 in the colour \(255, 0, 0\), .*masks/a\.png in \(0, 0, 0\)")
        return
    raw = converted("folder", tmp_path / "images", tmp_path / "masks", *OPTIONS, "--threshold", threshold)
    for case in "ab":
        np.testing.assert_array_equal(labels_of(raw, case), lesion)


def test_volumes_with_masks_beside_them(tmp_path, converted):
    volume(tmp_path / "all/x.nii")
    label_volume(tmp_path / "all/x_seg.nii.gz", 1, 2)
    raw = converted("folder", tmp_path / "all", tmp_path / "all", *OPTIONS, "--channels", "CT")
    assert raw.description.channel_names == ("CT",)
    assert raw.description.file_ending == ".nii.gz"
    expected = read_image([tmp_path / "all/x.nii"])
    found = read_image(raw.cases[0].image_paths)
    np.testing.assert_array_equal(found.array, expected.array)
    assert found.geometry == expected.geometry
    assert labels_of(raw, "x").max() == 2


def test_what_does_not_fit_is_refused_and_leaves_nothing(tmp_path):
    picture(tmp_path / "images/a.png")
    mask(tmp_path / "masks/b.png")
    refused(tmp_path, r"2 file\(s\) are an image without mask or a mask without image.*a\.png.*b\.png")
    (tmp_path / "masks/b.png").unlink()
    mask(tmp_path / "masks/a.png", size=(6, 9))
    refused(tmp_path, r"masks/a\.png has the shape \(1, 6, 9\) \(Z, Y, X\), its image .*images/a\.png has \(1, 6, 8\)")
    refused(tmp_path, r"'\^\(q\)' finds no group in the case 'a'", group_pattern="^(q)")
    refused(tmp_path, "is no regular expression", group_pattern="(")
    refused(tmp_path, "give --dataset-id N and --name NAME", name=None)
    mask(tmp_path / "masks/a.png", value=0)
    refused(tmp_path, "all masks of .*masks are empty")
    picture(tmp_path / "masks/a.png", colour=False, size=(6, 8))
    refused(tmp_path, "different values, which are no classes; give --threshold")
    mask(tmp_path / "masks/a.png", value=1)
    refused(tmp_path, r"a\.png holds values up to 1, a lesion is expected above 127", threshold=127)
    mask(tmp_path / "masks/a_mask.png")
    refused(tmp_path, "are two masks of one image")


def test_a_threshold_halves_the_range_of_16_bits_too(tmp_path, converted):
    picture(tmp_path / "images/a.png")
    soft = np.zeros((6, 8), np.uint16)
    soft[2, 2:5] = 30000, 65535, 40000
    (tmp_path / "masks").mkdir()
    Image.fromarray(soft).save(tmp_path / "masks/a.png")
    raw = converted("folder", tmp_path / "images", tmp_path / "masks", *OPTIONS, "--threshold", "32767")
    assert np.argwhere(labels_of(raw, "a") == 1).tolist() == [[2, 3], [2, 4]]


@pytest.mark.parametrize("threshold", [float("nan"), float("inf"), -1.0])
def test_a_threshold_that_nothing_or_everything_is_above_is_refused(tmp_path, threshold):
    picture(tmp_path / "images/a.png")
    mask(tmp_path / "masks/a.png")
    refused(tmp_path, "the threshold is .*, allowed is a number from 0 on; correct --threshold", threshold=threshold)


def test_a_mask_that_holds_nan_is_refused_with_a_threshold_too(tmp_path):
    """Programs for brains write NaN outside of them; beside it, that nothing is above the threshold went unnoticed."""
    volume(tmp_path / "images/a.nii.gz")
    probability = np.full((5, 6, 4), np.nan, np.float32)
    probability[1:3] = 0.8
    save(tmp_path / "masks/a.nii.gz", probability)
    refused(tmp_path, r"masks/a\.nii\.gz holds NaN or infinite values; write numbers", threshold=127)
    refused(tmp_path, r"masks/a\.nii\.gz holds NaN or infinite", threshold=None)


@pytest.mark.parametrize("brush", [0, 255])
def test_a_mask_in_the_alpha_channel_is_refused_with_and_without_a_threshold(tmp_path, brush):
    picture(tmp_path / "images/a.png", size=(8, 8), colour=False)
    (tmp_path / "masks").mkdir()
    drawn = np.zeros((8, 8), np.uint8)
    drawn[2:5, 2:5] = 255
    colours = np.full((8, 8, 3), brush, np.uint8)  # what lies under the transparent pixels says nothing
    Image.fromarray(np.dstack([colours, drawn])).save(tmp_path / "masks/a.png")
    refused(tmp_path, "masks/a.png has transparent pixels")
    refused(tmp_path, "masks/a.png has transparent pixels", threshold=127)


def test_images_and_masks_of_formats_that_are_not_read_are_named_not_left_out(tmp_path):
    picture(tmp_path / "images/a.png", size=(8, 8))
    mask(tmp_path / "masks/a.png", size=(8, 8))
    for folder in ("images", "masks"):
        (tmp_path / folder / "b.webp").touch()
    refused(tmp_path, r"images holds 1 image of formats that are not read \(b\.webp\); convert them")


def test_links_to_nothing_are_named_not_left_out(tmp_path):
    """As of data sets of which a part was not downloaded: both the image and its mask are absent."""
    picture(tmp_path / "images/a.png")
    mask(tmp_path / "masks/a.png")
    for folder in ("images", "masks"):
        (tmp_path / folder / "b.png").symlink_to(tmp_path / "nowhere.png")
    refused(tmp_path, r"images/b\.png is a link to a file that does not exist")


def test_copies_in_formats_that_are_not_read_are_passed_over(tmp_path, converted):
    picture(tmp_path / "images/a.png")
    mask(tmp_path / "masks/a_mask.png")
    for name in ("images/a.webp", "masks/a_mask.gif"):
        (tmp_path / name).touch()
    assert [case.case_id for case in converted("folder", tmp_path / "images", tmp_path / "masks", *OPTIONS).cases] == [
        "a"
    ]


def test_a_number_that_another_data_set_has_is_refused(tmp_path):
    picture(tmp_path / "images/a.png")
    mask(tmp_path / "masks/a.png")
    raw = tmp_path / "raw"
    (raw / "Dataset0007_Other").mkdir(parents=True)
    request = Request((tmp_path / "images", tmp_path / "masks"), 7, "Own")
    with pytest.raises(UsdError, match="Dataset007_Own would have the number of Dataset0007_Other, which lies in"):
        convert("folder", request, raw)
    assert [path.name for path in raw.iterdir()] == ["Dataset0007_Other"]


def test_a_mask_that_lies_elsewhere_than_its_image_is_refused(tmp_path):
    volume(tmp_path / "images/a.nii.gz")  # 1 x 1 x 3 mm
    labels = np.zeros((5, 6, 4), np.uint8)
    labels[2, 2, 1] = 1
    (tmp_path / "masks").mkdir()
    for affine, named in (
        (
            np.diag([1.0, 1.0, 2.0, 1.0]),
            r"masks/a\.nii\.gz lies elsewhere than its image .*images/a\.nii\.gz: spacing \(3,",
        ),
        (np.diag([-1.0, 1.0, 3.0, 1.0]), "direction"),
        (np.array([[1.0, 0, 0, 8], [0, 1, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]]), "origin"),
    ):
        nibabel.save(nibabel.Nifti1Image(labels, affine), tmp_path / "masks/a.nii.gz")
        refused(tmp_path, named)


def test_all_cases_that_do_not_fit_are_named_in_one_run(tmp_path):
    for case, size in (("a", (6, 8)), ("b", (6, 9)), ("c", (5, 8))):
        picture(tmp_path / f"images/{case}.png")
        mask(tmp_path / f"masks/{case}.png", size=size)
    refused(
        tmp_path, r"^2 of 3 cases cannot be converted; nothing was written\. b: .*b\.png has .* \| c: .*c\.png has "
    )


def test_all_damaged_volumes_are_named_in_one_run(tmp_path):
    for case in "abc":
        volume(tmp_path / f"images/{case}.nii.gz")
        label_volume(tmp_path / f"masks/{case}.nii.gz", 1)
    for case in "bc":
        (tmp_path / f"images/{case}.nii.gz").write_bytes(b"no image")
    refused(tmp_path, r"^2 of 3 cases cannot be converted; .* b: .*b\.nii\.gz .* \| c: .*c\.nii\.gz ")


@pytest.mark.parametrize("threshold", [None, 0.5])  # the mask is copied, or written anew
def test_a_plane_and_a_volume_of_one_slice_are_the_same(tmp_path, converted, threshold):
    affine = np.diag([2.0, 2.0, 1.0, 1.0])
    for name, array in (("images/a.nii.gz", np.arange(30, dtype=np.int16).reshape(5, 6)), ("masks/a.nii.gz", None)):
        (tmp_path / name).parent.mkdir()
        array = (np.arange(30) == 7).astype(np.uint8).reshape(5, 6, 1) if array is None else array
        nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / name)
    more = () if threshold is None else ("--threshold", str(threshold))
    raw = converted("folder", tmp_path / "images", tmp_path / "masks", *OPTIONS, *more)
    assert np.argwhere(read_labels(raw.cases[0].label_path).array[0, 0]).tolist() == [[1, 1]]  # (Y, X) of x = 1, y = 1


def test_a_tiff_mask_has_the_spacing_of_its_image_unless_it_says_another(tmp_path, converted):
    for name in ("images/a.tif", "masks/a.tif"):
        mask(tmp_path / name, 1)
    (tmp_path / "images/a.json").write_text('{"spacing": [1, 0.5, 0.5]}')
    beside = tmp_path / "masks/a.json"
    beside.write_text('{"spacing": [1, 0.5, 0.6]}')
    refused(tmp_path, r"a\.tif lies elsewhere than its image .*spacing \(1, 0\.5, 0\.5\) against \(1, 0\.5, 0\.6\)")
    beside.unlink()
    raw = converted("folder", tmp_path / "images", tmp_path / "masks", *OPTIONS)
    assert read_labels(raw.cases[0].label_path).geometry.spacing_mm == (1.0, 0.5, 0.5)


def test_a_stack_of_colours_does_not_become_its_first_slice(tmp_path):
    pages = [Image.fromarray(np.full((6, 8, 3), value, np.uint8)) for value in (1, 2)]
    (tmp_path / "images").mkdir()
    pages[0].save(tmp_path / "images/a.tif", save_all=True, append_images=pages[1:])
    mask(tmp_path / "masks/a.tif", 1)
    refused(tmp_path, r"images/a\.tif holds 2 slices of 3 channels, but 1 is expected", channels=("light",))


def test_the_folder_above_a_link_is_that_above_its_target(tmp_path, converted):
    for place, size in (("here", (8, 8)), ("there", (6, 4))):
        picture(tmp_path / place / "images/a.png", size=size)
        mask(tmp_path / place / "masks/a.png", size=size)
    (tmp_path / "here/link").symlink_to(tmp_path / "there/images")
    raw = converted("folder", *(tmp_path / "here/link/.." / name for name in ("images", "masks")), *OPTIONS)
    assert Image.open(raw.cases[0].image_paths[0]).size == Image.open(tmp_path / "there/images/a.png").size


def test_numbers_in_names_may_be_of_any_script(tmp_path, converted):
    for case in ("1\u00b23", "\u0661"):  # a superscript is no number to count with, an Arabic one is
        picture(tmp_path / f"images/{case}.png")
        mask(tmp_path / f"masks/{case}.png")
    assert len(converted("folder", tmp_path / "images", tmp_path / "masks", *OPTIONS).cases) == 2


def test_names_that_differ_in_capitals_only_are_refused(tmp_path):
    for case in ("Scan", "scan"):
        picture(tmp_path / f"images/{case}.png")
        mask(tmp_path / f"masks/{case}.png")
    refused(tmp_path, r"Scan\.png and .*scan\.png would both become the case")


def test_a_damaged_image_is_named(tmp_path):
    picture(tmp_path / "images/a.png")
    mask(tmp_path / "masks/a.png")
    (tmp_path / "images/a.png").write_bytes((tmp_path / "images/a.png").read_bytes()[:20])
    refused(tmp_path, r"a\.png")


def test_an_interrupted_conversion_goes_on(tmp_path, monkeypatch):
    import dataset_conversion.raw_writer as raw_writer

    for number in range(4):
        picture(tmp_path / f"images/{number}.png", number)
        mask(tmp_path / f"masks/{number}.png")
    (tmp_path / "raw").mkdir()
    request = Request((tmp_path / "images", tmp_path / "masks"), 7, "Own")
    written: list[Path] = []
    write = raw_writer.write_labels

    def interrupted(path, *rest):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        write(path, *rest)

    monkeypatch.setattr(raw_writer, "choose_workers", lambda *_: 0)
    monkeypatch.setattr(raw_writer, "write_labels", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert("folder", request, tmp_path / "raw")
    assert not (tmp_path / "raw/Dataset007_Own").exists()
    monkeypatch.setattr(raw_writer, "write_labels", lambda path, *rest: (written.append(path), write(path, *rest)))
    folder = convert("folder", request, tmp_path / "raw")
    assert sorted(path.name for path in written) == ["0.png", "1.png", "2.png", "3.png"]
    assert [path.name for path in (tmp_path / "raw").iterdir()] == [folder.name]
    assert len(list((folder / "labelsTr").iterdir())) == 4
    assert not list(folder.glob("conversion*"))


def test_an_interruption_loses_no_spacing_of_a_stack(tmp_path, monkeypatch):
    from dataset_conversion import copying

    for name in ("images/a.tif", "masks/a.tif"):
        mask(tmp_path / name, 1)
    (tmp_path / "images/a.json").write_text('{"spacing": [1, 0.5, 0.5]}')
    (tmp_path / "raw").mkdir()
    request, folder = Request((tmp_path / "images", tmp_path / "masks"), 7, "Own"), tmp_path / "raw/Dataset007_Own"
    copy, left = copying._copy, []  # to be copied before the next interruption

    def interrupted(source, target):
        copy(source, target)
        left.pop()
        if not left:
            raise KeyboardInterrupt

    monkeypatch.setattr(copying, "_copy", interrupted)
    for files in (1, 1, 2, 2, 3):
        left[:] = range(files)
        if not folder.exists():
            with contextlib.suppress(KeyboardInterrupt):
                convert("folder", request, tmp_path / "raw")
    (case,) = open_raw_dataset(folder).cases
    for path in (case.image_paths[0], case.label_path):
        assert read_header(path)[1].spacing_mm == (1.0, 0.5, 0.5)


def test_a_compressed_file_named_nii_is_not_compressed_twice(tmp_path, converted):
    for name in ("images/a", "masks/a"):
        label_volume(tmp_path / f"{name}.nii.gz", 1)
        (tmp_path / f"{name}.nii.gz").rename(tmp_path / f"{name}.nii")
    raw = converted("folder", tmp_path / "images", tmp_path / "masks", *OPTIONS)
    assert raw.cases[0].image_paths[0].read_bytes() == (tmp_path / "images/a.nii").read_bytes()
    assert labels_of(raw, "a").sum() == 1


def test_number_of_sources_and_list(tmp_path, capsys):
    assert main(["folder", str(tmp_path), "--raw", str(tmp_path), *OPTIONS]) == 1
    assert "usd_convert folder takes IMAGES MASKS, but 1 folder was named" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--list"])
    assert "folder IMAGES MASKS" in capsys.readouterr().out


def test_animated_masks_are_refused(tmp_path):
    picture(tmp_path / "images/a.png", size=(8, 8))
    (tmp_path / "masks").mkdir()
    first, second = (Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (0, 255))
    first.save(tmp_path / "masks/a.png", save_all=True, append_images=[second])
    for threshold in (None, 127):
        refused(tmp_path, "masks/a.png is an animated PNG of 2 frames", threshold=threshold)


def test_a_source_that_is_no_folder_is_named_as_such(tmp_path):
    picture(tmp_path / "images/a.png")
    refused(tmp_path, r"masks does not exist; name a folder")
    (tmp_path / "masks").write_bytes(b"")
    refused(tmp_path, r"masks is a file; name a folder")
    for name in ("busi", "lidc", "bids", "figshare_brain"):
        with pytest.raises(UsdError, match=r"nowhere does not exist"):
            convert(name, Request((tmp_path / "nowhere",)), tmp_path)


def test_channels_that_a_picture_does_not_have_are_refused_and_none_is_made_up(tmp_path):
    picture(tmp_path / "images/a.png", colour=False)
    mask(tmp_path / "masks/a.png")
    refused(tmp_path, r"a\.png has 1 channel, but --channels names 2 \(T1, T2\)", channels=("T1", "T2"))
    refused(tmp_path, r"a\.png has 1 channel, but --channels names 3", channels=("T1", "T2", "FLAIR"))


def test_one_folder_named_twice_without_any_mask_in_it_says_so(tmp_path):
    picture(tmp_path / "images/a.png")
    with pytest.raises(UsdError, match="no file in it is named as a mask is, such as a_mask"):
        convert("folder", Request((tmp_path / "images", tmp_path / "images"), 7, "Own"), tmp_path)
