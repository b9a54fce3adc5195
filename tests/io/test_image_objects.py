"""Images in memory: their axes, spacings and channels, by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.geometry import Geometry, Volume
from unisegdiff_pipeline.io.image_objects import is_path, volume_of
from unisegdiff_pipeline.io.images import read_image

XYZ = np.arange(24.0, dtype=np.float32).reshape(2, 3, 4)  # value 12 x + 4 y + z


def test_nibabel_is_turned_from_x_y_z() -> None:
    volume = volume_of(nibabel.Nifti1Image(XYZ, np.diag([1.0, 2.0, 3.0, 1.0])))
    assert volume.array.shape == (1, 4, 3, 2)
    assert volume.array[0, 3, 2, 1] == 12 * 1 + 4 * 2 + 3
    assert volume.geometry.spacing_mm == (3.0, 2.0, 1.0)
    assert volume.geometry.orientation == "RAS"


@pytest.mark.parametrize("name", ["scaled.nii", "scaled.nii.gz"])
def test_scaled_voxels_of_nibabel_are_those_of_the_file(tmp_path: Path, name: str) -> None:
    image = nibabel.Nifti1Image(0.37 * XYZ + 11, np.diag([-1.0, 1.0, 2.5, 1.0]))
    image.header.set_data_dtype(np.int16)  # saved, it is scaled by the largest value
    nibabel.save(image, tmp_path / name)
    loaded = nibabel.load(tmp_path / name)
    assert loaded.dataobj.slope != 1
    volume, file = volume_of(loaded), read_image([tmp_path / name])
    np.testing.assert_array_equal(volume.array, file.array)
    assert volume.geometry == file.geometry


def test_colours_of_nibabel_are_channels() -> None:
    colours = np.zeros((2, 3, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    colours["G"] = 7
    assert volume_of(nibabel.Nifti1Image(colours, np.eye(4))).array[:, 0, 0, 0].tolist() == [0, 7, 0]


def test_other_formats_of_nibabel() -> None:
    image = nibabel.MGHImage(XYZ, np.diag([1.0, 2.0, 3.0, 1.0]))
    volume = volume_of(image)
    np.testing.assert_array_equal(volume.array[0].T, XYZ)
    assert volume.geometry.spacing_mm == (3.0, 2.0, 1.0)


def test_simpleitk_has_channels_or_frames() -> None:
    image = SimpleITK.GetImageFromArray(np.zeros((4, 3, 2, 5), np.float32), isVector=True)
    image.SetSpacing((1.0, 2.0, 3.0))
    volume = volume_of(image)
    assert volume.array.shape == (5, 4, 3, 2)
    assert volume.geometry.spacing_mm == (3.0, 2.0, 1.0)
    assert volume.geometry.orientation == "LPS"
    flat = volume_of(SimpleITK.GetImageFromArray(np.zeros((3, 2), np.uint8)))
    assert flat.array.shape == (1, 1, 3, 2)
    assert flat.geometry.is_2d


def test_a_list_is_one_image_for_each_channel() -> None:
    channels = [np.full((2, 3), value) for value in (1, 2)]
    volume = volume_of(channels, (1.0, 0.5))
    assert volume.array[:, 0, 0, 0].tolist() == [1.0, 2.0]
    assert volume.geometry == Geometry((1.0, 1.0, 0.5), is_2d=True)
    elsewhere = Volume(np.zeros((1, 1, 2, 3)), Geometry((1.0, 1.0, 0.5), (9.0, 0.0, 0.0), is_2d=True))
    with pytest.raises(UsdError, match="image 1 of the list lies elsewhere than the first one: origin"):
        volume_of([Volume(np.zeros((1, 1, 2, 3)), volume.geometry), elsewhere])
    with pytest.raises(UsdError, match="image 0 of the list has 2 channels"):
        volume_of([volume])


def test_what_lies_in_files() -> None:
    assert is_path("a.png")
    assert is_path([Path("a"), "b"])
    assert not is_path([])
    assert not is_path([np.zeros(2), "b"])


def test_arrays_import_no_reader() -> None:
    code = (
        "import sys, numpy as np; from unisegdiff_pipeline.io.image_objects import volume_of; "
        "volume_of(np.zeros((1, 2, 2)), (1, 1)); print({'SimpleITK', 'nibabel'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
