"""The data set report: warnings, what it shows with and without a plan, and the page in a browser."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.serialization import read_dataclass, write_json
from unisegdiff_pipeline.fingerprint import Fingerprint, LesionSummary, Percentiles, extract_fingerprint
from unisegdiff_pipeline.io.raw_dataset import open_raw_dataset
from unisegdiff_pipeline.planning.plans import Plans, ReadabilityCurve, StagePlan
from unisegdiff_pipeline.reports import dataset_figures, figures, kept_figures
from unisegdiff_pipeline.reports.case_pictures import CLASS_COLORS
from unisegdiff_pipeline.reports.dataset_pictures import chosen_cases
from unisegdiff_pipeline.reports.dataset_report import write_dataset_report
from unisegdiff_pipeline.reports.dataset_warnings import data_warnings
from unisegdiff_pipeline.reports.kept_figures import KeptFigures
from unisegdiff_pipeline.reports.page import Html

REVIEWED = Path(__file__).resolve().parents[2] / "plans"
NAMES = sorted(p.parent.name for p in REVIEWED.glob("*/fingerprint.json"))
LAM = (-12.0, -6.0, -3.0, 0.0, 3.0)


def reviewed(name: str) -> tuple[Fingerprint, Plans]:
    fingerprint = read_dataclass(Fingerprint, REVIEWED / name / "fingerprint.json")
    return fingerprint, read_dataclass(Plans, REVIEWED / name / "plans_cpu_2_cores.json")


def with_stages(plans: Plans, lam_c: float = 0.0) -> Plans:
    """The plans with made-up curves for all classes but the last, if there are several."""
    names = plans.labels.names[: max(1, len(plans.labels.names) - 1)]
    curves = tuple(ReadabilityCurve(n, LAM, (0.0, 0.2, 0.6, 0.95, 1.0), -5.5, lam_c, 64) for n in names)
    stages = StagePlan(-5.5, lam_c, (1.0,) * plans.labels.num_channels, curves)
    configurations = {k: dataclasses.replace(c, stages=stages) for k, c in plans.configurations.items()}
    return dataclasses.replace(plans, configurations=configurations)


def prepared(folder: Path, fingerprint: Fingerprint, plans: Plans | None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "fingerprint.json", fingerprint)
    if plans is not None:
        write_json(folder / "plans.json", plans)
    return folder


def changed(fingerprint: Fingerprint, **changes: object) -> Fingerprint:
    """The fingerprint with another first class."""
    first, *others = fingerprint.lesions
    return dataclasses.replace(fingerprint, lesions=(dataclasses.replace(first, **changes), *others))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_reviewed_data_sets_have_a_page(name: str, tmp_path: Path) -> None:
    fingerprint, plans = reviewed(name)
    text = write_dataset_report(prepared(tmp_path, fingerprint, with_stages(plans))).read_text()
    assert f"{len(fingerprint.cases)} cases" in text
    for lesion in fingerprint.lesions:
        assert lesion.class_name in text
    assert "lam_a" in text
    assert plans.decisions[next(iter(plans.decisions))][:40] in text


def test_without_a_plan_the_facts_are_shown(tmp_path: Path) -> None:
    fingerprint, plans = reviewed("Dataset101_BUSI")
    folder = prepared(tmp_path, fingerprint, None)
    text = write_dataset_report(folder).read_text()
    assert "The stages are planned at the end of preprocessing" in text
    assert "<h2>Plan</h2>" not in text
    prepared(folder, fingerprint, with_stages(plans))
    assert "<h2>Plan</h2>" in write_dataset_report(folder).read_text()
    assert "<h2>Plan</h2>" not in write_dataset_report(folder, with_plans=False).read_text()


def test_pictures_beside_volumes_are_2d_and_3d(tmp_path: Path) -> None:
    flat, volumes = reviewed("Dataset101_BUSI")[0], reviewed("Dataset103_CovidCT")[0]
    both = dataclasses.replace(volumes, cases=(*flat.cases, *volumes.cases), sources={"BUSI": flat, "CovidCT": volumes})
    text = write_dataset_report(prepared(tmp_path, both, None)).read_text()
    shown = " ".join(re.sub(r"<[^>]*>", " ", text).split())
    assert "Images 2D and 3D sizes by source below" in shown


def test_a_missing_fingerprint_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsdError, match=r"fingerprint\.json"):
        write_dataset_report(tmp_path)


def test_warnings_of_the_check_are_listed_and_escaped(tmp_path: Path) -> None:
    folder = prepared(tmp_path, reviewed("Dataset101_BUSI")[0], None)
    found = [{"file": f"imagesTr/<b>{i}.png", "message": "is constant", "remedy": "Look at it."} for i in range(15)]
    (folder / "warnings.json").write_text(json.dumps(found))
    text = write_dataset_report(folder).read_text()
    assert "found 15 more to look at" in text
    assert "imagesTr/&lt;b&gt;14.png: is constant. Look at it." in text
    assert "3 more</summary>" in text


def test_a_class_that_never_occurs_is_0_percent_and_figures_hold_eight_classes(tmp_path: Path) -> None:
    fingerprint, _ = reviewed("Dataset101_BUSI")
    never = changed(fingerprint, fraction_of_maps=0.0, foreground_fraction=0.0)
    (lesion,) = never.lesions[:1]
    svg = dataset_figures.balance(dataclasses.replace(never, lesions=(lesion,)))
    assert svg.count(">0%</text>") == 2
    assert "of pixels are of it" in svg

    many = tuple(dataclasses.replace(fingerprint.lesions[0], class_name=f"c{i}") for i in range(9))
    cases = [dataclasses.replace(case, classes=case.classes[:1] * 9) for case in fingerprint.cases]
    folder = prepared(tmp_path, dataclasses.replace(fingerprint, lesions=many, cases=tuple(cases)), None)
    text = write_dataset_report(folder).read_text()
    assert "Figures show the first 8 of 9 classes." in text
    parts = text.partition("<title>Components by area")[2].partition("</svg>")[0]
    assert ">c7</text>" in parts
    assert ">c8</text>" not in parts


def test_a_class_without_a_curve_keeps_its_colour() -> None:
    _, plans = reviewed("Dataset101_BUSI")
    configuration = next(iter(with_stages(plans).configurations.values()))
    (curve,) = configuration.stages.curves[:1]
    svg = dataset_figures.readability(configuration, ["absent", curve.class_name])
    assert "--series-2" in svg
    assert "--series-1)" not in svg


def test_several_annotators_are_compared(tmp_path: Path) -> None:
    fingerprint, plans = reviewed("Dataset108_LIDC4R")
    text = write_dataset_report(prepared(tmp_path, fingerprint, plans)).read_text()
    disputed = [sum(r[0].voxels > 0 for r in case.raters) for case in fingerprint.cases]
    fraction = sum(0 < n < 4 for n in disputed) / len(disputed)
    assert "presence disputed" in text
    assert f">{fraction:.0%}<" in text


def found_in(fingerprint: Fingerprint, plans: Plans | None = None) -> str:
    return " | ".join(data_warnings(fingerprint, plans))


def test_few_and_empty_cases_are_warned_of() -> None:
    fingerprint, _ = reviewed("Dataset101_BUSI")
    assert "There are only" not in found_in(fingerprint)
    assert "There are only 10 cases" in found_in(dataclasses.replace(fingerprint, cases=fingerprint.cases[:10]))
    few = found_in(dataclasses.replace(fingerprint, cases=fingerprint.cases[:4]))
    assert "There are only 4 cases, so a fold validates on 1 or fewer" in few
    assert "There is only 1 case," in found_in(dataclasses.replace(fingerprint, cases=fingerprint.cases[:1]))
    assert "60% of the cases hold no foreground" in found_in(
        dataclasses.replace(fingerprint, fraction_of_empty_cases=0.6)
    )
    lidc, _ = reviewed("Dataset108_LIDC4R")
    empty = sum(case.empty for case in lidc.cases)
    assert f"hold no foreground ({empty} of {len(lidc.cases)})" in found_in(lidc)


@pytest.mark.parametrize("name", ["CT scan", "CT_", "ct-arterial", "zscored"])
def test_a_channel_name_that_nearly_names_a_scheme_is_warned_of(name: str) -> None:
    fingerprint, _ = reviewed("Dataset101_BUSI")
    assert "looks like the normalisation" in found_in(dataclasses.replace(fingerprint, channel_names=(name,)))


@pytest.mark.parametrize("names", [("CT",), ("CT_8bit",), ("US",), ("T1c", "FLAIR"), ("R", "G", "B")])
def test_other_channel_names_are_not(names: tuple[str, ...]) -> None:
    fingerprint, _ = reviewed("Dataset101_BUSI")
    statistics = fingerprint.intensities[:1] * len(names)
    named = dataclasses.replace(fingerprint, channel_names=names, intensities=statistics)
    assert "looks like" not in found_in(named)


def test_three_cases_come_first_and_the_stages_last(phantom_2d: Path, tmp_path: Path) -> None:
    """The facts of a raw data set, with pictures of a small, a median and a large label."""
    raw = open_raw_dataset(phantom_2d)
    fingerprint, report = extract_fingerprint(raw, workers=0)
    report.require_ok()
    folder = prepared(tmp_path, fingerprint, None)
    text = write_dataset_report(folder, raw=raw).read_text()
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    assert headings == [
        "Three cases with their labels",
        "Images",
        "Intensities",
        "Objects",
        "Warnings",
        "Cases",
        "Stages of the diffusion",
    ]
    assert "sizes are in pixels" in text  # known before there is a plan
    chosen = chosen_cases(fingerprint.cases)
    voxels = [sum(c.voxels for c in case.classes) for case in chosen]
    assert len(chosen) == 3
    assert 0 < voxels[0] < voxels[1] < voxels[2]
    assert re.findall(r"<section class=part><h3>(.*?)</h3>", text) == [case.case_id for case in chosen]
    assert text.count("<figcaption>Labels</figcaption>") == 3
    assert CLASS_COLORS[0] in text


def test_cases_whose_files_have_gone_are_not_pictured(phantom_2d: Path, tmp_path: Path) -> None:
    raw = open_raw_dataset(phantom_2d)
    fingerprint, _ = extract_fingerprint(raw, workers=0)
    gone = dataclasses.replace(raw, cases=tuple(dataclasses.replace(c, label_path=tmp_path / "x") for c in raw.cases))
    text = write_dataset_report(prepared(tmp_path, fingerprint, None), raw=gone).read_text()
    assert "Three cases" not in text


def test_pictures_of_unknown_pixel_size_are_measured_in_pixels(tmp_path: Path) -> None:
    fingerprint, plans = reviewed("Dataset101_BUSI")
    text = write_dataset_report(prepared(tmp_path, fingerprint, with_stages(plans))).read_text()
    assert "area pixels\N{SUPERSCRIPT TWO}" in text
    assert "thickness pixels" in text
    shown = re.sub(r"<script>.*|<style>.*?</style>|<wbr>", "", text, flags=re.S)
    assert not re.findall(r"\bmm\b|\bml\b", re.sub(r"<[^>]*>", " ", shown))


def test_rare_missing_and_tiny_classes_are_warned_of() -> None:
    fingerprint, _ = reviewed("Dataset101_BUSI")
    nothing = LesionSummary("lesion", 0.0, None, None, None, None, 0.0)
    missing = dataclasses.replace(fingerprint, lesions=(nothing,))
    assert "In no label map there is any lesion" in found_in(missing)
    assert "Of 100 label maps very few hold lesion (4)" in found_in(changed(fingerprint, fraction_of_maps=0.04))
    assert "Less than 0.01% of the pixels are lesion" in found_in(changed(fingerprint, foreground_fraction=5e-5))


def test_thin_objects_are_told_from_specks() -> None:
    fingerprint, plans = reviewed("Dataset101_BUSI")
    spacing = plans.configurations["2d"].preprocessing.target_spacing_mm[1]
    assert spacing is not None
    thin = Percentiles(*(2.0 * spacing for _ in range(5)))
    both = changed(fingerprint, thickness_mm=thin, main_thickness_mm=thin)
    assert "is nowhere thicker than 3 voxels" in found_in(both, plans)
    specks = changed(fingerprint, thickness_mm=thin)
    assert "are specks thinner than 3 voxels" in found_in(specks, plans)
    assert "thinner" not in found_in(fingerprint, plans)


def test_spacings_that_differ_are_warned_of_where_they_are_known() -> None:
    fingerprint, plans = reviewed("Dataset004_Hippocampus")
    sizes = [(5.0 if i % 2 else 1.0, 1.0, 1.0) for i in range(len(fingerprint.cases))]
    mixed = [dataclasses.replace(c, spacing_mm=size) for c, size in zip(fingerprint.cases, sizes, strict=True)]
    fingerprint = dataclasses.replace(fingerprint, cases=tuple(mixed))
    assert "voxel size along Z goes from 1 to 5 mm" in found_in(fingerprint, plans)
    assert "voxel size along Z" not in found_in(fingerprint, dataclasses.replace(plans, spacing_known=False))


def test_classes_without_a_curve_and_unreadable_ones_are_warned_of() -> None:
    fingerprint, plans = reviewed("Dataset004_Hippocampus")
    found = found_in(fingerprint, with_stages(plans, lam_c=LAM[-1]))
    assert "No label patch of class posterior" in found
    assert "Class anterior is never nearly readable" in found


@pytest.mark.parametrize("size", [(1280, 900), (390, 844)], ids=["desktop", "phone"])
def test_in_a_browser(tmp_path: Path, open_page: Callable[..., Any], size: tuple[int, int]) -> None:
    fingerprint, plans = reviewed("Dataset104_Glioma")
    opened = open_page(write_dataset_report(prepared(tmp_path, fingerprint, with_stages(plans))), size)
    page = opened.page
    assert not opened.scrolls_sideways()
    page.get_by_text("Reasons for all").click()
    reasons = page.locator(".reasons")
    reasons.get_by_role("searchbox").fill("patch_size")
    shown = reasons.locator("tbody tr:visible td:first-child").all_inner_texts()
    assert shown
    assert len(shown) < len(plans.decisions)
    cases = page.locator(".table-box", has_text=f"{len(fingerprint.cases)} cases")
    cases.get_by_role("button", name="foreground").click()
    order = cases.locator("tbody tr td:first-child").all_inner_texts()
    fractions = {case.case_id: case.foreground_fraction for case in fingerprint.cases}
    assert [fractions[c] for c in order] in (sorted(fractions.values()), sorted(fractions.values(), reverse=True))
    assert not opened.scrolls_sideways()
    opened.require_quiet()


def test_the_same_facts_give_the_same_page(tmp_path: Path) -> None:
    fingerprint, plans = reviewed("Dataset101_BUSI")
    folder = prepared(tmp_path / "a", fingerprint, with_stages(plans))
    first = write_dataset_report(folder).read_bytes()
    shutil.copytree(folder, tmp_path / "b")
    assert write_dataset_report(tmp_path / "b").read_bytes() == first


def test_a_former_page_that_cannot_be_read_keeps_nothing(tmp_path: Path) -> None:
    text = KeptFigures(tmp_path, "facts").draw(lambda: Html("drawn"), "it")  # a folder, which no one can read as a file
    assert "-->drawn<!--" in text


def test_what_other_code_drew_is_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, drawn = tmp_path / "page.html", iter(["first", "second"])

    def draw() -> str:
        text = KeptFigures(page, "facts").draw(lambda: Html(next(drawn)), "it")
        page.write_text(text)
        return text

    assert "-->first<!--" in draw()
    assert "-->first<!--" in draw()
    monkeypatch.setattr(kept_figures, "drawing_code", lambda: "that of a changed module")
    assert "-->second<!--" in draw()


def test_the_code_that_draws_is_known_by_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def code() -> str:
        kept_figures.drawing_code.cache_clear()
        return kept_figures.drawing_code()

    former = code()
    package = shutil.copytree(Path(kept_figures.__file__).parent, tmp_path / "reports")
    with monkeypatch.context() as patched:
        patched.setattr(kept_figures, "__file__", str(package / "kept_figures.py"))
        assert code() == former
        with open(package / "scales.py", "a") as stream:
            stream.write("# changed")
        assert code() != former
    assert code() == former


def test_what_is_unchanged_is_not_drawn_again(
    phantom_2d: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures of the same facts and pictures of the same files are taken from the former page; others are drawn."""
    raw = open_raw_dataset(shutil.copytree(phantom_2d, tmp_path / phantom_2d.name))
    fingerprint, _ = extract_fingerprint(raw, workers=0)
    folder = prepared(tmp_path, fingerprint, None)
    write_dataset_report(folder, raw=raw)
    middle = next(case for case in raw.cases if case.case_id == chosen_cases(fingerprint.cases)[1].case_id)
    os.utime(middle.image_paths[0], (1, 1))
    first = write_dataset_report(folder, raw=raw).read_bytes()
    (folder / "dataset_report.html").unlink()
    assert write_dataset_report(folder, raw=raw).read_bytes() == first  # what is kept and what is new do not mix
    drawn: list[str] = []
    monkeypatch.setattr(figures, "_inline", lambda svg, alt: drawn.append(alt) or Html(f"<svg>{alt}</svg>"))
    assert write_dataset_report(folder, raw=raw).read_bytes() == first
    assert not drawn
    start, end = b"<!--drawn from", b"<!--end of drawn-->"
    for damaged in (first.replace(b"</svg>", b"", 1), first.replace(end, b"", 1), first.replace(start, b"", 1)):
        (folder / "dataset_report.html").write_bytes(damaged)
        write_dataset_report(folder, raw=raw)
        assert 0 < len(drawn) < first.count(start)
        drawn.clear()
        (folder / "dataset_report.html").write_bytes(first)
    small = next(case for case in raw.cases if case.case_id == chosen_cases(fingerprint.cases)[0].case_id)
    os.utime(small.image_paths[0], (1, 1))
    write_dataset_report(folder, raw=raw)
    assert drawn
    assert all(alt.startswith(small.case_id) for alt in drawn)
    drawn.clear()
    prepared(tmp_path, changed(fingerprint, foreground_fraction=0.5), None)
    write_dataset_report(folder, raw=raw)
    assert "Class balance" in drawn
