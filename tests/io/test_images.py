"""Reading and writing images: round trips in every format, and what must be refused."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import is_full_disk
from unisegdiff_pipeline.core.geometry import Geometry, geometry_differences, on_grid_of
from unisegdiff_pipeline.io import images
from unisegdiff_pipeline.io.images import (
    label_ending,
    map_ending,
    read_header,
    read_image,
    read_labels,
    split_ending,
    write_labels,
    write_map,
)

ANGLE = 0.3
OBLIQUE = Geometry(
    (2.5, 0.7, 0.9),
    (-12.25, 33.5, 101.125),
    (np.cos(ANGLE), -np.sin(ANGLE), 0.0, np.sin(ANGLE), np.cos(ANGLE), 0.0, 0.0, 0.0, 1.0),
)
VOLUME_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")


def _labels(shape=(3, 4, 5), high=4):
    return np.random.default_rng(0).integers(0, high, shape).astype(np.uint8)


@pytest.mark.parametrize("ending", VOLUME_ENDINGS)
def test_labels_and_oblique_geometry_survive(tmp_path, ending):
    path = tmp_path / f"case{ending}"
    write_labels(path, _labels(), OBLIQUE)
    volume = read_labels(path)
    assert volume.array.dtype == np.uint8
    np.testing.assert_array_equal(volume.array[0], _labels())
    np.testing.assert_allclose(volume.geometry.spacing_mm, OBLIQUE.spacing_mm, rtol=1e-6)
    np.testing.assert_allclose(volume.geometry.origin_mm, OBLIQUE.origin_mm, rtol=1e-6)
    np.testing.assert_allclose(volume.geometry.direction, OBLIQUE.direction, atol=1e-6)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("ending", VOLUME_ENDINGS)
def test_maps_survive(tmp_path, ending):
    values = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    write_map(tmp_path / f"map{ending}", values, OBLIQUE)
    np.testing.assert_array_equal(read_image([tmp_path / f"map{ending}"]).array[0], values)


@pytest.mark.parametrize("ending", [*VOLUME_ENDINGS, ".png", ".tif"])
def test_header_says_what_reading_says(tmp_path, ending):
    flat = ending in (".png", ".tif")
    geometry = Geometry(is_2d=True) if flat else OBLIQUE
    path = tmp_path / f"case{ending}"
    write_labels(path, _labels((1, 4, 5) if flat else (3, 4, 5)), geometry)
    volume = read_image([path])
    shape, from_header = read_header(path)
    assert shape == volume.array.shape
    assert from_header == volume.geometry


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd"])
def test_2d_medical_file_stays_2d(tmp_path, ending):
    geometry = Geometry((1.0, 0.4, 0.3), (5.0, 6.0, 0.0), is_2d=True)
    path = tmp_path / f"flat{ending}"
    write_labels(path, _labels((1, 4, 5)), geometry)
    assert sitk.ReadImage(str(path)).GetDimension() == 2
    volume = read_labels(path)
    assert volume.array.shape == (1, 1, 4, 5)
    assert geometry_differences(volume.geometry, geometry, (1, 4, 5)) == []
    np.testing.assert_array_equal(volume.array[0], _labels((1, 4, 5)))


def test_axes_are_z_y_x_and_agree_with_simpleitk(tmp_path):
    image = sitk.GetImageFromArray(np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    image.SetSpacing((0.1, 0.2, 0.3))
    image.SetOrigin((1, 2, 3))
    for ending in VOLUME_ENDINGS:
        sitk.WriteImage(image, str(tmp_path / f"a{ending}"))
        volume = read_image([tmp_path / f"a{ending}"])
        assert volume.array.dtype == np.float32
        assert volume.array.shape == (1, 2, 3, 4)
        assert volume.array[0, 1, 2, 3] == 23
        np.testing.assert_allclose(volume.geometry.spacing_mm, (0.3, 0.2, 0.1), rtol=1e-6)
        np.testing.assert_allclose(volume.geometry.origin_mm, (1, 2, 3))


def test_scaled_nifti_and_4d_channels(tmp_path):
    data = np.arange(2 * 3 * 4 * 2, dtype=np.int16).reshape(2, 3, 4, 2)  # (X, Y, Z, C)
    image = nibabel.Nifti1Image(data, np.eye(4))
    nibabel.save(image, tmp_path / "four.nii.gz")
    volume = read_image([tmp_path / "four.nii.gz"])
    assert volume.array.shape == (2, 4, 3, 2)
    assert read_header(tmp_path / "four.nii.gz")[0] == (2, 4, 3, 2)
    assert volume.array[1, 3, 2, 0] == data[0, 2, 3, 1]
    scaled = nibabel.Nifti1Image(data[..., 0].astype(np.float32) / 10 - 3, np.eye(4))
    scaled.header.set_data_dtype(np.int16)
    nibabel.save(scaled, tmp_path / "scaled.nii.gz")
    expected = data[..., 0].T / 10 - 3
    np.testing.assert_allclose(read_image([tmp_path / "scaled.nii.gz"]).array[0], expected, atol=1e-3)


def test_nearly_orthonormal_nifti_is_read_and_a_sheared_one_is_not(tmp_path):
    for shear, name in ((0.004, "nearly"), (0.2, "sheared")):
        affine = np.diag([1.0, 2.0, 3.0, 1.0])
        affine[0, 1] = shear * 2
        image = nibabel.Nifti1Image(np.ones((2, 3, 4), np.uint8), affine)
        image.set_qform(None, code=0)
        nibabel.save(image, tmp_path / f"{name}.nii.gz")
    geometry = read_image([tmp_path / "nearly.nii.gz"]).geometry
    matrix = np.reshape(geometry.direction, (3, 3))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-4)
    np.testing.assert_allclose(geometry.spacing_mm, (3, 2, 1), rtol=1e-3)
    with pytest.raises(UsdError, match="sheared grid") as caught:
        read_image([tmp_path / "sheared.nii.gz"])
    assert caught.value.__cause__ is not None
    assert "orthonormal" in str(caught.value.__cause__)


def test_pictures(tmp_path):
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (5, 7, 3), np.uint8)
    Image.fromarray(rgb).save(tmp_path / "rgb.png")
    volume = read_image([tmp_path / "rgb.png"])
    assert volume.array.shape == (3, 1, 5, 7)
    assert volume.geometry == Geometry(is_2d=True)
    np.testing.assert_array_equal(volume.array[:, 0], np.moveaxis(rgb, -1, 0))
    opaque = np.concatenate([rgb, np.full((5, 7, 1), 255, np.uint8)], axis=-1)
    Image.fromarray(opaque).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(read_image([tmp_path / "rgba.png"]).array, volume.array)
    for ending in (".bmp", ".tif"):
        Image.fromarray(rgb).save(tmp_path / f"rgb{ending}")
        np.testing.assert_array_equal(read_image([tmp_path / f"rgb{ending}"]).array, volume.array)
    Image.fromarray(np.full((5, 7), 200, np.uint8)).save(tmp_path / "grey.jpg")
    np.testing.assert_allclose(read_image([tmp_path / "grey.jpg"]).array, 200, atol=1)


def test_channel_files_are_concatenated_in_order(tmp_path):
    for i in range(3):
        write_labels(tmp_path / f"c_{i:04d}.png", np.full((1, 2, 3), i, np.uint8), Geometry(is_2d=True))
    array = read_image([tmp_path / f"c_{i:04d}.png" for i in (2, 0, 1)]).array
    assert array[:, 0, 0, 0].tolist() == [2, 0, 1]
    assert read_image([tmp_path / "c_0000.png"], num_channels=1).array.flags.c_contiguous
    with pytest.raises(UsdError, match=r"c_0000\.png holds 1 channel, but 3 channels are expected"):
        read_image([tmp_path / "c_0000.png"], num_channels=3)
    write_labels(tmp_path / "wide.png", np.zeros((1, 2, 4), np.uint8), Geometry(is_2d=True))
    with pytest.raises(UsdError, match=r"wide\.png has shape \(1, 2, 4\)"):
        read_image([tmp_path / "c_0000.png", tmp_path / "wide.png"])


def test_each_of_several_files_is_one_channel(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (4, 5), np.uint8)
    Image.fromarray(grey).save(tmp_path / "a_0000.png")
    Image.fromarray(np.dstack([grey] * 3)).save(tmp_path / "a_0001.png")  # grey, saved as colour
    Image.fromarray(np.dstack([grey, grey, grey // 2])).save(tmp_path / "b_0001.png")
    first = tmp_path / "a_0000.png"
    assert read_image([first, tmp_path / "a_0001.png"], 2).array.tolist() == [[grey.tolist()]] * 2
    assert read_image([tmp_path / "a_0001.png"], 1).array.shape == (1, 1, 4, 5)
    assert read_image([tmp_path / "a_0001.png"], 3).array.shape == (3, 1, 4, 5)
    with pytest.raises(UsdError, match=r"b_0001\.png holds 3 channels .* one of the 2 channels"):
        read_image([first, tmp_path / "b_0001.png"], 2)
    for name, shape in (("c_0000", (2, 3, 4)), ("c_0001", (2, 3, 4, 2))):  # a 4D file (b0 and b1000) as second channel
        nibabel.save(nibabel.Nifti1Image(np.ones(shape, np.float32), np.eye(4)), tmp_path / f"{name}.nii.gz")
    with pytest.raises(UsdError, match=r"c_0001\.nii\.gz holds 2 channels .* one of the 2 channels"):
        read_image([tmp_path / "c_0000.nii.gz", tmp_path / "c_0001.nii.gz"], 2)


def _flat(path, shape, spacing):
    """A file of the values 0, 1, ... whose axes (x, y, z) have the given sizes."""
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape[::-1])
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_a_plane_is_the_same_with_and_without_a_third_axis(tmp_path, ending):
    _flat(tmp_path / f"flat{ending}", (4, 3), (0.7, 0.8))
    _flat(tmp_path / f"last{ending}", (4, 3, 1), (0.7, 0.8, 5.0))
    _flat(tmp_path / f"first{ending}", (1, 4, 3), (5.0, 0.7, 0.8))
    _flat(tmp_path / f"coarse{ending}", (4, 3, 1), (0.7, 0.9, 5.0))
    flat, last, first, coarse = (read_labels(tmp_path / f"{n}{ending}") for n in ("flat", "last", "first", "coarse"))
    for image in (flat, last, first):
        for labels in (flat, last, first):
            moved = on_grid_of(labels, image)
            if labels.geometry.is_2d == image.geometry.is_2d:
                assert moved is labels
            else:
                assert moved.array.shape == image.array.shape
                assert moved.geometry == image.geometry
                assert moved.array.ravel().tolist() == list(range(12))
    assert on_grid_of(coarse, flat) is coarse
    assert read_image([tmp_path / f"last{ending}", tmp_path / f"flat{ending}"], 2).array.shape == (2, 1, 3, 4)
    with pytest.raises(UsdError, match="lies elsewhere"):
        read_image([tmp_path / f"flat{ending}", tmp_path / f"coarse{ending}"], 2)


def test_one_bit_and_equal_channel_masks(tmp_path):
    mask = np.array([[0, 1], [1, 0]], bool)
    Image.fromarray(mask).save(tmp_path / "bit.png")
    assert read_labels(tmp_path / "bit.png").array[0, 0].tolist() == [[0, 1], [1, 0]]
    same = np.repeat(mask[..., None].astype(np.uint8), 3, axis=-1)
    Image.fromarray(same).save(tmp_path / "same.png")
    assert read_labels(tmp_path / "same.png").array.shape == (1, 1, 2, 2)
    same[0, 0, 1] = 9
    Image.fromarray(same).save(tmp_path / "colour.png")
    with pytest.raises(UsdError, match="one value a voxel"):
        read_labels(tmp_path / "colour.png")


def test_tiff_stack_takes_its_spacing_from_the_json_beside_it(tmp_path):
    geometry = Geometry((4.0, 0.5, 0.5))
    write_labels(tmp_path / "case.tif", _labels(), geometry)
    volume = read_labels(tmp_path / "case.tif")
    np.testing.assert_array_equal(volume.array[0], _labels())
    assert volume.geometry == geometry
    shutil.copy(tmp_path / "case.tif", tmp_path / "case_0000.tif")  # the image of the case, same side file
    assert read_header(tmp_path / "case_0000.tif") == ((1, 3, 4, 5), geometry)


def test_float_labels(tmp_path):
    path = tmp_path / "l.nii.gz"
    write_map(path, np.array([[[0.0, 1.0, 300.0]]]), Geometry())
    labels = read_labels(path).array
    assert labels.dtype == np.int16
    assert labels.ravel().tolist() == [0, 1, 300]
    write_map(path, np.array([[[0.0, 255 * np.float32(1 / 255) + 1e-6]]]), Geometry())  # 8 bits that a header scales
    assert read_labels(path).array.ravel().tolist() == [0, 1]
    for value in (1.5, 0.9998):
        write_map(path, np.array([[[0.0, value]]]), Geometry())
        with pytest.raises(UsdError, match=rf"label value {value}"):
            read_labels(path)
    for value in (-1.0, 2e9, 1e30):
        write_map(path, np.array([[[0.0, value]]]), Geometry())
        with pytest.raises(UsdError, match=r"label value .*, allowed are whole numbers from 0 to 32767") as caught:
            read_labels(path)
        assert f"{value:g}" in str(caught.value)
    write_map(path, np.array([[[0.0, np.nan]]]), Geometry())
    with pytest.raises(UsdError, match="NaN"):
        read_labels(path)


def test_uncertainty_of_pictures_is_16_bit_with_a_scale(tmp_path):
    values = np.array([[[0.0, 0.25, 0.5, 1.0, 2.0]]])
    write_map(tmp_path / "u.png", values, Geometry(is_2d=True), scale=40000)
    stored = np.asarray(Image.open(tmp_path / "u.png"))
    assert stored.dtype == np.uint16
    assert stored.ravel().tolist() == [0, 10000, 20000, 40000, 65535]
    with pytest.raises(ValueError, match="map_ending"):
        write_map(tmp_path / "u.bmp", values, Geometry(is_2d=True))


def test_what_a_format_cannot_hold_is_refused(tmp_path):
    with pytest.raises(UsdError, match="JPEG"):
        write_labels(tmp_path / "l.jpg", _labels((1, 2, 3)), Geometry(is_2d=True))
    with pytest.raises(ValueError, match="one slice"):
        write_labels(tmp_path / "l.png", _labels(), Geometry())
    with pytest.raises(UsdError, match="no known ending"):
        write_labels(tmp_path / "l.txt", _labels(), Geometry())
    assert list(tmp_path.iterdir()) == []


def test_truncated_files_are_errors_and_never_filled_up(tmp_path):
    noise = np.random.default_rng(0).normal(size=(8, 16, 16)).astype(np.float32)
    for ending in (".nii.gz", ".nii", ".mha", ".nrrd"):
        whole, cut = tmp_path / f"whole{ending}", tmp_path / f"cut{ending}"
        write_map(whole, noise, Geometry())
        content = whole.read_bytes()
        cut.write_bytes(content[: len(content) // 2])
        with pytest.raises(UsdError, match=f"cut{ending}") as caught:
            read_image([cut])
        assert "copy or export it again" in str(caught.value)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    with pytest.raises(UsdError, match=r"cut\.png"):
        read_image([tmp_path / "cut.png"])


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mha", "a.png", "a.tif"])
def test_garbage_and_absent_files(tmp_path, name):
    with pytest.raises(UsdError, match="does not exist"):
        read_image([tmp_path / name])
    (tmp_path / name).write_bytes(b"this is no image")
    for reader in (lambda p: read_image([p]), read_labels, read_header):
        with pytest.raises(UsdError, match=name):
            reader(tmp_path / name)


def test_corrupt_gzip_content(tmp_path):
    path = tmp_path / "a.nii.gz"
    write_map(path, np.random.default_rng(0).normal(size=(8, 16, 16)), Geometry())
    content = bytearray(gzip.decompress(path.read_bytes()))
    packed = bytearray(gzip.compress(bytes(content)))
    packed[len(packed) // 2] ^= 0xFF
    path.write_bytes(packed)
    with pytest.raises(UsdError, match="truncated or damaged"):
        read_image([path])


@pytest.mark.parametrize("ending", VOLUME_ENDINGS)
def test_a_file_that_the_writer_cuts_short_is_a_full_disk(tmp_path, monkeypatch, ending):
    """ITK says nothing when the disk is full, and leaves what fitted on it."""
    original = sitk.WriteImage

    def cut(image, name, **options):
        original(image, name, **options)
        Path(name).write_bytes(Path(name).read_bytes()[:-30])

    target = tmp_path / f"case{ending}"
    write_labels(target, _labels(), OBLIQUE)
    before = target.read_bytes()
    monkeypatch.setattr(sitk, "WriteImage", cut)
    with pytest.raises(UsdError, match="No space left on device") as caught:
        write_labels(target, 1 - _labels(high=2), OBLIQUE)
    assert is_full_disk(caught.value)
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]


def test_endings():
    assert split_ending("case_0000.nii.gz") == ("case_0000", ".nii.gz")
    assert split_ending("CASE.PNG") == ("CASE", ".PNG")
    assert split_ending("a.b.tiff") == ("a.b", ".tiff")
    assert split_ending("readme.txt") == ("readme.txt", "")
    assert [label_ending(e) for e in (".jpg", ".png", ".nii.gz")] == [".png", ".png", ".nii.gz"]
    assert [map_ending(e) for e in (".bmp", ".png", ".mha")] == [".png", ".png", ".mha"]


def test_real_files_agree_with_simpleitk(raw_data: Path):
    for name in ("Dataset004_Hippocampus", "Dataset106_EMIDEC", "Dataset103_CovidCT"):
        path = sorted((raw_data / name / "imagesTr").iterdir())[0]
        image = sitk.ReadImage(str(path))
        volume = read_image([path])
        np.testing.assert_array_equal(volume.array[0], sitk.GetArrayFromImage(image).astype(np.float32))
        assert volume.geometry.spacing_mm == image.GetSpacing()[::-1]
        assert volume.geometry.origin_mm == image.GetOrigin()
        assert volume.geometry.direction == image.GetDirection()


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_maps_that_are_written_row_by_row_have_the_header_of_the_others(tmp_path, monkeypatch, ending: str) -> None:
    values = np.random.default_rng(0).random((37, 5, 4)).astype(np.float32)
    geometry = Geometry((2.0, 1.0, 1.5), (3.0, -4.0, 5.5), (0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, -1.0))
    write_map(tmp_path / f"whole{ending}", values, geometry)
    monkeypatch.setattr(images, "STREAMED_BYTES", 0)
    released = []
    write_map(tmp_path / f"rows{ending}", values[:, ::-1][:, ::-1], geometry, None, lambda: released.append(1))
    unpack = gzip.decompress if ending == ".nii.gz" else bytes
    assert unpack((tmp_path / f"rows{ending}").read_bytes()) == unpack((tmp_path / f"whole{ending}").read_bytes())
    assert released


def test_the_first_images_may_be_read_by_several_threads_at_once(tmp_path: Path) -> None:
    """The first call imports the reader, whose modules import each other in a circle."""
    geometry = Geometry((1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
    write_map(tmp_path / "a.nii.gz", np.zeros((2, 3, 4), np.float32), geometry)
    code = (
        "import sys, threading\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from pathlib import Path\n"
        "from unisegdiff_pipeline.io import images, nifti\n"
        "assert 'nibabel' not in sys.modules\n"
        "sys.setswitchinterval(1e-6)\n"
        "path, together = Path(sys.argv[1]), threading.Barrier(4)\n"
        "def read(number):\n"
        "    together.wait()\n"
        "    return images.read_image([path]).array.shape if number % 2 else nifti.header(path)[0]\n"
        "with ThreadPoolExecutor(4) as threads:\n"
        "    assert set(threads.map(read, range(4))) == {(1, 2, 3, 4)}\n"
    )
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.nii.gz")], check=True)
