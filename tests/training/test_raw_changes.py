"""What has changed in a raw data set since it was preprocessed is said by trainings."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from unisegdiff_pipeline.demo.phantoms import make_phantom_dataset
from unisegdiff_pipeline.io.paths import Roots
from unisegdiff_pipeline.pipeline import plan_and_preprocess, preprocess
from unisegdiff_pipeline.planning.plans import Budget
from unisegdiff_pipeline.training.dry_run import preview
from unisegdiff_pipeline.training.opened_request import open_request
from unisegdiff_pipeline.training.raw_changes import warn_of_raw_changes
from unisegdiff_pipeline.training.request import TrainRequest

NAME = "Dataset902_Phantom2D"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw and preprocessed root of six phantoms."""
    root = tmp_path_factory.mktemp("made")
    raw = make_phantom_dataset(root / "raw", 902, dims=2, num_train=6, num_test=1, seed=1, size=(32, 32))
    plan_and_preprocess(raw, root / "preprocessed", budget=Budget("cpu", 4.0, 1), workers=0)
    return root


@pytest.fixture
def roots(made: Path, tmp_path: Path) -> Roots:
    """A copy that a test may change; times of files stay."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return Roots(tmp_path / "raw", tmp_path / "preprocessed", tmp_path / "results")


def raw_of(roots: Roots) -> Path:
    return roots.require_raw() / NAME


def warned(roots: Roots, caplog: pytest.LogCaptureFixture, fold: str = "all") -> str:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        warn_of_raw_changes(open_request(TrainRequest("902", fold, roots, device="cpu"), writing=False))
    return "\n".join(record.getMessage() for record in caplog.records)


def edit(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_nothing_is_said_where_nothing_changed(roots: Roots, caplog: pytest.LogCaptureFixture) -> None:
    """Nor of copies with another time, nor where the raw data or its images have gone."""
    assert warned(roots, caplog) == ""
    for path in raw_of(roots).rglob("*.png"):
        os.utime(path, (1, 1))
    assert warned(roots, caplog) == ""
    shutil.rmtree(raw_of(roots) / "imagesTr")
    assert warned(roots, caplog) == ""
    shutil.rmtree(raw_of(roots))
    assert warned(roots, caplog) == ""


def test_other_classes_and_channels_are_said(roots: Roots, caplog: pytest.LogCaptureFixture) -> None:
    edit(raw_of(roots) / "dataset.json", lambda d: d.update(labels={"background": 0, "scar": 1}))
    assert "the classes were lesion 1 and are scar 1 now. To take" in warned(roots, caplog)
    edit(raw_of(roots) / "dataset.json", lambda d: d.update(channel_names={"0": "CT"}))
    assert "the channels were phantom and are CT now" in warned(roots, caplog)
    caplog.clear()
    preview(TrainRequest("902", "all", roots, device="cpu"))
    assert "the classes were" in caplog.text


def test_preprocessing_says_that_it_goes_by_a_former_plan(roots: Roots, caplog: pytest.LogCaptureFixture) -> None:
    """Its copy of dataset.json is then the new one, but a training sees it by the plan."""
    edit(raw_of(roots) / "dataset.json", lambda d: d.update(labels={"background": 0, "scar": 1}))
    with caplog.at_level(logging.WARNING):
        preprocess(raw_of(roots), roots.require_preprocessed() / NAME, workers=0)
    assert "plans.json was made before" in caplog.text
    assert "the classes were lesion 1 and are scar 1 now" in caplog.text
    assert "the classes were lesion 1 and are scar 1 now" in warned(roots, caplog)


def test_new_missing_and_changed_cases_are_said(roots: Roots, caplog: pytest.LogCaptureFixture) -> None:
    labels, images = raw_of(roots) / "labelsTr", raw_of(roots) / "imagesTr"
    first, second, third, *_ = sorted(path.stem for path in labels.iterdir())
    for path in (*images.glob(f"{first}_*"), labels / f"{first}.png"):
        path.rename(path.with_name(path.name.replace(first, "another")))
    (labels / f"{second}.png").write_bytes((labels / f"{third}.png").read_bytes())
    said = warned(roots, caplog)
    assert "1 case is new (another)" in said
    assert f"1 case is not there any more ({first})" in said
    assert f"the files of 1 case are others ({second})" in said
    shutil.rmtree(raw_of(roots) / "ratersTr")
    assert "the files of 5 cases are others" in warned(roots, caplog)


def test_groups_that_came_afterwards_are_said(roots: Roots, caplog: pytest.LogCaptureFixture) -> None:
    first, second, *_ = sorted(path.stem for path in (raw_of(roots) / "labelsTr").iterdir())
    (raw_of(roots) / "groups.csv").write_text(f"case,group\n{first},one\n")
    assert warned(roots, caplog) == ""
    (raw_of(roots) / "groups.csv").write_text(f"case,group\n{first},one\n{second},one\n")
    assert "groups.csv puts cases together that were not in one group (one)" in warned(roots, caplog)
