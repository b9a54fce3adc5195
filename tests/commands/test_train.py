"""What a dry run of usd_train says, and what it says where nothing has been preprocessed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from unisegdiff_pipeline.commands.train import build_parser, describe, main, request_of
from unisegdiff_pipeline.io.errors import UsdError

PLANS = Path(__file__).parents[2] / "plans" / "Dataset004_Hippocampus" / "plans_cpu_2_cores.json"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "Dataset004_Hippocampus"
    folder.mkdir()
    shutil.copy(PLANS, folder / "plans.json")
    return tmp_path


def lines(root: Path, *flags: str) -> dict[str, str]:
    arguments = ["4", "0", "--preprocessed", str(root), "--results", str(root / "results"), *flags]
    text = describe(request_of(build_parser().parse_args(arguments)))
    return {line[:14].strip(): line[15:] for line in text.splitlines()}


def test_what_no_flag_gives_is_the_plan_s(root: Path) -> None:
    said = lines(root)
    assert said["configuration"] == "3d_fullres (plan)"
    assert said["length"] == "250 epochs (plan)"
    assert said["batch size"] == "2 (plan)"
    assert said["results"].endswith("results/Dataset004_Hippocampus/StagedDiffusionTrainer__3d_fullres")
    assert "phase 1 from" not in said


def test_flags_stand_there_as_given(root: Path) -> None:
    said = lines(root, "-c", "2d", "--max-time", "15m", "--batch-size", "7", "--restart")
    assert (said["configuration"], said["batch size"]) == ("2d", "7")
    assert said["length"] == "900 s with choosing and the final validation"
    assert said["begin again"].startswith("yes")
    assert lines(root, "--iterations", "30")["length"] == "30 iterations"


def test_a_configuration_that_is_not_planned(root: Path) -> None:
    with pytest.raises(UsdError, match=r"'3d_lowres' is not in .* choose one of 2d, 3d_fullres"):
        lines(root, "-c", "3d_lowres")


def test_what_was_not_preprocessed_names_the_command(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["7", "0", "--preprocessed", str(root), "--results", str(root / "results")]) == 1
    assert "usd_plan_and_preprocess -d 7 first" in " ".join(capsys.readouterr().err.split())
