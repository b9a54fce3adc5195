"""The how-tos do what they say: their commands run on phantoms, in the order of the page."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

HOW_TO = Path(__file__).resolve().parents[1] / "documentation/how-to"
SMALL = {"train": ["--workers", "0", "--device", "cpu"], "plan_and_preprocess": ["--device", "cpu", "--memory-gb", "4"]}


def follow(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do in a folder what the bash blocks of a page say, with two iterations in place of the time of a training."""
    monkeypatch.chdir(folder)
    text = (HOW_TO / page).read_text("utf-8")
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S):
        if not re.search(r"^(usd_|export )", block, re.M):
            subprocess.run(["bash", "-euo", "pipefail", "-c", block], cwd=folder, check=True)
            continue
        for line in block.replace("\\\n", " ").splitlines():
            words = [os.path.expandvars(word.replace("$PWD", str(folder))) for word in shlex.split(line)]
            if words[0] == "export":
                for assignment in words[1:]:
                    monkeypatch.setenv(*assignment.split("=", 1))
            elif words[0].startswith("usd_"):
                assert run_command(words) == 0, line
            else:
                subprocess.run(words, cwd=folder, check=True)


def run_command(words: list[str]) -> int:
    name, arguments = words[0].removeprefix("usd_"), words[1:]
    if "--max-time" in arguments:
        place = arguments.index("--max-time")
        arguments[place : place + 2] = ["--iterations", "2"]
    return importlib.import_module(f"unisegdiff_pipeline.commands.{name}").main([*arguments, *SMALL.get(name, [])])


def many_raters(phantom: Path, folder: Path) -> Path:
    """The phantoms as a data set of the pages, without their raters; returns its folder."""
    dataset = folder / "raw/Dataset020_Many"
    shutil.copytree(phantom, dataset, ignore=shutil.ignore_patterns("truth", "ratersTr"))
    return dataset


def test_own_data(phantom_3d: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(phantom_3d / "labelsTr", tmp_path / "masks")
    shutil.copytree(phantom_3d / "imagesTs", tmp_path / "new")
    (tmp_path / "scans").mkdir()
    for image in (phantom_3d / "imagesTr").iterdir():
        shutil.copy(image, tmp_path / "scans" / image.name.replace("_0000.nii.gz", ".nii.gz"))
    follow("own-data.md", tmp_path, monkeypatch)
    predicted = {path.name for path in (tmp_path / "predicted").glob("*.nii.gz")}
    assert predicted == {path.name.replace("_0000.nii.gz", ".nii.gz") for path in (tmp_path / "new").iterdir()}
    assert list(tmp_path.glob("results/*/*/fold_0/validation/evaluation/report.html"))


def test_many_raters(phantom_2d: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = many_raters(phantom_2d, tmp_path)
    for mask in (phantom_2d / "ratersTr").iterdir():
        case, _, rater = mask.stem.partition("_rater")
        target = tmp_path / "annotations" / f"person{rater}" / f"{case}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(mask, target)
    follow("many-raters.md", tmp_path, monkeypatch)
    for mask in (phantom_2d / "ratersTr").iterdir():
        assert (dataset / "ratersTr" / mask.name).read_bytes() == mask.read_bytes()
    header, first = (tmp_path / "predicted/evaluation/metrics.csv").read_text().splitlines()[:2]
    assert dict(zip(header.split(","), first.split(","), strict=True))["num_raters"] == "4"


def test_own_trainer_and_uncertainty_for_a_paper(
    phantom_2d: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = many_raters(phantom_2d, tmp_path)
    shutil.copytree(dataset / "imagesTs", tmp_path / "new")
    follow("uncertainty-for-a-paper.md", tmp_path, monkeypatch)
    assert (tmp_path / "scores/report.html").is_file()
    (module,) = re.findall(
        r"^```python\n(# my_trainers.py\n.*?)^```", (HOW_TO / "own-trainer.md").read_text(), re.M | re.S
    )
    (tmp_path / "my_trainers.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    follow("own-trainer.md", tmp_path, monkeypatch)
    models = {path.name for path in (tmp_path / "results/Dataset020_Many").iterdir()}
    assert models >= {"EqualStagesTrainer__2d", "CrossEntropyTrainer__2d"}
    assert list((tmp_path / "predicted").glob("*.png"))
