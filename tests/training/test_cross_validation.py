"""What is kept of validation cases, predicting them again, and the folder over all folds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from unisegdiff_pipeline.commands import evaluate
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.io.paths import Roots
from unisegdiff_pipeline.io.prediction_files import validated_since
from unisegdiff_pipeline.training.cross_validation import collect_validation, label_files, unified_reference
from unisegdiff_pipeline.training.dry_run import preview
from unisegdiff_pipeline.training.request import TrainRequest
from unisegdiff_pipeline.training.run import train
from unisegdiff_pipeline.training.validation_files import keeps_everything


@pytest.fixture(scope="module")
def request_(prepared: Path, phantom_2d: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainRequest:
    roots = Roots(raw=phantom_2d.parent, preprocessed=prepared, results=tmp_path_factory.mktemp("results"))
    return TrainRequest("902", "0", roots, iterations=2, batch_size=2, workers=0, device="cpu", seed=3)


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_everything_is_kept_predicted_again_and_collected(
    request_: TrainRequest,
    phantom_2d: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(UsdError, match=r"holds no finished fold to validate; train it first, without --val"):
        train(dataclasses.replace(request_, validate_only=True))
    with pytest.raises(UsdError, match="holds no finished fold to validate"):
        preview(dataclasses.replace(request_, validate_only=True))
    assert request_.roots.results is not None
    assert files_of(request_.roots.results) == set()
    fold = train(request_).folds[0].folder
    validation = fold / "validation"
    cases = json.loads((fold / "request.json").read_text())["validation_cases"]
    for case in cases:
        assert {f"{case}.png", f"probabilities/{case}.npz", f"uncertainty/{case}.png"} <= files_of(validation)
        assert {f"samples/{case}_sample{i:02d}.png" for i in range(8)} <= files_of(validation)
    assert {"summary.json", "lesions.csv", "volumes.csv", "cases.csv", "manifest.json"} <= files_of(validation)
    weights = (fold / "weights.safetensors").read_bytes()

    settings = json.loads((fold / "inference.json").read_text())
    (fold / "inference.json").write_text(json.dumps({**settings, "num_samples": 3, "decision": "half"}))
    (shown,) = preview(dataclasses.replace(request_, validate_only=True))
    assert shown.state == "validated"
    again = train(dataclasses.replace(request_, validate_only=True)).folds[0]
    assert "mean" in again.scores
    assert {f"samples/{cases[0]}_sample{i:02d}.png" for i in range(9)} & files_of(validation) == {
        f"samples/{cases[0]}_sample{i:02d}.png" for i in range(3)
    }
    assert json.loads((validation / "summary.json").read_text())["settings"]["num_samples"] == 3
    assert (fold / "weights.safetensors").read_bytes() == weights

    labels = label_files(request_.roots.preprocessed_dataset("902"), phantom_2d.parent, cases)
    collected = collect_validation(fold.parent, [fold], labels, ".png")
    assert collected.labels == phantom_2d / "labelsTr"
    manifest = json.loads((collected.folder / "manifest.json").read_text())
    assert manifest["validation"][cases[0]] == {
        "fold": "0",
        "reference": str(phantom_2d / "labelsTr" / f"{cases[0]}.png"),
    }
    assert set(manifest["cases"]) == set(cases)
    assert files_of(validation) - files_of(collected.folder) == {"summary.json", "spread.json"}  # of one fold
    assert validated_since(collected.folder) == ()
    assert evaluate.main([str(collected.labels), str(collected.folder), "--subset", "--no-report"]) == 0
    scored = json.loads((collected.folder / "evaluation" / "summary.json").read_text())["settings"]
    assert scored["probabilities"]["cases"] == scored["samples"]["cases"] == len(cases)

    caplog.set_level("INFO")
    train(dataclasses.replace(request_, validate_only=True, save_validation="masks"))
    assert validated_since(collected.folder) == ("0",)
    former = f"{collected.folder} and cv_summary.json hold earlier results of fold 0; usd_train with FOLD cv gathers"
    assert former in caplog.text
    assert evaluate.main([str(collected.labels), str(collected.folder), "--subset", "--no-report"]) == 0
    assert "holds earlier results of fold 0" in " ".join(capsys.readouterr().err.split())
    assert files_of(validation) >= {"summary.json", f"{cases[0]}.png"}
    of_everything = ("samples", "probabilities", "lesions.csv", "volumes.csv")
    assert not any(name.startswith((*of_everything, "manifest.json")) for name in files_of(validation))
    summary = json.loads((validation / "summary.json").read_text())
    assert sorted(summary["references"]) == sorted(cases)
    train(request_)
    assert "scored with other labels" not in caplog.text
    summary["references"][cases[0]] = "hash of the labels before they were corrected"
    (validation / "summary.json").write_text(json.dumps(summary))
    train(request_)
    assert f"1 validation case ({cases[0]}) scored with other labels than the data set has now; --val" in caplog.text
    collected = collect_validation(fold.parent, [fold], labels, ".png")
    assert not any(name.startswith(of_everything) for name in files_of(collected.folder))
    assert f"{cases[0]}.png" in files_of(collected.folder)
    assert "evaluation/summary.json" in files_of(collected.folder)  # what others wrote stays


def test_cases_of_sources_are_collected_in_their_own_endings(tmp_path: Path) -> None:
    model, cases = tmp_path / "results/model", ["A__c.png", "B__c.nii.gz"]
    validation = model / "fold_0/validation"
    validation.mkdir(parents=True)
    for name in cases:
        (validation / name).write_text("mask")

    def collected(names: list[str]) -> set[str]:
        scored = [{"case_id": name.split(".")[0]} for name in names]
        (validation / "summary.json").write_text(json.dumps({"cases": scored}))
        return files_of(collect_validation(model, [validation.parent], {}, ".png").folder)

    assert collected(cases) == {*cases, "manifest.json"}
    assert validated_since(model / "cross_validation") == ()
    (validation / "summary.json").unlink()  # the fold is trained again
    assert validated_since(model / "cross_validation") == ("0",)
    (validation / cases[1]).unlink()
    assert collected(cases[:1]) == {
        cases[0],
        "manifest.json",
    }  # what an earlier call put there goes, whatever its ending

    dataset, raw = tmp_path / "preprocessed/Dataset500_U", tmp_path / "raw/Dataset500_U"
    assert unified_reference(dataset, tmp_path / "raw") is None
    source = {"name": "A", "dataset": "Dataset001_A", "modality": "US", "label_map": {"a": "lesion"}, "hash": ""}
    for folder in (dataset, raw):
        folder.mkdir(parents=True)
        (folder / "dataset.json").write_text(json.dumps({"sources": [source]}))
    assert unified_reference(dataset, tmp_path / "raw") == raw
    assert unified_reference(dataset, None) is None


@pytest.mark.parametrize(
    ("wanted", "shape", "kept"),
    [
        # 10 cases of 3 channels at 2 bytes, and 8 samples: 14 bytes a voxel
        ("auto", (1, 512, 512), True),
        ("auto", (100, 350, 400), True),
        ("auto", (100, 360, 400), False),
        ("all", (600, 512, 512), True),
        ("masks", (1, 8, 8), False),
    ],
)
def test_the_rule_of_what_is_kept(wanted: str, shape: tuple[int, int, int], kept: bool) -> None:
    stored = SimpleNamespace(properties=SimpleNamespace(shape_original=shape))
    run: Any = SimpleNamespace(
        request=SimpleNamespace(save_validation=wanted),
        plans=SimpleNamespace(labels=SimpleNamespace(num_channels=3)),
        data=SimpleNamespace(open=lambda case_id: stored),
        validation_cases=tuple("abcdefghij"),
    )
    settings: Any = SimpleNamespace(num_samples=8)
    assert keeps_everything(run, settings) is kept
