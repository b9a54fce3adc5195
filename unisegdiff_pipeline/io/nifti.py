"""NIfTI files: header and voxels by nibabel and numpy, the geometry as SimpleITK sees it, else from the affine.

Voxels are not read by SimpleITK, because it fills the end of a truncated file with arbitrary values and says nothing.
The header is checked here before SimpleITK sees the file.
"""

from __future__ import annotations

import gzip
import itertools
import math
import struct
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.geometry import MAX_DISPLACEMENT_VOXELS, Geometry, Shape, Volume
from unisegdiff_pipeline.io import itk
from unisegdiff_pipeline.io.content import Content, open_content, read_exactly, require_end, skip
from unisegdiff_pipeline.io.declared import MAX_ORIGIN_MM, check_declared, nearest_rotation

_HEADER_BYTES = {348: 352, 540: 544}  # size of the header (NIfTI-1, NIfTI-2): with the flags of extensions after it
_MAX_EXTENSION_BYTES = 1 << 28  # between header and voxels
_DIM_OFFSET = 40  # of the numbers of voxels in a NIfTI-1 header
_SLICES_BETWEEN = 16
LARGEST_SIZE_ERROR = 0.01  # between the affine and pixdim, as a fraction
_MAX_TURN = 45.0  # degrees between an axis by sform and by qform: more is another axis, or the other way along it
_ROUNDED_TURN = 2e-3  # radians by which a quaternion in float32 may turn a grid, near half a turn
_MM_OF_UNIT = {"meter": 1000.0, "micron": 1e-3}
_loading = threading.Lock()


@dataclass(frozen=True)
class _Header:
    """What a header says; `shape` is (C, Z, Y, X), `file_shape` (X, Y, Z, ...) as in the file."""

    fields: Any
    shape: Shape
    file_shape: Shape
    dtype: np.dtype[Any]
    offset: int
    geometry: Geometry


def load_nibabel() -> None:
    """Import nibabel as a whole: its modules import each other in a circle, so that of two threads that begin at
    different ones each would meet modules of the other that are half loaded.
    """
    with _loading:
        import nibabel  # noqa: F401


def header(path: Path) -> tuple[Shape, Geometry]:
    """Shape (C, Z, Y, X) and geometry, checked."""
    with open_content(path) as content:
        found = _read_header(path, content)
    return found.shape, found.geometry


def lies_in_two_places(path: Path) -> bool:
    """Whether sform and qform of a header are both in use and place a corner of the grid differently.

    What rounding makes of a quaternion is no difference: near half a turn, as of slightly tilted scans that are stored
    from left to right, it moves the corner that lies farthest from the first voxel by half a voxel.
    """
    with open_content(path) as content:
        found = _read_header(path, content)
    qform, sform = _qform_beside_sform(found.fields), found.fields.get_sform()
    if qform is None:
        return False
    corners = np.array(list(itertools.product(*((0, size - 1) for size in (*found.file_shape, 1, 1)[:3])))).T
    apart_mm = np.linalg.norm((qform - sform)[:3] @ np.vstack([corners, np.ones(8)]), axis=0)
    from_first_mm = np.linalg.norm(sform[:3, :3] @ corners, axis=0)
    voxel_mm = np.linalg.norm(sform[:3, :3], axis=0).min()
    return bool((apart_mm >= MAX_DISPLACEMENT_VOXELS * voxel_mm + _ROUNDED_TURN * from_first_mm).any())


