"""The evaluation report of phantoms in 2D and 3D: its numbers are those of the files, and it works in a browser."""

from __future__ import annotations

import colorsys
import csv
import dataclasses
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.units import VOLUMES
from unisegdiff_pipeline.evaluation.evaluate import Evaluation, evaluate_folders
from unisegdiff_pipeline.evaluation.meaning import Meaning
from unisegdiff_pipeline.evaluation.options import EvaluationOptions
from unisegdiff_pipeline.evaluation.unified import SourceLabels
from unisegdiff_pipeline.io.images import map_ending, read_labels, split_ending, write_labels, write_map
from unisegdiff_pipeline.io.sources import Source
from unisegdiff_pipeline.reports import case_gallery, evaluation_report
from unisegdiff_pipeline.reports.case_gallery import channel_names, find_images, highlights, label_names
from unisegdiff_pipeline.reports.case_pictures import CLASS_COLORS
from unisegdiff_pipeline.reports.evaluation_report import write_evaluation_report
from unisegdiff_pipeline.reports.evaluation_tables import volume_digits
from unisegdiff_pipeline.reports.figures import SERIES
from unisegdiff_pipeline.reports.viewer import ViewerCase

LESION = LabelScheme(("lesion",), ((1,),), "binary", (1,))
NESTED = LabelScheme(("whole", "core"), ((1, 2), (2,)), "regions", (1, 2))
PHONE = (390, 844)
OPTIONS = EvaluationOptions(resamples=50, workers=0)


def make_predictions(labels: Path, output: Path, seed: int = 0, extras: bool = True, limit: int | None = None) -> Path:
    """Shifted references as masks and samples; the first case with a lesion is missed, an empty one gets a lesion."""
    rng = np.random.default_rng(seed)
    missed = invented = False
    for path in sorted(labels.iterdir())[:limit]:
        reference = read_labels(path)
        name, ending = split_ending(path.name)
        mask = np.roll(reference.array[0], int(rng.integers(1, 3)), axis=2)
        if mask.any() and not missed:
            mask, missed = np.zeros_like(mask), True
        elif not mask.any() and not invented:
            mask[0, 3:6, 3:6], invented = 1, True
        write_labels(output / path.name, mask, reference.geometry)
        for number in range(3 if extras else 0):
            sample = np.roll(mask, int(rng.integers(-1, 2)), axis=1)
            write_labels(output / "samples" / f"{name}_sample{number:02d}{ending}", sample, reference.geometry)
        if extras:
            probability = np.clip(0.8 * mask + 0.1 * rng.random(mask.shape), 0, 1).astype(np.float32)
            (output / "probabilities").mkdir(exist_ok=True)
            np.savez_compressed(output / "probabilities" / f"{name}.npz", probabilities=probability[None])
            write_map(output / "uncertainty" / f"{name}{map_ending(ending)}", 1 - probability, reference.geometry)
    return output


def evaluated(labels: Path, predictions: Path, spacing_known: bool = True, **more: object) -> Evaluation:
    options = dataclasses.replace(OPTIONS, **more)  # type: ignore[arg-type]
    return evaluate_folders(labels, predictions, Meaning(LESION, spacing_known), options)


@pytest.fixture(scope="module")
def flat(phantom_2d: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Evaluation, Path]:
    """Evaluation of 2D phantoms with four raters, and the folder of its report."""
    folder = tmp_path_factory.mktemp("flat")
    labels, predictions = phantom_2d / "labelsTr", make_predictions(phantom_2d / "labelsTr", folder / "run")
    other = make_predictions(labels, folder / "other <run>", seed=1, extras=False)
    evaluation = evaluated(labels, predictions, spacing_known=False, against=(other,))
    evaluation.write(folder / "out")
    write_evaluation_report(folder / "out", evaluation)
    return evaluation, folder / "out"


@pytest.fixture(scope="module")
def solid(phantom_3d: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Evaluation, Path]:
    folder = tmp_path_factory.mktemp("solid")
    predictions = make_predictions(phantom_3d / "labelsTr", folder / "run", limit=3)
    evaluation = evaluated(phantom_3d / "labelsTr", predictions, subset=True)
    evaluation.write(folder / "out")
    write_evaluation_report(folder / "out", evaluation)
    return evaluation, folder / "out"


