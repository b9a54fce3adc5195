"""DICOM series: geometry, order and values, and what is no volume. The files are written here by SimpleITK."""

from __future__ import annotations

import locale
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.io.dicom import find_series, is_dicom_folder, keeping_locale, kind_without_image
from unisegdiff_pipeline.io.images import read_image, write_map

ANGLE = 0.4
ROW, COLUMN = (np.cos(ANGLE), np.sin(ANGLE), 0.0), (0.0, 0.0, -1.0)  # a coronal series, turned
NORMAL = np.cross(ROW, COLUMN)
SIZE = (4, 3, 5)  # (Z, Y, X)


def values() -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 1000, SIZE).astype(np.int16)


def write_series(folder: Path, number: int = 1, **changed: Any) -> Path:
    """A series of slices 2.5 mm apart, whose files are named against their order in space.

    changed: `uid`, `modality`, `kind` (image type), `places` (mm along the normal), `shift` (mm a slice along the
    rows), `slope` (times the number of the slice), `factor` of the values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    places = changed.get("places", [2.5 * i for i in range(SIZE[0])])
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for i, place in enumerate(places):
        image = sitk.GetImageFromArray(changed.get("factor", 1) * values()[i % SIZE[0]][None])
        image.SetSpacing((0.5, 0.75, 2.5))
        position = place * NORMAL + (10.0, -20.0, 30.0) + changed.get("shift", 0.0) * i * np.array(ROW)
        tags = {
            "0008|0060": changed.get("modality", "CT"),
            "0008|0008": changed.get("kind", "ORIGINAL\\PRIMARY\\AXIAL"),
            "0020|000d": "1.2.826.0.1.1",
            "0020|000e": changed.get("uid", f"1.2.826.0.1.1.{number}"),
            "0008|0018": f"1.2.826.0.1.1.{number}.{i}",
            "0020|0011": str(number),
            "0020|0013": str(i + 1),
            "0020|0032": "\\".join(f"{v:.9g}" for v in position),
            "0020|0037": "\\".join(f"{v:.12g}" for v in (*ROW, *COLUMN)),
            "0018|0050": "2.5",
        }
        if "slope" in changed:
            tags |= {"0028|1053": str(changed["slope"] * (i + 1)), "0028|1052": "0"}
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"IM{len(places) - i:03d}_{number}"))
        writer.SetImageIO("GDCMImageIO")
        with keeping_locale():
            writer.Execute(image)
    return folder


def write_object(path: Path, sop_class: str, modality: str = "") -> Path:
    """A DICOM file without pixels, byte by byte: its meta group, class, modality and series."""

    def element(group: int, number: int, kind: str, value: bytes) -> bytes:
        value += (b"\0" if kind in ("UI", "OB") else b" ") * (len(value) % 2)
        length = struct.pack("<HI", 0, len(value)) if kind == "OB" else struct.pack("<H", len(value))
        return struct.pack("<HH", group, number) + kind.encode() + length + value

    uid, meta = f"1.2.826.0.1.2.{zlib.crc32(path.name.encode())}".encode(), element(2, 1, "OB", b"\0\1")
    for number, value in ((2, sop_class.encode()), (3, uid), (0x10, b"1.2.840.10008.1.2.1"), (0x12, b"1.2.826.0.1")):
        meta += element(2, number, "UI", value)
    dataset = [(8, 0x16, "UI", sop_class.encode()), (8, 0x18, "UI", uid), (8, 0x60, "CS", modality.encode())]
    dataset += [(0x20, 0xD, "UI", b"1.2.826.0.1.1"), (0x20, 0xE, "UI", uid), (0x20, 0x11, "IS", b"9")]
    start = element(2, 0, "UL", struct.pack("<I", len(meta)))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(128) + b"DICM" + start + meta + b"".join(element(*one) for one in dataset))
    return path


def only_series(folder: Path) -> Any:
    (series,), left_out = find_series(folder)
    assert not left_out
    return series


def test_the_locale_of_the_process_stays_as_it_is(tmp_path: Path) -> None:
    before = locale.setlocale(locale.LC_ALL)
    only_series(write_series(tmp_path / "study")).read()
    assert locale.setlocale(locale.LC_ALL) == before


def test_slices_are_sorted_by_where_they_lie(tmp_path: Path) -> None:
    volume = only_series(write_series(tmp_path / "study")).read()
    assert np.array_equal(volume.array[0], values())
    assert volume.geometry.spacing_mm == pytest.approx((2.5, 0.75, 0.5))
    assert volume.geometry.origin_mm == pytest.approx((10.0, -20.0, 30.0))
    expected = np.column_stack([ROW, COLUMN, NORMAL]).ravel()
    assert volume.geometry.direction == pytest.approx(tuple(expected))
    write_map(tmp_path / "a.nii.gz", volume.array[0], volume.geometry)
    image = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    # Voxel (x, y, z) = (4, 2, 3) lies at origin + 4 * 0.5 row + 2 * 0.75 column + 3 * 2.5 normal.
    place = (10.0, -20.0, 30.0) + 2.0 * np.array(ROW) + 1.5 * np.array(COLUMN) + 7.5 * NORMAL
    assert image.TransformIndexToPhysicalPoint((4, 2, 3)) == pytest.approx(tuple(place), abs=1e-4)
    assert np.array_equal(read_image([tmp_path / "a.nii.gz"]).array[0], values())


def test_simpleitk_reads_the_same_volume(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "study")
    volume = only_series(folder).read()
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    assert np.array_equal(sitk.GetArrayFromImage(image), volume.array[0])
    assert image.GetSpacing() == pytest.approx(volume.geometry.spacing_mm[::-1])
    assert image.GetOrigin() == pytest.approx(volume.geometry.origin_mm)
    assert image.GetDirection() == pytest.approx(volume.geometry.direction, abs=1e-6)


def test_series_are_named_after_their_folders(tmp_path: Path) -> None:
    write_series(tmp_path / "in/p1")
    write_series(tmp_path / "in/p2/T1")
    write_series(tmp_path / "in/p2/T2", 2)
    write_series(tmp_path / "in/p3", 3)
    write_series(tmp_path / "in/p3", 4)
    write_series(tmp_path / "in/p3", 5, modality="RTSTRUCT", places=[0.0])
    write_series(tmp_path / "in/p1", 6, kind="ORIGINAL\\PRIMARY\\LOCALIZER", places=[0.0])
    assert is_dicom_folder(tmp_path / "in")
    series, left_out = find_series(tmp_path / "in")
    assert [one.name for one in series] == ["p1", "p2_T1", "p2_T2", "p3_series3", "p3_series4"]
    assert [text.rsplit("/", 1)[1] for text in left_out] == ["IM001_6 (a localizer)", "IM001_5 (RTSTRUCT, no image)"]
    assert [len(one.slices) for one in series] == [4] * 5


def test_series_in_folders_that_are_links_are_found(tmp_path: Path) -> None:
    write_series(tmp_path / "store/b")
    write_series(tmp_path / "in/a")
    (tmp_path / "in/b").symlink_to(tmp_path / "store/b")
    (tmp_path / "in/b/above").symlink_to(tmp_path / "in")  # which would lead round and round
    found, _ = find_series(tmp_path / "in")
    assert [series.name for series in found] == ["a", "b"]


def test_a_volume_that_is_spread_over_folders_is_no_two_volumes(tmp_path: Path) -> None:
    write_series(tmp_path / "disc/0", uid="1.2.3", places=[0.0, 2.5, 5.0])
    write_series(tmp_path / "disc/1", uid="1.2.3", places=[7.5, 10.0])
    with pytest.raises(UsdError, match=r"2 folders hold parts.*1\.2\.3: .*disc/0, .*disc/1\. Put its files into one"):
        find_series(tmp_path / "disc")
    for number in range(5):
        write_series(tmp_path / f"slices/{number}", uid="1.2.3", places=[2.5 * number])
    with pytest.raises(UsdError, match=r"5 folders hold parts of one volume.*slices/2, and 2 more\. Put"):
        find_series(tmp_path / "slices")


def test_a_copy_a_phase_and_another_stack_of_a_series_are_volumes_of_their_own(tmp_path: Path) -> None:
    for folder, start in (("a", 0.0), ("copy", 0.0), ("stack", 50.0)):
        write_series(tmp_path / "in" / folder, uid="1.2.3", places=[start, start + 2.5, start + 5.0])
    assert [series.name for series in find_series(tmp_path / "in")[0]] == ["a", "copy", "stack"]
    for folder, place in (("first", 10.0), ("second", 55.0)):
        write_series(tmp_path / "of_interest" / folder, uid="1.2.3", places=[place])
    assert [series.name for series in find_series(tmp_path / "of_interest")[0]] == ["first", "second"]


def test_objects_without_pixels_are_left_out_and_named(tmp_path: Path) -> None:
    write_series(tmp_path / "in/p1")
    storage = "1.2.840.10008.5.1.4.1.1"
    write_object(tmp_path / "in/DICOMDIR", "1.2.840.10008.1.3.10")
    write_object(tmp_path / "in/p1/dose", f"{storage}.88.67", "SR")
    write_object(tmp_path / "in/p1/key", f"{storage}.88.59", "KO")
    write_object(tmp_path / "in/p1/state", f"{storage}.11.1", "PR")
    write_object(tmp_path / "in/p1/structures", f"{storage}.481.3", "RTSTRUCT")
    series, left_out = find_series(tmp_path / "in")
    assert [(one.name, len(one.slices)) for one in series] == [("p1", 4)]
    assert [text.rsplit("/", 1)[1] for text in left_out] == [
        "DICOMDIR (DICOMDIR, no image)",
        "dose (SR, no image)",
        "key (KO, no image)",
        "state (PR, no image)",
        "structures (RTSTRUCT, no image)",
    ]
    assert len(series[0].read().array[0]) == 4
    shutil.rmtree(tmp_path / "in/p1")
    with pytest.raises(UsdError, match=r"no DICOM series of images; left out: .*DICOMDIR \(DICOMDIR, no image\)"):
        find_series(tmp_path / "in")


def test_an_image_without_its_pixels_is_damaged_and_not_left_out(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "in")
    path = write_object(folder / "IM009_1", "1.2.840.10008.5.1.4.1.1.2", "CT")
    with pytest.raises(UsdError, match=rf"{path} cannot be read, it seems to be truncated or damaged"):
        find_series(tmp_path / "in")


def test_an_object_of_a_private_class_is_left_out_by_its_class(tmp_path: Path) -> None:
    write_series(tmp_path / "in/p1")
    path = write_object(tmp_path / "in/p1/extra", "1.3.46.670589.5.0.2", "MR")
    (series,), left_out = find_series(tmp_path / "in")
    assert len(series.slices) == 4
    assert left_out == (f"{path} (of the private class 1.3.46.670589.5.0.2, which only programs of its vendor read)",)


def test_no_class_of_images_is_left_out(tmp_path: Path) -> None:
    uids = pytest.importorskip("pydicom.uid").UID_dictionary
    images = [uid for uid, (name, *_) in uids.items() if "Image Storage" in name]
    assert len(images) > 50
    kinds = {uid: kind_without_image(write_object(tmp_path / "a", uid)) for uid in images}
    assert not {uid: kind for uid, kind in kinds.items() if kind}


def test_names_of_series_are_composed(tmp_path: Path) -> None:
    """macOS writes names in decomposed form; those of predictions are composed."""
    write_series(tmp_path / "in/Zo\u0308e")
    assert [one.name for one in find_series(tmp_path / "in")[0]] == ["Z\u00f6e"]
    assert [one.name for one in find_series(tmp_path / "in/Zo\u0308e")[0]] == ["Z\u00f6e"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"places": [0.0, 2.5, 7.5, 10.0]}, r"slices 2\.5 mm apart, but IM003_1 and IM002_1 are 5 mm apart"),
        ({"places": [0.0, 2.5, 2.5, 5.0]}, "two slices at one place, .*IM00[23]_1"),
        ({"shift": 0.5}, "is sheared: IM004_1 and IM003_1"),
    ],
)
def test_what_is_no_even_volume_is_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    series = only_series(write_series(tmp_path / "study", **changed))
    with pytest.raises(UsdError, match=message):
        series.read()


def test_two_series_of_one_number_need_folders_of_their_own(tmp_path: Path) -> None:
    write_series(tmp_path / "b", 7)
    for i, path in enumerate(sorted(write_series(tmp_path / "other", 7, uid="1.2.3").iterdir())):
        path.rename(tmp_path / f"b/other{i}")
    with pytest.raises(UsdError, match="both be case 'b_series7'; give each series a folder of its own"):
        find_series(tmp_path / "b")


def test_one_slice_has_its_thickness(tmp_path: Path) -> None:
    volume = only_series(write_series(tmp_path / "one", places=[5.0])).read()
    assert volume.array.shape == (1, 1, 3, 5)
    assert volume.geometry.spacing_mm == (2.5, 0.75, 0.5)


def test_values_are_scaled_slice_by_slice(tmp_path: Path) -> None:
    """24 is a multiple of each slice's slope, so that values are kept whatever the slope they are stored with."""
    folder = write_series(tmp_path / "b", slope=2, factor=24)
    stored = [sitk.ReadImage(str(path)).GetMetaData("0028|1053").strip() for path in sorted(folder.iterdir())]
    assert stored == ["8", "6", "4", "2"]
    assert np.array_equal(only_series(folder).read().array[0], 24 * values())


def test_only_folders_without_other_images_are_taken_for_dicom(tmp_path: Path) -> None:
    write_series(tmp_path / "in")
    assert is_dicom_folder(tmp_path / "in")
    write_map(tmp_path / "in/a_0000.nii.gz", np.zeros(SIZE, np.float32), only_series(tmp_path / "in").read().geometry)
    assert not is_dicom_folder(tmp_path / "in")
    (tmp_path / "text").mkdir()
    (tmp_path / "text/notes").write_text("x" * 200)
    assert not is_dicom_folder(tmp_path / "text")
    assert not is_dicom_folder(tmp_path / "missing")
    with pytest.raises(UsdError, match="holds no DICOM series of images"):
        find_series(tmp_path / "text")
