"""Preprocessing whole data sets: what is made, what is made again, and what a failure leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import atomic_path
from unisegdiff_pipeline.core.geometry import Geometry, Volume
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.scratch import Scratch
from unisegdiff_pipeline.core.serialization import read_dataclass, read_json, write_json
from unisegdiff_pipeline.io.images import write_labels, write_map
from unisegdiff_pipeline.io.raw_dataset import RawDataset, open_raw_dataset
from unisegdiff_pipeline.planning.plans import (
    Budget,
    ConfigurationPlan,
    DenoiserPlan,
    IntensityStatistics,
    LevelPlan,
    NetworkPlan,
    Plans,
    PreprocessingPlan,
    TrainingPlan,
)
from unisegdiff_pipeline.preprocessing import preprocessor
from unisegdiff_pipeline.preprocessing.preprocessor import PreprocessReport, preprocess_dataset, preprocess_image
from unisegdiff_pipeline.preprocessing.provenance import settings_hash
from unisegdiff_pipeline.preprocessing.reference import read_cases
from unisegdiff_pipeline.preprocessing.resample import resample_image
from unisegdiff_pipeline.preprocessing.storage import PreprocessedFolder

GEOMETRY = Geometry(spacing_mm=(2.0, 1.0, 1.0), origin_mm=(5.0, -3.0, 2.0))
STATISTICS = IntensityStatistics(0, 1, 0, 0, 1, 0, 1)
BOTH = ("2d", "3d_fullres")


def configuration(name: str, spacing: tuple, patch: tuple[int, ...]) -> ConfigurationPlan:
    preprocessing = PreprocessingPlan((0, 1, 2), spacing, ("zscore",), (False,), (STATISTICS,))
    ones, threes = (1,) * len(patch), (3,) * len(patch)
    network = NetworkPlan(len(patch), patch, 1, (LevelPlan(8, ones, threes, 2),))
    return ConfigurationPlan(name, preprocessing, (1, 1, 1), network, DenoiserPlan(), TrainingPlan(2))


def make_plans(raw: RawDataset, spacing_mm: float = 2.0) -> Plans:
    configurations = {
        "2d": configuration("2d", (None, 1.0, 1.0), (16, 16)),
        "3d_fullres": configuration("3d_fullres", (spacing_mm,) * 3, (8, 12, 12)),
    }
    labels = raw.description.labels
    budget = Budget("cpu", 8.0, 2)
    return Plans(1, raw.name, labels, ("MRI",), ".nii.gz", True, budget, "3d_fullres", configurations)


def write_raw_case(folder: Path, case_id: str, seed: int, raters: int = 0) -> None:
    rng = np.random.default_rng(seed)
    labels = np.zeros((10, 24, 20), np.uint8)
    labels[3:7, 4 + seed : 12 + seed, 5:12] = 1
    labels[4:6, 6 + seed : 8 + seed, 6:9] = 2
    image = rng.normal(size=labels.shape).astype(np.float32) + labels
    write_map(folder / "imagesTr" / f"{case_id}_0000.nii.gz", image, GEOMETRY)
    write_labels(folder / "labelsTr" / f"{case_id}.nii.gz", labels, GEOMETRY)
    for rater in range(1, raters + 1):
        write_labels(folder / "ratersTr" / f"{case_id}_rater{rater}.nii.gz", labels * (rater % 2), GEOMETRY)


@pytest.fixture(autouse=True)
def few_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planning the stages is tested elsewhere; one patch a case is enough here."""
    monkeypatch.setattr("unisegdiff_pipeline.preprocessing.stage_patches.MAX_ROUNDS", 1)


@pytest.fixture
def raw_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "raw" / "Dataset900_Boxes"
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "organ": 1, "lesion": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    write_json(folder / "dataset.json", description)
    for index, case_id in enumerate(("a", "b", "c")):
        write_raw_case(folder, case_id, index, raters=2 if case_id == "c" else 0)
    return folder


def run(raw_folder: Path, configurations: tuple[str, ...] = BOTH, **settings: object) -> PreprocessReport:
    raw = open_raw_dataset(raw_folder)
    plans = settings.pop("plans", None) or make_plans(raw)
    target = raw_folder.parent.parent / "preprocessed"
    return preprocess_dataset(raw, plans, configurations, target, workers=0, **settings)  # type: ignore[arg-type]