def read(path: Path, as_labels: bool) -> Volume:
    """Voxels (C, Z, Y, X) in the type of the file, or float32 where the header scales them."""
    load_nibabel()
    from nibabel.volumeutils import apply_read_scaling

    with open_content(path) as content:
        found = _read_header(path, content)
        skip(content, found.offset - _HEADER_BYTES[int(found.fields["sizeof_hdr"])])
        voxels = np.empty(math.prod(found.file_shape) * found.dtype.itemsize, np.uint8)
        read_exactly(content, voxels.data)
        require_end(path, content, found.file_shape, found.dtype.itemsize)
    array = voxels.view(found.dtype).reshape(found.file_shape[::-1])  # the first axis varies fastest
    if found.dtype.fields:
        array = _colours(path, array)
    slope, intercept = found.fields.get_slope_inter()
    if slope is not None and (slope, intercept) != (1, 0):  # unscaled voxels keep their integer type
        array = apply_read_scaling(array.astype(np.float32), np.float32(slope), np.float32(intercept))
    return Volume(array.reshape(found.shape), found.geometry)


# ------------------------------------------------------------------------------------------------------- headers


def _read_header(path: Path, content: Content) -> _Header:
    """Parse and check the header at the beginning of the content, the flags of extensions included."""
    load_nibabel()
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    block = bytearray(4)
    read_exactly(content, memoryview(block))
    sizes = {order: int.from_bytes(block, order) for order in ("little", "big")}
    order, size = next(((o, n) for o, n in sizes.items() if n in _HEADER_BYTES), ("little", 0))
    if not size:
        raise UsdError(f"{path} is no NIfTI file, whatever its name says; check where it comes from.")
    rest = bytearray(_HEADER_BYTES[size] - 4)
    read_exactly(content, memoryview(rest))
    block += rest
    kind = Nifti1Header if size == 348 else Nifti2Header
    fields: Any = kind(bytes(block[:size]), endianness="<" if order == "little" else ">", check=False)
    shape = _dimensions(path, fields)
    dtype = _voxel_type(path, fields)
    channels = math.prod(shape[3:]) * len(dtype.fields or (0,))
    x, y, z = (*shape[:3], 1, 1)[:3]
    offset = _voxel_offset(path, fields, _HEADER_BYTES[size])
    _check_forms(path, fields, shape)
    geometry = _geometry(path, fields, shape)
    result = _Header(fields, (channels, z, y, x), shape, dtype, offset, geometry)
    check_declared(path, result.shape, dtype.itemsize / len(dtype.fields or (0,)), geometry)
    return result


def _dimensions(path: Path, fields: Any) -> Shape:
    """(X, Y, Z, ...) as the header gives them."""
    count = int(fields["dim"][0])
    if not 1 <= count <= 7:
        raise UsdError(f"{path} declares {count} dimensions, allowed is 1 to 7; that is damaged, export it again.")
    shape = tuple(int(size) for size in fields["dim"][1 : count + 1])
    if min(shape) < 1:
        raise UsdError(f"{path} declares the shape {shape} (X, Y, Z, ...), so it holds no voxels; export it again.")
    return shape


def _voxel_type(path: Path, fields: Any) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = fields.get_data_dtype()
    except Exception:  # nibabel raises its own kinds for codes that it does not know
        dtype = np.dtype("V")
    if dtype.itemsize == 0 or dtype.kind not in "iufV":
        raise UsdError(
            f"{path} holds voxels of type {int(fields['datatype'])} ({dtype}), allowed are integers, real numbers and "
            "RGB; convert the image."
        )
    return dtype


def _voxel_offset(path: Path, fields: Any, first: int) -> int:
    offset = float(fields["vox_offset"])
    if offset == 0:  # "directly after the header"
        return first
    if not first <= offset <= first + _MAX_EXTENSION_BYTES:
        raise UsdError(f"{path} declares that its voxels begin at byte {offset:g}; that is damaged, export it again.")
    return int(offset)


def _colours(path: Path, array: np.ndarray) -> np.ndarray:
    """RGB or RGBA voxels (..., Z, Y, X) as (3, ..., Z, Y, X)."""
    names = [str(name) for name in array.dtype.names or ()]
    if len(names) == 4 and not (array[names[3]] == 255).all():
        raise UsdError(f"{path} has transparent voxels, which have no meaning here; save the image without alpha.")
    return np.stack([array[name] for name in names[:3]])


