"""The start of generated lesions that comes with the package."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from unisegdiff_pipeline.commands.train import build_parser, request_of
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.inference.model_folder import WEIGHTS_NAME
from unisegdiff_pipeline.io.paths import Roots
from unisegdiff_pipeline.networks.staged_model import StagedModel
from unisegdiff_pipeline.networks.unet import SegmentationUNet
from unisegdiff_pipeline.planning.plans import LevelPlan, NetworkPlan
from unisegdiff_pipeline.synthetic.pretraining import ITERATIONS
from unisegdiff_pipeline.training.dry_run import preview
from unisegdiff_pipeline.training.interrupt import TrainingInterrupted
from unisegdiff_pipeline.training.pretrained import LoadReport, load_start, read_start
from unisegdiff_pipeline.training.pretrained_start import SeenCases
from unisegdiff_pipeline.training.request import SYNTHETIC_WEIGHTS, TrainRequest, start_name, start_path
from unisegdiff_pipeline.training.run import train
from unisegdiff_pipeline.training.trainers.trainer import Trainer

LESION = LabelScheme(("lesion",), ((1,),), "binary", (1,))
REGIONS = LabelScheme(("whole", "core"), ((1, 2), (2,)), "regions", (1, 2))
TWO = LabelScheme(("core", "oedema"), ((1,), (2,)), "softmax", (1, 2))


def loaded_into(features: tuple[int, ...], dims: int, channels: int, labels: LabelScheme, **more: Any) -> LoadReport:
    strides = [(1,) * dims, *[(2,) * dims] * (len(features) - 1)]
    levels = tuple(LevelPlan(f, stride, (3,) * dims, 2) for f, stride in zip(features, strides, strict=True))
    edge = 2 ** (len(features) - 1)
    plan = NetworkPlan(dims, (edge,) * dims, channels, levels, **more)
    model = StagedModel(SegmentationUNet(plan, labels.num_channels), None, labels)
    return load_start(model, plan, read_start(SYNTHETIC_WEIGHTS))


def test_the_file_is_small_and_says_how_it_came_about() -> None:
    assert SYNTHETIC_WEIGHTS.stat().st_size <= 4e6
    with safe_open(SYNTHETIC_WEIGHTS, framework="pt") as file:
        origin = file.metadata()
    assert (origin["iterations"], origin["seed"]) == (str(ITERATIONS), "0")
    assert read_start(SYNTHETIC_WEIGHTS).seen == SeenCases({}, all_known=True)


@pytest.mark.parametrize(
    ("features", "dims", "channels", "labels"),
    [
        ((16, 32, 64, 128, 128), 2, 1, LESION),  # what a CPU gets
        ((16, 32, 64, 128, 256, 256), 2, 3, REGIONS),
        ((32, 64, 128, 256, 512, 512), 2, 4, LESION),  # and a GPU
        ((16, 32, 64, 128), 3, 2, REGIONS),
    ],
)
def test_it_starts_every_part_of_a_plan(
    features: tuple[int, ...], dims: int, channels: int, labels: LabelScheme
) -> None:
    report = loaded_into(features, dims, channels, labels)
    assert report.count("new") == 0


def test_heads_of_exclusive_classes_stay_new() -> None:
    report = loaded_into((16, 32, 64), 2, 1, TWO)
    new = [(group.name, group.tensors, group.reason) for group in report.groups if group.outcome == "new"]
    assert new == [("segmenter.heads", 4, "core, oedema need not all be lesions")]


def test_levels_below_its_own_stay_new() -> None:
    report = loaded_into((32, 64, 128, 256, 512, 512, 512), 2, 1, LESION)
    names = {group.name for group in report.groups if group.outcome == "new"}
    assert names == {"segmenter.encoder.6", "segmenter.up.5", "segmenter.decoder.5", "segmenter.heads"}


def test_another_kind_of_encoder_is_refused() -> None:
    with pytest.raises(UsdError, match="of another architecture, no tensor of its encoder fits"):
        loaded_into((16, 32), 2, 1, LESION, encoder="residual")


def test_the_word_is_the_file_of_the_package_and_a_path_is_a_path() -> None:
    assert start_path("synthetic") == SYNTHETIC_WEIGHTS
    assert start_path("./synthetic") == Path("synthetic")
    assert start_name(SYNTHETIC_WEIGHTS) == "synthetic"
    assert start_name(Path("synthetic")) == str(Path("synthetic").absolute())
    args = build_parser().parse_args(["902", "0", "--pretrained", "synthetic"])
    assert request_of(args).pretrained == SYNTHETIC_WEIGHTS


def test_a_folder_that_cannot_be_written_is_only_read(tmp_path: Path) -> None:
    copy = Path(shutil.copy(SYNTHETIC_WEIGHTS, tmp_path))
    tmp_path.chmod(0o555)
    try:
        assert read_start(copy).hash == read_start(SYNTHETIC_WEIGHTS).hash
        assert list(tmp_path.iterdir()) == [copy]
    finally:
        tmp_path.chmod(0o755)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    damaged = tmp_path / SYNTHETIC_WEIGHTS.name
    damaged.write_bytes(SYNTHETIC_WEIGHTS.read_bytes()[:1000])
    with pytest.raises(UsdError, match=r"synthetic_lesions.safetensors cannot be read .* damaged"):
        read_start(damaged)


@pytest.fixture
def request_(prepared: Path, tmp_path: Path) -> TrainRequest:
    roots = Roots(None, prepared, tmp_path / "results")
    return TrainRequest(
        "902", "0", roots, iterations=4, batch_size=2, workers=0, device="cpu", pretrained=SYNTHETIC_WEIGHTS
    )


def test_a_fold_that_starts_from_it_continues_to_the_same_bits(
    request_: TrainRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(dataclasses.replace(request_, run="whole")).folds[0].folder
    iterate = Trainer.iterate

    def stopping(self: Trainer, batch: Any) -> dict[str, torch.Tensor]:
        self.run.stop.signal_number = 2
        return iterate(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "iterate", stopping)
        with pytest.raises(TrainingInterrupted):
            train(request_)
    parts = train(request_).folds[0].folder
    assert json.loads((parts / "request.json").read_text())["pretrained"] == "synthetic"
    first, second = load_file(whole / WEIGHTS_NAME), load_file(parts / WEIGHTS_NAME)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_phase_2_alone_is_refused(request_: TrainRequest) -> None:
    with pytest.raises(UsdError, match=r"--phase-2-only takes the segmenter of .*generated lesions.* but "):
        preview(dataclasses.replace(request_, phase_2_only=True))
