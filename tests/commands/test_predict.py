"""Which model is meant, where several were trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_args

import pytest

from unisegdiff_pipeline.commands.predict import build_parser, describe, find_model, main
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.serialization import write_json
from unisegdiff_pipeline.inference.label_fusion import Combination
from unisegdiff_pipeline.planning.plans import (
    Budget,
    ConfigurationPlan,
    DenoiserPlan,
    LevelPlan,
    NetworkPlan,
    Plans,
    PreprocessingPlan,
    TrainingPlan,
)

PLANS = Plans(
    schema_version=1,
    dataset_name="Dataset004_X",
    labels=LabelScheme(("lesion",), ((1,),), "binary", (1,)),
    channel_names=("CT",),
    file_ending=".nii.gz",
    spacing_known=True,
    budget=Budget("cpu", 8.0, 2),
    recommended_configuration="3d_fullres",
    configurations={},
)


def model_of(root: Path, *flags: str) -> str:
    arguments = ["-i", "x", "-o", "y", "-d", "4", "--results", str(root), *flags]
    return find_model(build_parser().parse_args(arguments)).name


def trained(root: Path, *names: str) -> Path:
    for name in names:
        write_json(root / "Dataset004_X" / name / "plans.json", dataclasses.replace(PLANS))
        for file in ("weights.safetensors", "inference.json"):
            write_json(root / "Dataset004_X" / name / "fold_0" / file, None)
    return root


def test_the_only_model_is_taken(tmp_path: Path) -> None:
    assert model_of(trained(tmp_path, "SegmentationTrainer__2d")) == "SegmentationTrainer__2d"


def test_of_several_the_default_trainer_and_the_recommended_configuration(tmp_path: Path) -> None:
    names = ["SegmentationTrainer__3d_fullres", "StagedDiffusionTrainer__2d", "StagedDiffusionTrainer__3d_fullres"]
    root = trained(tmp_path, *names)
    assert model_of(root) == "StagedDiffusionTrainer__3d_fullres"
    assert model_of(root, "-c", "2d") == "StagedDiffusionTrainer__2d"
    assert model_of(root, "--trainer", "SegmentationTrainer") == "SegmentationTrainer__3d_fullres"


def test_what_was_not_trained_is_an_error_that_lists_the_models(tmp_path: Path) -> None:
    root = trained(tmp_path, "StagedDiffusionTrainer__2d")
    for flags in (["-c", "3d_lowres"], ["--trainer", "SegmentationTrainer"]):
        with pytest.raises(UsdError, match="StagedDiffusionTrainer__2d"):
            model_of(root, *flags)


def test_runs_and_plans_are_found_by_their_names(tmp_path: Path) -> None:
    names = ("StagedDiffusionTrainer__2d", "StagedDiffusionTrainer__2d__low", "StagedDiffusionTrainer__2d__low2")
    root = trained(tmp_path, *names)
    assert model_of(root) == "StagedDiffusionTrainer__2d"
    assert model_of(root, "--run", "low") == "StagedDiffusionTrainer__2d__low"
    with pytest.raises(UsdError, match=r"no such model; there are .*__low2"):
        model_of(root, "--run", "lo")


def test_models_with_names_only(tmp_path: Path) -> None:
    root = trained(tmp_path, "StagedDiffusionTrainer__2d__a")
    assert model_of(root) == "StagedDiffusionTrainer__2d__a"
    trained(tmp_path, "StagedDiffusionTrainer__2d__b")
    with pytest.raises(UsdError, match=r"holds several models; .*__a, .*__b.*--run NAME"):
        model_of(root)


def test_a_folder_without_a_finished_fold_is_no_model_and_is_named(tmp_path: Path) -> None:
    root = trained(tmp_path, "StagedDiffusionTrainer__2d")
    refused = root / "Dataset004_X" / "StagedDiffusionTrainer__3d_fullres"
    (refused / "fold_0").mkdir(parents=True)  # the recommended one, without plans.json
    assert model_of(root) == "StagedDiffusionTrainer__2d"
    write_json(refused / "plans.json", PLANS)
    assert model_of(root) == "StagedDiffusionTrainer__2d"
    with pytest.raises(UsdError, match=r"without a finished fold, and so left out: StagedDiffusionTrainer__3d_fullres"):
        model_of(root, "-c", "3d_fullres")


def test_a_training_that_is_not_finished_is_to_be_continued(tmp_path: Path) -> None:
    (tmp_path / "Dataset004_X/StagedDiffusionTrainer__2d/fold_0").mkdir(parents=True)
    with pytest.raises(
        UsdError, match=r"begun are StagedDiffusionTrainer__2d\. usd_train Dataset004_X FOLD .* goes on"
    ):
        model_of(tmp_path)


def test_own_trainers_are_named_by_their_class(tmp_path: Path) -> None:
    root = trained(tmp_path, "StagedDiffusionTrainer__2d", "Mine__2d")
    assert model_of(root, "--trainer", "package.module:Mine") == "Mine__2d"


def test_a_dry_run_lists_the_folds_that_prediction_takes(tmp_path: Path) -> None:
    """Finished ones have weights and settings; fold `all` is taken where it is named, or alone."""
    preprocessing = PreprocessingPlan((0, 1, 2), (None, 1.0, 1.0), ("zscore",), (False,), ())
    configuration = ConfigurationPlan(
        "2d",
        preprocessing,
        (1, 8, 8),
        NetworkPlan(2, (8, 8), 1, (LevelPlan(4, (1, 1), (3, 3), 2),)),
        DenoiserPlan(),
        TrainingPlan(2),
    )
    model = tmp_path / "StagedDiffusionTrainer__2d"
    write_json(model / "plans.json", dataclasses.replace(PLANS, configurations={"2d": configuration}))
    for fold in ("0", "1", "3", "all"):
        (model / f"fold_{fold}").mkdir()
        (model / f"fold_{fold}" / "weights.safetensors").touch()
        if fold != "3":  # still choosing its settings
            (model / f"fold_{fold}" / "inference.json").touch()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a_0000.nii.gz").touch()
    text = describe(model, tmp_path / "in", None)
    assert "folds  0 1 (finished: 0 1 all)" in text
    assert "cases  1: a" in text
    assert "folds  all (" in describe(model, tmp_path / "in", ["all"])
    with pytest.raises(UsdError, match=r"fold 3 .* not finished"):
        describe(model, tmp_path / "in", ["3"])


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["-m", "folder", "-c", "2d"], "go with -d"),
        (["-d", "4", "--num-parts", "2", "--part-id", "2"], "must be below --num-parts 2"),
        (["-d", "4", "-m", "folder"], "not allowed with"),
        (["-d", "4", "--guarantee", "lesions=0.9", "--guarantee", "lesions=0.8"], "'lesions=0.8' is asked for twice"),
        ([], "required"),
    ],
)
def test_flags_that_do_not_go_together(flags: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["-i", "x", "-o", "y", *flags])
    assert stop.value.code == 2
    assert text in capsys.readouterr().err


def test_every_way_of_combining_is_offered_and_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["-i", "x", "-o", "y", "-d", "4"]
    assert build_parser().parse_args(arguments).combine == "mean"
    for combine in get_args(Combination):
        assert build_parser().parse_args([*arguments, "--combine", combine]).combine == combine
    with pytest.raises(SystemExit):
        build_parser().parse_args([*arguments, "--combine", "median"])
    assert "majority" in capsys.readouterr().err


def test_the_folder_of_a_fold_is_no_model_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = trained(tmp_path, "SegmentationTrainer__2d") / "Dataset004_X" / "SegmentationTrainer__2d"
    assert main(["-i", "x", "-o", str(tmp_path / "y"), "-m", str(model / "fold_2")]) == 1
    assert f"is a fold of the model {model}; name that folder, with fold 2" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "y").exists()