# ------------------------------------------------------------------------------------------------------ geometry


def _check_forms(path: Path, fields: Any, shape: Shape) -> None:
    """Refuse the values of the form in use that SimpleITK replaces silently or cannot digest."""
    axes = range(1, min(len(shape), 3) + 1)
    spacing = np.array([float(fields["pixdim"][axis]) for axis in axes if shape[axis - 1] > 1])
    valid_spacing = bool((spacing > 0).all() and np.isfinite(spacing).all())
    if int(fields["sform_code"]) > 0:
        matrix = np.stack([fields[f"srow_{axis}"] for axis in "xyz"]).astype(float)
        valid = bool((np.abs(matrix) <= MAX_ORIGIN_MM).all()) and np.linalg.det(matrix[:, :3]) != 0
        what = f"the affine (sform) is {matrix.round(6).tolist()}"
    elif int(fields["qform_code"]) > 0:
        quaternion = np.array([float(fields[f"quatern_{part}"]) for part in "bcd"])
        offset = np.array([float(fields[f"qoffset_{axis}"]) for axis in "xyz"])
        valid = valid_spacing and bool(np.isfinite(offset).all()) and bool((quaternion**2).sum() <= 1 + 1e-3)
        what = f"the qform has quaternion {quaternion.tolist()}, offset {offset.tolist()}, spacing {spacing.tolist()}"
    else:
        valid = valid_spacing
        what = f"there is no affine, and the spacing is {spacing.tolist()} mm (x, y, z)"
    if not valid:
        raise UsdError(f"{path} has no valid geometry: {what}; write the true affine into its header.")
    if int(fields["sform_code"]) > 0:
        _require_one_size(path, fields, matrix[:, :3], shape)
        _require_one_direction(path, fields, matrix[:, :3], shape)


def _require_one_size(path: Path, fields: Any, matrix: np.ndarray, shape: Shape) -> None:
    """Refuse an sform whose voxels are of another size than pixdim says: nibabel and most viewers go by the one,
    SimpleITK and nnU-Net by the other, and nothing tells which is true.
    """
    by_affine, by_pixdim = np.linalg.norm(matrix, axis=0), np.abs(np.array(fields["pixdim"][1:4], float))
    long = [axis for axis, size in enumerate(shape[:3]) if size > 1]
    if not (np.abs(by_pixdim - by_affine) <= LARGEST_SIZE_ERROR * by_affine)[long].all():
        raise UsdError(
            f"{path} says two sizes of its voxels (x, y, z): {by_affine.round(4).tolist()} by the affine (sform), "
            f"{by_pixdim.round(4).tolist()} by pixdim; programs take the one or the other. Where the affine is true, "
            f"save the image again by nibabel, nibabel.Nifti1Image(image.dataobj, image.affine); else write an affine "
            f"of the true size."
        )


def _require_one_direction(path: Path, fields: Any, matrix: np.ndarray, shape: Shape) -> None:
    """Refuse an sform and a qform that disagree in which way an axis points: SimpleITK takes now the one and now the
    other, so that left may become right.
    """
    qform = _qform_beside_sform(fields)
    if qform is None:
        return
    cosines = (
        (matrix * qform[:3, :3]).sum(axis=0) / np.linalg.norm(matrix, axis=0) / np.linalg.norm(qform[:3, :3], axis=0)
    )
    long = [axis for axis, size in enumerate(shape[:3]) if size > 1]
    if (cosines[long] < math.cos(math.radians(_MAX_TURN))).any():
        from nibabel.orientations import aff2axcodes

        by_affine, by_qform = ("".join(aff2axcodes(form)) for form in (fields.get_sform(), qform))
        raise UsdError(
            f"{path} says two directions of its axes x, y, z: {by_affine} by the affine (sform), {by_qform} by the "
            f"qform; programs take the one or the other. Where the affine is true, save the image again by nibabel, "
            f"nibabel.Nifti1Image(image.dataobj, image.affine); else write the true affine into both."
        )


