"""Headers that declare what cannot be, data that are not what the header says, and compression under another name."""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.quaternions import quat2mat

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.io.images import read_header, read_image, read_labels, write_labels
from unisegdiff_pipeline.io.nifti import lies_in_two_places

GEOMETRY = Geometry((3.0, 2.0, 1.5), (4.0, 5.0, 6.0))
LABELS = np.random.default_rng(0).integers(0, 3, (5, 6, 7)).astype(np.uint8)
READERS = (read_header, read_labels, lambda path: read_image([path]))


def nifti(path: Path, **fields) -> Path:
    """A good NIfTI file in which header fields are replaced."""
    write_labels(path, LABELS, GEOMETRY)
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".gz" else content
    header = nibabel.Nifti1Header(content[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    content = header.binaryblock + content[348:]
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def text_header(path: Path, pattern: str, replacement: str, compressed: bool = False) -> Path:
    """A good MHA or NRRD file in which one line of the header is replaced."""
    image = sitk.GetImageFromArray(LABELS)
    sitk.WriteImage(image, str(path), useCompression=compressed)
    changed, count = re.subn(pattern.encode(), replacement.encode(), path.read_bytes(), count=1)
    assert count == 1
    path.write_bytes(changed)
    return path


def refused(path: Path, message: str, readers=READERS) -> None:
    for reader in readers:
        with pytest.raises(UsdError, match=message) as caught:
            reader(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    "fields",
    [
        {"srow_x": [np.nan] * 4},
        {"srow_x": [0] * 4},  # determinant 0
        {"srow_x": [1e30, 0, 0, 0]},
        {"sform_code": 0, "qform_code": 1, "pixdim": [1, -1.5, 2, 3, 1, 1, 1, 1]},
        {"sform_code": 0, "qform_code": 1, "quatern_b": np.nan},
        {"sform_code": 0, "qform_code": 0, "pixdim": [1, -1.5, 2, 3, 1, 1, 1, 1]},
        {"sform_code": 0, "qform_code": 0, "pixdim": [1, 1.5, 0, 3, 1, 1, 1, 1]},
        {"sform_code": 0, "qform_code": 0, "pixdim": [1, 1e30, 2, 3, 1, 1, 1, 1]},
    ],
)
def test_a_nifti_geometry_that_is_none(tmp_path, ending, fields):
    refused(nifti(tmp_path / f"a{ending}", **fields), "has no valid geometry.*write the true")


def with_two_forms(path: Path, turn: np.ndarray) -> Path:
    """A NIfTI image whose qform is the affine `turn` after that of the sform, which a registration has written."""
    image = nibabel.Nifti1Image(LABELS, np.diag([2, 3, 4, 1]))
    image.set_sform(image.affine, 2)
    image.set_qform(turn @ image.affine, 1)
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("turn", [np.diag([-1, 1, 1, 1]), np.diag([-1, -1, 1, 1]), np.eye(4)[[1, 0, 2, 3]]])
@pytest.mark.parametrize("shift_mm", [0, 5])  # SimpleITK takes the sform without a shift, and the qform with one
def test_two_affines_that_disagree_on_left_and_right_are_refused(tmp_path, turn, shift_mm):
    turn = turn.astype(float)
    turn[:3, 3] = shift_mm
    refused(
        with_two_forms(tmp_path / "a.nii", turn), r"two directions of its axes x, y, z: RAS by the affine \(sform\)"
    )
    image = nibabel.load(tmp_path / "a.nii")
    nibabel.save(nibabel.Nifti1Image(image.dataobj, image.affine), tmp_path / "b.nii")  # as the message says
    assert read_header(tmp_path / "b.nii")[1].orientation == "RAS"


def test_two_affines_of_which_one_lies_elsewhere_are_read_and_noticed(tmp_path):
    for shift_mm, noticed in ((0.1, False), (5, True)):
        turn = np.eye(4)
        turn[0, 3] = shift_mm
        path = with_two_forms(tmp_path / f"{shift_mm}.nii", turn)
        assert read_header(path)[1].orientation == "RAS"
        assert lies_in_two_places(path) is noticed


def test_what_rounding_makes_of_a_quaternion_near_half_a_turn_is_not_noticed(tmp_path: Path) -> None:
    """Axial scans as dcm2niix stores them (x to the left), tilted by what a patient's head is."""
    rng = np.random.default_rng(0)
    path = tmp_path / "a.nii"
    moved_mm = []
    for degrees in (0.05, 0.1, 0.2, 0.4, 1.0) * 4:
        axis = rng.normal(size=3)
        a, (b, c, d) = np.cos(np.radians(degrees) / 2), np.sin(np.radians(degrees) / 2) * axis / np.linalg.norm(axis)
        affine = np.eye(4)
        affine[:3, :3] = quat2mat((a, b, c, d)) @ np.diag([-0.5, 0.5, 0.7])
        image = nibabel.Nifti1Image(np.zeros((512, 512, 2), np.uint8), affine)
        image.set_qform(affine, 1)
        image.set_sform(affine, 1)
        nibabel.save(image, path)
        assert not lies_in_two_places(path)
        moved_mm.append(np.abs((image.get_qform() - image.get_sform()) @ (511, 511, 1, 1)).max())
    assert max(moved_mm) > 0.1 * 0.5


@pytest.mark.parametrize("pixdim", [(1, 1, 1), (2, 3, 4.1), (0, 3, 4), (np.nan, 3, 4), (-1, 3, 4)])
def test_an_affine_and_a_pixdim_of_two_sizes_are_refused(tmp_path: Path, pixdim: tuple[float, ...]) -> None:
    image = nibabel.Nifti1Image(LABELS, np.diag([2, 3, 4, 1]))
    image.set_qform(None, 0)
    image.header["pixdim"][1:4] = pixdim
    nibabel.save(image, tmp_path / "a.nii")
    refused(
        tmp_path / "a.nii", r"two sizes of its voxels \(x, y, z\): \[2\.0, 3\.0, 4\.0\] by the affine.* save the image"
    )
    nibabel.save(nibabel.Nifti1Image(image.dataobj, image.affine), tmp_path / "b.nii")  # as the message says
    assert read_header(tmp_path / "b.nii")[1].spacing_mm == (4, 3, 2)


def test_a_pixdim_that_marks_a_flipped_axis_by_its_sign_is_taken(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(LABELS, np.diag([-2, 3, 4, 1]))
    image.set_qform(None, 0)
    image.header["pixdim"][1:4] = (-2, 3, 4)
    nibabel.save(image, tmp_path / "a.nii")
    assert read_header(tmp_path / "a.nii")[1].spacing_mm == (4, 3, 2)


def test_pixdim_may_be_rounded_and_its_axes_of_one_voxel_are_anything(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(LABELS[:, :, :1], np.diag([2, 3, 4, 1]))
    image.header["pixdim"][1:4] = 2.01, 3, 9
    nibabel.save(image, tmp_path / "a.nii")
    assert read_header(tmp_path / "a.nii")[1].spacing_mm[1:] == pytest.approx((3, 2.01))


@pytest.mark.parametrize(
    ("ending", "pattern", "replacement"),
    [
        (".mha", "ElementSpacing = 1 1 1", "ElementSpacing = 1 1 1e30"),
        (".mha", "ElementSpacing = 1 1 1", "ElementSpacing = 1 1 nan"),
        (".mha", "Offset = 0 0 0", "Offset = 0 0 1e30"),
        (".mha", "TransformMatrix = 1 0 0 0 1 0", "TransformMatrix = 1 0 0 1 0 0"),
        (".nrrd", r"\(0,0,1\)", "(0,0,1e30)"),
        (".nrrd", r"\(0,0,1\)", "(0,1,0)"),
        (".nrrd", r"space origin: \(0,0,0\)", "space origin: (0,nan,0)"),
    ],
)
def test_an_itk_geometry_that_is_none(tmp_path, ending, pattern, replacement):
    refused(text_header(tmp_path / f"a{ending}", pattern, replacement), "valid geometry|sheared|cannot be read")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": [3, 0, 6, 5, 1, 1, 1, 1]}, r"shape \(0, 6, 5\).*no voxels"),
        ({"dim": [3, -7, 6, 5, 1, 1, 1, 1]}, "no voxels"),
        ({"dim": [99, 7, 6, 5, 1, 1, 1, 1]}, "99 dimensions, allowed is 1 to 7"),
        ({"datatype": 32, "bitpix": 64}, "type 32 .*convert"),  # complex
        ({"datatype": 77}, "type 77"),
        ({"vox_offset": np.nan}, "begin at byte nan"),
        ({"vox_offset": 1e30}, "begin at byte 1e"),
        ({"sizeof_hdr": 5}, "no NIfTI file"),
        ({"dim": [3, 30000, 30000, 30000, 1, 1, 1, 1]}, "cannot be held by its"),
    ],
)
def test_nifti_headers_that_cannot_be(tmp_path, fields, message):
    refused(nifti(tmp_path / "a.nii", **fields), message)


@pytest.mark.parametrize(
    ("ending", "pattern", "replacement", "message"),
    [
        (".mha", "NDims = 3", "NDims = 99999999", "NDims is '99999999', allowed is 2 to 4"),  # ends the interpreter
        (".mha", "DimSize = 7 6 5", "DimSize = 7 6", "DimSize is '7 6', expected are 3"),
        (".mha", "DimSize = 7 6 5", "DimSize = 7 0 5", "holds no voxels"),
        (".mha", "MET_UCHAR", "MET_STRING", "ElementType is 'MET_STRING'"),
        (".mha", "LOCAL", "other.raw", "keeps its voxels in another place"),
        (".mha", "BinaryData = True", "BinaryData = False", "stores its voxels as text"),
        (".nrrd", "dimension: 3", "dimension: 99999999", "dimension is '99999999', allowed is 2 to 5"),
        (".nrrd", "sizes: 7 6 5", "sizes: 7 -6 5", "sizes is '7 -6 5'"),
        (".nrrd", "type: unsigned char", "type: block", "type is 'block'"),
        (
            ".nrrd",
            "encoding",
            'space units: "microns" "microns" "microns"\nencoding',
            "units is 'microns', but sizes are",
        ),
        (".nrrd", "encoding", 'units: "\u00b5m" "\u00b5m" "\u00b5m"\nencoding', "units is '\u00b5m', but sizes are"),
        (".nrrd", "encoding", "data file: /etc/hostname\nencoding", "keeps its voxels in another place"),
    ],
)
def test_mha_and_nrrd_headers_that_cannot_be(tmp_path, ending, pattern, replacement, message):
    refused(text_header(tmp_path / f"a{ending}", pattern, replacement), message)


def test_an_nrrd_in_mm_or_without_a_unit_is_read(tmp_path):
    for number, unit in enumerate(("mm", "", "pixel")):
        text = f'space units: "{unit}" "{unit}" "{unit}"\nencoding'
        path = text_header(tmp_path / f"{number}.nrrd", "encoding", text)
        np.testing.assert_array_equal(read_labels(path).array[0], LABELS)


def test_gipl_headers_that_cannot_be(tmp_path):
    good = tmp_path / "good.gipl"
    sitk.WriteImage(sitk.GetImageFromArray(LABELS), str(good))
    np.testing.assert_array_equal(read_labels(good).array[0], LABELS)
    for place, value, message in ((0, 0, "no voxels"), (8, 99, "type 99"), (252, 0, "no GIPL file")):
        content = bytearray(good.read_bytes())
        content[place : place + 2] = struct.pack(">H", value)
        bad = tmp_path / "bad.gipl"
        bad.write_bytes(content)
        refused(bad, message)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mha", ".nrrd", ".gipl"])
def test_data_that_are_shorter_or_longer_than_the_header_says(tmp_path, ending):
    """A GIPL file that was cut short was filled up with whatever lay in memory; a wrong size loses slices."""
    path = tmp_path / f"a{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(LABELS + 1), str(path))
    content = path.read_bytes()
    plain = gzip.decompress(content) if ending == ".nii.gz" else content
    for changed, message in (
        (plain[:-42], "truncated or damaged"),  # a slice of 6 x 7 voxels
        (plain + bytes([1]) * 42, "more data than the shape in its header"),
    ):
        path.write_bytes(gzip.compress(changed) if ending == ".nii.gz" else changed)
        refused(path, message, READERS[1:])
    path.write_bytes(gzip.compress(plain + bytes(10)) if ending == ".nii.gz" else plain + bytes(10))
    np.testing.assert_array_equal(read_labels(path).array[0], LABELS + 1)  # a few bytes are padding


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_compressed_data_are_counted(tmp_path, ending):
    old, new = ("DimSize = 7 6 5", "DimSize = 7 6 6") if ending == ".mha" else ("sizes: 7 6 5", "sizes: 7 6 6")
    refused(text_header(tmp_path / f"a{ending}", old, new, compressed=True), "truncated or damaged", READERS[1:])
    fewer = text_header(tmp_path / f"a{ending}", old, new[:-1] + "4", compressed=True)
    refused(fewer, "more data than the shape", READERS[1:])


def test_a_wrong_size_of_compressed_data_is_refused(tmp_path):
    path = text_header(tmp_path / "a.mha", r"CompressedDataSize = \d+", "CompressedDataSize = 20", compressed=True)
    refused(path, "CompressedDataSize in its header is 20")


def test_a_stream_is_not_decompressed_beyond_the_header(tmp_path):
    """Zero bytes behind the voxels are padding, at any length, and are not read to their end."""
    path = nifti(tmp_path / "a.nii")
    packer = zlib.compressobj(wbits=31)
    bomb = packer.compress(path.read_bytes()) + b"".join(packer.compress(bytes(1 << 20)) for _ in range(64))
    target = tmp_path / "bomb.nii.gz"
    target.write_bytes(bomb)  # without an end: reading so far would be an error
    np.testing.assert_array_equal(read_labels(target).array[0], LABELS)


def test_compression_goes_by_content_not_by_name(tmp_path):
    plain, compressed = tmp_path / "plain.nii.gz", tmp_path / "compressed.nii"
    write_labels(plain, LABELS, GEOMETRY)
    packed = plain.read_bytes()
    raw = gzip.decompress(packed)
    plain.write_bytes(raw)
    compressed.write_bytes(packed)
    members, zeros = tmp_path / "members.nii.gz", tmp_path / "zeros.nii.gz"
    members.write_bytes(gzip.compress(raw[:100]) + gzip.compress(raw[100:400]) + bytes(7) + gzip.compress(raw[400:]))
    zeros.write_bytes(packed + bytes(512))
    for path in (plain, compressed, members, zeros):
        volume = read_labels(path)
        np.testing.assert_array_equal(volume.array[0], LABELS)
        np.testing.assert_allclose(volume.geometry.spacing_mm, GEOMETRY.spacing_mm)
        np.testing.assert_allclose(volume.geometry.origin_mm, GEOMETRY.origin_mm)
        assert read_header(path) == ((1, 5, 6, 7), volume.geometry)


@pytest.mark.parametrize("forms", [(0, 0), (0, 1), (1, 0)])
def test_a_misnamed_file_has_the_geometry_that_it_has_under_its_right_name(tmp_path, forms):
    right = nifti(tmp_path / "a.nii", sform_code=forms[0], qform_code=forms[1])
    wrong = tmp_path / "a.nii.gz"
    wrong.write_bytes(right.read_bytes())
    assert read_header(wrong) == read_header(right)


def test_micrometres_are_converted_for_a_grid_that_simpleitk_refuses(tmp_path):
    rows = {"srow_x": [1.0, 0.004, 0, 0], "srow_y": [0, 1.0, 0, 0], "srow_z": [0, 0, 1, 0]}
    path = nifti(tmp_path / "a.nii", xyzt_units=3, qform_code=0, pixdim=[1] * 8, **rows)
    np.testing.assert_allclose(read_header(path)[1].spacing_mm, (1e-3, 1e-3, 1e-3), rtol=1e-3)


def test_rgb_voxels(tmp_path):
    colours = np.zeros((2, 3, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    colours["G"][1, 2, 3] = 9
    nibabel.save(nibabel.Nifti1Image(colours, np.eye(4)), tmp_path / "a.nii.gz")
    image = read_image([tmp_path / "a.nii.gz"]).array
    assert image.shape == (3, 4, 3, 2) == read_header(tmp_path / "a.nii.gz")[0]
    assert image[1, 3, 2, 1] == 9
    assert image.sum() == 9
