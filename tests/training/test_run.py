"""Whole trainings on tiny phantoms: both phases, continuing, errors."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import platform
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import text_hash
from unisegdiff_pipeline.core.locks import locked
from unisegdiff_pipeline.core.serialization import read_dataclass
from unisegdiff_pipeline.diffusion.coding import NO_CALIBRATION, LogitCalibration
from unisegdiff_pipeline.evaluation.spread import Spread
from unisegdiff_pipeline.inference.model_folder import WEIGHTS_NAME, open_model_folder
from unisegdiff_pipeline.inference.settings import InferenceSettings, read_settings
from unisegdiff_pipeline.io.paths import Roots
from unisegdiff_pipeline.reports import training_report as report_module
from unisegdiff_pipeline.selection import calibration, choosing, sampler
from unisegdiff_pipeline.selection.choosing import Choice
from unisegdiff_pipeline.selection.sampler import DEFAULT_SAMPLER, STAGE_A_CALL
from unisegdiff_pipeline.selection.segmenter_weight import DEFAULT_SEGMENTER_WEIGHT
from unisegdiff_pipeline.training import fold as fold_module
from unisegdiff_pipeline.training import fold_settings, opened_fold
from unisegdiff_pipeline.training import run as run_module
from unisegdiff_pipeline.training import validation as validation_module
from unisegdiff_pipeline.training.dry_run import preview
from unisegdiff_pipeline.training.fold_files import remove_training
from unisegdiff_pipeline.training.interrupt import TrainingInterrupted
from unisegdiff_pipeline.training.log import RunLog
from unisegdiff_pipeline.training.request import TrainRequest
from unisegdiff_pipeline.training.run import train
from unisegdiff_pipeline.training.trainers import diffusion
from unisegdiff_pipeline.training.trainers import trainer as trainer_module
from unisegdiff_pipeline.training.trainers.diffusion import DiffusionTrainer
from unisegdiff_pipeline.training.trainers.trainer import Trainer


@pytest.fixture
def request_(prepared: Path, tmp_path: Path) -> TrainRequest:
    roots = Roots(raw=None, preprocessed=prepared, results=tmp_path)
    return TrainRequest("902", "0", roots, iterations=8, batch_size=2, workers=0, device="cpu", seed=3)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS_NAME)


@pytest.mark.parametrize("name", ["2d/images/phantom_0003.b2nd", "reference/phantom_0003_reference.b2nd"])
def test_a_flipped_byte_in_preprocessed_data_ends_the_training_before_it_begins(
    prepared: Path, tmp_path: Path, name: str
) -> None:
    root = tmp_path / "preprocessed"
    shutil.copytree(prepared, root)
    (path,) = root.glob(f"*/{name}")
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    request = TrainRequest("902", "cv", Roots(None, root, tmp_path / "results"), iterations=2, workers=0, device="cpu")
    with pytest.raises(UsdError, match=rf"{name}: damaged or changed .* run usd_preprocess again"):
        train(request)


def test_both_phases_leave_a_complete_fold(request_: TrainRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "FEWEST_FOR_CALIBRATION", 1)
    monkeypatch.setattr(choosing, "FEWEST_FOR_SETTINGS", 1)
    generator_before = torch.get_rng_state()
    result = train(request_).folds[0]
    assert torch.equal(torch.get_rng_state(), generator_before)  # a training draws nothing of the caller's
    names = {p.name for p in result.folder.iterdir()}
    expected = {"weights.safetensors", "inference.json", "log.jsonl", "report.html", "validation", "candidates.json"}
    assert expected <= names
    assert "checkpoint.pt" not in names
    settings = json.loads((result.folder / "inference.json").read_text())
    tried = json.loads((result.folder / "candidates.json").read_text())
    assert {s["sampler"]["num_calls"] for s in tried["samplers"]} == {0, 1, 2, 4}
    for name in ("segmenter_weight", "decision"):
        assert settings[name] == tried["means"][0][name]
    assert (settings["mask_sampler"] or settings["sampler"]) == tried["samplers"][0]["sampler"]
    assert settings["segmenter_weight"] == 1 or settings["sampler"] == tried["means"][0]["sampler"]
    assert "hold-out" in settings["chosen_on"]
    assert len(read_dataclass(Spread, result.folder / "validation" / "spread.json").cases) == 3
    assert "Spread of the samples" in (result.folder / "report.html").read_text()
    assert any(name.startswith("denoiser.") for name in weights_of(result.folder))
    assert "mean" in result.scores
    described = json.loads((result.folder / "request.json").read_text())
    assert not set(described["holdout_cases"]) & set(described["train_cases"] + described["validation_cases"])
    masks = list((result.folder / "validation").glob("*.png"))
    assert len(masks) == len(described["validation_cases"])
    again = train(request_).folds[0]  # a finished fold is read, not trained
    assert _rounded(again.scores) == _rounded(result.scores)


def test_a_fold_of_other_splits_than_those_beside_it_is_named(
    request_: TrainRequest, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "unisegdiff_pipeline")
    short = dataclasses.replace(request_, trainer="SegmentationTrainer", iterations=1)
    train(short)
    (path,) = request_.roots.preprocessed.glob("*/splits_final.json")
    former = path.read_text()
    first, second, *others = json.loads(former)
    caplog.clear()
    train(dataclasses.replace(short, fold="1"))
    assert "other splits" not in caplog.text
    try:
        path.write_text(json.dumps([second, others[0], first, *others[1:]]))
        train(dataclasses.replace(short, fold="2"))
    finally:
        path.write_text(former)
    assert "warning: fold_0 beside it was trained by other splits, and validates phantom_" in caplog.text
    assert "fold_1 beside it" not in caplog.text


def _rounded(scores: dict[str, dict[str, float | None]]) -> object:
    """Undefined values are NaN in memory and null in JSON."""
    flat = {(name, key): value for name, values in scores.items() for key, value in values.items()}
    return {key: None if value is None or math.isnan(value) else round(value, 9) for key, value in flat.items()}


def log_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [entry for entry in entries if entry["kind"] == kind]


def test_bands_of_lam_are_logged_and_change_no_weight(
    request_: TrainRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diffusion, "MEASURE_EVERY", 1)
    measured = train(request_).folds[0].folder
    monkeypatch.setattr(diffusion, "MEASURE_EVERY", 1000)
    monkeypatch.setattr(diffusion.DiffusionTrainer, "measure_held_out", lambda self: None)
    roots = dataclasses.replace(request_.roots, results=tmp_path / "other")
    plain = train(dataclasses.replace(request_, roots=roots)).folds[0].folder
    chosen_on = json.loads((plain / "inference.json").read_text())["chosen_on"]
    assert chosen_on.startswith("nothing: temperature, sampler")
    assert "are the defaults, because 1 held-out patient with annotated objects" in chosen_on
    a, b = weights_of(measured), weights_of(plain)
    assert all(torch.equal(a[name], b[name]) for name in a)

    training = [entry for entry in log_of(measured, "bands") if entry["cases"] == "training"]
    examples = [sum(counts) for counts in zip(*(entry["num_examples"] for entry in training), strict=True)]
    assert sum(examples) == 2 * 2 * 6  # iterations of phase 2, patches, noise levels
    (held_out,) = [entry for entry in log_of(measured, "bands") if entry["cases"] == "held_out"][-1:]
    assert held_out["num_examples"] == [2] * len(examples)
    assert all(norm is None for norm in held_out["gradient_norm"])
    for entry in (*training, held_out):
        bands = [i for i, count in enumerate(entry["num_examples"]) if count]
        assert all(entry["loss"][i] > 0 for i in bands)
    assert any(norm is not None and norm > 0 for norm in training[-1]["gradient_norm"])
    assert all(0 <= dice <= 1 for dice in held_out["dice"])


def test_pictures_of_a_held_out_case_are_kept(request_: TrainRequest) -> None:
    folder = train(request_).folds[0].folder
    described = json.loads((folder / "request.json").read_text())
    made = log_of(folder, "pictures")
    assert {entry["phase"] for entry in made} == {1, 2}
    for entry in made:
        assert entry["case_id"] in described["holdout_cases"]
        samples = ["mean", "sample_1", "sample_2", "sample_3"] if entry["phase"] == 2 else []
        assert entry["layers"] == ["segmenter", *samples]
        for layer in entry["layers"]:
            assert (folder / "pictures" / f"{entry['name']}_{layer}.png").is_file()


def test_trouble_with_report_and_pictures_does_not_end_a_training(
    request_: TrainRequest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "unisegdiff_pipeline")

    def fail(*_: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr("unisegdiff_pipeline.reports.training_report.write_training_report", fail)
    monkeypatch.setattr("unisegdiff_pipeline.reports.snapshots.write_snapshot", fail)
    folder = train(dataclasses.replace(request_, trainer="SegmentationTrainer", iterations=1)).folds[0].folder
    assert (folder / WEIGHTS_NAME).is_file()
    printed = caplog.text
    assert "report.html could not be written: no room" in printed
    assert "pictures of phantom_" in printed


def test_a_segmenter_alone_says_that_its_temperature_is_fitted(
    request_: TrainRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = SimpleNamespace(of_all=LogitCalibration(1.0, 0.8))
    monkeypatch.setattr("unisegdiff_pipeline.training.fold_settings.choose_calibration", lambda *_: fitted)
    folder = train(dataclasses.replace(request_, trainer="SegmentationTrainer", iterations=1)).folds[0].folder
    settings = json.loads((folder / "inference.json").read_text())
    assert settings["calibration"]["background"] == 0.8
    assert settings["chosen_on"] == "temperature on held-out cases, at the end of phase 1"
    assert "All settings are the defaults" not in (folder / "report.html").read_text()


def test_plain_segmenter(request_: TrainRequest) -> None:
    request_ = dataclasses.replace(request_, trainer="SegmentationTrainer", iterations=2)
    result = train(request_).folds[0]
    settings = json.loads((result.folder / "inference.json").read_text())
    assert settings["num_samples"] == 0
    assert settings["segmenter_weight"] == 1.0
    assert not any(name.startswith("denoiser.") for name in weights_of(result.folder))
    nnunet = train(dataclasses.replace(request_, run="nnunet", augmentation="nnunet")).folds[0]
    a, b = weights_of(result.folder), weights_of(nnunet.folder)
    assert not all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("stop_at", "augmentation"),
    [(3, "default"), (7, "default"), (7, "nnunet")],  # in phase 1, in phase 2
)
def test_continuing_gives_the_same_bits_as_never_having_stopped(
    request_: TrainRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int, augmentation: Any
) -> None:
    request_ = dataclasses.replace(request_, augmentation=augmentation)
    roots = dataclasses.replace(request_.roots, results=tmp_path / "straight")
    straight = train(dataclasses.replace(request_, roots=roots)).folds[0]
    original, count = Trainer.iterate, 0

    def stopping(self: Trainer, batch: object) -> dict[str, torch.Tensor]:
        nonlocal count
        count += 1
        if count == stop_at:
            reports.clear()
            signal.raise_signal(signal.SIGTERM)
        return original(self, batch)  # type: ignore[arg-type]

    reports: list[bool] = []
    monkeypatch.setattr(report_module, "write_training_report", lambda *arguments: reports.append(arguments[1]))
    monkeypatch.setattr(trainer_module.Trainer, "iterate", stopping)
    with pytest.raises(TrainingInterrupted, match="SIGTERM"):
        train(request_)
    assert count == stop_at
    assert not reports  # drawing one takes a second or more
    continued = train(dataclasses.replace(request_, augmentation=None)).folds[0]  # as it was asked before
    assert json.loads((continued.folder / "request.json").read_text())["training"]["augmentation"] == augmentation
    assert count == 9  # the step that the signal came in is taken again
    assert reports[-1] is False  # whether the training still runs
    a, b = weights_of(straight.folder), weights_of(continued.folder)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_time_that_is_too_short_gives_a_model_with_defaults_and_says_so(
    request_: TrainRequest, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "unisegdiff_pipeline")
    result = train(dataclasses.replace(request_, iterations=None, max_time_s=0.01)).folds[0]
    settings = read_settings(result.folder)
    assert settings.chosen_on == "nothing, for lack of time: all settings are the defaults"
    assert (settings.segmenter_weight, settings.decision, settings.calibration) == (
        DEFAULT_SEGMENTER_WEIGHT,
        "half",
        NO_CALIBRATION,
    )
    assert any(name.startswith("denoiser.") for name in weights_of(result.folder))
    summary = json.loads((result.folder / "validation" / "summary.json").read_text())
    described = json.loads((result.folder / "request.json").read_text())
    assert summary["summary"] is None
    assert summary["not_validated"] == described["validation_cases"]
    assert result.scores == {}
    printed = caplog.text
    for part in ("timing the prediction of a case", "the stages stay as planned", "they are the defaults"):
        assert part in printed
    assert "--max-time is over: 0 of 3 validation cases are predicted and scored; the model is complete" in printed
    assert train(dataclasses.replace(request_, iterations=None, max_time_s=0.01)).folds[0].scores == {}


def test_what_was_chosen_when_time_ran_out_is_kept(
    request_: TrainRequest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A training on a slow machine chose until its time was over, and then had nothing chosen."""
    caplog.set_level(logging.INFO, "unisegdiff_pipeline")
    fitted = LogitCalibration(2.0, 3.0)

    def slow(run: object, model: object, settings: InferenceSettings, *_: object) -> Iterator[Choice]:
        yield Choice(dataclasses.replace(settings, calibration=fitted), {}, (), ())
        time.sleep(60)

    monkeypatch.setattr(fold_settings, "choose_settings", slow)
    monkeypatch.setattr(fold_settings, "affordable_cases", lambda run, *_: (run.holdout_cases, 0.2))
    result = train(request_).folds[0]
    settings = read_settings(result.folder)
    assert (settings.calibration, settings.segmenter_weight) == (fitted, DEFAULT_SEGMENTER_WEIGHT)
    kept = "spread of the samples are the defaults, for lack of time (--max-time)"
    assert settings.chosen_on.startswith("temperature on ")
    assert settings.chosen_on.endswith(kept)
    assert f"warning: sampler, segmenter weight, threshold and {kept}" in caplog.text
    assert result.scores["mean"]["dice"] is not None  # validation has its own time


