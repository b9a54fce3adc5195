"""What a dry run of usd_train says, by the rules of the training itself, and what is refused there."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from unisegdiff_pipeline import pipeline
from unisegdiff_pipeline.commands.train import build_parser, describe, main, request_of
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.serialization import read_dataclass, read_json, write_json
from unisegdiff_pipeline.planning.plans import Plans
from unisegdiff_pipeline.training import opened_request
from unisegdiff_pipeline.training.request import CollectedCases, FoldResult, TrainResult
from unisegdiff_pipeline.training.trainers.segmentation import SegmentationTrainer


class Two__Parts(SegmentationTrainer):
    """A trainer whose name would look like two parts of a model folder's name."""


@pytest.fixture
def roots(prepared: Path, tmp_path: Path) -> list[str]:
    return ["--preprocessed", str(prepared), "--results", str(tmp_path / "results"), "--device", "cpu"]


def lines(roots: list[str], *flags: str, fold: str = "0") -> dict[str, str]:
    text = describe(request_of(build_parser().parse_args(["902", fold, *roots, *flags])))
    return {line[:14].strip(): line[15:] for line in text.splitlines()}


def begun(tmp_path: Path, fold: str = "0", **asked: object) -> Path:
    """A fold that was asked something and has trained a little, with the cases of the real splits."""
    folder = tmp_path / "results/Dataset902_Phantom2D/StagedDiffusionTrainer__2d" / f"fold_{fold}"
    write_json(folder / "log.jsonl", {"kind": "train", "phase": 1})
    write_json(folder / "request.json", asked)
    return folder


def request_like(roots: list[str], fold: str = "0", **changes: object) -> dict[str, object]:
    """request.json of a fold as a training writes it."""
    from unisegdiff_pipeline.training.interrupt import StopRequest
    from unisegdiff_pipeline.training.resume import describe_training
    from unisegdiff_pipeline.training.run import open_fold
    from unisegdiff_pipeline.training.trainers.registry import TRAINERS

    request = dataclasses.replace(request_of(build_parser().parse_args(["902", fold, *roots])), **changes)  # type: ignore[arg-type]
    return describe_training(open_fold(request, StopRequest()), TRAINERS["StagedDiffusionTrainer"])


def test_what_no_flag_gives_is_the_plan_s(roots: list[str], tmp_path: Path) -> None:
    said = lines(roots)
    assert said["configuration"] == "2d"
    assert said["length"] == "250 epochs (plan)"
    assert said["batch size"].endswith(" (plan)")
    assert said["augmentation"] == "default (plan)"
    assert said["seed"] == "0"
    assert said["results"].endswith("results/Dataset902_Phantom2D/StagedDiffusionTrainer__2d")
    assert said["fold 0"] == "begins"
    assert "phase 1 from" not in said
    assert not (tmp_path / "results").exists()


def test_flags_stand_there_as_given(roots: list[str]) -> None:
    said = lines(roots, "--max-time", "15m", "--batch-size", "7", "--restart", "--run", "low", "--seed", "3")
    assert (said["batch size"], said["seed"]) == ("7", "3")
    assert said["results"].endswith("StagedDiffusionTrainer__2d__low")
    assert said["length"] == "900 s with choosing and the final validation"
    assert lines(roots, "--iterations", "30")["length"] == "30 iterations"
    assert lines(roots, "--epochs", "1")["length"] == "1 epoch"
    assert lines(roots, "--augmentation", "nnunet")["augmentation"] == "nnunet"


def test_a_fold_that_was_begun_is_said_to_be_continued_with_what_it_was_asked(roots: list[str], tmp_path: Path) -> None:
    begun(tmp_path, **request_like(roots, max_time_s=900.0, learning_rate=0.5))
    said = lines(roots)
    assert said["length"] == "900 s with choosing and the final validation"
    assert said["learning rate"] == "0.5"
    assert said["fold 0"] == "continues where it stopped"
    assert lines(roots, "--restart")["fold 0"].startswith("begins again")
    said = lines(roots, fold="cv")
    assert said["length"] == "900 s with choosing and the final validation"
    assert (said["fold 0"], said["fold 1"]) == ("continues where it stopped", "begins")
    with pytest.raises(UsdError, match=r"--max-time 900s and is now asked for --epochs 3"):
        lines(roots, "--epochs", "3")
    assert lines(roots, "--epochs", "3", "--run", "beside")["fold 0"] == "begins"


