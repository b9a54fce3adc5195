"""What a cascade refuses of the model whose masks it refines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.inference.models import tiny_plans, write_model
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.serialization import write_json
from unisegdiff_pipeline.planning.plans import Plans, PreprocessingPlan
from unisegdiff_pipeline.preprocessing.storage import PreprocessedFolder
from unisegdiff_pipeline.training.cascade import CascadeStart


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
