"""The integrity check: each kind of damage is found, named with its file, and all of them in one run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.io.images import write_labels, write_map
from unisegdiff_pipeline.io.integrity import IntegrityReport, check_case, label_values, merge_checks, read_case
from unisegdiff_pipeline.io.raw_dataset import open_raw_dataset

GEOMETRY = Geometry((2.0, 1.0, 1.0), (1.0, 2.0, 3.0))
SHAPE = (3, 4, 5)


def check_dataset(folder: Path) -> IntegrityReport:
    raw = open_raw_dataset(folder)
    return merge_checks(raw, [check_case(case, raw.description) for case in raw.cases])


class Folder:
    """A raw data set under construction: two channels, one lesion class, NIfTI."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rng = np.random.default_rng(0)
        folder.mkdir()
        self.describe()

    def describe(self, **changes) -> None:
        description = {
            "channel_names": {"0": "T1", "1": "T2"},
            "labels": {"background": 0, "lesion": 1},
            "file_ending": ".nii.gz",
        }
        (self.folder / "dataset.json").write_text(json.dumps(description | changes))

    def image(self, case: str, channel: int, values=None, geometry: Geometry = GEOMETRY) -> Path:
        path = self.folder / "imagesTr" / f"{case}_{channel:04d}.nii.gz"
        write_map(path, self.rng.normal(size=SHAPE) if values is None else values, geometry)
        return path

    def labels(self, case: str, values=None, geometry: Geometry = GEOMETRY, rater: int = 0) -> Path:
        name = f"ratersTr/{case}_rater{rater}" if rater else f"labelsTr/{case}"
        path = self.folder / f"{name}.nii.gz"
        if values is None:
            values = np.zeros(SHAPE, np.uint8)
            values[1, 1, 1] = 1
        write_labels(path, values, geometry)
        return path

    def good_case(self, case: str) -> None:
        self.image(case, 0)
        self.image(case, 1)
        self.labels(case)

    def check(self):
        return check_dataset(self.folder)


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path / "Dataset001_X")


def test_a_good_set_has_no_findings(folder):
    for case in "ab":
        folder.good_case(case)
    folder.labels("a", rater=1)
    folder.describe(numTraining=2)
    report = folder.check()
    assert report.problems == report.warnings == report.empty_cases == ()
    report.require_ok()


def test_all_problems_are_found_in_one_run(folder):
    with_nan = np.ones(SHAPE)
    with_nan[0, 0, 0], with_nan[0, 0, 1] = np.nan, np.inf
    expected = {}

    folder.good_case("values")
    expected["values.nii.gz"] = "label values 7 are not in dataset.json, which has [0, 1]"
    folder.labels("values", np.full(SHAPE, 7, np.uint8))
    folder.good_case("nan")
    folder.image("nan", 1, with_nan)
    expected["nan_0001.nii.gz"] = "2 voxels hold NaN or infinity"
    folder.good_case("moved")
    folder.labels("moved", geometry=replace(GEOMETRY, origin_mm=(1.0, 2.0, 9.0)))
    expected["moved.nii.gz"] = "origin"
    folder.good_case("shape")
    folder.labels("shape", np.zeros((3, 4, 6), np.uint8))
    expected["shape.nii.gz"] = "the shape (3, 4, 6) (Z, Y, X) differs from the image's (3, 4, 5)"
    folder.good_case("spacing")
    folder.image("spacing", 1, geometry=replace(GEOMETRY, spacing_mm=(2.0, 1.0, 1.5)))
    expected["spacing_0001.nii.gz"] = "spacing"
    folder.good_case("channelshape")
    folder.image("channelshape", 1, np.ones((3, 4, 6)))
    expected["channelshape_0001.nii.gz"] = "shape (3, 4, 6)"
    folder.image("missing", 0)
    folder.labels("missing")
    expected["missing_0000.nii.gz"] = "channel _0001 is missing"
    folder.image("nolabel", 0)
    folder.image("nolabel", 1)
    expected["nolabel_0000.nii.gz"] = "no label map labelsTr/nolabel.nii.gz"
    folder.labels("noimage")
    expected["noimage.nii.gz"] = "no image noimage_0000.nii.gz"
    folder.good_case("cut")
    path = folder.image("cut", 0)
    path.write_bytes(path.read_bytes()[:200])
    expected["cut_0000.nii.gz"] = "truncated"
    folder.good_case("rater")
    folder.labels("rater", np.full(SHAPE, 2, np.uint8), rater=3)
    expected["rater_rater3.nii.gz"] = "label values 2"
    folder.image("stray", 0).rename(folder.folder / "imagesTr" / "stray.nii.gz")
    expected["stray.nii.gz"] = "no channel suffix"

    report = folder.check()
    found = {Path(problem.file).name: problem for problem in report.problems}
    assert set(found) == set(expected)
    assert len(report.problems) == len(expected)
    for name, words in expected.items():
        assert words in found[name].message, name
        assert found[name].remedy or "; " in found[name].message, name
    damaged = str(found["cut_0000.nii.gz"])
    assert damaged.startswith(str(folder.folder / "imagesTr" / "cut_0000.nii.gz") + ": cannot be read")
    assert damaged.endswith("; copy or export it again.")
    with pytest.raises(UsdError) as error:
        report.require_ok()
    assert [*map(str, report.problems)] == str(error.value).splitlines()[:-1]
    assert str(error.value).splitlines()[-1].startswith(f"12 problems in {folder.folder}")


