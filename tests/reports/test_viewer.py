"""The case viewer: what is written, and what a reader sees and can do in a real browser."""

from __future__ import annotations

import colorsys
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.reports.figures import SERIES
from unisegdiff_pipeline.reports.page import ASSETS
from unisegdiff_pipeline.reports.viewer import ViewerCase, ViewerMark, write_case_viewer

SHAPE = (12, 20, 24)
ROOT = Path(__file__).resolve().parents[2]
# x of the file points to the patient's right (-1 in LPS), z downwards.
FLIPPED = Geometry((2.0, 1.0, 1.0), (5.0, 6.0, 7.0), (-1.0, 0, 0, 0, 1.0, 0, 0, 0, -1.0))


def block(z: slice, y: slice, x: slice, value: int = 1) -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[z, y, x] = value
    return labels


def make_case(**changes: Any) -> ViewerCase:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 200, (1, *SHAPE)).astype(np.float32)
    image[0] += np.linspace(0, 300, SHAPE[0])[:, None, None]  # every slice has its own mean
    case: dict[str, Any] = {
        "case_id": "case_7",
        "geometry": Geometry((2.0, 1.0, 1.0)),
        "image": image,
        "labels": {1: "lesion"},
        "reference": block(slice(4, 8), slice(6, 12), slice(6, 12)),
        "prediction": block(slice(4, 8), slice(8, 14), slice(6, 12)),
        "samples": (block(slice(4, 8), slice(6, 14), slice(6, 12)), block(slice(4, 8), slice(6, 10), slice(6, 8))),
        "uncertainty": np.linspace(0, 1, np.prod(SHAPE)).reshape(SHAPE),
    }
    return ViewerCase(**(case | changes))


# ---------------------------------------------------------------------------------------------------- the file


def test_equal_cases_give_equal_bytes_and_the_size_is_said(tmp_path: Path) -> None:
    first = write_case_viewer(tmp_path / "a.html", make_case())
    second = write_case_viewer(tmp_path / "b.html", make_case())
    content = first.path.read_bytes()
    assert content == second.path.read_bytes()
    assert first.num_bytes == len(content) < 600_000
    assert f"This file is {len(content) / 1e6:.1f} MB large".encode() in content
    assert first.reduction == (1, 1, 1)


def test_samples_are_taken_one_at_a_time(tmp_path: Path) -> None:
    alive = 0

    def drawn() -> Iterator[np.ndarray]:
        nonlocal alive
        for _ in range(3):
            alive += 1
            yield block(slice(4, 8), slice(6, 14), slice(6, 12))

    written = write_case_viewer(tmp_path / "a.html", make_case(samples=drawn()))
    assert alive == 3
    assert settings_of(written.path)["masks"][-1] == {"id": "sample2", "title": "Sample 3"}


def settings_of(path: Path) -> dict[str, Any]:
    found = re.search(r"<script type=application/json id=settings>(.*?)</script>", path.read_text("utf-8"))
    assert found is not None
    return json.loads(found.group(1))


def test_names_cannot_become_markup(tmp_path: Path) -> None:
    bad = "</script><script>alert(1)</script>"
    written = write_case_viewer(tmp_path / "a.html", make_case(case_id=bad, labels={1: bad}, note=bad))
    assert "alert(1)</script>" not in written.path.read_text("utf-8")
    assert settings_of(written.path)["labels"] == [[1, bad]]


def test_a_large_image_is_reduced_and_the_page_says_so(tmp_path: Path) -> None:
    written = write_case_viewer(tmp_path / "a.html", make_case(), max_voxels=2000)
    assert written.reduction == (1, 2, 2)
    assert "blocks of 2 \N{MULTIPLICATION SIGN} 2 \N{MULTIPLICATION SIGN} 1 voxels" in written.path.read_text("utf-8")


def test_what_cannot_be_shown_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3D cases only"):
        write_case_viewer(tmp_path / "a.html", make_case(geometry=Geometry(is_2d=True)))
    with pytest.raises(ValueError, match=r"Sample 1 of case 'case_7' has shape \(1, 2, 3\)"):
        write_case_viewer(tmp_path / "a.html", make_case(samples=[np.zeros((1, 2, 3), np.uint8)]))
    assert list(tmp_path.iterdir()) == []


def test_the_library_is_the_pinned_one_and_its_licences_lie_beside_it() -> None:
    tool = ROOT / "tools" / "vendor_niivue"
    lock = json.loads((tool / "package-lock.json").read_text("utf-8"))["packages"]
    version = json.loads((tool / "package.json").read_text("utf-8"))["dependencies"]["@niivue/niivue"]
    assert lock["node_modules/@niivue/niivue"]["version"] == version
    assert all(entry["integrity"].startswith("sha512-") for name, entry in lock.items() if name)
    assert (ASSETS / "niivue.min.js").read_text("utf-8").startswith(f"/*! NiiVue {version},")
    licences = (ASSETS / "niivue.LICENSE.txt").read_text("utf-8")
    assert f"@niivue/niivue {version} (BSD-2-Clause)" in licences
    assert "Copyright (c) 2021, Niivue" in licences
    assert "gl-matrix" in licences


