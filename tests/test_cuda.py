"""The main job on a GPU: the answers of a CPU, and the same again however the work is cut. Skips without a GPU."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from unisegdiff_pipeline.commands import plan_and_preprocess
from unisegdiff_pipeline.commands import predict as predict_command
from unisegdiff_pipeline.diffusion.samplers import SamplerSettings
from unisegdiff_pipeline.inference.limits import Limits
from unisegdiff_pipeline.inference.settings import InferenceSettings
from unisegdiff_pipeline.inference.volume_sampler import CasePrediction, predict_case
from unisegdiff_pipeline.io.images import read_labels
from unisegdiff_pipeline.io.labels import LabelScheme
from unisegdiff_pipeline.io.paths import Roots
from unisegdiff_pipeline.networks import precision
from unisegdiff_pipeline.networks.layout import to_device
from unisegdiff_pipeline.networks.staged_model import StagedModel, build_model
from unisegdiff_pipeline.planning.plans import (
    ConfigurationPlan,
    DenoiserPlan,
    LevelPlan,
    NetworkPlan,
    PreprocessingPlan,
    TrainingPlan,
)
from unisegdiff_pipeline.training.interrupt import TrainingInterrupted
from unisegdiff_pipeline.training.request import TrainRequest
from unisegdiff_pipeline.training.run import train
from unisegdiff_pipeline.training.trainer import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

SETTINGS = InferenceSettings(lam_a=-3.0, lam_c=0.5, sampler=SamplerSettings(num_calls=3), w=0.25)
ROOMY = Limits(1.0, 1.0, 100_000, 1_000_000)
SOFTMAX = LabelScheme(("edge", "core"), ((1,), (2,)), "softmax", (1, 2))


def tiny_model(patch: tuple[int, ...]) -> StagedModel:
    """Random weights, whose answers are far from constant."""
    dims = len(patch)
    levels = tuple(LevelPlan(f, (1 if i == 0 else 2,) * dims, (3,) * dims, 1) for i, f in enumerate((4, 6, 8)))
    configuration = ConfigurationPlan(
        "tiny",
        PreprocessingPlan((0, 1, 2), (1.0, 1.0, 1.0), ("zscore",), (False,), ()),
        (1, 1, 1),
        NetworkPlan(dims, patch, 1, levels),
        DenoiserPlan((4, 6)),
        TrainingPlan(2),
    )
    torch.manual_seed(0)
    model = build_model(configuration, SOFTMAX, True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare in fp32, and without the ten-bit products that cuDNN takes for it."""
    monkeypatch.setattr(precision, "bf16_in_hardware", lambda device_type: False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.usefixtures("full_precision")
@pytest.mark.parametrize(("patch", "shape"), [((12, 12), (1, 27, 26)), ((8, 12, 12), (18, 27, 26))])
@pytest.mark.parametrize("method", ["ddim", "hard"])
def test_a_gpu_draws_the_samples_of_a_cpu(patch: tuple[int, ...], shape: tuple[int, ...], method: str) -> None:
    model = tiny_model(patch)
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))
    sampler = SamplerSettings("ddim" if method == "ddim" else "hard", "stage_a", 3, 0.0, 2.0, draw=method == "hard")
    settings = dataclasses.replace(SETTINGS, sampler=sampler)

    def predicted(device: str, limits: Limits = ROOMY) -> CasePrediction:
        moved = to_device(model, torch.device(device))
        return predict_case(
            image, moved, settings, patch_size=patch, case_id="case", seed=5, num_samples=3, limits=limits
        )

    expected, found = predicted("cpu"), predicted("cuda")
    cut = predicted("cuda", Limits(0.0, 1e-4, 1, 1))
    for other in (found, cut):
        assert (expected.p_det - other.p_det).abs().max() < 1e-3
        for i in range(3):
            difference = (expected.sample(i) - other.sample(i)).abs()
            # A hard draw may turn where a probability lies at the threshold, and changes what follows.
            assert difference.mean() < 0.02 if method == "hard" else difference.max() < 2e-3


@pytest.fixture
def request_(phantom_2d: Path, tmp_path: Path) -> TrainRequest:
    roots = Roots(phantom_2d.parent, tmp_path / "preprocessed", tmp_path / "results")
    arguments = ["-d", "902", "--raw", str(roots.raw), "--preprocessed", str(roots.preprocessed), "-c", "2d"]
    assert plan_and_preprocess.main(arguments) == 0
    plans = json.loads((tmp_path / "preprocessed/Dataset902_Phantom2D/plans.json").read_text())
    assert plans["budget"]["device"] == "cuda"
    return TrainRequest("902", "0", roots, iterations=60, batch_size=4, workers=2, device="cuda", seed=3)


def test_main_job_with_an_interruption(
    request_: TrainRequest, phantom_2d: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer._iterate

    def interrupted(self: Trainer, batch: object) -> object:
        found = step(self, batch)  # type: ignore[arg-type]
        if (self.phase, self.iteration) in {(1, 20), (2, 3)}:
            self.run.stop.signal_number = signal.SIGINT
        return found

    for _ in range(2):  # in the middle of each phase
        with monkeypatch.context() as patched:
            patched.setattr(Trainer, "_iterate", interrupted)
            with pytest.raises(TrainingInterrupted):
                train(request_)
    result = train(request_).folds[0]
    assert result.scores["mean"]["dice"] > 0.3

    outputs = {}
    for device in ("cuda", "cpu"):
        outputs[device] = tmp_path / device
        folders = ["-i", phantom_2d / "imagesTs", "-o", outputs[device], "-m", result.folder.parent, "-f", 0]
        switches = ["--device", device, "--samples", 3, "--save-probabilities"]
        assert predict_command.main([str(word) for word in (*folders, *switches)]) == 0
    probabilities = sorted((outputs["cpu"] / "probabilities").glob("*.npz"))
    assert probabilities
    for path in probabilities:
        a, b = (np.load(outputs[d] / "probabilities" / path.name)["probabilities"].astype(float) for d in outputs)
        assert np.abs(a - b).mean() < 0.01  # bf16 against fp32
    masks = sorted(outputs["cpu"].glob("*.png"))
    assert masks
    for path in masks:
        a, b = (read_labels(outputs[d] / path.name).array for d in outputs)
        assert (a != b).mean() < 0.02


@pytest.mark.parametrize("trainer", ["SegmentationTrainer", "X0DiffusionTrainer", "FixedThirdsDiffusionTrainer"])
def test_other_trainers(request_: TrainRequest, trainer: str) -> None:
    result = train(dataclasses.replace(request_, trainer=trainer, iterations=8)).folds[0]
    assert 0 <= result.scores["mean"]["dice"] <= 1