def test_identical_images_warn(folder):
    same = folder.rng.normal(size=(2, *SHAPE))
    for case in "abcd":
        folder.good_case(case)
    for case in ("a", "c"):
        for channel in range(2):
            folder.image(case, channel, same[channel])
    report = folder.check()
    assert report.problems == ()
    (warning,) = report.warnings
    assert "identical images: a, c" in warning.message


def test_background_only_is_reported_and_ignored_voxels_are_no_foreground(folder):
    folder.describe(labels={"background": 0, "lesion": 1, "ignore": 2})
    for case in "ab":
        folder.good_case(case)
    folder.labels("b", np.full(SHAPE, 2, np.uint8))
    report = folder.check()
    assert report.problems == ()
    assert report.empty_cases == ("b",)


def test_a_class_that_is_in_no_label_map_is_a_warning(folder):
    folder.describe(labels={"background": 0, "lesion": 1, "oedema": 2, "cyst": 3})
    for case in "ab":
        folder.good_case(case)
    folder.labels("a", np.full(SHAPE, 2, np.uint8), rater=1)  # training takes annotations of raters, too
    report = folder.check()
    assert report.problems == ()
    (warning,) = report.warnings
    assert "none of the 2 label maps holds any cyst, which cannot be learned" in warning.message


def test_inverted_masks_are_a_warning(folder):
    for case in "abcd":
        folder.good_case(case)
    inverted = np.ones(SHAPE, np.uint8)
    inverted[1, 1:3, 1:3] = 0
    folder.labels("b", inverted)
    touching = np.zeros(SHAPE, np.uint8)
    touching[:2] = 1
    folder.labels("c", touching)
    folder.labels("d", np.ones(SHAPE, np.uint8))
    (warning,) = folder.check().warnings
    assert "the whole edge of the image is lesion, around background, in 1 of 4 label maps: b" in warning.message
    folder.describe(labels={"background": 0, "lesion": 1, "organ": 2})
    assert not any("edge" in warning.message for warning in folder.check().warnings)


def test_a_large_lesion_in_all_corners_is_no_inverted_mask(folder):
    folder.good_case("a")
    large = np.ones(SHAPE, np.uint8)
    large[:, 1:, 1] = 0
    large[..., -1, -1] = 1
    folder.labels("a", large)
    assert folder.check().warnings == ()