def test_a_dry_run_refuses_what_the_training_would_refuse(
    roots: list[str], tmp_path: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags, message in (
        (["902", "9"], "fold 9 does not exist, splits_final.json has folds 0 to 4"),
        (["902", "0", "-c", "3d_lowres"], "'3d_lowres' is not in"),
        (["902", "0", "--trainer", "NoTrainer"], "use one of StagedDiffusionTrainer"),
        (["902", "0", "--run", "../x"], "cannot be part of a folder's name"),
        (["902", "0", "--trainer", "tests.commands.test_train:Two__Parts"], "whose parts cannot be told apart"),
        (["7", "0"], "usd_plan_and_preprocess -d 7 first"),
    ):
        for dry in (["--dry-run"], []):
            assert main([*flags, *roots, *dry]) == 1
            assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "results").exists()
    begun(tmp_path, **(request_like(roots) | {"validation_cases": ["gone"]}))
    assert main(["902", "0", *roots, "--dry-run"]) == 1
    assert "1 left (gone)" in " ".join(capsys.readouterr().err.split())


def test_a_dry_run_writes_nothing(roots: list[str], prepared: Path, tmp_path: Path) -> None:
    before = sorted(prepared.rglob("*"))
    (prepared / "Dataset902_Phantom2D" / "splits_final.json").unlink(missing_ok=True)
    lines(roots)
    assert not (prepared / "Dataset902_Phantom2D" / "splits_final.json").exists()
    assert {*prepared.rglob("*")} <= {*before}
    assert read_json(prepared / "Dataset902_Phantom2D" / "plans.json")["dataset_name"] == "Dataset902_Phantom2D"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("-d 4 -f 0", "DATASET and FOLD are given without -d and -f: usd_train 4 0\n"),
        ("4 0 1 2", "one command trains one fold (0, 1 and 2 are given), or all of them: usd_train 4 cv\n"),
        ("-d 4 -f 0 1", "without -d and -f: usd_train 4 0; one command trains one fold (0 and 1 are given)"),
        ("-f 0 -d 4", "DATASET and FOLD are given without -f and -d: usd_train 4 0\n"),
        ("-f cv -d Phantom2D -c 2d", "without -f and -d: usd_train Phantom2D cv\n"),
        ("4 --fold 0", "DATASET and FOLD are given without --fold: usd_train 4 0\n"),
        ("--dataset 4 -c 2d", "DATASET and FOLD are given without --dataset: usd_train 4 FOLD\n"),
        ("4 0 twice", "unrecognized arguments: twice\n"),
    ],
)
def test_what_other_commands_take_by_flags_is_told_in_the_words_of_this_one(
    given: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(given.split())
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_configuration_that_was_not_planned_is_refused_with_the_plan_s_reason(roots: list[str]) -> None:
    request = request_of(build_parser().parse_args(["902", "0", *roots, "-c", "3d_fullres"]))
    read = read_dataclass(Plans, Path(roots[1]) / "Dataset902_Phantom2D/plans.json")
    reason = "not made: all sources hold 2D images (A, B)"
    plans = dataclasses.replace(read, decisions={"configurations.3d_fullres": reason})
    with pytest.raises(UsdError, match=r"plans\.json \(not made: all sources hold 2D images \(A, B\)\); it has 2d"):
        opened_request._configuration(plans, request, Path("plans.json"))


def test_folds_without_any_scored_case_say_so_in_place_of_an_empty_table(
    roots: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results").mkdir()
    model = tmp_path / "results/Dataset902_Phantom2D/StagedDiffusionTrainer__2d"

    def answer(scores: dict[str, dict[str, float]]) -> str:
        collected = CollectedCases(model / "cross_validation", None, ("a",))
        folds = (FoldResult(fold="0", folder=model / "fold_0", scores=scores, seconds=1.0),)
        result = TrainResult(folds, model / "cv_summary.json", "fold  lesion", collected)
        monkeypatch.setattr(pipeline, "train", lambda request, began: result)
        assert main(["902", "cv", *roots]) == 0
        return capsys.readouterr().out

    said = answer({})
    assert "No validation case was predicted" in said
    assert "--val" in said
    assert not [line for line in ("fold  lesion", "usd_evaluate", "usd_find_best") if line in said]
    said = answer({"lesion": {"dice": 0.5}})
    assert all(line in said for line in ("fold  lesion", "usd_evaluate", "usd_find_best"))