# ------------------------------------------------------------------------------------------------- the browser


@pytest.fixture
def show(tmp_path: Path, open_page: Callable[..., Any]) -> Callable[..., Any]:
    """`show(size=..., **changes)` opens the viewer of a case and waits until it is drawn."""

    def shown(size: tuple[int, int] = (1000, 600), max_voxels: int = 10**9, **changes: Any) -> Any:
        written = write_case_viewer(tmp_path / "case.html", make_case(**changes), max_voxels)
        opened = open_page(written.path, size=size)
        opened.page.wait_for_selector("body[data-ready=true]")
        return opened

    return shown


def picture(opened: Any) -> np.ndarray:
    """The canvas as it looks now, (Y, X, 3)."""
    opened.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return np.asarray(Image.open(io.BytesIO(opened.page.locator("#canvas").screenshot())).convert("RGB")).astype(int)


def differs(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether more than a speck of the picture has changed."""
    return float((np.abs(a - b).max(axis=-1) > 20).mean()) > 0.001


def orange(image: np.ndarray) -> int:
    """Pixels tinted like the compared mask: red well above blue."""
    return int((image[..., 0] - image[..., 2] > 60).sum())


def text(opened: Any, name: str) -> str:
    return opened.page.locator(f"#{name}").inner_text()


def slide(opened: Any, name: str, value: float | str) -> None:
    opened.page.locator(f"#{name}").fill(str(value))


def choose(opened: Any, name: str, label: str, then: str = "body") -> None:
    opened.page.select_option(f"#{name}", label=label)
    opened.page.wait_for_selector(then)


def test_slices_move_by_wheel_slider_and_key_and_the_coordinates_follow(show: Callable[..., Any]) -> None:
    opened = show()
    first, voxel = picture(opened), text(opened, "voxel")
    assert first.std() > 20
    assert orange(first) > 500
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > 100
    assert opened.page.locator("#status").inner_text() == ""
    assert voxel.endswith(", 4")

    box = opened.page.locator("#canvas").bounding_box()
    opened.page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.5 * box["height"])
    opened.page.mouse.wheel(0, 100)
    wheeled = picture(opened)
    x, y, z = text(opened, "voxel").split(", ")
    assert ([x, y], abs(int(z) - 4)) == (voxel.split(", ")[:2], 1)
    assert differs(first, wheeled)

    slide(opened, "axial", 9)
    assert text(opened, "voxel").endswith(", 9")
    assert text(opened, "millimetres").endswith(", 18.0")
    assert text(opened, "axial-text") == "z 9 / 11"
    assert differs(wheeled, picture(opened))

    opened.page.locator("#canvas").focus()
    for key, expected in (("ArrowUp", "z 10 / 11"), ("ArrowUp", "z 11 / 11"), ("ArrowUp", "z 11 / 11")):
        opened.page.keyboard.press(key)
        assert text(opened, "axial-text") == expected
    choose(opened, "view", "coronal")
    opened.page.locator("#canvas").focus()
    before = text(opened, "coronal-text")
    opened.page.keyboard.press("ArrowUp")
    assert text(opened, "coronal-text") != before
    assert text(opened, "axial-text") == "z 11 / 11"
    opened.require_quiet()


def test_masks_samples_and_maps_are_shown_as_chosen(show: Callable[..., Any]) -> None:
    opened = show()
    assert opened.page.locator("#map").input_value() == "uncertainty"  # shown at once, under the outline of the mask
    assert opened.page.locator("#mask-style").input_value() == "1"
    choose(opened, "map", "none", "body[data-map=none]")
    choose(opened, "mask-style", "filled")
    predicted = picture(opened)
    default = orange(predicted)
    slide(opened, "opacity", 0)
    bare = picture(opened)
    assert orange(bare) < 0.02 * default
    slide(opened, "opacity", 1)
    assert orange(picture(opened)) > 0.9 * default
    choose(opened, "mask-style", "outline")
    assert 0 < orange(picture(opened)) < 0.7 * default
    choose(opened, "mask-style", "filled")

    choose(opened, "mask", "Sample 1", "body[data-mask=sample0]")
    large = picture(opened)
    assert differs(predicted, large)
    opened.page.locator("#canvas").focus()
    opened.page.keyboard.press("s")
    opened.page.wait_for_selector("body[data-mask=sample1]")
    assert orange(picture(opened)) < 0.5 * orange(large)  # 4 x 2 voxels against 8 x 6 in the axial plane
    assert text(opened, "mask-title") == "Sample 2"

    choose(opened, "colours", "agreement and errors")
    compared = picture(opened)
    assert ((compared[..., 1] - compared[..., 0]) > 60).sum() > 100
    assert opened.texts("#legend li") == ["in both", "reference only", "sample 2 only"]

    slide(opened, "opacity", 0)
    choose(opened, "map", "uncertainty", "body[data-map=uncertainty]")
    uncertain = picture(opened)
    assert differs(bare, uncertain)
    choose(opened, "map", "fraction of samples", "body[data-map=share]")
    assert differs(uncertain, picture(opened))
    slide(opened, "map-opacity", 0)
    assert not differs(bare, picture(opened))

    slide(opened, "low", opened.page.locator("#low").get_attribute("max"))
    assert picture(opened).mean() < bare.mean() - 20
    opened.require_quiet()


def test_a_mark_leads_to_its_voxel_with_its_values(show: Callable[..., Any]) -> None:
    x, y, z = 9, 9, 5  # the first sample marks it, the second does not
    matrix = np.reshape(FLIPPED.direction, (3, 3))
    position = np.array(FLIPPED.origin_mm) + matrix @ (np.array(FLIPPED.spacing_mm[::-1]) * [x, y, z])
    case = make_case()
    assert case.uncertainty is not None
    marks = [ViewerMark("corner", (5.0, 6.0, 7.0)), ViewerMark("lesion", tuple(position))]
    flat = np.full((1, *SHAPE), -3.25, np.float32)
    labels = block(slice(4, 8), slice(6, 12), slice(6, 12)) + block(slice(4, 8), slice(6, 12), slice(12, 18), 255)
    opened = show(
        geometry=FLIPPED,
        image=np.concatenate([case.image, flat]),
        channel_names=["T1", "flat"],
        reference=labels,
        raters=[labels],
        labels={1: "core", 255: "edge", 7: "absent"},
        marks=marks,
    )
    assert text(opened, "voxel") == "0, 0, 0"
    assert (text(opened, "reference-label"), text(opened, "mask-label")) == ("\N{EN DASH}", "\N{EN DASH}")
    opened.page.locator("#next").click()
    assert text(opened, "voxel") == f"{x}, {y}, {z}"
    shown = [float(v.replace("\N{MINUS SIGN}", "-")) for v in text(opened, "millimetres").split(", ")]
    np.testing.assert_allclose(shown, position, atol=0.05)
    assert float(text(opened, "grey")) == pytest.approx(case.image[0, z, y, x], abs=1.5)
    assert (text(opened, "reference-label"), text(opened, "mask-label")) == ("core", "core")
    assert float(text(opened, "uncertainty")) == pytest.approx(case.uncertainty[z, y, x], abs=0.011)
    opened.page.locator("#share", has_text="1 of 2").wait_for()
    assert opened.texts("#legend li") == ["core", "edge", "absent"]
    choose(opened, "channel", "flat")
    opened.page.locator("#grey", has_text="\N{MINUS SIGN}3.25").wait_for()
    opened.require_quiet()


def test_values_of_one_region_have_one_colour_that_of_its_class(show: Callable[..., Any]) -> None:
    """Of whole (1, 2, 3), rim (1) and core (2, 3) each value has a name, and no value that of the whole alone."""
    labels = block(slice(4, 8), slice(2, 10), slice(6, 12), 2) + block(slice(4, 8), slice(10, 18), slice(6, 12), 3)
    opened = show(
        image=np.zeros((1, *SHAPE), np.float32),
        reference=None,
        prediction=labels,
        samples=(),
        uncertainty=None,
        labels={1: "rim", 2: "core", 3: "core"},
        classes=["whole", "rim", "core"],
    )
    assert opened.texts("#legend li") == ["rim", "core"]
    slide(opened, "opacity", 1)
    keys = opened.page.locator("#legend i").evaluate_all("all => all.map(e => getComputedStyle(e).borderColor)")
    core = [int(v) for v in re.findall(r"\d+", keys[1])]
    close = (np.abs(picture(opened) - core).max(axis=-1) < 8).sum()
    assert core[1] > 1.5 * core[0]  # green, the third
    assert close > 5000  # both values
    opened.require_quiet()


def test_what_is_not_scored_has_a_colour_of_its_own_and_is_no_error(show: Callable[..., Any]) -> None:
    reference = block(slice(4, 8), slice(6, 12), slice(6, 12)) + block(slice(None), slice(14, 20), slice(14, 24), 7)
    opened = show(image=np.zeros((1, *SHAPE), np.float32), reference=reference, uncertainty=None, ignored=7)

    def blue() -> int:
        shown = picture(opened)
        return int((shown[..., 2] - shown[..., 0] > 60).sum())

    assert opened.texts("#legend li") == ["reference", "prediction", "not scored"]
    slide(opened, "opacity", 1)
    choose(opened, "mask-style", "hidden")
    choose(opened, "reference-style", "filled")
    choose(opened, "view", "axial")
    assert blue() > 1000  # the lesion
    slide(opened, "axial", 0)  # where only the other region lies
    assert blue() == 0
    choose(opened, "colours", "agreement and errors")
    assert blue() == 0
    opened.require_quiet()


def test_the_colours_are_those_of_the_charts() -> None:
    def hue(color: list[float]) -> float:
        return colorsys.rgb_to_hsv(*color)[0]

    script = (ASSETS / "viewer.js").read_text("utf-8")
    named = dict(re.findall(r"([A-Z]+) = \[([\d., ]+)\]", script))
    listed = re.findall(r"const CLASSES = \[\n(.*?)\n  \]", script, re.DOTALL)[0]
    colors = [[float(v) for v in named.get(n, v).split(",")] for n, v in re.findall(r"([A-Z]+)|\[([\d., ]+)\]", listed)]
    for chart, shown in zip(SERIES[:-1], colors[: len(SERIES) - 1], strict=True):  # the last are greys
        apart = abs(hue([byte / 255 for byte in bytes.fromhex(chart[1:])]) - hue(shown))
        assert min(apart, 1 - apart) < 0.06, (chart, shown)


def test_sagittal_slices_look_left_as_in_the_report(show: Callable[..., Any]) -> None:
    """Anterior, where y is small in LPS, on the left; a click leads to the place below it."""
    image = np.broadcast_to(np.linspace(0, 100, SHAPE[1])[:, None], (1, *SHAPE)).astype(np.float32)
    opened = show(image=image, reference=None, prediction=None, samples=(), uncertainty=None, labels={})
    choose(opened, "view", "sagittal")
    shown = picture(opened)[..., 0]
    width = shown.shape[1]
    assert shown[:, : width // 2].mean() < shown[:, width // 2 :].mean() - 50
    box = opened.page.locator("#canvas").bounding_box()
    opened.page.mouse.click(box["x"] + 0.6 * box["width"], box["y"] + 0.5 * box["height"])
    picture(opened)
    y = int(text(opened, "voxel").split(", ")[1])
    assert abs(y - SHAPE[1] * 0.6) < 3


def test_sides_of_a_patient_that_are_not_known_are_not_named(tmp_path: Path) -> None:
    known = write_case_viewer(tmp_path / "a.html", make_case()).path.read_text("utf-8")
    unknown = write_case_viewer(tmp_path / "b.html", make_case(spacing_known=False)).path.read_text("utf-8")
    assert '"sides":true' in known
    assert "right is on the left" in known
    assert '"sides":false' in unknown
    assert "right is on the left" not in unknown
    assert "which are nominal: voxel size and the patient&#x27;s sides are not known" in unknown


def test_a_case_with_an_image_only_has_no_empty_controls(show: Callable[..., Any]) -> None:
    opened = show(reference=None, prediction=None, samples=(), uncertainty=None, labels={})
    assert picture(opened).std() > 20
    for name in ("masks", "maps", "places", "mask", "channel", "reference-label", "share"):
        assert not opened.page.locator(f"#{name}").is_visible(), name
    opened.require_quiet()


def test_print_keeps_proportions_and_says_what_is_shown(show: Callable[..., Any]) -> None:
    opened = show(note="Dice 0.81", report="report.html")
    opened.page.emulate_media(media="print")
    assert opened.page.locator("#canvas").evaluate("e => getComputedStyle(e).objectFit") == "contain"
    for name in ("axial", "opacity", "previous"):
        assert not opened.page.locator(f"#{name}").is_visible(), name
    for name in ("axial-text", "mask", "voxel", "legend"):
        assert opened.page.locator(f"#{name}").is_visible(), name
    label, value = (opened.page.locator(place).bounding_box() for place in ("label[for=coronal]", "#coronal-text"))
    assert label["x"] + label["width"] < value["x"]
    assert abs(label["y"] - value["y"]) < label["height"]
    assert not opened.scrolls_sideways()
    opened.require_quiet()


def test_on_a_phone_a_reduced_case_fits_the_window_and_counts_voxels_of_the_file(show: Callable[..., Any]) -> None:
    marks = [ViewerMark("a " * 60, (0.0, 0.0, 0.0))]
    opened = show(size=(390, 844), max_voxels=2000, note="Dice 0.81", report="report.html", marks=marks)
    assert not opened.scrolls_sideways()
    assert picture(opened).std() > 20
    assert opened.page.locator("#canvas").bounding_box()["width"] > 300
    slide(opened, "sagittal", 0)  # the page's left end is the patient's left, the far end of the file's x axis
    assert text(opened, "sagittal-text") == "x 22 / 23"
    opened.require_quiet()
