"""The parts of reports that are about the sources of a unified data set."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.io.test_sources import write_source
from unisegdiff_pipeline import pipeline
from unisegdiff_pipeline.io.unify import UnifyRequest, unify
from unisegdiff_pipeline.planning.plans import Budget
from unisegdiff_pipeline.reports import dataset_pictures
from unisegdiff_pipeline.reports.training_report import write_training_report
from unisegdiff_pipeline.reports.training_sources import section

PHONE, DESKTOP = (390, 844), (1280, 900)


def scores(a: float, b: float) -> dict[str, Any]:
    sources = [{"source": "A", "num_cases": 3, "mean_dice": a}, {"source": "B <2>", "num_cases": 1, "mean_dice": b}]
    return {"macro_mean_dice": (a + b) / 2, "macro_mean_iou": 0.0, "sources": sources}


@pytest.fixture
def fold(tmp_path: Path) -> Path:
    """A training that was scored twice in each phase, and validated."""
    folder = tmp_path / "Dataset500_U/StagedDiffusionTrainer__2d/fold_0"
    (folder / "validation").mkdir(parents=True)
    entries: list[dict[str, Any]] = []
    for phase, a, b in ((1, 0.2, 0.1), (1, 0.4, 0.2), (2, 0.6, 0.3), (2, 0.5, 0.6)):
        place = {"phase": phase, "iteration": 10 * len(entries), "seconds": 60.0 * len(entries)}
        rates = {"loss": 1.0, "learning_rate": 1e-3, "iterations_per_s": 2.0, "gradient_norm": 1.0, "progress": 0.5}
        entries.append({"kind": "train", **place, **rates})
        entries.append({"kind": "validation", **place, "dice_mean": (3 * a + b) / 4, "by_source": scores(a, b)})
    (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    summary = {"summary": {"mean_dice": 0.65, "classes": []}, "cases": [], "by_source": scores(0.7, 0.4)}
    (folder / "validation/summary.json").write_text(json.dumps(summary))
    return folder


def test_a_training_report_has_dice_by_source(fold: Path) -> None:
    page = write_training_report(fold).read_text()
    part = page[page.rindex(">Sources<") :]
    rows = re.findall(r"<tr>(.*?)</tr>", part[: part.index("</table>")], re.DOTALL)
    cells = [re.findall(r"<td[^>]*>(?:<[^>]*>)*([^<]*)", row) for row in rows]
    assert ["A", "3", "0.500", "3", "0.700"] in cells
    assert next(row for row in cells if row and row[0] == "mean of sources")[2::2] == ["0.550", "0.550"]
    assert "B &lt;2&gt;" in page
    assert "last, on held-out cases, mean of sources; best 0.550" in page


def test_ordinary_trainings_have_no_such_part() -> None:
    entry = {"kind": "validation", "phase": 1, "seconds": 1.0, "dice_mean": 0.5}
    assert section([entry], {"summary": {}}, 60.0, "minutes") is None


@pytest.fixture
def unified(tmp_path: Path) -> Path:
    """Preprocessed folder, with its report, of two sources; the organ of the second becomes background."""
    write_source(tmp_path / "raw", "Dataset001_A", False, {"background": 0, "tumour": 1})
    write_source(tmp_path / "raw", "Dataset002_B", True, {"background": 0, "organ": 1, "polyp": 2})
    for path in (tmp_path / "raw/Dataset002_B/labelsTr").iterdir():
        mask = np.array(Image.open(path))
        mask[10:14, 2:12] = 1
        Image.fromarray(mask).save(path)
    maps = {"B": {"organ": "background", "polyp": "lesion"}}
    raw = unify(tmp_path / "raw", UnifyRequest(500, "U", (1, 2), label_maps=maps, modalities={"B": "endoscopy"}))
    pipeline.fingerprint(raw, tmp_path / "preprocessed", workers=0)
    return pipeline.plan(raw, tmp_path / "preprocessed", budget=Budget("cpu", 4.0, 2)).folder


def test_a_data_set_report_has_images_and_channels_by_source(unified: Path) -> None:
    page = (unified / "dataset_report.html").read_text()
    assert "A case of each source with its labels" in page
    for text in ("A__c", "B__c", "endoscopy", "Images of each source", "Channels of each source", "zscore"):
        assert text in page


def test_pictures_hold_the_classes_of_the_unified_set(unified: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[dict[str, int]] = []
    outlines = dataset_pictures._outlines

    def remembered(masks: Any) -> Any:
        drawn.append({name: int(mask.sum()) for name, mask in masks.items()})
        return outlines(masks)

    monkeypatch.setattr(dataset_pictures, "_outlines", remembered)
    (unified / "dataset_report.html").unlink()  # its pictures would be taken over
    pipeline.plan(unified.parent.parent / "raw/Dataset500_U", unified.parent, budget=Budget("cpu", 4.0, 2))
    assert drawn == [{"lesion": 16}, {"lesion": 16}]


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_in_a_browser(unified: Path, fold: Path, open_page: Callable[..., Any], size: tuple[int, int]) -> None:
    for path in (unified / "dataset_report.html", write_training_report(fold)):
        opened = open_page(path, size)
        assert opened.complaints == []
        assert opened.requests == []
        assert not opened.scrolls_sideways()