def test_images_whose_header_holds_two_places_are_one_warning(folder):
    for case in "abcd":
        folder.good_case(case)
        for channel in (0, 1):
            path = folder.folder / "imagesTr" / f"{case}_{channel:04d}.nii.gz"
            image = nibabel.load(path)
            image.set_sform(image.affine + np.outer([5, 0, 0, 0], [0, 0, 0, 1]), 2)
            nibabel.save(image, path)
    report = folder.check()
    assert report.problems == ()  # SimpleITK goes by the qform, which is that of the label maps
    (warning,) = report.warnings
    assert "(sform and qform) place it differently" in warning.message
    assert "7 other files too" in warning.message


def test_warnings_do_not_stop(folder):
    folder.good_case("a")
    folder.good_case("b")
    folder.image("b", 1, np.full(SHAPE, 5.0))
    (folder.folder / "groups.csv").write_text("case,group\na,p1\nghost,p1\n")
    report = folder.check()
    assert report.problems == ()
    text = " ".join(str(warning) for warning in report.warnings)
    for words in ("all voxels of channel 1 are 5", "no files of ghost", "no group is given for b"):
        assert words in text


def test_a_voxel_beside_which_all_others_are_one_value_is_named(folder):
    rng = np.random.default_rng(0)
    tissue = rng.normal(100, 20, SHAPE).astype(np.float32)
    for case, far in (("a", 1e30), ("b", -1e7), ("c", 3e4)):
        folder.good_case(case)
        tissue[0, 0, 0] = far
        folder.image(case, 1, tissue)
    folder.good_case("d")
    folder.image("d", 1, np.eye(SHAPE[0] * SHAPE[1], SHAPE[2]).reshape(SHAPE))  # few voxels are all that it has
    report = folder.check()
    assert report.problems == ()
    found = {Path(warning.file).name: warning.message for warning in report.warnings}
    assert set(found) == {"a_0001.nii.gz", "b_0001.nii.gz"}
    assert "but one is 1e+30, beside which" in found["a_0001.nii.gz"]
    assert "but one is -1e+07, beside which" in found["b_0001.nii.gz"]


def test_files_that_would_be_left_out_are_problems_unless_allowed(folder):
    for case in "abc":
        folder.good_case(case)
    for channel in range(2):
        image = folder.image("c", channel)
        image.rename(image.with_name(f"c_000{channel}.NII.GZ"))
    folder.image("nolabel", 0)
    folder.image("nolabel", 1)
    folder.describe(numTraining=3)
    problems = {Path(problem.file).name: str(problem) for problem in folder.check().problems}
    assert set(problems) == {"c_0000.NII.GZ", "c_0001.NII.GZ", "c.nii.gz", "nolabel_0000.nii.gz", "dataset.json"}
    assert "numTraining is 3, but there are 4 cases" in problems["dataset.json"]
    assert "Rename it to c_0000.nii.gz" in problems["c_0000.NII.GZ"]
    folder.describe(numTraining=3, allow_unmatched=True)
    report = folder.check()
    assert report.problems == ()
    assert {Path(warning.file).name for warning in report.warnings} == set(problems)


def test_many_warnings_of_one_kind_are_one(folder):
    for case in "abcdef":
        folder.good_case(case)
        folder.image(case, 1, np.full(SHAPE, 5.0))
    (warning,) = folder.check().warnings
    assert warning.message == "all voxels of channel 1 are 5 (5 other files too)"
    assert warning.file.endswith("a_0001.nii.gz")


def test_masks_of_255_get_their_own_remedy(folder):
    folder.good_case("a")
    folder.labels("a", np.where(np.arange(60).reshape(SHAPE) > 30, 255, 0).astype(np.uint8))
    (problem,) = folder.check().problems
    assert problem.remedy == 'Masks of 0 and 255: add "label_map": {"255": 1} to dataset.json.'