def test_a_training_that_is_interrupted_anywhere_goes_on_to_the_same_weights(
    request_: TrainRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def into(name: str) -> TrainRequest:
        return dataclasses.replace(request_, roots=dataclasses.replace(request_.roots, results=tmp_path / name))

    straight = train(into("straight")).folds[0].folder
    moments: dict[str, tuple[Any, str]] = {
        "sharing": (fold_module, "phase_1_budget"),
        "looking": (DiffusionTrainer, "validate"),
        "choosing": (fold_settings, "choose_settings"),
        "validating": (validation_module, "ensemble_of_one"),
    }
    for moment, (module, name) in moments.items():

        def interrupted(*_: Any, **__: Any) -> None:
            signal.raise_signal(signal.SIGINT)
            time.sleep(60)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, interrupted)
            with pytest.raises(TrainingInterrupted, match="SIGINT"):
                train(into(moment))
        assert len(list((tmp_path / moment).rglob("fold_0"))) == (moment != "sharing")  # where nothing has begun
        continued = train(into(moment)).folds[0].folder
        a, b = weights_of(straight), weights_of(continued)
        assert all(torch.equal(a[key], b[key]) for key in a), moment
        assert read_settings(straight) == read_settings(continued)


def test_the_report_is_there_when_the_fold_is_said_to_be_trained(
    request_: TrainRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def say(self: RunLog, text: str) -> None:
        if text.startswith("fold trained in"):
            found.append("finished" in (self.path.parent / "report.html").read_text())

    monkeypatch.setattr(RunLog, "say", say)
    train(dataclasses.replace(request_, trainer="SegmentationTrainer", iterations=1))
    assert found == [True]


def test_another_seed_gives_other_weights(request_: TrainRequest, tmp_path: Path) -> None:
    plain = dataclasses.replace(request_, trainer="SegmentationTrainer", iterations=1)
    first = train(plain).folds[0]
    roots = dataclasses.replace(plain.roots, results=tmp_path / "other")
    second = train(dataclasses.replace(plain, seed=4, roots=roots)).folds[0]
    a, b = weights_of(first.folder), weights_of(second.folder)
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_phase_1_can_be_taken_over(request_: TrainRequest, tmp_path: Path) -> None:
    source = train(dataclasses.replace(request_, trainer="SegmentationTrainer", iterations=2)).folds[0]
    roots = dataclasses.replace(request_.roots, results=tmp_path / "second")
    result = train(dataclasses.replace(request_, roots=roots, phase_1_from=source.folder)).folds[0]
    given, taken = weights_of(source.folder), load_file(result.folder / "phase_1.safetensors")
    assert all(torch.equal(value, given[f"segmenter.{name}"]) for name, value in taken.items())
    entries = [json.loads(line) for line in (result.folder / "log.jsonl").read_text().splitlines()]
    assert all(entry["phase"] != 1 for entry in entries)
    again = dataclasses.replace(request_, roots=roots)
    assert train(again).folds[0].folder == result.folder  # without the flag it is what it was
    with pytest.raises(UsdError, match=r"with --phase-1-from .*fold_0 and is now asked for --phase-1-from .*elsewhere"):
        train(dataclasses.replace(again, phase_1_from=tmp_path / "elsewhere"))


@pytest.mark.parametrize(
    ("key", "value"), [("channel_names", ["other"]), ("names", ["other"]), ("members", [[2]]), ("ignore_value", 3)]
)
def test_folds_of_a_plan_whose_labels_or_channels_were_others_are_refused(
    request_: TrainRequest, tmp_path: Path, key: str, value: object
) -> None:
    plain = dataclasses.replace(request_, trainer="SegmentationTrainer", iterations=2)
    source = train(plain).folds[0].folder
    path = source.parent / "plans.json"
    plans = json.loads(path.read_text())
    (plans if key == "channel_names" else plans["labels"])[key] = value
    path.write_text(json.dumps(plans))
    what = "channels" if key == "channel_names" else "labels"
    message = rf"trained with another plan.*the {what} were .*{key if what == 'labels' else 'other'}.* now"
    for fold in ("0", "1"):
        with pytest.raises(UsdError, match=message):
            train(dataclasses.replace(plain, fold=fold))
    assert json.loads(path.read_text()) == plans
    with pytest.raises(UsdError, match=rf"--phase-1-from .*{message}"):
        train(dataclasses.replace(request_, phase_1_from=source, run="beside"))
    path.unlink()
    with pytest.raises(UsdError, match=r"--phase-1-from .*plans\.json is not there"):
        train(dataclasses.replace(request_, phase_1_from=source, run="beside"))


def test_phase_2_trains_anew_with_another_seed_and_the_hold_out_of_phase_1(
    request_: TrainRequest, tmp_path: Path
) -> None:
    source = train(dataclasses.replace(request_, trainer="SegmentationTrainer", iterations=2)).folds[0].folder
    described, weights = [], []
    for seed in (request_.seed, 77):
        roots = dataclasses.replace(request_.roots, results=tmp_path / str(seed))
        plain = dataclasses.replace(request_, roots=roots, phase_1_from=source, iterations=2, seed=seed)
        folder = train(plain).folds[0].folder
        described.append(json.loads((folder / "request.json").read_text()))
        weights.append(weights_of(folder))
    first, second = described
    assert second["seed"] == 77
    assert first["train_cases"] == second["train_cases"]
    assert first["holdout_cases"] == second["holdout_cases"]
    assert any(not torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_the_segmenter_goes_on_in_phase_2_whatever_the_denoiser_learns(request_: TrainRequest, tmp_path: Path) -> None:
    staged = train(request_).folds[0].folder
    source = dataclasses.replace(request_, phase_1_from=staged, iterations=2)
    found = []
    for trainer in ("StagedDiffusionTrainer", "X0DiffusionTrainer"):
        roots = dataclasses.replace(request_.roots, results=tmp_path / trainer)
        found.append(weights_of(train(dataclasses.replace(source, roots=roots, trainer=trainer)).folds[0].folder))
    before = load_file(staged / "phase_1.safetensors")
    assert any(not torch.equal(value, found[0][f"segmenter.{name}"]) for name, value in before.items())
    assert all(torch.equal(found[0][f"segmenter.{name}"], found[1][f"segmenter.{name}"]) for name in before)


def test_trainers_of_the_benchmarks_differ_in_what_they_say(request_: TrainRequest) -> None:
    source = train(dataclasses.replace(request_, trainer="SegmentationTrainer", iterations=2)).folds[0].folder
    plain = dataclasses.replace(request_, phase_1_from=source, iterations=4)
    base = weights_of(train(plain).folds[0].folder)
    variants = ("LogitsNeverHidden", "DiceBeside", "TrueMasksAtLamA", "FrozenSegmenter", "NearestDraw", "MovedLabel")
    for name in variants:
        trainer = f"tests.benchmarks.variants:{name}Trainer"
        found = weights_of(train(dataclasses.replace(plain, trainer=trainer)).folds[0].folder)
        differ = {part for part in base if not torch.equal(base[part], found[part])}
        assert any(part.startswith("denoiser.") for part in differ), name
        assert any(part.startswith("segmenter.") for part in differ) is (name == "FrozenSegmenter"), name


def test_continuing_refuses_another_training(request_: TrainRequest) -> None:
    train(dataclasses.replace(request_, trainer="SegmentationTrainer", iterations=1))
    other = dataclasses.replace(request_, trainer="SegmentationTrainer", iterations=1, seed=99)
    with pytest.raises(UsdError, match=r"--seed 3 and is now asked for --seed 99.*--restart"):
        train(other)


def test_a_foreign_phase_1_must_be_there_and_fair(request_: TrainRequest, tmp_path: Path) -> None:
    with pytest.raises(UsdError, match=r"holds no phase_1\.safetensors"):
        train(dataclasses.replace(request_, phase_1_from=tmp_path))
    source = train(dataclasses.replace(request_, fold="1", trainer="SegmentationTrainer", iterations=1)).folds[0]
    with pytest.raises(UsdError, match="was trained on"):
        train(dataclasses.replace(request_, phase_1_from=source.folder, restart=True))


def test_a_phase_1_that_a_later_fold_cannot_take_over_is_refused_before_the_first_is_trained(
    request_: TrainRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = train(dataclasses.replace(request_, trainer="SegmentationTrainer", iterations=1)).folds[0]
    monkeypatch.setattr(run_module, "train_fold", lambda *_: pytest.fail("a fold is trained"))
    cv = dataclasses.replace(request_, fold="cv", phase_1_from=source.folder)
    for refusing in (train, preview):
        with pytest.raises(UsdError, match=r"--phase-1-from .*fold_0 was trained on \d+ cases that fold_1 holds out"):
            refusing(cv)
    (source.folder.parent / "plans.json").unlink()
    single = dataclasses.replace(request_, phase_1_from=source.folder)
    for refusing in (train, preview):
        with pytest.raises(UsdError, match=r"plans\.json is not there"):
            refusing(single)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"splits": "by-group"}, "--splits by-group would do nothing; leave it out"),
        ({"save_validation": "all"}, "--save-validation all would do nothing"),
        ({"validate_only": True}, "--val would do nothing"),
        ({"splits": "nnunet", "validate_only": True}, "--splits nnunet and --val would do nothing; leave them out"),
    ],
)
def test_fold_all_refuses_what_it_cannot_do(request_: TrainRequest, given: dict[str, Any], named: str) -> None:
    for refusing in (train, preview):
        with pytest.raises(UsdError, match=f"FOLD all trains on every case and validates none, so that {named}"):
            refusing(dataclasses.replace(request_, fold="all", **given))
    assert not list(request_.roots.require_results().rglob("fold_*"))


