"""The training report: of running, stopped and finished trainings, and in a browser."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unisegdiff_pipeline.reports.snapshots import Snapshot, write_snapshot
from unisegdiff_pipeline.reports.training_report import REFRESH_S, write_training_report

LIMITS = [-10.0, -8.0, -6.0, -3.0, 0.0, 2.0, 4.0]
CASES = [f"case_{i:02d}" for i in range(12)]


def bands(iteration: int, cases: str) -> dict[str, Any]:
    count = len(LIMITS) + 1
    values = {name: [0.1 * (i + 1) for i in range(count)] for name in ("loss", "gradient_norm", "dice")}
    if cases == "held_out":
        values["gradient_norm"] = [None] * count  # type: ignore[list-item]
    facts = {"kind": "bands", "phase": 2, "iteration": iteration, "seconds": 60.0 + iteration, "cases": cases}
    return {**facts, "lam_a": -6.0, "lam_c": 0.0, "limits": LIMITS, "num_examples": [8] * count, **values}


def log_entries() -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for phase, start in ((1, 0.0), (2, 60.0)):
        for i in range(1, 7):
            place = {"phase": phase, "iteration": 10 * i, "seconds": start + 10 * i}
            rates = {"learning_rate": 1e-3 / i, "iterations_per_s": 2.0, "gradient_norm": 0.5 + 1 / i}
            stages = {} if phase == 1 else {f"{k}_{s}": 0.2 for k in ("loss", "log_variance") for s in "abc"}
            left = {"progress": i / 6, "seconds_left": 60.0 - 10 * i}
            entries.append({"kind": "train", "loss": 1.0 / i, **place, **rates, **stages, **left})
            entries.append({"kind": "validation", **place, "dice_mean": i / 8, "dice_a": i / 8, "dice_b": None})
    return [*entries, *(bands(i, cases) for i in (20, 40, 60) for cases in ("training", "held_out"))]


@pytest.fixture
def fold(tmp_path: Path) -> Path:
    """Folder of a training that is on its way: log, request and pictures."""
    folder = tmp_path / "Dataset001_Made" / "StagedDiffusionTrainer__2d" / "fold_0"
    folder.mkdir(parents=True)
    entries = log_entries()
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40, 20:40] = 1
    for phase, samples in ((1, ()), (2, (mask, mask * 0))):
        name = f"phase_{phase}_0000060"
        image = np.random.default_rng(0).normal(size=mask.shape)
        shown = Snapshot(image, mask, mask, mask if samples else None, samples)
        layers = write_snapshot(folder / "pictures", name, shown)
        place = {"phase": phase, "iteration": 60, "seconds": 60.0 * phase, "slice": 3, "num_slices": 9}
        entries.append({"kind": "pictures", "name": name, "layers": layers, "case_id": "case_<7>", **place})
    (folder / "log.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
    request = {
        "trainer": "StagedDiffusionTrainer",
        "training": {"batch_size": 8, "optimizer": "adamw"},
        "max_time_s": 300.0,
        "seed": 0,
        "device": "cpu",
        "torch": "2",
        "train_cases": CASES,
        "holdout_cases": CASES[:2],
        "validation_cases": CASES,
    }
    (folder / "request.json").write_text(json.dumps(request))
    return folder


def finish(folder: Path) -> None:
    """Add what a training leaves when it has ended."""
    with open(folder / "log.jsonl", "a") as stream:
        stream.write(json.dumps({"kind": "finished", "phase": 3, "iteration": 0, "seconds": 140.0}) + "\n")
    sampler = {"method": "ddim", "start": "stage_a", "num_calls": 4}
    chosen = {
        "lam_a": -6.0,
        "lam_c": 0.0,
        "temperature": {"foreground": 1.5, "background": 1.0},
        "w": 0.25,
        "decision": "dice",
        "num_samples": 8,
        "sampler": sampler,
        "mask_sampler": {"num_calls": 0, "draw": True, "correlation_length_mm": 7.5},
    }
    (folder / "inference.json").write_text(json.dumps({**chosen, "weights": "ema", "chosen_on": "2 cases"}))
    means = [
        {"w": w, "decision": "half", "dice_of_cases": [0.7123, None], "nll_of_cases": [None, None]} for w in (0.0, 0.5)
    ]
    candidates = {"samplers": [{"sampler": sampler, "energy_of_cases": [0.8, 0.9]}], "means": means}
    (folder / "candidates.json").write_text(json.dumps(candidates))
    (folder / "validation").mkdir()
    cases = [
        {"case_id": case, "scores": [{"class_name": "a", "dice": None if i == 3 else i / 12, "iou": None}]}
        for i, case in enumerate(CASES)
    ]
    summary = {"summary": {"mean_dice": 0.5}, "cases": cases}
    (folder / "validation" / "summary.json").write_text(json.dumps(summary))


def test_undefined_dice_on_held_out_cases_is_a_dash_and_hides_no_other(fold: Path) -> None:
    """As where a short training scores held-out cases without foreground now and then."""
    entries = [e for e in log_entries() if e["phase"] == 1]
    for entry in entries:
        if entry["kind"] == "validation" and entry["iteration"] in (10, 60):
            entry.update(dice_mean=None, dice_a=None)
    (fold / "log.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
    text = write_training_report(fold).read_text()
    assert "<dt>Held-out Dice</dt><dd>\N{EN DASH}<small>last, on held-out cases; best 0.625</small>" in text
    assert 'data-value="0.625">0.625</td>' in text  # of the table of phases
    assert "nan" not in text


def test_a_class_has_one_colour_and_no_more_are_drawn_than_there_are_colours(fold: Path) -> None:
    entries, names = log_entries(), [f"c{i:02d}" for i in range(9)]
    for entry in entries:
        if entry["kind"] == "validation":
            entry.update({f"dice_{name}": 0.5 for name in names})
            del entry["dice_a"], entry["dice_b"]
    (fold / "log.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
    finish(fold)
    scores = [{"class_name": name, "dice": 0.5, "iou": 0.4} for name in names]
    change(fold / "validation" / "summary.json", cases=[{"case_id": "case_00", "scores": scores}])
    text = write_training_report(fold).read_text()
    curves = text.partition("<title>Dice on held-out cases</title>")[2].partition("</svg>")[0]
    colors = re.findall(r'stroke-dasharray[^"]*?stroke: var\((--series-\d)\)', curves)
    assert list(dict.fromkeys(colors)) == [f"--series-{i + 1}" for i in range(8)]
    assert "stroke: var(--ink); stroke-width: 1.6" in curves  # the mean
    assert "of the weights. Figures show the first 8 of 9 classes." in text
    assert "every case. Figures show the first 8 of 9 classes.</figcaption>" in text
    boxes = text.partition("<title>Dice of the validation cases by class</title>")[2].partition("</svg>")[0]
    assert ">c07</text>" in boxes
    assert ">c08</text>" not in boxes


def test_a_training_that_has_not_logged_yet_has_a_page(tmp_path: Path) -> None:
    text = write_training_report(tmp_path, is_running=True).read_text()
    assert "Nothing has been logged yet" in text


def test_a_running_training_is_read_again_and_says_when_it_ends(fold: Path) -> None:
    text = write_training_report(fold, is_running=True).read_text()
    assert f'http-equiv="refresh" content="{REFRESH_S}"' in text
    assert "Time left" in text
    assert "3 min 00 s" in text  # of 300 s 120 are over
    assert "phase 2, diffusion at 100%" in text


def test_without_a_time_budget_the_rest_of_the_phase_is_told(fold: Path) -> None:
    request = json.loads((fold / "request.json").read_text())
    (fold / "request.json").write_text(json.dumps({**request, "max_time_s": None, "iterations": 120}))
    lines = (fold / "log.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["seconds"] <= 20 and json.loads(line)["phase"] == 1]
    (fold / "log.jsonl").write_text("\n".join(kept) + "\n")
    text = write_training_report(fold, is_running=True).read_text()
    assert "40.0 s" in text
    assert "end of this phase" in text


def test_a_stopped_training_says_how_to_go_on(fold: Path) -> None:
    text = write_training_report(fold).read_text()
    assert 'http-equiv="refresh"' not in text
    assert "The command that began it continues it" in text


def test_a_finished_training_shows_what_was_chosen_and_scored(fold: Path) -> None:
    finish(fold)
    text = write_training_report(fold).read_text()
    assert "continues it" not in text
    for part in (
        "What was chosen",
        "ddim, 5 calls from pure noise",
        "highest expected Dice",
        "coherent samples of 7.5 mm from the segmenter",
        "0.7123",
        "0.8500",  # means over the cases of what was tried
        "Validation Dice",
        "12 validation cases",
        "case_11",
    ):
        assert part in text
    assert "case_&lt;7&gt;" in text
    assert "case_<7>" not in text


def change(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_cases_of_sources_with_other_classes_are_all_shown(fold: Path) -> None:
    """The first case has only those of its source."""
    finish(fold)
    scores = {
        "ONE/a": [{"class_name": "liver", "outcome": "scored", "dice": 0.91, "iou": 0.8}],
        "TWO/b": [
            {"class_name": "liver", "outcome": "scored", "dice": 0.92, "iou": 0.8},
            {"class_name": "tumour", "outcome": "scored", "dice": 0.63, "iou": 0.5},
        ],
    }
    cases = [{"case_id": case, "scores": of_case} for case, of_case in scores.items()]
    change(fold / "validation" / "summary.json", cases=cases)
    text = write_training_report(fold).read_text()
    assert "Dice tumour" in text
    assert "0.630" in text
    assert "or whose source does not annotate it" in text


def test_the_means_over_sources_that_ranked_are_shown(fold: Path) -> None:
    """A source of three cases and one of a single case count alike."""
    finish(fold)
    sources = ["ONE", "ONE", "ONE", "TWO"]
    mean = {"w": 0.5, "decision": "half", "dice_of_cases": [0.8, 0.8, None, 0.4], "nll_of_cases": [0.1, 0.1, 0.1, 0.2]}
    sampler = {"sampler": {}, "energy_of_cases": [0.9, 0.9, 0.9, 0.1]}
    change(fold / "candidates.json", means=[mean | {"sources": sources}], samplers=[sampler | {"sources": sources}])
    text = write_training_report(fold).read_text()
    for shown in ("0.6000", "0.1500", "0.5000", "best first; means over sources"):
        assert shown in text


def test_a_class_predicted_where_the_reference_lacks_it_is_no_dash(fold: Path) -> None:
    finish(fold)
    outcomes = {"case_00": "false_positive", "case_01": "both_empty"}
    cases = [
        {"case_id": case, "scores": [{"class_name": "a", "outcome": outcome, "dice": None, "iou": None}]}
        for case, outcome in outcomes.items()
    ]
    change(fold / "validation" / "summary.json", cases=cases)
    text = write_training_report(fold).read_text()
    assert text.count(">false positive</td>") == 1
    assert "false positive is one whose prediction has it" in text
    assert "whose source" not in text


def test_logs_of_older_versions_are_shown(fold: Path) -> None:
    old = [e for e in log_entries() if e["kind"] in ("train", "validation")]
    for entry in old:
        entry.pop("progress", None)
        entry.pop("seconds_left", None)
    (fold / "log.jsonl").write_text("".join(json.dumps(e) + "\n" for e in old))
    text = write_training_report(fold).read_text()
    assert "Progress" in text
    assert "Loss by noise level" not in text
    assert "iteration 60" in text


def test_one_phase_alone_is_shown(fold: Path) -> None:
    kept = [e for e in log_entries() if e["phase"] == 1]
    (fold / "log.jsonl").write_text("".join(json.dumps(e) + "\n" for e in kept))
    text = write_training_report(fold, is_running=True).read_text()
    assert "phase 1, segmenter" in text
    assert "stage A" not in text


def test_pictures_whose_files_are_gone_are_left_out(fold: Path) -> None:
    for path in (fold / "pictures").glob("*sample_1*"):
        path.unlink()
    text = write_training_report(fold).read_text()
    assert "sample 2" in text
    assert "sample 1" not in text
    (fold / "pictures" / "image.png").unlink()
    assert "<h2>Pictures" not in write_training_report(fold).read_text()


@pytest.mark.parametrize("size", [(1280, 900), (390, 844)], ids=["desktop", "phone"])
def test_in_a_browser(fold: Path, open_page: Callable[..., Any], size: tuple[int, int]) -> None:
    finish(fold)
    opened = open_page(write_training_report(fold), size)
    page = opened.page
    assert not opened.scrolls_sideways()
    assert page.locator("svg.plot").count() == 8  # six of progress, loss by noise level, validation
    shown = [img for img in page.locator(".snapshot img").all() if img.is_visible()]
    assert len(shown) == 2 + 4  # image and reference, segmenter, mean and two samples
    assert all(img.evaluate("e => e.naturalWidth") > 0 for img in shown)
    page.get_by_text("Earlier pictures").click()
    assert page.locator(".snapshot img:visible").count() == 2 + 4 + 1

    cases = page.locator(".table-box", has_text="12 validation cases")
    cases.get_by_role("searchbox").fill("case_07")
    assert cases.locator("tbody tr:visible").count() == 1
    cases.get_by_role("searchbox").fill("")
    cases.get_by_role("button", name="Dice").click()
    first = cases.locator("tbody tr td:first-child").all_inner_texts()
    cases.get_by_role("button", name="Dice").click()
    last = cases.locator("tbody tr td:first-child").all_inner_texts()
    assert {first[0], last[0]} == {"case_00", "case_11"}
    assert first[-1] == last[-1] == "case_03"  # undefined
    opened.require_quiet()


def test_in_print_pictures_keep_their_image(fold: Path, open_page: Callable[..., Any]) -> None:
    opened = open_page(write_training_report(fold))
    opened.page.emulate_media(media="print")
    over = opened.page.locator(".snapshot .over").first
    style = "e => [getComputedStyle(e).printColorAdjust, getComputedStyle(e).backgroundImage.slice(0, 14)]"
    assert over.evaluate(style) == ["exact", 'url("data:imag']
    opened.require_quiet()


def test_what_phase_2_changed_is_said_in_words(fold: Path) -> None:
    text = html.unescape(write_training_report(fold).read_text())
    assert "Phase 2 goes on with it and trains the denoiser beside it" in text
    scored = {
        phase: [e for e in log_entries() if e["kind"] == "validation" and e["phase"] == phase] for phase in (1, 2)
    }
    before, after = (scored[phase][-1]["dice_mean"] for phase in (1, 2))
    assert (
        f"Held-out Dice was {before:.3f} at the end of phase 1, by the segmenter's mask, and is {after:.3f} now" in text
    )