def test_cases_are_chosen_by_dice_and_shown_once(flat: tuple[Evaluation, Path]) -> None:
    evaluation, _ = flat
    dice = {case.case_id: case.scores[0].dice for case in evaluation.cases}
    ranked = sorted(value for value in dice.values() if not math.isnan(value))
    chosen = {item.kind: item for item in highlights(evaluation.inputs, evaluation.cases)}
    assert chosen["Best"].dice == ranked[-1]
    assert chosen["Worst"].dice == ranked[0] == 0.0
    assert chosen["Second worst"].dice == ranked[1]
    assert ranked[0] < chosen["Median"].dice < ranked[-1]
    false = chosen["Largest false positive on an empty reference"]
    assert math.isnan(false.dice)
    assert len({item.inputs.case_id for item in chosen.values()}) == len(chosen) == 5
    for item in chosen.values():
        assert item.inputs.case_id == item.result.case_id


@pytest.mark.parametrize(("number", "kinds"), [(0, []), (1, ["Best"]), (2, ["Best", "Worst"]), (3, 3), (4, 4)])
def test_few_cases_are_few_pictures(flat: tuple[Evaluation, Path], number: int, kinds: list[str] | int) -> None:
    evaluation, _ = flat
    scored = [case for case in evaluation.cases if case.scores[0].outcome == "scored"][:number]
    found = [item.kind for item in highlights(evaluation.inputs, scored)]
    assert (len(found) if isinstance(kinds, int) else found) == kinds


def test_images_are_found_by_case_and_channel(tmp_path: Path) -> None:
    (tmp_path / "labelsTr").mkdir()
    (tmp_path / "imagesTr").mkdir()
    for name in ("a_0001.nii.gz", "a_0000.nii.gz", "a_b_0000.nii.gz", "c.nii.gz", "a_0000.json"):
        (tmp_path / "imagesTr" / name).touch()
    found = find_images(tmp_path / "labelsTr", ["a", "c", "d"])
    assert {case: [path.name for path in paths] for case, paths in found.items()} == {
        "a": ["a_0000.nii.gz", "a_0001.nii.gz"]
    }
    assert find_images(tmp_path / "imagesTr", ["a"]) == {}
    (tmp_path / "imagesTr/Zo\u0308e_0000.nii.gz").touch()  # as macOS writes names
    assert list(find_images(tmp_path / "labelsTr", ["Z\u00f6e"])) == ["Z\u00f6e"]


def test_numbers_are_those_of_the_files(flat: tuple[Evaluation, Path]) -> None:
    evaluation, folder = flat
    text = (folder / "report.html").read_text(encoding="utf-8")
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    table = text.partition(">Cases</caption>")[2].partition("</table>")[0].replace("<wbr>", "")
    shown = {re.findall(r"<td[^>]*>(.*?)</td>", row)[0]: row for row in re.findall(r"<tr>(<td.*?)</tr>", table)}
    assert list(shown) == [row["case"] for row in rows]
    headings = re.findall(r"<th[^>]*>(.*?)</th>", table)
    for row in rows:
        cells = re.findall(r'<td class="?([^">]*)"?(?: data-value="([^"]*)")?>', shown[row["case"]])
        place = headings.index("Dice")
        assert ("undefined" in cells[place][0]) == (row["dice"] == "")
        if row["dice"]:
            assert float(cells[place][1]) == pytest.approx(float(row["dice"]), abs=1e-8)
    assert f"{evaluation.report.mean['dice'].mean:.3f}" in text
    assert "Areas and distances are in pixels" in text
    assert "1 prediction stands on an empty reference" in text


