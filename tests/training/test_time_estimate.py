"""What a training will take: by hand, and that nothing is written while it is found out."""

from __future__ import annotations

from pathlib import Path

import pytest

from unisegdiff_pipeline.commands import plan_and_preprocess
from unisegdiff_pipeline.commands import train as command
from unisegdiff_pipeline.io.paths import Roots
from unisegdiff_pipeline.training import time_estimate as module
from unisegdiff_pipeline.training.dry_run import estimate
from unisegdiff_pipeline.training.request import TrainRequest
from unisegdiff_pipeline.training.time_budget import CaseSize, Costs
from unisegdiff_pipeline.training.time_estimate import TimeEstimate


@pytest.fixture(scope="module")
def roots(phantom_2d: Path, tmp_path_factory: pytest.TempPathFactory) -> Roots:
    """The 2D phantoms, preprocessed."""
    root = tmp_path_factory.mktemp("prepared")
    arguments = ["-d", "902", "--raw", str(phantom_2d.parent), "--preprocessed", str(root), "--device", "cpu"]
    assert plan_and_preprocess.main(arguments) == 0
    return Roots(raw=phantom_2d.parent, preprocessed=root, results=tmp_path_factory.mktemp("results"))


def test_by_hand(roots: Roots, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "seconds_an_iteration", lambda trainer: {1: 0.5, 2: 2.0}[trainer.phase])
    monkeypatch.setattr(module, "measure_costs", lambda run, model: Costs(segment_s=1.0))
    found = estimate(TrainRequest("902", "0", roots, iterations=100, device="cpu"))
    assert found is not None
    assert (found.phase_1_s, found.phase_2_s) == (75 * 0.5, 25 * 2.0)
    # one held-out case is looked at 6 times in phase 1 and 3 times in phase 2 and chosen on in 12 passes; 3 validated
    assert found.cases_s == 6 + 3 + 12 + 3 * 2
    all_folds = estimate(TrainRequest("902", "cv", roots, iterations=100, device="cpu"))
    assert all_folds is not None
    assert all_folds.num_folds == 5
    alone = estimate(TrainRequest("902", "0", roots, trainer="SegmentationTrainer", iterations=100, device="cpu"))
    assert alone == TimeEstimate(50.0, 0.0, 6 + 3 * 2, 6 + 3 * 2)
    assert estimate(TrainRequest("902", "0", roots, max_time_s=60, device="cpu")) is None
    patient = estimate(TrainRequest("902", "0", roots, patience=5, iterations=100, device="cpu"))
    assert patient is not None
    assert patient.cases_s == 20 + 20 + 12 + 3 * 2


def test_held_out_cases_are_counted_by_their_size(roots: Roots, monkeypatch: pytest.MonkeyPatch) -> None:
    class Half(dict[str, CaseSize]):
        def get(self, *_: object) -> CaseSize:
            return CaseSize(0.5, 0.5)

    monkeypatch.setattr(module, "seconds_an_iteration", lambda trainer: 0.5)
    monkeypatch.setattr(module, "measure_costs", lambda run, model: Costs(segment_s=1.0, sizes=Half()))
    monkeypatch.setattr(module, "as_trained", lambda run, model, costs: costs)
    found = estimate(TrainRequest("902", "0", roots, iterations=100, device="cpu"))
    assert found is not None
    assert found.cases_s == (6 + 3 + 12 + 3 * 2) / 2


def test_in_words() -> None:
    assert TimeEstimate(600.0, 300.0, 60.0, 70.0).describe() == (
        "about 16 min 00 s: phase 1 10 min 00 s, phase 2 5 min 00 s, choosing and validation 1 min 00 s"
    )
    assert TimeEstimate(60.0, 0.0, 12.0, 60.0, num_folds=5).describe() == (
        "about 6 min 00 s for 5 folds; each: phase 1 1 min 00 s, choosing and validation 12.0 s (up to 1 min 00 s "
        "where it is too short to learn where lesions are)"
    )


def test_a_dry_run_says_it_and_leaves_nothing(roots: Roots, capsys: pytest.CaptureFixture[str]) -> None:
    results = roots.require_results()
    flags = ["--preprocessed", str(roots.preprocessed), "--results", str(results), "--iterations", "10"]
    assert command.main(["902", "0", "--dry-run", "--device", "cpu", "--batch-size", "2", *flags]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("estimated time"))
    assert "phase 1" in line
    assert "phase 2" in line
    assert list(results.iterdir()) == []