def _qform_beside_sform(fields: Any) -> np.ndarray | None:
    """The affine (4, 4) of the qform of a header that uses sform and qform; None where one is not used or none."""
    if min(int(fields["sform_code"]), int(fields["qform_code"])) <= 0:
        return None
    header = fields.copy()
    header["pixdim"][1:4] = np.abs(header["pixdim"][1:4])
    try:
        qform: np.ndarray = header.get_qform()
    except Exception:  # nibabel raises its own kinds for quaternions that are none
        return None
    return qform if abs(np.linalg.det(qform)) > 0 else None


def _with_positive_sizes(fields: Any) -> bytes:
    """The bytes of a header; beside an sform, sizes of voxels are positive, where older converters mark flipped axes by
    negative ones, which SimpleITK would take over.
    """
    header = fields.copy()
    if int(header["sform_code"]) > 0:
        header["pixdim"][1:4] = np.abs(header["pixdim"][1:4])
    content: bytes = header.binaryblock
    return content


def _geometry(path: Path, fields: Any, shape: Shape) -> Geometry:
    try:
        # The header is all that SimpleITK needs, and by itself it is read in a third of the time; it goes by the name
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "header.nii"
            copy.write_bytes(_with_positive_sizes(fields) + bytes(4))
            return itk.information(copy)[1]
    except UsdError as cause:  # above all "only supports orthonormal direction cosines"
        try:
            scale = _MM_OF_UNIT.get(fields.get_xyzt_units()[0], 1.0)
            affine = np.diag([scale, scale, scale, 1.0]) @ fields.get_best_affine()
            return _affine_geometry(path, affine, is_2d=len(shape) == 2)
        except UsdError as error:
            raise error from cause


def _affine_geometry(path: Path, affine: np.ndarray, is_2d: bool) -> Geometry:
    """Geometry from nibabel's RAS affine in mm, with the directions made orthonormal where they nearly are.

    Raises:
        UsdError: no valid or a sheared grid, which spacing and rotation cannot describe.
    """
    matrix = np.diag([-1.0, -1.0, 1.0]) @ affine[:3, :3]  # RAS -> LPS
    spacing = np.linalg.norm(matrix, axis=0)
    direction = nearest_rotation(path, matrix / np.where(spacing > 0, spacing, 1.0))
    origin = np.diag([-1.0, -1.0, 1.0]) @ affine[:3, 3]
    z, y, x = spacing[::-1].tolist()
    return Geometry((z, y, x), tuple(origin.tolist()), tuple(direction.ravel().tolist()), is_2d=is_2d)


def write_rows(path: Path, array: np.ndarray, geometry: Geometry, release: Callable[[], None] | None = None) -> None:
    """Write (Z, Y, X) slice by slice, with the header that SimpleITK writes; no second array is made.

    Args:
        release: called now and then when slices are written and not needed in memory any more.
    """
    with tempfile.TemporaryDirectory() as folder:
        one_slice = Path(folder) / "slice.nii"
        itk.write(one_slice, array[:1], geometry)
        header = bytearray(one_slice.read_bytes()[: _HEADER_BYTES[348]])
    struct.pack_into("<8h", header, _DIM_OFFSET, 3, *array.shape[::-1], 1, 1, 1, 1)
    with open(path, "wb") as file:
        packed = gzip.GzipFile("", "wb", 6, file, mtime=0) if path.suffix.lower() == ".gz" else file
        packed.write(header)
        for number, values in enumerate(array):
            packed.write(np.ascontiguousarray(values).astype(array.dtype.newbyteorder("<"), copy=False).data)
            if release is not None and number % _SLICES_BETWEEN == 0:
                release()
        if packed is not file:
            packed.close()