def test_what_is_written(raw_folder: Path) -> None:
    report = run(raw_folder)
    target = raw_folder.parent.parent / "preprocessed"
    assert len(report.done) == 6
    assert report.skipped == ()
    case = PreprocessedFolder(target / "3d_fullres").open("c")
    assert case.image.shape == (1, 10, 12, 10)
    assert case.labels.shape == (3, 10, 12, 10)
    assert case.properties.spacing_mm == (2.0, 2.0, 2.0)
    assert case.properties.geometry.origin_mm == pytest.approx(GEOMETRY.origin_mm)
    assert case.components.present_classes(row=1).tolist() == [0, 1]
    assert case.components.present_classes(row=2).tolist() == []  # the second rater saw nothing
    reference = case.reference()
    assert reference.shape == (3, 10, 24, 20)
    assert np.unique(reference[2]).tolist() == [0]
    assert abs(float(np.asarray(PreprocessedFolder(target / "2d").open("a").image[...]).mean())) < 1e-5
    assert set(read_json(target / "3d_fullres" / "manifest.json")) == {"a", "b", "c"}


def test_a_corrected_spacing_beside_a_stack_is_seen(tmp_path: Path) -> None:
    """The JSON file beside a TIFF decides its geometry as much as the voxels do."""
    folder = tmp_path / "raw" / "Dataset901_Stacks"
    description = {"channel_names": {"0": "EM"}, "labels": {"background": 0, "organ": 1, "lesion": 2}}
    write_json(folder / "dataset.json", description | {"file_ending": ".tif", "spacing_known": True})
    labels = np.zeros((6, 12, 10), np.uint8)
    labels[2:4, 3:8, 3:8], labels[3, 4, 4:6] = 1, 2
    for index, case_id in enumerate("ab"):
        image = np.random.default_rng(index).normal(size=labels.shape).astype(np.float32)
        write_map(folder / f"imagesTr/{case_id}_0000.tif", image, GEOMETRY)
        write_labels(folder / f"labelsTr/{case_id}.tif", labels, GEOMETRY)
    assert len(run(folder).done) == 4
    assert run(folder).done == ()
    for file in (folder / "imagesTr/b_0000.json", folder / "labelsTr/b.json"):
        assert file.is_file()
        write_json(file, {"spacing": [4.0, 1.0, 1.0]})
    assert set(run(folder).done) == {"2d/b", "3d_fullres/b"}
    case = PreprocessedFolder(folder.parent.parent / "preprocessed/3d_fullres").open("b")
    assert case.properties.geometry.spacing_mm == (4.0, 1.0, 1.0)
    (folder / "imagesTr/b_0000.json").unlink()  # the spacing would be 1, and labels would lie elsewhere
    with pytest.raises(UsdError, match=r"b.tif: the label map lies elsewhere"):
        run(folder)


def test_facts_for_the_splits(raw_folder: Path) -> None:
    (raw_folder / "groups.csv").write_text("case,group\na,patient1\nb,patient1\n")
    run(raw_folder)
    records = read_cases(raw_folder.parent.parent / "preprocessed")
    assert [(r.case_id, r.group, r.num_raters) for r in records] == [
        ("a", "patient1", 0),
        ("b", "patient1", 0),
        ("c", "c", 2),
    ]
    assert records[0].volumes_mm3 == {"organ": 2.0 * (4 * 8 * 7 - 12), "lesion": 24.0}
    assert records[0].foreground_mm3 == 2.0 * 4 * 8 * 7