def test_everything_that_was_scored_is_shown(flat: tuple[Evaluation, Path]) -> None:
    text = (flat[1] / "report.html").read_text(encoding="utf-8")
    for heading in (
        "Summary",
        "Comparison with other runs",
        "Best, median and worst cases",
        "Distribution over cases",
        "Lesions",
        "Areas",
        "Probabilities and confidence",
        "All cases",
        "Settings",
    ):
        assert f"<h2>{heading}</h2>" in text
    for title in ("reliability curves", "FROC curves", "risk-coverage curves", "Bland-Altman plot", "rank histogram"):
        assert f"<title>{title}" in text
    coverage = max(flat[0].report.classes[0].volume_coverage or (), key=lambda row: row.level)
    held = f"holds the reference area in {round(coverage.fraction * coverage.n)} of {coverage.n} cases"
    assert f"The 90% interval of the samples {held}" in text
    for panel in ("Image", "Masks", "4 raters", "Uncertainty", "Sample 1", "Sample 2", "Sample 3"):
        assert text.count(f"<figcaption>{panel}</figcaption>") == 5
    assert "other &lt;run&gt;" in text
    assert "<run>" not in text
    assert not (flat[1] / "viewers").exists()  # the pictures show 2D cases whole


def test_equal_evaluations_are_equal_pages(flat: tuple[Evaluation, Path], tmp_path: Path) -> None:
    evaluation, folder = flat
    assert write_evaluation_report(tmp_path, evaluation).read_bytes() == (folder / "report.html").read_bytes()


def test_masks_alone_without_images_or_anything_else(phantom_2d: Path, tmp_path: Path) -> None:
    references = tmp_path / "references"
    references.mkdir()
    for path in sorted((phantom_2d / "labelsTr").iterdir())[:3]:
        shutil.copy(path, references)
    predictions = make_predictions(references, tmp_path / "run", extras=False)
    text = write_evaluation_report(tmp_path / "out", evaluated(references, predictions)).read_text(encoding="utf-8")
    assert "<h2>Comparison" not in text
    assert "<h2>Probabilities" not in text
    assert "Uncertainty</figcaption>" not in text
    assert text.count("<figcaption>Masks</figcaption>") == len(re.findall(r"<section class=part><h3>", text))


def test_several_classes_have_a_panel_for_each_side(phantom_2d: Path, tmp_path: Path) -> None:
    references = tmp_path / "labelsTr"
    for path in sorted((phantom_2d / "labelsTr").iterdir())[:4]:
        labels = read_labels(path)
        mask = labels.array[0].copy()
        mask[:, ::2][mask[:, ::2] > 0] = 2
        write_labels(references / path.name, mask, labels.geometry)
    evaluation = evaluate_folders(references, references, Meaning(NESTED), OPTIONS)
    text = write_evaluation_report(tmp_path / "out", evaluation).read_text(encoding="utf-8")
    assert "<figcaption>Reference</figcaption>" in text
    assert "mean of classes" in text
    assert all(color in text for color in CLASS_COLORS[:2])


def test_figures_of_many_classes_take_the_width_of_the_page_and_repeat_no_colour(tmp_path: Path) -> None:
    labels = np.repeat(np.arange(10, dtype=np.uint8), 4).reshape(1, 4, 10)
    for folder in ("labelsTr", "masks"):
        write_labels(tmp_path / folder / "a.png", labels, Geometry(is_2d=True))
    names = tuple(f"organ {value}" for value in range(1, 10))
    scheme = LabelScheme(names, tuple((value,) for value in range(1, 10)), "multiclass", tuple(range(1, 10)))
    evaluation = evaluate_folders(tmp_path / "labelsTr", tmp_path / "masks", Meaning(scheme), OPTIONS)
    text = write_evaluation_report(tmp_path / "out", evaluation).read_text(encoding="utf-8")
    assert "Figures show the first 8 of 9 classes." in text
    boxes = text.partition("<h2>Distribution over cases</h2>")[2].partition("</section>")[0]
    assert boxes.count("<figure class=wide>") == boxes.count("<figure") > 0
    assert ">organ 8</text>" in boxes
    assert ">organ 9</text>" not in boxes


@pytest.mark.parametrize(("mean_ml", "digits"), [(0.0, 2), (123.0, 2), (1.0, 2), (0.5, 3), (0.056, 4), (0.0012, 5)])
def test_volumes_have_decimals_enough(flat: tuple[Evaluation, Path], mean_ml: float, digits: int) -> None:
    report = flat[0].report
    volume = dataclasses.replace(report.mean["reference_ml"], mean=mean_ml)
    changed = dataclasses.replace(report, units=VOLUMES, mean={**report.mean, "reference_ml": volume})
    assert volume_digits(changed) == digits
    assert volume_digits(dataclasses.replace(changed, units=report.units)) == 1  # means of whole pixels