def test_grey_pictures_saved_as_colour(tmp_path):
    from PIL import Image

    folder = tmp_path / "Dataset001_X"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    grey = np.random.default_rng(0).integers(0, 255, (4, 5, 1), np.uint8)
    Image.fromarray(np.repeat(grey, 3, axis=-1)).save(folder / "imagesTr" / "a_0000.png")
    Image.fromarray(np.eye(4, 5, dtype=np.uint8)).save(folder / "labelsTr" / "a.png")
    description = {"channel_names": {"0": "US"}, "labels": {"background": 0, "l": 1}, "file_ending": ".png"}
    (folder / "dataset.json").write_text(json.dumps(description))
    report = check_dataset(folder)
    assert report.problems == ()
    assert "taken as one grey channel" in report.warnings[0].message
    assert report.warnings[0].file.endswith("a_0000.png")
    description["channel_names"] = {"0": "R", "1": "G", "2": "B"}
    (folder / "dataset.json").write_text(json.dumps(description))
    report = check_dataset(folder)
    assert report.problems == report.warnings == ()
    description["channel_names"] = {"0": "US"}
    (folder / "dataset.json").write_text(json.dumps(description))
    Image.fromarray(np.dstack([grey, grey, 255 - grey])).save(folder / "imagesTr" / "a_0000.png")
    (problem,) = check_dataset(folder).problems
    assert "holds 3 channels" in problem.message
    assert problem.file.endswith("a_0000.png")


def test_planes_with_and_without_a_third_axis_are_no_mixture(tmp_path):
    folder = tmp_path / "Dataset001_X"
    flat = Geometry((1.0, 0.8, 0.7), is_2d=True)
    single = Geometry((5.0, 0.8, 0.7))
    values = np.random.default_rng(0).normal(size=(2, 1, 4, 5))
    labels = np.zeros((1, 4, 5), np.uint8)
    labels[0, 1, 2] = 1
    for case, image_geometry, label_geometry in (("a", flat, single), ("b", single, flat)):
        write_map(folder / "imagesTr" / f"{case}_0000.nrrd", values["ab".index(case)], image_geometry)
        write_labels(folder / "labelsTr" / f"{case}.nrrd", labels, label_geometry)
    description = {"channel_names": {"0": "X"}, "labels": {"background": 0, "l": 1}, "file_ending": ".nrrd"}
    (folder / "dataset.json").write_text(json.dumps(description))
    report = check_dataset(folder)
    assert report.problems == report.warnings == ()


def test_palettes_in_another_order_are_found(tmp_path):
    from PIL import Image

    folder = tmp_path / "Dataset001_X"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    red, green, black = [255, 0, 0], [0, 255, 0], [0, 0, 0]
    for case, palette in {"a": black + red + green, "b": black + green + red, "c": black + red + [9, 9, 9]}.items():
        Image.fromarray(np.arange(20, dtype=np.uint8).reshape(4, 5)).save(folder / "imagesTr" / f"{case}_0000.png")
        labels = Image.new("P", (5, 4))
        labels.putdata([0, 1, 2 * (case != "c"), 0] * 5)
        labels.putpalette(palette)
        labels.save(folder / "labelsTr" / f"{case}.png")
    description = {"channel_names": {"0": "US"}, "labels": {"background": 0, "l": 1, "m": 2}, "file_ending": ".png"}
    (folder / "dataset.json").write_text(json.dumps(description))
    (problem,) = check_dataset(folder).problems
    assert problem.file == str(folder / "labelsTr/b.png")
    assert "value 1 has the colour (0, 255, 0), but (255, 0, 0) in a" in problem.message


def test_a_case_that_was_read_is_not_read_again(folder):
    folder.good_case("a")
    raw = open_raw_dataset(folder.folder)
    volumes = read_case(raw.cases[0], raw.description)
    path = raw.cases[0].label_path
    assert path is not None
    path.write_bytes(b"")
    assert check_case(raw.cases[0], raw.description, volumes).problems == ()
    assert len(check_case(raw.cases[0], raw.description).problems) == 1