def test_values_of_the_background_are_no_foreground_and_former_records_are_made_again(
    raw_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    description = read_json(raw_folder / "dataset.json")
    mapped = {"labels": {"background": 0, "lesion": 1}, "label_map": {"2": "lesion", "1": "background"}}
    write_json(raw_folder / "dataset.json", description | mapped)
    target = raw_folder.parent.parent / "preprocessed"
    with monkeypatch.context() as former:
        former.setattr(preprocessor, "_reference_settings", lambda job: settings_hash(job.labels))
        former.setattr(LabelScheme, "foreground", lambda self, labels: labels != 0)
        run(raw_folder)
    assert read_cases(target)[0].foreground_mm3 == 2.0 * 4 * 8 * 7
    assert run(raw_folder).done == ()  # arrays stay as they are
    assert [record.foreground_mm3 for record in read_cases(target)] == [24.0] * 3


def test_stages_are_planned_and_stored(raw_folder: Path) -> None:
    report = run(raw_folder)
    stored = read_dataclass(Plans, raw_folder.parent.parent / "preprocessed" / "plans.json")
    assert stored == report.plans
    stages = stored.configurations["3d_fullres"].stages
    assert stages is not None
    assert {curve.class_name for curve in stages.curves} == {"organ", "lesion"}
    assert stages.lam_a < stages.lam_c
    assert "lam_a from organ" in stored.decisions["configurations.3d_fullres.stages"]


def test_second_run_does_nothing(raw_folder: Path) -> None:
    first = run(raw_folder)
    again = run(raw_folder, plans=first.plans)
    assert again.done == ()
    assert len(again.skipped) == 6
    assert again.plans == first.plans


def test_only_what_changed_is_done_again(raw_folder: Path) -> None:
    run(raw_folder)
    image = raw_folder / "imagesTr" / "a_0000.nii.gz"
    os.utime(image, ns=(1, 1))  # touched, same content
    assert run(raw_folder).done == ()
    write_raw_case(raw_folder, "b", seed=5)
    assert run(raw_folder).done == ("2d/b", "3d_fullres/b")
    raw = open_raw_dataset(raw_folder)
    other = run(raw_folder, plans=make_plans(raw, spacing_mm=1.5))
    assert other.done == ("3d_fullres/a", "3d_fullres/b", "3d_fullres/c")


def test_a_plan_change_beside_preprocessing_costs_nothing(raw_folder: Path) -> None:
    plans = run(raw_folder).plans
    changed = replace(plans.configurations["2d"], training=TrainingPlan(7))
    report = run(raw_folder, plans=replace(plans, configurations={**plans.configurations, "2d": changed}))
    assert report.done == ()
    assert report.plans.configurations["2d"].training.batch_size == 7


def test_pixels_within_slices_are_interpolated_also_where_they_are_no_squares() -> None:
    image = np.random.default_rng(0).normal(size=(1, 1, 80, 90)).astype(np.float32)
    plan = PreprocessingPlan((0, 1, 2), (None, 3.2, 3.6), ("nonorm",), (False,), (STATISTICS,))
    found, properties = preprocess_image(Volume(image, Geometry((1.0, 0.8, 0.9), is_2d=True)), plan)
    assert properties.separate_axis is None
    np.testing.assert_allclose(found, resample_image(image, (1, 20, 22)))


def test_cases_that_an_earlier_version_moved_or_did_not_interpolate_are_made_again(raw_folder: Path) -> None:
    plans = run(raw_folder, ("3d_fullres",)).plans
    folder = raw_folder.parent.parent / "preprocessed" / "3d_fullres"

    def store_as_version_2(case_id: str, separate_axis: int | None) -> None:
        content = read_json(folder / "cases" / f"{case_id}.json")
        content["source"]["format_version"] = 2
        content["properties"]["separate_axis"] = separate_axis
        write_json(folder / "cases" / f"{case_id}.json", content)

    store_as_version_2("a", None)
    store_as_version_2("b", 1)  # which went from 24 to 12 voxels
    store_as_version_2("c", 0)
    configuration = plans.configurations["3d_fullres"]
    PreprocessedFolder(folder).require_current(("a", "c"), plans.labels, configuration)
    with pytest.raises(UsdError, match=r"case 'b' .* by an earlier version.* run usd_preprocess again"):
        PreprocessedFolder(folder).require_current(("a", "b"), plans.labels, configuration)
    assert run(raw_folder, ("3d_fullres",)).done == ("3d_fullres/b",)
    assert run(raw_folder, ("3d_fullres",)).done == ()
    PreprocessedFolder(folder).require_current(("a", "b", "c"), plans.labels, configuration)


def test_added_and_removed_cases(raw_folder: Path) -> None:
    run(raw_folder)
    (raw_folder / "imagesTr" / "a_0000.nii.gz").unlink()
    (raw_folder / "labelsTr" / "a.nii.gz").unlink()
    write_raw_case(raw_folder, "d", seed=3)
    report = run(raw_folder)
    assert report.done == ("2d/d", "3d_fullres/d")
    assert report.removed == ("2d/a", "3d_fullres/a")
    target = raw_folder.parent.parent / "preprocessed"
    assert list(target.rglob("a*")) == []
    assert [r.case_id for r in read_cases(target)] == ["b", "c", "d"]


def test_another_group_rewrites_no_array(raw_folder: Path) -> None:
    run(raw_folder)
    target = raw_folder.parent.parent / "preprocessed"
    before = (target / "2d" / "images" / "a.b2nd").stat().st_mtime_ns
    (raw_folder / "groups.csv").write_text("case,group\na,twins\nb,twins\n")
    report = run(raw_folder)
    assert report.done == ()
    assert PreprocessedFolder(target / "2d").open("a").properties.group == "twins"
    assert [r.group for r in read_cases(target)] == ["twins", "twins", "c"]
    assert (target / "2d" / "images" / "a.b2nd").stat().st_mtime_ns == before


def test_copies_of_an_image_share_a_group(raw_folder: Path) -> None:
    image = (raw_folder / "imagesTr" / "a_0000.nii.gz").read_bytes()
    (raw_folder / "imagesTr" / "c_0000.nii.gz").write_bytes(image)
    run(raw_folder)
    target = raw_folder.parent.parent / "preprocessed"
    assert [r.group for r in read_cases(target)] == ["a", "b", "a"]
    assert PreprocessedFolder(target / "2d").open("c").properties.group == "a"


def test_a_failing_case_is_named_and_the_others_finish(raw_folder: Path) -> None:
    wrong = np.zeros((10, 24, 19), np.uint8)
    write_labels(raw_folder / "labelsTr" / "b.nii.gz", wrong, GEOMETRY)
    with pytest.raises(UsdError, match=r"b: .*b\.nii\.gz: the shape \(10, 24, 19\).*\(10, 24, 20\)"):
        run(raw_folder)
    target = raw_folder.parent.parent / "preprocessed"
    assert PreprocessedFolder(target / "2d").case_ids == ("a", "c")
    write_raw_case(raw_folder, "b", seed=1)
    assert run(raw_folder).done == ("2d/b", "3d_fullres/b")


def test_unknown_label_values_are_named(raw_folder: Path) -> None:
    write_labels(raw_folder / "labelsTr" / "a.nii.gz", np.full((10, 24, 20), 9, np.uint8), GEOMETRY)
    with pytest.raises(UsdError, match=r"a\.nii\.gz: the label values 9 are not in dataset\.json, which has \[0"):
        run(raw_folder)


def test_the_integrity_check_is_always_on(raw_folder: Path) -> None:
    """What only the check sees (NaN, another origin, no label map): every case is named, the sound one is done."""
    image = np.zeros((10, 24, 20), np.float32)
    image[1, 2, 3] = np.nan
    write_map(raw_folder / "imagesTr" / "a_0000.nii.gz", image, GEOMETRY)
    moved = replace(GEOMETRY, origin_mm=(5.0, -3.0, 9.0))
    write_labels(raw_folder / "labelsTr" / "b.nii.gz", np.ones((10, 24, 20), np.uint8), moved)
    write_raw_case(raw_folder, "d", seed=3)
    (raw_folder / "labelsTr" / "d.nii.gz").unlink()
    with pytest.raises(UsdError, match="3 of 4 cases failed, the others are done") as caught:
        run(raw_folder)
    message = str(caught.value)
    for words in ("a_0000.nii.gz: 1 voxel ", "NaN", "b.nii.gz: the label map lies else", "no label map labelsTr/d"):
        assert words in message
    assert PreprocessedFolder(raw_folder.parent.parent / "preprocessed" / "2d").case_ids == ("c",)


def test_what_killed_workers_left_is_removed(raw_folder: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    target = raw_folder.parent.parent / "preprocessed"
    with atomic_path(target / "a.b2nd") as own:
        stale = own.name.replace(str(os.getpid()), str(process.pid))
        own.touch()
    for part in ("", "2d/images", "2d/cases", "reference"):
        (target / part).mkdir(exist_ok=True, parents=True)
        (target / part / stale).touch()
    run(raw_folder)
    assert list(target.rglob(".tmp-*")) == []


@pytest.mark.parametrize("name", ["2d/images/b.b2nd", "3d_fullres/components/b.npz", "reference/b_reference.b2nd"])
def test_a_damaged_case_is_done_again(raw_folder: Path, name: str) -> None:
    first = run(raw_folder)
    path = raw_folder.parent.parent / "preprocessed" / name
    whole = path.read_bytes()
    path.write_bytes(whole[:40] + bytes([whole[40] ^ 1]) + whole[41:])
    again = run(raw_folder, plans=first.plans)
    assert path.read_bytes() == whole
    assert again.done == (() if name.startswith("reference") else (f"{name.split('/')[0]}/b",))


def test_cases_of_the_former_layout_are_made_again(raw_folder: Path) -> None:
    folder = raw_folder.parent.parent / "preprocessed" / "2d"
    folder.mkdir(parents=True)
    for name in ("a.b2nd", "a_labels.b2nd", "a_components.npz", "a.json"):
        (folder / name).write_text("{}")
    assert "2d/a" in run(raw_folder).done
    kept = {"cases", "components", "images", "labels", "manifest.json"}
    assert {path.name for path in folder.iterdir()} == kept


def test_a_case_is_read_once(raw_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unisegdiff_pipeline.io import integrity

    reads: list[Path] = []
    original = integrity.read_image

    def counted(paths: Sequence[Path], num_channels: int | None, scratch: Scratch) -> Volume:
        reads.extend(paths)
        return original(paths, num_channels, scratch)

    monkeypatch.setattr(integrity, "read_image", counted)
    run(raw_folder)
    assert sorted(path.name for path in reads) == ["a_0000.nii.gz", "b_0000.nii.gz", "c_0000.nii.gz"]


def test_unknown_configuration(raw_folder: Path) -> None:
    with pytest.raises(UsdError, match=r"'3d_lowres' is not in the plans .*2d, 3d_fullres"):
        run(raw_folder, ("3d_lowres",))


def test_worker_processes_give_the_same_arrays(raw_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unisegdiff_pipeline.preprocessing import preprocessor

    monkeypatch.setattr(preprocessor, "SMALL_JOB_BYTES", 0)  # processes instead of threads
    raw = open_raw_dataset(raw_folder)
    preprocess_dataset(raw, make_plans(raw), ["3d_fullres"], raw_folder.parent / "processes", workers=2)
    monkeypatch.undo()
    preprocess_dataset(raw, make_plans(raw), ["3d_fullres"], raw_folder.parent / "threads", workers=2)
    run(raw_folder, ("3d_fullres",))
    target = raw_folder.parent.parent / "preprocessed"
    for other in ("processes", "threads"):
        for case_id in ("a", "b", "c"):
            here = PreprocessedFolder(target / "3d_fullres").open(case_id)
            there = PreprocessedFolder(raw_folder.parent / other / "3d_fullres").open(case_id)
            np.testing.assert_array_equal(here.image[...], there.image[...])
            np.testing.assert_array_equal(here.labels[...], there.labels[...])


def test_images_on_disk_give_the_same_files(raw_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no array of a case may be in memory, what is stored is the same byte for byte, and no file is left."""
    from unisegdiff_pipeline.core import scratch
    from unisegdiff_pipeline.preprocessing import preprocessor

    run(raw_folder, ("3d_fullres",))
    here = raw_folder.parent.parent / "preprocessed"
    on_disk: list[int] = []
    mapped = scratch._mapped_file
    monkeypatch.setattr(scratch, "_mapped_file", lambda path, size: on_disk.append(size) or mapped(path, size))
    monkeypatch.setattr(scratch, "SMALL_BYTES", 0)
    monkeypatch.setattr(preprocessor, "CASE_BYTES", 0)
    raw, there = open_raw_dataset(raw_folder), raw_folder.parent / "there"
    preprocess_dataset(raw, make_plans(raw), ["3d_fullres"], there, workers=0)
    assert on_disk == [19200, 19200, 4800] * 3  # read, cropped (which leaves nothing out), resampled; float32
    files = [path.relative_to(here) for path in sorted(here.rglob("*")) if path.is_file()]
    assert files == [path.relative_to(there) for path in sorted(there.rglob("*")) if path.is_file()]
    for path in files:
        if path.suffix == ".b2nd":
            assert (here / path).read_bytes() == (there / path).read_bytes()
