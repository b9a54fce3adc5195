"""Names that read like paths, formulas, markup or files of this package, through every command and page."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from unisegdiff_pipeline.commands.evaluate import main as usd_evaluate
from unisegdiff_pipeline.commands.plan_and_preprocess import main as usd_plan_and_preprocess
from unisegdiff_pipeline.commands.predict import main as usd_predict
from unisegdiff_pipeline.commands.train import main as usd_train
from unisegdiff_pipeline.core.csv_tables import read_csv

BUDGET = ["--device", "cpu", "--memory-gb", "4", "--workers", "0"]
CASES = (
    "manifest",
    "a",
    "a_labels",
    "a_components",
    "a_reference",
    "=1+1",
    "-rf",
    "@x",
    "%s{0}",
    "case 1",
    "$(id)",
    "&lt;",
)
CHANNEL, CLASS, GROUP = "href=//x", r"$\frac{$ <script>alert(1)</script>", "=cmd|' /C calc'!A0"
OUTSIDE = ("../../x", "/x", "a/b", "..", "a\\b", "C:x", "", "a\nb", "nul", "x" * 300)


@pytest.fixture
def hostile(phantom_2d: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The 2D phantoms under other names, with all variables set."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"usd_{name}", str(tmp_path / name))
    folder = tmp_path / "raw" / phantom_2d.name
    shutil.copytree(phantom_2d, folder, ignore=shutil.ignore_patterns("ratersTr", "ratersTs", "truth"))
    for number, name in enumerate(CASES):
        (folder / "imagesTr" / f"phantom_{number:04d}_0000.png").rename(folder / "imagesTr" / f"{name}_0000.png")
        (folder / "labelsTr" / f"phantom_{number:04d}.png").rename(folder / "labelsTr" / f"{name}.png")
    content = json.loads((folder / "dataset.json").read_text())
    content |= {"channel_names": {"0": CHANNEL}, "labels": {"background": 0, CLASS: 1}}
    (folder / "dataset.json").write_text(json.dumps(content))
    (folder / "groups.csv").write_text(f'case,group\na,"{GROUP}"\na_labels,"{GROUP}"\n')
    return folder


class Tags(HTMLParser):
    """Scripts of a page, and its addresses that lead elsewhere."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.scripts, self.elsewhere = 0, []  # type: int, list[str]
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.elsewhere += [
            v for k, v in attrs if k in ("href", "src") and v and "//" in v and not v.startswith("data:")
        ]


def everything_outside(root: Path) -> set[str]:
    inside = ("raw", "preprocessed", "results", "masks")
    return {path.name for path in root.iterdir() if path.name not in inside}


def test_every_command_and_page_with_hostile_names(hostile: Path, tmp_path: Path) -> None:
    assert usd_plan_and_preprocess(["-d", "902", *BUDGET]) == 0
    training = ["902", "all", "--iterations", "4", "--batch-size", "2", "--workers", "0", "--device", "cpu"]
    assert usd_train(training) == 0
    model = tmp_path / "results" / hostile.name / "StagedDiffusionTrainer__2d"
    masks = tmp_path / "masks"
    arguments = ["-i", str(hostile / "imagesTr"), "-o", str(masks), "-m", str(model), "-f", "all", "--device", "cpu"]
    assert usd_predict([*arguments, "--samples", "1", "--save-samples", "--save-probabilities"]) == 0
    written = json.loads((masks / "manifest.json").read_text())["cases"]
    names = set(CASES)
    assert set(written) == names
    assert {path.stem for path in masks.glob("*.png")} == names
    assert usd_evaluate([str(hostile / "labelsTr"), str(masks)]) == 0
    assert everything_outside(tmp_path) == set()

    header, *rows = (row for _, row in read_csv(masks / "evaluation" / "metrics.csv"))
    assert {row[0] for row in rows} == names
    assert {row[header.index("class_name")] for row in rows} == {CLASS}
    assert {row[header.index("group")] for row in rows} >= {GROUP}
    raw_text = (masks / "evaluation" / "metrics.csv").read_text()
    assert not any(line.startswith(("=", "@", '"=', '"@')) for line in raw_text.splitlines())
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) == 3
    for page in pages:
        found = Tags(page)
        assert found.scripts == 1, page  # the page's own
        assert found.elsewhere == []


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_case_of_the_dictionary_cannot_leave_the_folder(
    hostile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    content = json.loads((hostile / "dataset.json").read_text())
    content["dataset"] = {name: {"images": ["imagesTr/a_0000.png"], "label": "labelsTr/a.png"}}
    (hostile / "dataset.json").write_text(json.dumps(content))
    assert usd_plan_and_preprocess(["-d", "902", *BUDGET]) == 1
    printed = " ".join(capsys.readouterr().err.split())
    assert "a case of dataset is named" in printed
    assert "rename it" in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "preprocessed").exists()
    assert everything_outside(tmp_path) == set()
