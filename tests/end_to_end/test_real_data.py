"""A few real cases through the whole way, where the data is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unisegdiff_pipeline.commands.evaluate import main as usd_evaluate
from unisegdiff_pipeline.commands.plan_and_preprocess import main as usd_plan_and_preprocess
from unisegdiff_pipeline.commands.predict import main as usd_predict
from unisegdiff_pipeline.commands.train import main as usd_train

NUM_CASES = 8


def some_cases(raw_data: Path, dataset: str, root: Path) -> Path:
    """A raw data set with links to the first cases of a real one."""
    source = raw_data / dataset
    if not source.is_dir():
        pytest.skip(f"{source} is not there")
    folder = root / "raw" / dataset
    description = json.loads((source / "dataset.json").read_text())
    description["numTraining"] = NUM_CASES
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps(description))
    labels = sorted((source / "labelsTr").iterdir())[:NUM_CASES]
    cases = [path.name.removesuffix(description["file_ending"]) for path in labels]
    for part in ("imagesTr", "labelsTr", "ratersTr"):
        if (source / part).is_dir():
            (folder / part).mkdir()
            for path in sorted((source / part).iterdir()):
                if any(path.name == f"{c}{description['file_ending']}" or path.name.startswith(f"{c}_") for c in cases):
                    (folder / part / path.name).symlink_to(path)
    return folder


@pytest.mark.parametrize(
    ("dataset", "configuration"),
    [("Dataset004_Hippocampus", "3d_fullres"), ("Dataset101_BUSI", "2d"), ("Dataset108_LIDC4R", "2d")],
)
def test_whole_way(
    raw_data: Path, dataset: str, configuration: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = some_cases(raw_data, dataset, tmp_path)
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"usd_{name}", str(tmp_path / name))
    budget = ["--device", "cpu", "--memory-gb", "4", "--workers", "0"]
    assert usd_plan_and_preprocess(["-d", dataset, "-c", configuration, *budget]) == 0
    training = ["-c", configuration, "--iterations", "3", "--batch-size", "2", "--workers", "0", "--device", "cpu"]
    assert usd_train([dataset, "0", *training]) == 0
    images = str(folder / "imagesTr")
    masks = tmp_path / "masks"
    prediction = ["-i", images, "-o", str(masks), "-d", dataset, "--samples", "1", "--device", "cpu"]
    assert usd_predict([*prediction, "-c", configuration]) == 0
    assert usd_evaluate([str(folder / "labelsTr"), str(masks)]) == 0
    summary = json.loads((masks / "evaluation" / "summary.json").read_text())
    assert summary["settings"]["num_cases"] == NUM_CASES
    assert summary["mean"]["dice"]["n"] + summary["mean"]["dice"]["n_undefined"] == NUM_CASES