def test_a_part_in_which_no_class_is_scored_has_the_least_decimals(flat: tuple[Evaluation, Path]) -> None:
    assert volume_digits(dataclasses.replace(flat[0].report, units=VOLUMES), {}) == 2


def test_a_class_has_one_hue_in_charts_and_pictures() -> None:
    def hue(color: str) -> float:
        return colorsys.rgb_to_hsv(*(byte / 255 for byte in bytes.fromhex(color[1:])))[0]

    for chart, shown in zip(SERIES[:-1], CLASS_COLORS[:-1], strict=True):  # the last are greys
        apart = abs(hue(chart) - hue(shown))
        assert min(apart, 1 - apart) < 0.05, (chart, shown)


def test_a_damaged_image_leaves_the_report_whole(phantom_2d: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labelsTr"
    shutil.copytree(phantom_2d / "labelsTr", labels)
    shutil.copytree(phantom_2d / "imagesTr", tmp_path / "imagesTr")
    for path in (tmp_path / "imagesTr").iterdir():
        path.write_bytes(path.read_bytes()[:40])
    text = write_evaluation_report(tmp_path / "out", evaluated(labels, labels)).read_text(encoding="utf-8")
    assert "<figcaption>Masks</figcaption>" in text


def test_links_to_viewers_lead_to_cases_of_any_name(tmp_path: Path) -> None:
    mask = np.zeros((4, 8, 8), np.uint8)
    mask[1:3, 2:5, 2:5] = 1
    name = "c#1 %41?"
    write_labels(tmp_path / "labels" / f"{name}.nii.gz", mask, Geometry())
    evaluation = evaluated(tmp_path / "labels", tmp_path / "labels")
    text = write_evaluation_report(tmp_path / "out", evaluation).read_text(encoding="utf-8")
    targets = re.findall(r'href="(viewers/[^"]+)"', text)
    assert {unquote(target) for target in targets} == {f"viewers/{name}.html"}
    assert not any(sign in target for target in targets for sign in "#? ")
    assert (tmp_path / "out" / f"viewers/{name}.html").is_file()


# ------------------------------------------------------------------------------------------------------------ browser


def test_sort_and_search_the_cases(flat: tuple[Evaluation, Path], open_page: Callable) -> None:
    evaluation, folder = flat
    opened = open_page(folder / "report.html")
    box = opened.page.locator("#all-cases .table-box")
    rows = box.locator("tbody tr:visible")
    assert rows.count() == len(evaluation.cases)
    box.get_by_role("button", name="Dice", exact=True).click()
    dice = sorted(c.scores[0].dice for c in evaluation.cases if not math.isnan(c.scores[0].dice))
    shown = box.locator("tbody tr td:nth-child(3)").all_inner_texts()
    assert shown[: len(dice)] == [f"{value:.3f}" for value in dice]
    assert set(shown[len(dice) :]) <= {"\N{EN DASH}"}
    box.get_by_label("Search: Cases").fill("false positive")
    assert rows.count() == 1
    opened.require_quiet()


@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone(flat: tuple[Evaluation, Path], open_page: Callable, dark: bool) -> None:
    opened = open_page(flat[1] / "report.html", size=PHONE, dark=dark)
    assert not opened.scrolls_sideways()
    assert opened.page.locator("svg.plot").count() > 20
    opened.require_quiet()


def test_in_print_nothing_is_cut_off(flat: tuple[Evaluation, Path], open_page: Callable) -> None:
    opened = open_page(flat[1] / "report.html", size=(1040, 720))  # A4 in landscape, where the widest table stands
    opened.page.emulate_media(media="print")
    opened.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert not opened.scrolls_sideways()
    assert opened.page.locator("details[open]").count() == 1


def test_a_case_opens_in_the_viewer_and_leads_back(solid: tuple[Evaluation, Path], open_page: Callable) -> None:
    evaluation, folder = solid
    chosen = [item.inputs.case_id for item in highlights(evaluation.inputs, evaluation.cases)]
    assert sorted(path.stem for path in (folder / "viewers").iterdir()) == sorted(chosen)
    opened = open_page(folder / "report.html")
    opened.require_quiet()
    link = opened.page.locator("#all-cases a").first
    assert link.inner_text() in chosen
    size = (folder / "viewers" / f"{chosen[0]}.html").stat().st_size
    assert f"({size / 1e6:.1f} MB)" in opened.page.locator("section.part").first.inner_text()
    link.click()
    opened.page.wait_for_load_state()
    assert "/viewers/" in opened.page.url
    assert opened.complaints == []


def test_an_organ_is_not_counted(tmp_path: Path) -> None:
    """One piece in every case: no lesions found or missed; with a case that lacks it there is something to find."""

    def write(folder: str, *cases: str) -> Path:
        for number, case in enumerate(cases):
            mask = np.array([[[int(c) for c in row] for row in case.split()]], np.uint8)
            write_labels(tmp_path / folder / f"{number}.nii.gz", mask, Geometry())
        return tmp_path / folder

    organ = write("labelsTs", "1100 1100", "0110 0110")
    text = write_evaluation_report(tmp_path / "a", evaluated(organ, write("a", "1100 1000", "0110 0010"))).read_text()
    assert "Connected components</h2>" in text
    assert "lesions found" not in text
    assert "<dt>Lesion F1</dt>" not in text
    empty = write("other/labelsTs", "1100 1100", "0000 0000")
    text = write_evaluation_report(tmp_path / "b", evaluated(empty, write("b", "1100 1000", "0000 0000"))).read_text()
    assert "<h2>Lesions</h2>" in text
    assert "1 of 1 lesions found" in text


def test_one_case_has_no_limits_of_agreement_and_counts_are_counts(tmp_path: Path) -> None:
    mask = np.array([[[1, 1, 0, 0], [0, 0, 0, 0]]], np.uint8)
    for folder in ("labelsTs", "masks"):
        write_labels(tmp_path / folder / "a.nii.gz", mask, Geometry())
    found = evaluated(tmp_path / "labelsTs", tmp_path / "masks", profiles=("lits",))
    text = write_evaluation_report(tmp_path / "out", found).read_text(encoding="utf-8")
    assert "lesion, 1 case: mean difference +0 " in text
    assert "limits of agreement" not in text
    assert re.search(r">sum_<wbr>voxels</td><td class=\"number\" data-value=\"4.0\">4.0</td>", text)


def test_a_panel_without_any_outline_says_so(tmp_path: Path) -> None:
    """An empty prediction of several classes looked like the image alone; here the reference's panel has outlines."""
    mask = np.array([[[0, 0, 0, 0], [0, 1, 2, 0], [0, 1, 2, 0], [0, 0, 0, 0]]], np.uint8)
    write_labels(tmp_path / "labelsTr" / "a.nii.gz", mask, Geometry())
    write_labels(tmp_path / "masks" / "a.nii.gz", np.zeros_like(mask), Geometry())
    evaluation = evaluate_folders(tmp_path / "labelsTr", tmp_path / "masks", Meaning(NESTED), OPTIONS)
    text = write_evaluation_report(tmp_path / "out", evaluation).read_text(encoding="utf-8")
    assert text.count(">empty</text>") == 1
    assert text.index("<figcaption>Reference</figcaption>") < text.index(">empty</text>")


def test_one_picture_under_several_outlines_is_held_once(flat: tuple[Evaluation, Path]) -> None:
    text = (flat[1] / "report.html").read_text(encoding="utf-8")
    pictures = re.findall(r'<image id="picture-\w+" xlink:href="(data:[^"]*)"', text)
    assert len(pictures) == len(set(pictures))
    assert set(re.findall(r'<use xlink:href="#(picture-\w+)"', text)) <= set(re.findall(r'id="(picture-\w+)"', text))
    assert len(re.findall(r'<use xlink:href="#picture-', text)) > len(pictures) / 2


def test_names_in_the_viewer_follow_the_classes() -> None:
    """Regions: every value has the innermost region that holds it, in the order of the plan and of the charts."""
    names = label_names({"whole": (1, 2, 3), "core": (1, 3), "enhancing": (3,)})
    assert names == {2: "whole", 1: "core", 3: "enhancing"}
    assert list(names.values()) == ["whole", "core", "enhancing"]


def test_the_viewer_shows_classes_and_the_ignore_label_and_no_other_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a label_map makes the liver around a lesion background."""
    labels = np.ones((4, 5, 6), np.uint8)
    labels[1:3, 1:3, 1:3], labels[3] = 2, 7
    for folder in ("labelsTr", "masks", "masks/samples"):
        write_labels(tmp_path / folder / f"a{'_sample0' * folder.endswith('samples')}.nii.gz", labels, Geometry())
    scheme = LabelScheme(("lesion",), ((2,),), "binary", (2,), ignore_value=7, background_values=(1,))
    evaluation = evaluate_folders(tmp_path / "labelsTr", tmp_path / "masks", Meaning(scheme), OPTIONS)
    written: list[ViewerCase] = []
    monkeypatch.setattr(case_gallery, "write_case_viewer", lambda path, case: written.append(case))
    write_evaluation_report(tmp_path / "out", evaluation)
    (case,) = written
    for shown in (case.reference, case.prediction, *case.samples):
        np.testing.assert_array_equal(shown, np.where(labels == 1, 0, labels))


def test_a_long_table_of_cases_says_where_the_rest_is(
    flat: tuple[Evaluation, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation, _ = flat
    monkeypatch.setattr(evaluation_report, "MOST_ROWS", 3)
    text = write_evaluation_report(tmp_path, evaluation).read_text(encoding="utf-8")
    assert f"The first 3 of {len(evaluation.cases)} cases; metrics.csv holds all." in text
    assert text.partition(">Cases</caption>")[2].partition("</table>")[0].count("<tr>") == 1 + 3


def test_of_a_unified_data_set_the_source_knows_the_spacing(
    solid: tuple[Evaluation, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation, _ = solid
    told: list[bool] = []
    monkeypatch.setattr(evaluation_report, "draw_case", lambda *args: told.append(args[-1]) or ())
    monkeypatch.setattr(evaluation_report, "write_viewer", lambda *args: told.append(args[-1]))
    for known in (True, False):
        source = SourceLabels(Source("A", "Dataset001_A", "MR", {"lesion": "lesion"}, ""), LESION, LESION, known)
        cases = tuple(dataclasses.replace(case, source=source) for case in evaluation.inputs.cases)
        inputs = dataclasses.replace(evaluation.inputs, cases=cases)
        write_evaluation_report(tmp_path, dataclasses.replace(evaluation, inputs=inputs))
        assert set(told) == {known}
        told.clear()


def test_channels_are_named_by_the_data_set(tmp_path: Path) -> None:
    description = {
        "channel_names": {"0": "FLAIR", "1": "T1"},
        "labels": {"background": 0, "x": 1},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    reference = tmp_path / "labelsTs" / "a.nii.gz"
    reference.parent.mkdir()
    assert channel_names(reference, 2) == ()
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    assert channel_names(reference, 2) == ("FLAIR", "T1")
    assert channel_names(reference, 1) == ()


@pytest.mark.filterwarnings("error")
def test_runs_on_empty_references_have_no_figure_of_differences(tmp_path: Path) -> None:
    """No Dice is defined there: a figure without rows warned in the terminal."""
    for folder in ("ref", "one", "two"):
        write_labels(tmp_path / f"{folder}/a.nii.gz", np.zeros((2, 4, 4), np.uint8), Geometry())
    options = dataclasses.replace(OPTIONS, against=(tmp_path / "two",))
    evaluation = evaluate_folders(tmp_path / "ref", tmp_path / "one", Meaning(LESION), options)
    page = write_evaluation_report(evaluation.write(tmp_path / "out").summary.parent, evaluation).read_text()
    assert "Comparison with other runs" in page
    assert "Mean paired difference in Dice" not in page
