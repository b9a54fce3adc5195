"""Phantoms: the law holds in the files, and no threshold solves them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import file_hash
from unisegdiff_pipeline.demo.phantoms import (
    Blob,
    PhantomLesion,
    draw_raters,
    make_phantom_dataset,
    marking_probability,
    true_probability,
)
from unisegdiff_pipeline.io.images import read_image, read_labels
from unisegdiff_pipeline.io.integrity import check_case, merge_checks
from unisegdiff_pipeline.io.raw_dataset import open_raw_dataset

GRID = np.stack(np.meshgrid(np.arange(-15.0, 16.0), np.arange(-15.0, 16.0), indexing="ij"))


def _disc(centre=(0.0, 0.0), existence=1.0) -> PhantomLesion:
    return PhantomLesion(Blob(centre, 6.0, ()), contrast=0.2, existence=existence, boundary_sd_mm=2.0)


def test_distance_by_hand():
    distance = Blob((0.0, 0.0), 6.0, ()).distance_mm(GRID)
    assert distance[15, 15] == -6  # the centre
    assert distance[15, 21] == 0  # 6 mm off
    assert distance[18, 19] == -1  # 3 and 4 mm off, length 5
    wavy = Blob((0.0, 0.0), 6.0, ((0.5, math.pi / 2, (0.0, 0.0)),)).distance_mm(GRID)
    assert wavy[15, 24] == pytest.approx(0)  # sin(pi/2) = 1: the radius is 9 everywhere


def test_probability_by_hand():
    p = marking_probability([_disc(existence=0.8)], GRID)
    assert p[15, 21] == pytest.approx(0.4)  # on the mean boundary half of those who see the lesion
    assert p[15, 23] == pytest.approx(0.8 * 0.15865, rel=1e-3)  # one standard deviation outside
    twice = marking_probability([_disc(existence=0.8), _disc(existence=0.5)], GRID)
    assert twice[15, 21] == pytest.approx(1 - (1 - 0.4) * (1 - 0.25))
    assert marking_probability([], GRID).max() == 0


def test_raters_follow_the_law():
    lesions = [_disc(existence=0.7), _disc((9.0, 9.0))]
    draws = draw_raters(lesions, GRID, np.random.default_rng(0), num_raters=4000)
    difference = np.abs(draws.mean(axis=0) - marking_probability(lesions, GRID))
    assert difference.max() < 5 * math.sqrt(0.25 / 4000)


def test_files_of_a_data_set(phantom_2d: Path, phantom_3d: Path):
    for folder, shape in ((phantom_2d, (1, 48, 48)), (phantom_3d, (16, 32, 32))):
        raw = open_raw_dataset(folder)
        report = merge_checks(raw, [check_case(case, raw.description) for case in raw.cases])
        assert report.problems == ()
        assert report.warnings == ()
        assert all(len(case.rater_paths) == 4 for case in raw.cases)
        assert len(list((folder / "imagesTs").iterdir())) == len(list((folder / "labelsTs").iterdir())) > 0
        assert len(list((folder / "ratersTs").iterdir())) == 4 * len(list((folder / "imagesTs").iterdir()))
        for case in raw.cases:
            p = true_probability(folder, case.case_id)
            raters = np.stack([read_labels(path).array[0] for path in case.rater_paths])
            assert case.label_path is not None
            consensus = read_labels(case.label_path).array[0]
            assert p.shape == shape
            assert p.dtype == np.float32
            np.testing.assert_array_equal(consensus, raters.sum(axis=0) >= 2)
            assert raters[:, p < 1e-7].sum() == 0
    assert open_raw_dataset(phantom_3d).description.spacing_known
    assert read_image(open_raw_dataset(phantom_3d).cases[0].image_paths).geometry.spacing_mm == (1.5, 1.0, 1.0)


def test_every_eighth_case_is_without_lesion(phantom_2d: Path):
    raw = open_raw_dataset(phantom_2d)
    without = [case.case_id for case in raw.cases if true_probability(phantom_2d, case.case_id).max() == 0]
    assert without == ["phantom_0007"]


def test_same_arguments_give_the_same_files_and_are_kept(tmp_path):
    arguments = {"dims": 2, "num_train": 2, "num_test": 1, "seed": 5, "size": (24, 24)}
    first = make_phantom_dataset(tmp_path / "a", 900, **arguments)
    second = make_phantom_dataset(tmp_path / "b", 900, **arguments)
    names = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file() and path.suffix != ".npz")
    assert len(names) == 2 + 3 * (1 + 1 + 4)
    assert all(file_hash(first / name) == file_hash(second / name) for name in names)
    (first / "imagesTr" / "phantom_0000_0000.png").touch()
    assert make_phantom_dataset(tmp_path / "a", 900, **arguments) == first
    with pytest.raises(UsdError, match="holds something else"):
        make_phantom_dataset(tmp_path / "a", 900, **(arguments | {"seed": 6}))
    other = make_phantom_dataset(tmp_path / "c", 900, **(arguments | {"seed": 6}))
    image = Path("imagesTr") / "phantom_0000_0000.png"
    assert file_hash(other / image) != file_hash(first / image)


def test_wrong_arguments(tmp_path):
    for change in ({"dims": 4}, {"size": (24, 24, 24)}, {"size": (8, 24)}, {"num_train": 0}):
        with pytest.raises(ValueError, match=r"dims|size|num_train"):
            make_phantom_dataset(
                tmp_path, 900, **({"dims": 2, "num_train": 1, "num_test": 0, "seed": 0, "size": None} | change)
            )
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsdError, match="does not exist"):
        true_probability(tmp_path, "x")


@pytest.mark.parametrize(("dims", "num_cases", "reached"), [(2, 24, 0.85), (3, 4, 0.75)])
def test_no_threshold_reaches_dice_06_but_the_true_probability_does(tmp_path, dims, num_cases, reached):
    """At the default size; even the best threshold of each case by itself, in either direction, stays below."""
    folder = make_phantom_dataset(tmp_path, 900, dims, num_cases, num_test=0, seed=3)
    best, truth = [], []
    for case in open_raw_dataset(folder).cases:
        assert case.label_path is not None
        label = read_labels(case.label_path).array[0] > 0
        if not label.any():
            continue
        values = read_image(case.image_paths).array[0]
        best.append(
            max(
                _dice(side, label)
                for t in np.linspace(values.min(), values.max(), 30)
                for side in (values > t, values < t)
            )
        )
        truth.append(_dice(true_probability(folder, case.case_id) > 0.5, label))
    assert np.mean(best) < 0.6
    assert np.mean(truth) > reached


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())
