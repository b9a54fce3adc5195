"""What planning says of data sets that are too small: of too few cases, or of images that no network can halve."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from unisegdiff_pipeline.commands import plan_and_preprocess
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.io.images import write_labels, write_map
from unisegdiff_pipeline.training.data.splits import load_or_create_splits


def run(root: Path, num_cases: int, shape: tuple[int, int, int], *flags: str) -> int:
    folder = root / "raw" / "Dataset001_Small"
    folder.mkdir(parents=True, exist_ok=True)
    description = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "lesion": 1}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description))
    geometry = Geometry(is_2d=shape[0] == 1)
    for i in range(num_cases):
        image = np.random.default_rng(i).random(shape)
        write_map(folder / f"imagesTr/c{i}_0000.nii.gz", image, geometry)
        write_labels(folder / f"labelsTr/c{i}.nii.gz", (image > 0.9).astype(np.uint8), geometry)
    arguments = ["-d", "1", "--raw", str(root / "raw"), "--preprocessed", str(root / "pre"), "--device", "cpu"]
    return plan_and_preprocess.main([*arguments, *flags])


def roots_in(root: Path) -> str:
    return f" --raw {root / 'raw'} --preprocessed {root / 'pre'}"


@pytest.mark.parametrize("shape", [(4, 6, 5), (1, 6, 5)], ids=["3d", "2d"])
def test_images_too_small_for_a_network_are_refused_when_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shape: tuple[int, int, int]
) -> None:
    assert run(tmp_path, 5, shape) == 1
    printed = capsys.readouterr()
    error = " ".join(printed.err.split())
    assert f"cannot be trained: the median image has {' x '.join(map(str, shape))} voxels (Z, Y, X)" in error
    assert "too few to be halved even once: a U-Net needs 8 along two axes, or 12 along one. Pad the images" in error
    assert "Ready to train" not in printed.out
    assert not (tmp_path / "pre/Dataset001_Small/plans.json").exists()


@pytest.mark.parametrize(("num_cases", "fold"), [(1, "all"), (4, "all"), (5, "0")])
def test_the_command_that_is_named_next_can_be_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], num_cases: int, fold: str
) -> None:
    assert run(tmp_path, num_cases, (1, 16, 16)) == 0
    printed = capsys.readouterr()
    assert printed.out.endswith(f"Next: usd_train Dataset001_Small {fold}{roots_in(tmp_path)}\n")
    assert ("too few for 5 folds" in " ".join(printed.err.split())) == (fold == "all")


def test_folds_by_group_need_not_be_five(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "raw/Dataset001_Small"
    folder.mkdir(parents=True)
    (folder / "groups.csv").write_text("case,group\nc0,a\nc1,b\nc2,c\nc3,a\n")
    assert run(tmp_path, 4, (1, 16, 16), "--by-group") == 0
    printed = capsys.readouterr()
    assert printed.out.endswith(f"Next: usd_train Dataset001_Small 0{roots_in(tmp_path)}\n")
    assert "too few" not in printed.err
    splits = json.loads((tmp_path / "pre/Dataset001_Small/splits_final.json").read_text())
    assert [split["val"] for split in splits] == [["c0", "c3"], ["c1"], ["c2"]]


def test_copies_of_an_image_are_no_groups_to_leave_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With one pair of copies, each of the other cases came to be left out as a group."""
    assert run(tmp_path, 4, (1, 16, 16)) == 0
    folder = tmp_path / "raw/Dataset001_Small"
    for name in ("imagesTr/c{}_0000.nii.gz", "labelsTr/c{}.nii.gz"):
        (folder / name.format(4)).write_bytes((folder / name.format(3)).read_bytes())
    arguments = ["-d", "1", "--raw", str(tmp_path / "raw"), "--preprocessed", str(tmp_path / "pre"), "--device", "cpu"]
    assert plan_and_preprocess.main(arguments) == 0
    preprocessed = tmp_path / "pre/Dataset001_Small"
    with pytest.raises(UsdError, match=r"groups\.csv names none \(identical images are one group"):
        load_or_create_splits(preprocessed, folds="by-group")
    with pytest.raises(UsdError, match=r"groups\.csv or identical images put 2 cases into group 'c3'"):
        load_or_create_splits(preprocessed, folds="nnunet")


def test_folds_of_nnunet_are_written_where_asked_for_and_refused_before_any_work(tmp_path: Path) -> None:
    assert run(tmp_path / "enough", 5, (1, 16, 16), "--splits", "nnunet") == 0
    splits = json.loads((tmp_path / "enough/pre/Dataset001_Small/splits_final.json").read_text())
    assert [split["val"] for split in splits] == [["c0"], ["c4"], ["c3"], ["c1"], ["c2"]]  # as scikit-learn deals five
    assert run(tmp_path / "few", 4, (1, 16, 16), "--splits", "nnunet") == 1
    assert not (tmp_path / "few/pre").exists()
