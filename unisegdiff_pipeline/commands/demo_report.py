"""The report of usd_demo: scores beside those of the known truth, and pictures of some cases."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unisegdiff_pipeline.evaluation.metrics import score_case
from unisegdiff_pipeline.evaluation.summary import CaseScores, Summary, summarise, summary_table
from unisegdiff_pipeline.io.files import atomic_path
from unisegdiff_pipeline.io.images import read_image, read_labels
from unisegdiff_pipeline.io.npz import read_npz
from unisegdiff_pipeline.io.phantoms import true_probability
from unisegdiff_pipeline.io.progress import format_duration
from unisegdiff_pipeline.io.serialization import write_json
from unisegdiff_pipeline.io.units import units_of
from unisegdiff_pipeline.reports.page import (
    Html,
    KeyFigure,
    Page,
    Section,
    bullets,
    figure,
    key_figures,
    link,
    picture_from_png,
    subsection,
    write_page,
)

if TYPE_CHECKING:
    from unisegdiff_pipeline.io.raw_dataset import RawDataset

SHOWN_CASES, SHOWN_SAMPLES = 6, 3
PIXELS = units_of(is_2d=True, spacing_known=False)


@dataclass(frozen=True)
class DemoResult:
    """Scores of the predicted masks, and of the true probability cut at 0.5 on the same cases."""

    predicted: Summary
    truth: Summary

    @property
    def ratio(self) -> float:
        """Mean Dice of the prediction over that of the truth."""
        return self.predicted.mean_dice / self.truth.mean_dice


def score_truth(raw: RawDataset, case_ids: Sequence[str]) -> Summary:
    """Score the best mask that anyone could know, true probability > 0.5, against the references."""
    cases, labels = [], raw.description.labels
    for case_id in case_ids:
        reference = read_labels(raw.folder / "labelsTs" / f"{case_id}{raw.description.file_ending}")
        truth = (true_probability(raw.folder, case_id) > 0.5).astype(np.uint8)
        spacing_mm = reference.geometry.spacing_mm
        cases.append(CaseScores(case_id, tuple(score_case(reference.array[0], truth, labels, spacing_mm, is_2d=True))))
    return summarise(cases)


def write_report(
    output: Path,
    raw: RawDataset,
    predictions: Path,
    result: DemoResult,
    reports: Mapping[str, Path],
    seconds: float,
) -> Path:
    """Write demo.json, cases.png and report.html, which leads to the other reports; returns the path of the page."""
    facts = {
        "mean_dice": result.predicted.mean_dice,
        "mean_dice_of_truth": result.truth.mean_dice,
        "ratio": result.ratio,
        "seconds": seconds,
        "cases": result.predicted.classes[0].num_cases,
    }
    write_json(output / "demo.json", facts)
    draw_cases(output / "cases.png", raw, predictions)
    targets = {title: path.relative_to(output).as_posix() for title, path in reports.items()}
    return write_page(output / "report.html", _page(result, output / "cases.png", targets, seconds))


def draw_cases(path: Path, raw: RawDataset, predictions: Path) -> None:
    """One row a case: image, reference, true probability, predicted probability, uncertainty, some samples."""
    from matplotlib.figure import Figure

    ending = raw.description.file_ending
    case_ids = sorted(p.name.removesuffix(ending) for p in predictions.glob(f"*{ending}"))[:SHOWN_CASES]
    titles = ["image", "reference", "true probability", "predicted probability", "predicted mask", "uncertainty"]
    titles += [f"sample {i + 1}" for i in range(SHOWN_SAMPLES)]
    figure = Figure(figsize=(1.6 * len(titles), 1.7 * len(case_ids)), layout="constrained")
    axes = figure.subplots(len(case_ids), len(titles), squeeze=False)
    for row, case_id in zip(axes, case_ids, strict=True):
        for axis, (values, high) in zip(row, _pictures(raw, predictions, case_id), strict=False):
            axis.imshow(values, cmap="gray" if axis is row[0] else "magma", vmin=0, vmax=high)
        row[0].set_ylabel(case_id, fontsize=7)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=8)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _pictures(raw: RawDataset, predictions: Path, case_id: str) -> list[tuple[np.ndarray, float]]:
    """(picture (Y, X), value shown brightest) for each column of `draw_cases`."""
    ending = raw.description.file_ending
    image = read_image([raw.folder / "imagesTs" / f"{case_id}_0000{ending}"]).array[0, 0]
    uncertainty = read_image([predictions / "uncertainty" / f"{case_id}{ending}"]).array[0, 0]
    path = predictions / "probabilities" / f"{case_id}.npz"
    stored = read_npz(path, ("probabilities",), "Remove the demo's folder and run usd_demo again.")["probabilities"]
    probability = stored[0, 0].astype(np.float32)
    samples = sorted((predictions / "samples").glob(f"{case_id}_*{ending}"))[:SHOWN_SAMPLES]
    masks = [raw.folder / "labelsTs" / f"{case_id}{ending}", predictions / f"{case_id}{ending}", *samples]
    reference, mask, *drawn = (read_labels(path).array[0, 0].astype(np.float32) for path in masks)
    return [
        (image, float(image.max())),
        (reference, 1.0),
        (true_probability(raw.folder, case_id)[0], 1.0),
        (probability, 1.0),
        (mask, 1.0),
        (uncertainty, 65535.0),
        *((sample, 1.0) for sample in drawn),
    ]


def _page(result: DemoResult, cases: Path, reports: Mapping[str, str], seconds: float) -> Page:
    truth = f"{result.truth.mean_dice:.3f}"
    numbers = [
        KeyFigure("Mean Dice", f"{result.predicted.mean_dice:.3f}", "of held-out phantoms"),
        KeyFigure("Of the truth", truth, "cut at 0.5; it bounds what can be learned"),
        KeyFigure("Ratio", f"{result.ratio:.3f}", "of the two"),
        KeyFigure("The whole way", format_duration(seconds), "from making the data to scores"),
    ]
    titles = (("Predicted masks", result.predicted), ("True probability above 0.5", result.truth))
    tables = [
        subsection(title, [Html(f"<pre>{html.escape(summary_table(summary, PIXELS))}</pre>")])
        for title, summary in titles
    ]
    caption = "Image, reference, and what is known and what was predicted about each case."
    return Page(
        title="usd_demo",
        subtitle="Generated images, whose true probability is known",
        lead=[key_figures(numbers)],
        sections=[
            Section("Cases", [figure(picture_from_png(cases, "Cases of the demo"), caption, wide=True)]),
            Section("Scores", tables),
            Section("Reports", [bullets(link(target, title) for title, target in reports.items())]),
        ],
    )
