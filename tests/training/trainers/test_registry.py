"""Trainers by name, one's own among them."""

from __future__ import annotations

from pathlib import Path

import pytest

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.training.trainers.registry import TRAINERS, find_trainer


def test_a_trainer_of_ones_own_has_a_name_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "from unisegdiff_pipeline.training.trainers import segmentation\n"
    for name in ("SegmentationTrainer", "OtherTrainer"):
        text += f"class {name}(segmentation.SegmentationTrainer):\n    pass\n"
    (tmp_path / "named_trainers.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert find_trainer("named_trainers:OtherTrainer").__name__ == "OtherTrainer"
    with pytest.raises(UsdError, match="the name of a trainer of this package, SegmentationTrainer"):
        find_trainer("named_trainers:SegmentationTrainer")
    own = TRAINERS["SegmentationTrainer"]
    assert find_trainer(f"{own.__module__}:SegmentationTrainer") is own
