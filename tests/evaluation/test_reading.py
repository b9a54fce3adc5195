"""Files of one case: grids, formats of probabilities, and label maps kept as boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unisegdiff_pipeline.commands import evaluate
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.geometry import Geometry, Volume
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.evaluation.reading import (
    Probabilities,
    crop_geometry,
    read_mask,
    read_uncertainty,
)
from unisegdiff_pipeline.io.images import write_labels, write_map

BINARY = LabelScheme(("lesion",), ((1,),), "binary", (1,))
TWO = LabelScheme(("a", "b"), ((1,), (2,)), "softmax", (1, 2))
REGIONS = LabelScheme(("whole", "core"), ((1, 2), (2,)), "regions", (1, 2))
LIKE = Volume(np.zeros((1, 2, 3, 4), np.uint8), Geometry((3.0, 2.0, 1.0)))
FLAT = Volume(np.zeros((1, 1, 3, 4), np.uint8), Geometry(is_2d=True))


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("name", ["probabilities", "softmax"])
@pytest.mark.parametrize(
    ("scheme", "channels", "first"), [(BINARY, 1, 0), (BINARY, 2, 1), (TWO, 3, 1), (REGIONS, 2, 0)]
)
def test_channels_with_and_without_background(
    tmp_path: Path, name: str, scheme: LabelScheme, channels: int, first: int
) -> None:
    array = np.random.default_rng(0).random((channels, 2, 3, 4)).astype(np.float16)
    read = Probabilities(save(tmp_path / "case.npz", **{name: array}), scheme, LIKE)
    for index in range(len(scheme.names)):
        assert np.array_equal(read.of_class(index), array[first + index].astype(np.float32))


def test_pictures_of_16_bits_and_maps_of_real_numbers(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 12).reshape(1, 3, 4).astype(np.float32)
    write_map(tmp_path / "case.png", values, FLAT.geometry)
    assert Probabilities(tmp_path / "case.png", BINARY, FLAT).of_class(0) == pytest.approx(values, abs=1 / 65535)
    assert read_uncertainty(tmp_path / "case.png", FLAT) == pytest.approx(values, abs=1 / 65535)
    volume = np.random.default_rng(0).random((2, 3, 4)).astype(np.float32)
    write_map(tmp_path / "case.nii.gz", volume, LIKE.geometry)
    assert np.array_equal(Probabilities(tmp_path / "case.nii.gz", BINARY, LIKE).of_class(0), volume)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_uncertainty_that_is_no_number_is_refused(tmp_path: Path, value: float) -> None:
    array = np.zeros((2, 3, 4), np.float32)
    array[1, 2, 3] = value
    write_map(tmp_path / "case.nii.gz", array, LIKE.geometry)
    with pytest.raises(UsdError, match=r"case\.nii\.gz holds NaN or infinity"):
        read_uncertainty(tmp_path / "case.nii.gz", LIKE)


def test_2d_probabilities_may_leave_out_z(tmp_path: Path) -> None:
    array = np.full((1, 3, 4), 0.25)
    path = save(tmp_path / "case.npz", probabilities=array)
    assert Probabilities(path, BINARY, FLAT).of_class(0).shape == (1, 3, 4)


def test_what_half_precision_adds_to_one_is_clipped(tmp_path: Path) -> None:
    path = save(tmp_path / "case.npz", probabilities=np.full((1, 2, 3, 4), 1.0005))
    assert Probabilities(path, BINARY, LIKE).of_class(0).max() == 1


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 2, 3, 4)), r"holds 3 channels for 1 class\(es\) lesion; expected are 1 or 2"),
        (np.zeros((1, 4, 3, 2)), r"axes seem to be \(X, Y, Z\)"),
        (np.zeros((1, 2, 3, 5)), r"expected is \(K, Z, Y, X\)"),
        (np.full((1, 2, 3, 4), 7.0), "from 7 to 7; probabilities lie from 0 to 1"),
        (np.full((1, 2, 3, 4), np.nan), "nan"),
    ],
)
def test_unusable_probabilities(tmp_path: Path, array: np.ndarray, words: str) -> None:
    path = save(tmp_path / "case.npz", probabilities=array)
    with pytest.raises(UsdError, match=words):
        Probabilities(path, BINARY, LIKE).of_class(0)


def test_damaged_and_foreign_archives(tmp_path: Path) -> None:
    path = save(tmp_path / "case.npz", logits=np.zeros(3))
    with pytest.raises(UsdError, match="holds logits; expected is an array named probabilities or softmax"):
        Probabilities(path, BINARY, LIKE)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UsdError, match=r"case\.npz cannot be read"):
        Probabilities(path, BINARY, LIKE)


@pytest.mark.parametrize("at", [0.3, 0.5, 0.7])
def test_a_flipped_byte_is_named(tmp_path: Path, at: float) -> None:
    path = tmp_path / "case.npz"
    values = np.random.default_rng(0).random((1, 20, 30, 40)).astype(np.float16)
    np.savez_compressed(path, probabilities=values)
    content = path.read_bytes()
    place = int(at * len(content))
    path.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
    like = Volume(np.zeros((1, 20, 30, 40), np.uint8), Geometry())
    with pytest.raises(UsdError, match=r"case\.npz cannot be read, it is truncated or damaged"):
        Probabilities(path, BINARY, like)


def test_arrays_of_no_numbers_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "case.npz", probabilities=np.full((1, 2, 3, 4), "a"))
    with pytest.raises(UsdError, match="probabilities are real numbers"):
        Probabilities(path, BINARY, LIKE)


def test_a_sample_on_another_grid_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "case_sample00.nii.gz"
    write_labels(path, np.zeros((2, 3, 5), np.uint8), LIKE.geometry)
    with pytest.raises(UsdError, match=r"shape \(2, 3, 5\).* its reference \(2, 3, 4\)"):
        read_mask(path, BINARY, LIKE)
    write_labels(path, np.zeros((2, 3, 4), np.uint8), Geometry((3.0, 2.0, 1.5)))
    with pytest.raises(UsdError, match=r"another grid than its reference: spacing"):
        read_mask(path, BINARY, LIKE)


def test_the_origin_of_a_crop_lies_where_its_first_voxel_was() -> None:
    turned = (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0)  # x runs along +y, y along -x
    geometry = Geometry((5.0, 3.0, 2.0), (10.0, 20.0, 30.0), turned)
    assert crop_geometry(geometry, ((1, 2), (2, 4), (3, 9))).origin_mm == (10.0 - 2 * 3, 20.0 + 3 * 2, 30.0 + 5)


@pytest.mark.parametrize("own", [False, True])
def test_probabilities_of_other_programs_in_other_axes_than_their_mask_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], own: bool
) -> None:
    mask = np.zeros((4, 4, 4), np.uint8)
    mask[0, 1:3, 2:] = 1
    for folder in ("ref", "pred"):
        write_labels(tmp_path / folder / "case.nii.gz", mask, LIKE.geometry)
    probability = 0.1 + 0.8 * mask.astype(np.float32)
    arguments = [str(tmp_path / "ref"), str(tmp_path / "pred"), "--labels", "1", "--no-report", "--workers", "0"]
    save(tmp_path / "pred/case.npz", probabilities=np.stack([1 - probability, probability]))
    assert evaluate.main(arguments) == 0
    if own:  # of which the axes are known
        (tmp_path / "pred/manifest.json").write_text("{}")
    save(tmp_path / "pred/case.npz", probabilities=np.stack([1 - probability, probability])[..., ::-1])
    assert evaluate.main([*arguments, "-o", str(tmp_path / "out")]) == (0 if own else 1)
    said = " ".join(capsys.readouterr().err.split())
    assert ("case.npz holds the axes in another order or direction than the mask case.nii.gz" in said) is not own