def test_fold_all_trains_on_every_case(request_: TrainRequest) -> None:
    plain = dataclasses.replace(request_, fold="all", iterations=3)
    result = train(plain).folds[0]
    described = json.loads((result.folder / "request.json").read_text())
    assert len(described["train_cases"]) == 12
    assert described["holdout_cases"] == described["validation_cases"] == []
    assert result.scores == {}
    settings = read_settings(result.folder)
    assert (settings.sampler, settings.segmenter_weight, settings.decision) == (
        STAGE_A_CALL,
        DEFAULT_SEGMENTER_WEIGHT,
        "half",
    )
    assert settings.mask_sampler is not None
    assert settings.mask_sampler.correlation_length_mm > 0
    assert settings.mask_sampler == sampler.drawing(DEFAULT_SAMPLER, settings.mask_sampler.correlation_length_mm)


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_restart_removes_what_training_wrote_and_nothing_else(
    request_: TrainRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = dataclasses.replace(request_, trainer="SegmentationTrainer", iterations=1)
    folder = train(plain).folds[0].folder
    written = files_of(folder)
    notes = {"notes.txt", "validation/notes.txt", "pictures/mine.png", "mine/weights.safetensors"}
    for name in notes:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    dead = subprocess.Popen(["true"])
    dead.wait()
    host = text_hash(platform.node())[:8]
    leftovers = [f".tmp-{dead.pid}-{host}-checkpoint.pt", f"validation/.tmp-{dead.pid}-{host}-a.png"]
    for name in leftovers:
        (folder / name).write_text("half")

    def lost(*args: object, **kwargs: object) -> None:
        raise UsdError("no time")

    with monkeypatch.context() as patched:
        patched.setattr(run_module, "train_fold", lost)  # refused once it was to begin
        with pytest.raises(UsdError, match="no time"):
            train(dataclasses.replace(plain, restart=True))
    assert files_of(folder) == written | notes
    first = (folder / "log.jsonl").read_bytes()
    train(dataclasses.replace(plain, restart=True, seed=5))
    assert files_of(folder) == written | notes
    assert (folder / "log.jsonl").read_bytes() != first
    evaluation = folder / "validation" / "evaluation"  # as usd_evaluate leaves it there
    evaluation.mkdir()
    for name in ("metrics.csv", "lesion_scores.csv", "summary.json", "report.html"):
        (evaluation / name).touch()
    remove_training(folder, ())
    assert files_of(folder) == notes


def test_a_second_training_of_a_fold_is_refused_and_changes_nothing(request_: TrainRequest) -> None:
    plain = dataclasses.replace(request_, trainer="SegmentationTrainer", iterations=1)
    model = request_.roots.require_results() / "Dataset902_Phantom2D" / "SegmentationTrainer__2d"
    with locked(model / ".lock-fold_0", "fold 0"):
        with pytest.raises(UsdError, match=rf"process {os.getpid()} on this machine .* has been working on .*fold_0"):
            train(plain)
        assert {p.name for p in model.iterdir()} == {".lock-fold_0"}
        train(dataclasses.replace(plain, fold="1"))  # another fold may be trained meanwhile
        with pytest.raises(UsdError, match="has been working on"):
            train(dataclasses.replace(plain, restart=True))
    train(plain)
    assert {p.name for p in model.iterdir()} == {"fold_0", "fold_1", "plans.json", "dataset.json"}


def test_a_refused_training_leaves_nothing(request_: TrainRequest, tmp_path: Path) -> None:
    roots = dataclasses.replace(request_.roots, results=tmp_path / "new" / "results")
    with pytest.raises(UsdError, match="leaves one of the two phases without any"):
        train(dataclasses.replace(request_, roots=roots, iterations=1))
    assert not (tmp_path / "new" / "results").exists()
    finished = train(dataclasses.replace(request_, trainer="SegmentationTrainer", iterations=1)).folds[0].folder
    before = files_of(request_.roots.require_results())
    with pytest.raises(UsdError, match="leaves one of the two phases without any"):
        train(dataclasses.replace(request_, iterations=1))
    assert files_of(request_.roots.require_results()) == before
    assert not finished.parent.with_name("StagedDiffusionTrainer__2d").exists()


def test_a_finished_fold_refuses_another_request_and_a_run_goes_beside_it(request_: TrainRequest) -> None:
    plain = dataclasses.replace(request_, trainer="SegmentationTrainer", iterations=1)
    folder = train(plain).folds[0].folder
    open_ = dataclasses.replace(plain, iterations=None, batch_size=None, seed=None)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for changes in ({"learning_rate": 0.001}, {"max_time_s": 60.0}, {"seed": 4}):
        with pytest.raises(UsdError, match="--run NAME"):
            train(dataclasses.replace(open_, **changes))  # type: ignore[arg-type]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    beside = train(dataclasses.replace(plain, learning_rate=0.001, run="low")).folds[0].folder
    assert beside.parent.name == "SegmentationTrainer__2d__low"
    assert open_model_folder(beside.parent).folds == ("0",)
    again = train(open_).folds[0].folder  # finished, and asked for nothing else: read
    assert again == folder
    assert log_of(folder, "finished") == log_of(again, "finished")


def test_a_checkpoint_that_a_kill_left_beside_the_weights_goes(request_: TrainRequest) -> None:
    plain = dataclasses.replace(request_, trainer="SegmentationTrainer", iterations=1)
    folder = train(plain).folds[0].folder
    (folder / "checkpoint.pt").write_bytes(b"of a kill between the weights and its removal")
    log = (folder / "log.jsonl").read_text().splitlines(keepends=True)
    (folder / "log.jsonl").write_text("".join(log[:-1]))  # and one between the scores and the last entry
    train(plain)
    assert [entry["kind"] for entry in log_of(folder, "finished")] == ["finished"]
    assert not (folder / "checkpoint.pt").exists()


def test_restart_keeps_the_former_fold_when_the_request_cannot_work(request_: TrainRequest) -> None:
    plain = dataclasses.replace(request_, trainer="SegmentationTrainer", iterations=1)
    folder = train(plain).folds[0].folder
    with pytest.raises((UsdError, RuntimeError)):
        train(dataclasses.replace(plain, restart=True, device="cuda:99"))
    assert (folder / WEIGHTS_NAME).is_file()


@pytest.mark.parametrize("flag", ["phase_1_from", "pretrained"])
def test_a_fold_that_begins_again_cannot_start_from_itself(request_: TrainRequest, flag: str) -> None:
    fold = train(dataclasses.replace(request_, iterations=2)).folds[0].folder
    before = sorted(fold.rglob("*"))
    for source in (fold, fold / ".." / fold.name):
        again = dataclasses.replace(request_, iterations=2, restart=True, **{flag: source})  # type: ignore[arg-type]
        with pytest.raises(UsdError, match="names what --restart removes; leave --restart out"):
            train(again)
    assert sorted(fold.rglob("*")) == before


def test_restart_keeps_the_former_fold_when_no_case_can_be_held_out(
    request_: TrainRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = dataclasses.replace(request_, trainer="SegmentationTrainer", iterations=1)
    folder = train(plain).folds[0].folder

    def nothing_to_hold_out(*args: object) -> None:
        raise UsdError("the training cases form 1 group")

    monkeypatch.setattr(opened_fold, "inner_holdout", nothing_to_hold_out)
    with pytest.raises(UsdError, match="1 group"):
        train(dataclasses.replace(plain, restart=True))
    assert (folder / WEIGHTS_NAME).is_file()


def test_edited_preprocessing_must_be_done_again_first(request_: TrainRequest, prepared: Path, tmp_path: Path) -> None:
    root = tmp_path / "preprocessed"
    shutil.copytree(prepared, root)
    path = root / "Dataset902_Phantom2D" / "plans.json"
    plans = json.loads(path.read_text())
    plans["configurations"]["2d"]["preprocessing"]["target_spacing_mm"] = [None, 2.0, 2.0]
    path.write_text(json.dumps(plans))
    with pytest.raises(UsdError, match="was preprocessed by another plan"):
        train(dataclasses.replace(request_, roots=dataclasses.replace(request_.roots, preprocessed=root)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fold": "9"}, "fold 9 does not exist"),
        ({"configuration": "3d_fullres"}, "it has 2d"),
        ({"dataset": "77"}, "77"),
        ({"trainer": "NoTrainer"}, "StagedDiffusionTrainer"),
        ({"trainer": "json:JSONDecoder"}, "derive it from one"),
        ({"epochs": 3}, "one budget"),
        ({"splits": "nnunet"}, "splits_final.json holds other folds"),
        ({"splits": "nnUNet"}, "splits is 'nnUNet'; allowed are default and nnunet"),
    ],
)
def test_wrong_requests_name_value_and_choices(
    request_: TrainRequest, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UsdError, match=message):
        train(dataclasses.replace(request_, **changes))  # type: ignore[arg-type]