def test_label_values():
    assert label_values(np.array([[[0, 3], [300, 3]]], np.int16)) == {0, 3, 300}
    assert label_values(np.array([[-1, 2]], np.int32)) == {-1, 2}
    assert label_values(np.array([[70000, 2]], np.int64)) == {70000, 2}
    assert label_values(np.zeros((0, 2, 2), np.uint8)) == set()


@pytest.mark.parametrize(
    ("name", "empty"),
    [("Dataset004_Hippocampus", 0), ("Dataset101_BUSI", 10), ("Dataset104_Glioma", 0), ("Dataset106_EMIDEC", 0)],
)
def test_real_sets_pass(raw_data, name, empty):
    report = check_dataset(raw_data / name)
    assert report.problems == ()
    assert len(report.empty_cases) == empty


def test_volumes_stored_in_different_orientations_are_a_warning(folder):
    for case in "ab":
        folder.good_case(case)
    flipped = Geometry(GEOMETRY.spacing_mm, GEOMETRY.origin_mm, (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0))
    for channel in (0, 1):
        folder.image("c", channel, geometry=flipped)
    folder.labels("c", geometry=flipped)
    report = folder.check()
    assert report.problems == ()
    (warning,) = report.warnings
    assert "stored in different orientations: 2 LPS, 1 RAS (RAS: c)" in warning.message


def test_spacings_that_cannot_be_are_problems_whatever_the_orientation(folder):
    """Thick slices along another axis of the file are no other spacing."""
    folder.describe(channel_names={"0": "T1"})
    cases = {
        "a": Geometry((5.0, 0.2, 0.2)),
        "b": Geometry((0.2, 0.2, 5.0), direction=(0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0)),
        "c": Geometry((5.0, 0.2, 0.2)),
        "metres": Geometry((0.005, 0.0002, 0.0002)),
        "lost": Geometry((50.0, 50.0, 50.0)),
    }
    for case, geometry in cases.items():
        folder.image(case, 0, geometry=geometry)
        folder.labels(case, geometry=geometry)
    problems = folder.check().problems
    assert [Path(problem.file).name for problem in problems] == ["lost_0000.nii.gz", "metres_0000.nii.gz"]
    assert "voxels of 50 x 50 x 50 mm are 250 times larger" in problems[0].message
    assert "in metres" in problems[1].message


@pytest.mark.parametrize(("beside", "warned"), [((), False), (("a",), True), (("a", "b"), False)])
def test_a_spacing_beside_some_stacks_only_is_a_warning(tmp_path, beside, warned):
    folder = Folder(tmp_path / "Dataset001_X")
    folder.describe(file_ending=".tif", channel_names={"0": "EM"})
    for case in ("a", "b"):
        mask = np.zeros(SHAPE, np.uint8)
        mask[1, 1, 1 : 3 if case == "a" else 2] = 1
        for path in (folder.folder / f"imagesTr/{case}_0000.tif", folder.folder / f"labelsTr/{case}.tif"):
            write_labels(path, mask, GEOMETRY)
            if case not in beside:
                path.with_suffix(".json").unlink()
    report = check_dataset(folder.folder)
    assert not report.problems
    found = [str(warning) for warning in report.warnings if "beside" in str(warning)]
    assert len(found) == warned
    assert all("1 of 2 cases, b first, have no file with their spacing" in text for text in found)


def test_volumes_in_another_unit_than_mm_are_a_warning(folder):
    for case in "ab":
        for channel in (0, 1):
            folder.image(case, channel, geometry=Geometry((0.001, 0.001, 0.001)))
        folder.labels(case, geometry=Geometry((0.001, 0.001, 0.001)))
    report = folder.check()
    assert report.problems == ()
    assert "the median image is 0.005 mm long" in report.warnings[0].message
