"""What a cascade takes over of the model whose masks it refines, and what it refuses."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.inference.models import tiny_plans, write_model
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import file_hash
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.locks import locked
from unisegdiff_pipeline.core.serialization import write_json
from unisegdiff_pipeline.planning.plans import Plans, PreprocessingPlan
from unisegdiff_pipeline.preprocessing.storage import PreprocessedFolder, mask_path
from unisegdiff_pipeline.training import cascade, cascade_masks
from unisegdiff_pipeline.training.cascade import CascadeStart
from unisegdiff_pipeline.training.cascade_masks import take_over_masks


def plans_of(channels: tuple[str, ...], missing: bool = False) -> Plans:
    labels = LabelScheme(("lesion",), ((1,),), "binary", (1,))
    preprocessing = PreprocessingPlan((0, 1, 2), (1.0, 1.0, 1.0), ("zscore",) * 2, (False,) * 2, ())
    plans = tiny_plans(labels, preprocessing, channels, ".nii.gz", True)
    if not missing:
        return plans
    tiny = plans.configurations["tiny"]
    network = replace(tiny.network, num_input_channels=4)
    tiny = replace(tiny, preprocessing=replace(preprocessing, missing_channels=True), network=network)
    return replace(plans, configurations={"tiny": tiny})


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (plans_of(("FLAIR", "T1")), r"channel_names \('T1', 'FLAIR'\), the plan has \('FLAIR', 'T1'\) now"),
        (plans_of(("T1", "FLAIR"), missing=True), "missing_channels False, the plan has True now"),
        (plans_of(("T1", "FLAIR")), None),
    ],
    ids=["swapped channels", "missing channels", "the same"],
)
def test_masks_of_a_model_that_takes_other_images_are_refused(tmp_path: Path, now: Plans, said: str | None) -> None:
    model = write_model(tmp_path, plans_of(("T1", "FLAIR")))
    validation = model / "fold_0/validation"
    write_json(validation / "summary.json", {"cases": [{"case_id": "a"}]})
    (validation / "a.nii.gz").touch()
    start = CascadeStart(model, tmp_path / "target", PreprocessedFolder(tmp_path), now, (8, 8, 8), "usd_train 1 cv")
    if said is None:
        assert start.find_masks(["a"]) == {"a": validation / "a.nii.gz"}
        return
    with pytest.raises(UsdError, match=f"{said}; train it anew: usd_train 1 cv --restart"):
        start.find_masks(["a"])


@pytest.fixture
def opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Opens a cascade whose masks take a moment to be taken over; `taken_over` lists the cases."""
    plans, cases, taken_over = plans_of(("T1", "FLAIR")), ("a", "b"), []
    model = write_model(tmp_path, plans)
    write_json(model / "dataset.json", {})
    write_json(model / "fold_0/validation/summary.json", {"cases": [{"case_id": case} for case in cases]})
    for case in cases:
        (model / f"fold_0/validation/{case}.nii.gz").touch()

    def take_over(job: Any) -> str:
        taken_over.append(job.case_id)
        time.sleep(0.2)
        path = mask_path(job.folder, job.case_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(job.case_id)
        return file_hash(path)

    monkeypatch.setattr(cascade, "_take_over_mask", take_over)
    monkeypatch.setattr(cascade_masks, "LOOK_AGAIN_S", 0.01)
    folder = tmp_path / "cascade"

    def opened() -> Any:
        start = CascadeStart(model, folder / "tiny", PreprocessedFolder(tmp_path), plans, (8, 8, 8), "usd_train 1 cv")
        request = SimpleNamespace(restart=False)
        return SimpleNamespace(
            cascade=start,
            cases=cases,
            workers=0,
            request=request,
            model_folder=folder,
            restarted=(),
            taken_over=taken_over,
        )

    return opened


def test_of_folds_that_begin_at_once_one_takes_the_masks_over(opening: Callable[[], Any]) -> None:
    one, other = opening(), opening()
    beside = threading.Thread(target=take_over_masks, args=(one,))
    beside.start()
    while not one.taken_over:
        time.sleep(0.01)
    take_over_masks(other)
    beside.join()
    assert one.taken_over == ["a", "b"]
    other.cascade.require_kept(("a", "b"))


def test_masks_of_a_model_that_was_trained_again_since_are_said_to_be_former(
    opening: Callable[[], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened = opening()
    take_over_masks(opened)
    caplog.set_level("INFO")
    with locked(opened.model_folder / ".lock-fold_1", "fold 1"):
        take_over_masks(opening())
        assert "trained again" not in caplog.text
        trained = write_model(tmp_path / "again", plans_of(("T1", "FLAIR")), ("1",))
        (trained / "fold_1/weights.safetensors").replace(opened.cascade.source / "fold_0/weights.safetensors")
        take_over_masks(opening())
    assert f"{opened.cascade.source} has been trained again since the first fold of the cascade began" in caplog.text
    assert opened.taken_over == ["a", "b"]


def test_masks_that_another_fold_is_about_to_train_with_stay(opening: Callable[[], Any]) -> None:
    opened = opening()
    take_over_masks(opened)
    with locked(opened.model_folder / ".lock-fold_1", "fold 1"):  # before it has logged anything
        take_over_masks(opening())
    assert opened.taken_over == ["a", "b"]
    take_over_masks(opening())  # nobody has begun with them
    assert opened.taken_over == ["a", "b", "a", "b"]
    assert [path.name for path in opened.model_folder.iterdir()] == ["tiny"]
