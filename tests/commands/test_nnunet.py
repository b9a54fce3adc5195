"""nnU-Net's flags: understood as ours, left out with a reason, or refused with what to do instead."""

from __future__ import annotations

import importlib
import shlex
from pathlib import Path

import pytest

from unisegdiff_pipeline.commands import nnunet
from unisegdiff_pipeline.commands.common import CommandParser

MODULES = (
    "train",
    "predict",
    "plan_and_preprocess",
    "fingerprint",
    "plan",
    "preprocess",
    "evaluate",
    "ensemble",
    "find_best",
    "export",
)


def parser_of(command: str) -> CommandParser:
    return importlib.import_module(f"unisegdiff_pipeline.commands.{command}").build_parser()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("command", "given", "ours"),
    [
        ("train", "102 2d 0", "102 0 -c 2d"),
        ("train", "102 3d_fullres all --c", "102 all -c 3d_fullres --continue"),
        ("train", "-device cuda 102 2d 3 -p large -num_gpus 1", "102 3 -c 2d --device cuda --plans large"),
        ("train", "102 2d 0 -tr mine.trainers:Mine", "102 0 -c 2d --trainer mine.trainers:Mine"),
        ("train", "102 2d 0 -tr nnUNetTrainer -p nnUNetPlans", "102 0 -c 2d"),
        ("train", "-p large -- 102 2d 0", "-c 2d --plans large -- 102 0"),
        ("train", "102 mine 0", "102 0 -c mine"),
        ("train", "102 2d 0 -pretrained_weights w", "102 0 -c 2d --pretrained w"),
        ("train", "102 0 -device cpu --epochs 3", "102 0 --device cpu --epochs 3"),
        (
            "predict",
            "-i in -o out -d 102 -c 2d -f 0 1 2 -chk checkpoint_final.pth -p large -tr Mine --save_probabilities",
            "-i in -o out -d 102 -c 2d -f 0 1 2 --plans large --trainer Mine --save-probabilities",
        ),
        (
            "predict",
            "-i in -o out -d 4 -step_size 0.5 --disable_tta -npp 3 -nps 3 -num_parts 4 -part_id 1 -device cuda",
            "-i in -o out -d 4 --num-parts 4 --part-id 1 --device cuda",
        ),
        (
            "plan_and_preprocess",
            "-d 4 5 --verify_dataset_integrity -c 2d 3d_fullres -np 8 -gpu_memory_target 24 -overwrite_plans_name big",
            "-d 4 5 -c 2d 3d_fullres --workers 8 --memory-gb 24 --plans big",
        ),
        ("plan_and_preprocess", "-d 4 -pl nnUNetPlannerResEncL", "-d 4 --preset L"),
        ("plan", "-d 4 -pl ExperimentPlanner -gpu_memory_target 8", "-d 4 --memory-gb 8"),
        ("preprocess", "-d 4 -plans_name big -c 2d -np 4", "-d 4 --plans big -c 2d --workers 4"),
        ("fingerprint", "-d 4 -np 3 --clean --verify_dataset_integrity", "-d 4 --workers 3"),
        ("evaluate", "r p -djfile d.json -pfile x -np 2 --chill", "r p --dataset-json d.json --workers 2 --subset"),
        ("evaluate", "ref pred -l 1 2", "ref pred --labels 1 2"),
        ("ensemble", "-i a b -o out --save_npz -np 4", "a b -o out --save-probabilities"),
        ("ensemble", "--weights 1 2 -i a b -o out", "a b --weights 1 2 -o out"),
        ("find_best", "4 -np 4 --no_overwrite", "4 --workers 4 --dry-run"),
        ("export", "-d 4 -o m.zip -tr nnUNetTrainer -p big --not_strict", "-d 4 -o m.zip --plans big"),
    ],
)
def test_what_is_understood(command: str, given: str, ours: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = parser_of(command)
    found = vars(parser.parse_args(shlex.split(given)))
    said = " ".join(capsys.readouterr().err.split())
    assert f"note: understood as: usd_{command} {ours}" in said
    assert found == vars(parser.parse_args(shlex.split(ours)))
    assert capsys.readouterr().err == ""  # our own words need no note


def test_a_flag_that_means_the_same_in_both_needs_no_note(capsys: pytest.CaptureFixture[str]) -> None:
    assert parser_of("evaluate").parse_args(shlex.split("r p --subset -o out")).output == Path("out")
    assert capsys.readouterr().err == ""


def test_a_note_says_why_a_flag_is_not_needed(capsys: pytest.CaptureFixture[str]) -> None:
    parser_of("predict").parse_args(shlex.split("-i in -o out -d 4 -step_size .5 --disable_tta"))
    said = " ".join(capsys.readouterr().err.split())
    assert "-step_size is not needed: windows overlap by half." in said
    assert "--disable_tta is not needed: images are mirrored only with --mirror." in said


@pytest.mark.parametrize(
    ("command", "given", "instead"),
    [
        ("train", "102 2d 0 -tr nnUNetTrainer_100epochs", "--epochs N"),
        ("train", "102 2d 0 -num_gpus 2", "torchrun --nproc-per-node N -- $(which usd_train) DATASET FOLD"),
        ("train", "102 2d 0 --val_best", "--val"),
        ("train", "102 2d 0 --disable_checkpointing", "--checkpoint-every 24h"),
        ("predict", "-i in -o out -d 4 -chk checkpoint_best.pth", "leave -chk out"),
        ("predict", "-i in -o out -d 4 -step_size 0.25", "leave it out"),
        ("plan_and_preprocess", "-d 4 -pl MyPlanner", "--preset M, L or XL"),
        ("plan_and_preprocess", "-d 4 -c 2d 3d_fullres -np 8 4", "--workers N"),
        ("plan_and_preprocess", "-d 4 -overwrite_target_spacing 1 1 1", "target_spacing_mm in plans.json"),
        ("preprocess", "-d 4 -gpu_memory_target 8", "--memory-gb here, which this command has not"),
        ("evaluate", "ref pred -o summary.json", "-o DIR"),
        ("evaluate", "ref pred -l 1 -il 2", "--dataset-json FILE"),
        ("find_best", "4 -c 2d 3d_fullres -f 0 1 2", "all models and folds"),
        ("find_best", "4 --disable_ensembling", "significantly better"),
        ("export", "-d 4 -o m.zip -chk checkpoint_best.pth", "leave -chk out"),
        ("export", "-d 4 -o m.zip --exp_cv_preds", "--with-case-scores"),
    ],
)
def test_what_is_refused_says_what_to_do_instead(
    command: str, given: str, instead: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parser_of(command).parse_args(shlex.split(given))
    assert stop.value.code == 2
    assert instead in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("command", MODULES)
def test_a_long_flag_with_one_dash_is_never_read_as_a_short_one(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parser_of(command).parse_args(["-cx", "-device_name", "cuda"])
    assert "unknown flag -cx" in capsys.readouterr().err


def test_short_flags_may_be_written_with_their_value() -> None:
    assert parser_of("plan").parse_args(["-d4"]).dataset == ["4"]
    assert parser_of("train").parse_args(["4", "0", "-c2d"]).configuration == "2d"


def test_flags_that_both_have_mean_the_same() -> None:
    """A table holds no flag of ours, but -o of usd_evaluate, which names a file there and a folder here."""
    tables = {"train": nnunet.TRAIN, "predict": nnunet.PREDICT, "plan": nnunet.PLAN_AND_PREPROCESS}
    for command, table in {**tables, "evaluate": nnunet.EVALUATE}.items():
        assert set(table) & set(parser_of(command)._option_string_actions) <= {"-o"}, command
