"""Facts of cases and data sets, by hand on small label maps and end to end on phantoms."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.geometry import IDENTITY_DIRECTION, Geometry
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.serialization import read_dataclass, write_json
from unisegdiff_pipeline.fingerprint import (
    CaseFingerprint,
    Fingerprint,
    _sample_intensities,
    centre_of_mask,
    component_facts,
    extract_fingerprint,
    read_fingerprint,
    summarize_lesions,
    write_fingerprint,
)
from unisegdiff_pipeline.io.images import write_labels, write_map
from unisegdiff_pipeline.io.raw_dataset import open_raw_dataset

BINARY = LabelScheme(("lesion",), ((1,),), "binary", (1,))
REGIONS = LabelScheme(("whole", "core"), ((1, 2), (2,)), "regions", (1, 2))


def picture(*rows: str) -> np.ndarray:
    """A 2D label map (1, Y, X) from digits."""
    return np.array([[[int(c) for c in row] for row in rows]], np.uint8)


def test_components_touch_by_corners_too() -> None:
    labels = picture(
        "1100000",
        "1100000",
        "0010001",
        "0000000",
    )
    (facts,) = component_facts(labels, BINARY, (1.0, 2.0, 3.0))
    assert (facts.count, facts.voxels) == (2, 6)
    assert facts.volumes_mm3 == (30.0, 6.0)


def test_thickness_of_a_bar_is_its_short_side() -> None:
    labels = np.zeros((1, 20, 20), np.uint8)
    labels[0, 4:10, 2:18] = 1  # 6 x 16 pixels of 0.5 mm
    (facts,) = component_facts(labels, BINARY, (1.0, 0.5, 0.5))
    assert facts.thickness_mm == (3.0,)


def test_thickness_in_3d_uses_all_axes_and_the_border_of_the_image() -> None:
    labels = np.ones((2, 20, 20), np.uint8)
    (facts,) = component_facts(labels, BINARY, (5.0, 1.0, 1.0))
    assert facts.thickness_mm == (10.0,)  # two slices of 5 mm, one slice from the outside on either side


def test_foreground_that_fills_a_picture() -> None:
    (facts,) = component_facts(np.ones((1, 8, 6), np.uint8), BINARY, (1.0, 1.0, 1.0))
    assert (facts.count, facts.volumes_mm3, facts.thickness_mm) == (1, (48.0,), (6.0,))


def test_regions_are_measured_as_such() -> None:
    whole, core = component_facts(picture("11022", "11022", "00000"), REGIONS, (1.0, 1.0, 1.0))
    assert (whole.voxels, whole.count) == (8, 2)
    assert (core.voxels, core.count) == (4, 1)


def test_centre_of_a_class_by_hand() -> None:
    mask = np.zeros((4, 6, 8), bool)
    mask[2, 3, 5:8] = mask[3, 3, 6] = True
    assert centre_of_mask(mask) == [2.25, 3.0, 6.0]
    assert np.isnan(centre_of_mask(np.zeros((4, 6, 8), bool))).all()


def test_absent_class_has_no_components() -> None:
    (facts,) = component_facts(picture("000"), BINARY, (1.0, 1.0, 1.0))
    assert (facts.count, facts.volumes_mm3, facts.thickness_mm) == (0, (), ())


def case_of(case_id: str, *maps: np.ndarray) -> CaseFingerprint:
    facts = [component_facts(m, BINARY, (1.0, 1.0, 1.0)) for m in maps]
    shape = maps[0].shape
    return CaseFingerprint(case_id, None, shape, (1.0, 1.0, 1.0), shape, 0.1, False, facts[0], tuple(facts[1:]))


def test_summary_counts_the_maps_of_raters_where_there_are_some() -> None:
    one, none, two = picture("1000", "0000"), picture("0000", "0000"), picture("1001", "0000")
    (summary,) = summarize_lesions([case_of("a", one), case_of("b", none, two, none, none)], ("lesion",))
    assert summary.fraction_of_maps == 0.5  # one of case a, one of three raters of case b
    assert summary.components_per_map is not None
    assert summary.components_per_map.p50 == 1.5
    assert summary.foreground_fraction == pytest.approx((1 + 2) / 8 / 4)


def test_specks_do_not_count_for_the_main_thickness() -> None:
    labels = np.zeros((1, 30, 30), np.uint8)
    labels[0, 2:12, 2:12] = 1
    labels[0, 20, [0, 5, 10, 15, 20, 25]] = 1
    (summary,) = summarize_lesions([case_of("a", labels)], ("lesion",))
    assert summary.thickness_mm is not None
    assert summary.main_thickness_mm is not None
    assert summary.thickness_mm.p50 == 2.0
    assert summary.main_thickness_mm.p50 == 10.0


def test_2d_phantoms_end_to_end(phantom_2d: Path, tmp_path: Path) -> None:
    raw = open_raw_dataset(phantom_2d)
    fingerprint, report = extract_fingerprint(raw, workers=0)
    assert report.problems == ()
    assert fingerprint.is_2d
    assert [case.case_id for case in fingerprint.cases] == [case.case_id for case in raw.cases]
    assert all(len(case.raters) == 4 for case in fingerprint.cases)
    assert {c.case_id for c in fingerprint.cases if c.empty} == set(report.empty_cases)
    file = tmp_path / "fingerprint.json"
    write_json(file, fingerprint)
    assert read_dataclass(Fingerprint, file) == fingerprint


@pytest.mark.parametrize("small_bytes", [0, 10**9], ids=["processes", "threads"])
def test_workers_do_not_change_the_facts(phantom_3d: Path, monkeypatch: pytest.MonkeyPatch, small_bytes: int) -> None:
    monkeypatch.setattr("unisegdiff_pipeline.fingerprint.SMALL_BYTES", small_bytes)
    raw = open_raw_dataset(phantom_3d)
    alone, _ = extract_fingerprint(raw, workers=0)
    shared, _ = extract_fingerprint(raw, workers=2)
    assert alone == shared
    assert not alone.is_2d


def test_cases_with_problems_are_reported_and_left_out(phantom_2d: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / phantom_2d.name
    shutil.copytree(phantom_2d, folder)
    broken = sorted((folder / "imagesTr").iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:60])
    fingerprint, report = extract_fingerprint(open_raw_dataset(folder), workers=0)
    assert len(fingerprint.cases) == 11
    assert any(broken.name in problem.file for problem in report.problems)


def test_all_problems_are_named_where_no_case_is_usable(phantom_2d: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / phantom_2d.name
    shutil.copytree(phantom_2d, folder)
    images = sorted((folder / "imagesTr").iterdir())
    for path in images:
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UsdError) as error:
        extract_fingerprint(open_raw_dataset(folder), workers=0)
    assert all(str(path) in str(error.value) for path in images)
    assert f"{len(images)} problems in {folder}" in str(error.value)


def made_dataset(root: Path, cases: Mapping[str, tuple[np.ndarray, np.ndarray]], **more: Any) -> Path:
    """A raw data set of ultrasound pictures: case => image and labels (Y, X); `more` goes into its dataset.json."""
    from PIL import Image

    folder = root / "Dataset001_Made"
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir(parents=True)
    for case, (image, labels) in cases.items():
        Image.fromarray(image).save(folder / "imagesTr" / f"{case}_0000.png")
        Image.fromarray(labels).save(folder / "labelsTr" / f"{case}.png")
    description = {"channel_names": {"0": "US"}, "labels": {"background": 0, "lesion": 1}, "numTraining": len(cases)}
    (folder / "dataset.json").write_text(json.dumps({**description, "file_ending": ".png", **more}))
    return folder


def test_intensities_are_those_of_the_foreground(tmp_path: Path) -> None:
    labels = np.zeros((10, 10), np.uint8)
    labels[2:4, 2:4] = 1
    cases = {case: (np.where(labels, value, 10).astype(np.uint8), labels) for case, value in (("a", 100), ("b", 200))}
    folder = made_dataset(tmp_path, cases)
    fingerprint, report = extract_fingerprint(open_raw_dataset(folder), workers=0)
    assert report.problems == ()
    (statistics,) = fingerprint.intensities
    assert (statistics.minimum, statistics.mean, statistics.maximum, statistics.std) == (100, 150, 200, 50)
    assert fingerprint.cases[0].foreground_fraction == 0.04


def test_fractions_are_read_under_the_names_of_earlier_versions(tmp_path: Path) -> None:
    former = {
        "fraction_of_empty_cases": "share_of_empty_cases",
        "median_crop_fraction": "median_crop_share",
        "foreground_fraction": "foreground_share",
        "fraction_of_maps": "share_of_maps",
        "same_fraction": "same_share",
    }
    fingerprint = slices_in(tmp_path / "raw", "LPS", "LPS")
    write_fingerprint(tmp_path / "fingerprint.json", fingerprint)
    text = (tmp_path / "fingerprint.json").read_text()
    for name, earlier in former.items():
        text = text.replace(f'"{name}"', f'"{earlier}"')
    assert "fraction" not in text
    (tmp_path / "fingerprint.json").write_text(text)
    assert read_fingerprint(tmp_path / "fingerprint.json") == fingerprint


def test_values_of_the_background_are_no_foreground(tmp_path: Path) -> None:
    """The liver of LiTS, mapped to the background, around a lesion and without one."""
    liver = np.zeros((10, 10), np.uint8)
    liver[1:9, 1:9] = 1
    lesion = liver.copy()
    lesion[2:4, 2:4] = 2
    cases = {}
    for case, labels in (("healthy", liver), ("ill", lesion)):
        grey = np.array([10, 50, 100], np.uint8)[labels]
        grey[2, 2:4] += 20
        cases[case] = (grey, labels)
    folder = made_dataset(tmp_path, cases, label_map={"2": "lesion", "1": "background"})
    fingerprint, report = extract_fingerprint(open_raw_dataset(folder), workers=0)
    assert report.problems == ()
    (statistics,) = fingerprint.intensities
    assert (statistics.minimum, statistics.maximum) == (100, 120)
    assert [(case.empty, case.foreground_fraction) for case in fingerprint.cases] == [(True, 0), (False, 0.04)]
    assert fingerprint.fraction_of_empty_cases == 0.5


def test_foreground_that_the_crop_takes_away_is_named(tmp_path: Path) -> None:
    image, outside = np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8)
    image[8:16, 4:16] = np.arange(12) + 100
    outside[2:4, 5:9] = 1
    inside = (image == 103).astype(np.uint8)
    cases = {"a": (image, outside), "b": (image // 2, outside | inside), "c": (image // 3, inside)}
    _, report = extract_fingerprint(open_raw_dataset(made_dataset(tmp_path, cases)), workers=0)
    found = {Path(w.file).name: w.message.split()[0] for w in report.warnings if "cropped" in w.message}
    assert found == {"a.png": "all", "b.png": "some"}


def test_intensities_of_a_cropped_image_are_drawn_without_a_copy_of_it() -> None:
    image = np.arange(2 * 40 * 50 * 60, dtype=np.float32).reshape(2, 40, 50, 60)[:, 3:, 4:, 5:]
    _sample_intensities(image, range(10, 5000), 100, "a")  # modules that it imports take memory as well
    tracemalloc.start()
    found = _sample_intensities(image, range(10, 5000), 100, "a")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found is not None
    assert set(found[1].tolist()) <= set(image[1].reshape(-1)[10:5000].tolist())
    np.testing.assert_array_equal(found[0] + 40 * 50 * 60, found[1])
    assert peak < image[0].nbytes / 4


def stored_in(codes: str, labels: np.ndarray) -> tuple[np.ndarray, tuple[float, ...], tuple[float, float, float]]:
    """A label map (Z, Y, X) in LPS with voxels of 3 x 2 x 1 mm, stored in other axes: array, direction, spacing."""
    target = {"LPS": ((0, 1, 2), (1, 1, 1)), "RAS": ((0, 1, 2), (1, -1, -1)), "ASR": ((2, 0, 1), (-1, 1, -1))}
    order, signs = target[codes]
    turned = labels.transpose(order)[tuple(slice(None, None, sign) for sign in signs)]
    direction = np.zeros((3, 3))
    for axis, (former, sign) in enumerate(zip(order, signs, strict=True)):
        direction[2 - former, 2 - axis] = sign
    spacing = tuple((3.0, 2.0, 1.0)[axis] for axis in order)
    return turned, tuple(direction.ravel().tolist()), spacing


def test_facts_of_volumes_stored_in_other_orientations_are_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "Dataset001_X"
    folder.mkdir()
    description = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "left": 1, "right": 2}}
    (folder / "dataset.json").write_text(json.dumps(description | {"file_ending": ".nii.gz"}))
    rng = np.random.default_rng(0)
    for i, codes in enumerate(("LPS", "RAS", "LPS", "ASR")):
        labels = np.zeros((5, 6, 8), np.uint8)
        labels[1, 2 + i % 2, 6] = 1  # to the patient's left of class 2, in front of it in every second case
        labels[3, 2 + (i + 1) % 2, 1] = 2
        stored, direction, spacing = stored_in(codes, labels)
        geometry = Geometry(spacing, (1.0, 2.0, 3.0), direction)
        write_labels(folder / f"labelsTr/c{i}.nii.gz", stored, geometry)
        write_map(folder / f"imagesTr/c{i}_0000.nii.gz", rng.random(stored.shape) + 1, geometry)
    fingerprint, report = extract_fingerprint(open_raw_dataset(folder), workers=0)
    assert report.problems == ()
    assert fingerprint.direction == IDENTITY_DIRECTION
    assert [case.orientation for case in fingerprint.cases] == ["LPS", "RAS", "LPS", "ASR"]
    for case in fingerprint.cases:
        assert (case.shape, case.spacing_mm, case.shape_after_crop) == ((5, 6, 8), (3.0, 2.0, 1.0), (5, 6, 8))
    (order,) = fingerprint.class_orders
    assert order.same_fraction == (1.0, 0.5, 1.0)


def slices_in(folder: Path, *codes: str) -> Fingerprint:
    """A data set of volumes of one slice."""
    folder.mkdir(parents=True)
    description = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "lesion": 1}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description))
    for i, code in enumerate(codes):
        array = np.random.default_rng(i).random((1, 6, 8)) + 1
        _, direction, _ = stored_in(code, np.zeros((1, 1, 1), np.uint8))
        write_labels(folder / f"labelsTr/c{i}.nii.gz", (array > 1.5).astype(np.uint8), Geometry(direction=direction))
        write_map(folder / f"imagesTr/c{i}_0000.nii.gz", array, Geometry(direction=direction))
    return extract_fingerprint(open_raw_dataset(folder), workers=0)[0]


def test_single_slices_are_turned_within_one_plane_only(tmp_path: Path) -> None:
    same_plane = slices_in(tmp_path / "Dataset001_X", "LPS", "RAS", "LPS")
    assert same_plane.is_2d
    assert same_plane.direction == IDENTITY_DIRECTION
    other_plane = slices_in(tmp_path / "Dataset002_X", "LPS", "ASR", "LPS")
    assert other_plane.is_2d
    assert other_plane.direction is None
    assert [case.shape for case in other_plane.cases] == [(1, 6, 8)] * 3
