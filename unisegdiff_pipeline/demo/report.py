"""The report of usd_demo: scores beside those of the known truth, and pictures of some cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unisegdiff_pipeline.core.files import atomic_path
from unisegdiff_pipeline.core.npz import read_npz
from unisegdiff_pipeline.core.progress import format_duration
from unisegdiff_pipeline.core.serialization import write_json
from unisegdiff_pipeline.core.units import units_of
from unisegdiff_pipeline.demo.phantoms import true_probability
from unisegdiff_pipeline.evaluation.aggregate import ReliabilitySummary
from unisegdiff_pipeline.evaluation.calibration import NUM_BINS, ReliabilityBin
from unisegdiff_pipeline.evaluation.metrics import score_case
from unisegdiff_pipeline.evaluation.spread import case_spread
from unisegdiff_pipeline.evaluation.summary import CaseScores, Summary, summarise, summary_note, summary_rows
from unisegdiff_pipeline.io.images import read_image, read_labels
from unisegdiff_pipeline.reports import figures, sample_spread
from unisegdiff_pipeline.reports.calibration_words import calibration_in_words
from unisegdiff_pipeline.reports.evaluation_figures import draw_reliability
from unisegdiff_pipeline.reports.page import (
    Column,
    Html,
    KeyFigure,
    Page,
    Section,
    Table,
    bullets,
    figure,
    key_figures,
    link,
    notice,
    numbers,
    paragraph,
    picture_from_png,
    subsection,
    table,
    write_page,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from unisegdiff_pipeline.io.raw_dataset import RawDataset

SHOWN_CASES, SHOWN_SAMPLES = 6, 3
TRUTH_TITLE = "Probability against the truth"
START = "The training began with weights that were trained on other generated lesions (--pretrained synthetic)."
LEAST_LIKELY = 0.01
PIXELS = units_of(is_2d=True, spacing_known=False)


@dataclass(frozen=True)
class DemoResult:
    """Scores of the predicted masks, and of the true probability thresholded at 0.5 on the same cases."""

    predicted: Summary
    truth: Summary

    @property
    def ratio(self) -> float:
        """Mean Dice of the prediction over that of the truth."""
        return self.predicted.mean_dice / self.truth.mean_dice


def score_truth(raw: RawDataset, case_ids: Sequence[str]) -> Summary:
    """Score the true probability > 0.5 against the references.

    A yardstick and no bound: references are what two of the four raters mark, which is likelier than not where a rater
    marks with a probability of 0.39, so that a lower threshold reaches a Dice that is about 0.01 higher.
    """
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
    case_ids = _case_ids(raw, predictions)
    curve = calibration_against_truth(raw, predictions, case_ids)
    page = _page(result, output / "cases.png", targets, seconds, curve)
    samples = [truth_section(raw, predictions, case_ids), spread_section(raw, predictions, case_ids)]
    at = next(i for i, section in enumerate(page.sections) if section.title == TRUTH_TITLE) + 1
    sections = [*page.sections[:at], *(s for s in samples if s is not None), *page.sections[at:]]
    return write_page(output / "report.html", replace(page, sections=sections))


def _case_ids(raw: RawDataset, predictions: Path) -> list[str]:
    ending = raw.description.file_ending
    return sorted(p.name.removesuffix(ending) for p in predictions.glob(f"*{ending}"))


def draw_cases(path: Path, raw: RawDataset, predictions: Path) -> None:
    """One row a case: image, reference, true probability, predicted probability, uncertainty, some samples."""
    from matplotlib.figure import Figure

    case_ids = _case_ids(raw, predictions)[:SHOWN_CASES]
    titles = ["image", "reference", "true\nprobability", "predicted\nprobability", "predicted\nmask", "uncertainty"]
    titles += [f"sample {i + 1}" for i in range(SHOWN_SAMPLES)]
    figure = Figure(figsize=(1.6 * len(titles), 1.7 * len(case_ids)), layout="constrained")
    axes = figure.subplots(len(case_ids), len(titles), squeeze=False)
    for row, case_id in zip(axes, case_ids, strict=True):
        for axis, (values, high) in zip(row, _pictures(raw, predictions, case_id), strict=False):
            axis.imshow(values, cmap="gray" if axis is row[0] else "magma", vmin=0, vmax=high)
        row[0].set_ylabel(case_id, fontsize=11)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=14)
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
    probability = _probability(predictions, case_id)
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


def calibration_against_truth(raw: RawDataset, predictions: Path, case_ids: Sequence[str]) -> ReliabilitySummary:
    """How the predicted probability compares with the true one, over all voxels where either is above LEAST_LIKELY.

    The truth is a probability here, so the curve has none of the noise of references.
    """
    pairs = [(true_probability(raw.folder, case)[0], _probability(predictions, case)) for case in case_ids]
    truth, predicted = (np.concatenate([pair[i].ravel() for pair in pairs]).astype(float) for i in (0, 1))
    kept = (truth > LEAST_LIKELY) | (predicted > LEAST_LIKELY)
    truth, predicted = truth[kept], predicted[kept]
    place = np.minimum((predicted * NUM_BINS).astype(int), NUM_BINS - 1)
    counts = np.bincount(place, minlength=NUM_BINS)
    means = [np.bincount(place, values, NUM_BINS) / np.maximum(counts, 1) for values in (predicted, truth)]
    bins = [ReliabilityBin(int(n), float(p), float(y)) for n, p, y in zip(counts, *means, strict=True)]
    error = sum(b.count * abs(b.mean_confidence - b.frequency) for b in bins) / max(1, int(counts.sum()))
    return ReliabilitySummary(tuple(bins), (), error, error)


def _probability(predictions: Path, case_id: str) -> np.ndarray:
    """Predicted probability (Y, X) of the lesion."""
    path = predictions / "probabilities" / f"{case_id}.npz"
    stored = read_npz(path, ("probabilities",), "Remove the demo's folder and run usd_demo again.")["probabilities"]
    return np.asarray(stored[0, 0], np.float32)


def _against_truth(curve: ReliabilitySummary) -> Section:
    drawn = draw_reliability({"lesion": curve}, "mean true probability", "pixel")
    caption = (
        "Predicted probability against the true one, over pixels where either is above "
        f"{LEAST_LIKELY:.0%}; on the diagonal the prediction is right."
    )
    words = [notice(text) for text in calibration_in_words({"lesion": curve}, PIXELS)]
    intro = "On real images nobody knows this probability; here the images were made by it."
    return Section(TRUTH_TITLE, [*words, figure(drawn, caption)], intro)


def fractions_by_truth(truth: np.ndarray, fraction: np.ndarray) -> list[tuple[float, float, int]]:
    """(mean true probability, mean fraction of samples, voxels) by true probability, of arrays of one shape.

    What is certainly background, nearly all of an image, is left out.
    """
    kept = truth > LEAST_LIKELY
    truth, fraction = truth[kept].astype(float), fraction[kept].astype(float)
    place = np.minimum((truth * NUM_BINS).astype(int), NUM_BINS - 1)
    counts = np.bincount(place, minlength=NUM_BINS)
    sums = [np.bincount(place, values, NUM_BINS) for values in (truth, fraction)]
    return [(t / n, f / n, int(n)) for n, t, f in zip(counts, *sums, strict=True) if n]


def truth_section(raw: RawDataset, predictions: Path, case_ids: Sequence[str]) -> Section | None:
    """How many samples mark a voxel, by the probability that an annotator does."""
    truth, fraction = [], []
    for case_id in case_ids:
        masks = _sampled_masks(raw, predictions, case_id)
        if masks:
            truth.append(true_probability(raw.folder, case_id)[0].ravel())
            fraction.append(np.mean(masks, axis=0).ravel())
    if not truth:
        return None
    curve = fractions_by_truth(np.concatenate(truth), np.concatenate(fraction))
    if not curve:  # no case has a lesion
        return None

    def paint(drawn: Figure) -> None:
        axis = drawn.subplots()
        axis.plot([0, 1], [0, 1], color=figures.MUTED, linewidth=1.0, linestyle=":")
        axis.plot([t for t, _, _ in curve], [f for _, f, _ in curve], "o-", color=figures.series_color(0))
        axis.set_xlabel("true probability")
        axis.set_ylabel("fraction of samples")

    caption = f"Mean fraction of the samples that mark a pixel, where the true probability is above {LEAST_LIKELY:.0%}."
    intro = (
        "Perfect samples lie on the diagonal. A network that has not learned to tell clear lesions from doubtful ones "
        "lies below it at the right, and has to."
    )
    truth_there, marked, _ = curve[-1]
    words = notice(f"Where the true probability is {truth_there:.2f}, {marked:.0%} of the samples mark a pixel.")
    drawn = figures.draw(paint, "Fraction of samples by true probability")
    return Section("Samples against the truth", [words, figure(drawn, caption)], intro)


def spread_section(raw: RawDataset, predictions: Path, case_ids: Sequence[str]) -> Section | None:
    """Sampled masks beside those of the annotators."""
    ending, cases = raw.description.file_ending, []
    for case_id in case_ids:
        masks = _sampled_masks(raw, predictions, case_id)
        paths = sorted((raw.folder / "ratersTs").glob(f"{case_id}_*{ending}"))
        raters = [read_labels(path).array[0, 0] > 0 for path in paths]
        if masks and raters:
            confidence = float(_probability(predictions, case_id).max())
            cases.append(case_spread(case_id, "lesion", masks, raters, confidence))
    return sample_spread.section({"lesion": cases}, PIXELS) if cases else None


def _sampled_masks(raw: RawDataset, predictions: Path, case_id: str) -> list[np.ndarray]:
    """Drawn masks (Y, X) of a case, boolean."""
    paths = sorted((predictions / "samples").glob(f"{case_id}_*{raw.description.file_ending}"))
    return [read_labels(path).array[0, 0] > 0 for path in paths]


def _scores(summary: Summary) -> list[Html]:
    heading, *rows = summary_rows(summary, PIXELS)
    columns = [Column(heading[0], "text"), *numbers(*heading[1:])]
    return [table(Table(columns, rows, sortable=False)), paragraph(summary_note(summary, PIXELS), quiet=True)]


def _page(
    result: DemoResult, cases: Path, reports: Mapping[str, str], seconds: float, curve: ReliabilitySummary
) -> Page:
    truth = f"{result.truth.mean_dice:.3f}"
    opening = [
        KeyFigure("Mean Dice", f"{result.predicted.mean_dice:.3f}", "of held-out phantoms"),
        KeyFigure("Of the truth", truth, "the true probability above 0.5, as a yardstick"),
        KeyFigure("Ratio", f"{result.ratio:.3f}", "of the two"),
        KeyFigure("The whole way", format_duration(seconds), "from making the data to scores"),
    ]
    titles = (("Predicted masks", result.predicted), ("True probability above 0.5", result.truth))
    tables = [subsection(title, _scores(summary)) for title, summary in titles]
    caption = "Image, reference, and what is known and what was predicted about each case."
    return Page(
        title="usd_demo",
        subtitle="Generated images, whose true probability is known",
        lead=[key_figures(opening)],
        sections=[
            Section("Cases", [figure(picture_from_png(cases, "Cases of the demo"), caption, wide=True)]),
            _against_truth(curve),
            Section("Scores", tables, START),
            Section("Reports", [bullets(link(target, title) for title, target in reports.items())]),
        ],
    )
