"""Pre-trained starts: what is read, what is loaded, and what a fold does with it."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.inference.model_folder import WEIGHTS_NAME, open_model_folder, tensors_hash
from unisegdiff_pipeline.io.paths import Roots
from unisegdiff_pipeline.networks.sources import TABLE, SourceConditioning
from unisegdiff_pipeline.networks.staged_model import StagedModel
from unisegdiff_pipeline.networks.unet import SegmentationUNet
from unisegdiff_pipeline.planning.plans import LevelPlan, NetworkPlan
from unisegdiff_pipeline.preprocessing.storage import PreprocessedFolder
from unisegdiff_pipeline.training import pretrained as pretrained_module
from unisegdiff_pipeline.training.data.patches import PatchSource
from unisegdiff_pipeline.training.dry_run import preview
from unisegdiff_pipeline.training.interrupt import StopRequest, TrainingInterrupted
from unisegdiff_pipeline.training.pretrained import (
    adapt_inputs,
    by_dataset,
    denoiser_tensors,
    differences,
    load_denoiser,
    load_start,
    read_start,
    same_classes,
)
from unisegdiff_pipeline.training.pretrained_start import PretrainedStart
from unisegdiff_pipeline.training.request import TrainRequest
from unisegdiff_pipeline.training.run import open_fold, train
from unisegdiff_pipeline.training.schedule import PhaseBudget, risen
from unisegdiff_pipeline.training.trainers.segmentation import SegmentationTrainer
from unisegdiff_pipeline.training.trainers.trainer import Trainer

LESION = LabelScheme(("lesion",), ((1,),), "binary", (1,))
TUMOUR = LabelScheme(("tumour",), ((1,),), "binary", (1,))
TWO = LabelScheme(("core", "oedema"), ((1,), (2,)), "softmax", (1, 2))


def network_plan(channels: int = 1, features: int = 4, encoder: Any = "plain", dims: int = 2) -> NetworkPlan:
    ones, twos, threes = (1,) * dims, (2,) * dims, (3,) * dims
    levels = (LevelPlan(features, ones, threes, 2), LevelPlan(2 * features, twos, threes, 2))
    return NetworkPlan(dims, (8,) * dims, channels, levels, encoder)


def model_of(plan: NetworkPlan, labels: LabelScheme = LESION, seed: int = 0) -> StagedModel:
    torch.manual_seed(seed)
    return StagedModel(SegmentationUNet(plan, labels.num_channels), None, labels).eval()


def start_of(
    model: StagedModel, plan: NetworkPlan, labels: LabelScheme | None = LESION, **more: Any
) -> PretrainedStart:
    tensors = {**model.state_dict(), **more}
    return PretrainedStart(tensors, plan, "a model", tensors_hash(tensors), labels)


def logits_of(model: StagedModel, image: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.segmenter(image).logits[0]


# ------------------------------------------------------------------------------------------------------------ loading


@pytest.mark.parametrize("encoder", ["plain", "residual"])
def test_where_everything_agrees_outputs_are_equal(encoder: str) -> None:
    plan = network_plan(encoder=encoder)
    source, model = model_of(plan, seed=1), model_of(plan, seed=2)
    image = torch.randn(2, 1, 8, 8)
    assert not torch.equal(logits_of(source, image), logits_of(model, image))
    report = load_start(model, plan, start_of(source, plan))
    assert torch.equal(logits_of(source, image), logits_of(model, image))
    assert {group.outcome for group in report.groups} == {"loaded"}
    assert report.count("loaded") == len(model.state_dict())


def test_another_patch_is_no_difference() -> None:
    plan = network_plan()
    larger = dataclasses.replace(plan, patch_size=(16, 24))
    report = load_start(model_of(larger, seed=2), larger, start_of(model_of(plan), plan))
    assert report.count("new") == 0


@pytest.mark.parametrize("encoder", ["plain", "residual"])
@pytest.mark.parametrize(("there", "here"), [(3, 1), (3, 2), (1, 3), (2, 3), (3, 4)])
def test_a_repeated_image_gives_the_same_response(there: int, here: int, encoder: str) -> None:
    # Six features: a residual block whose inputs are as many as its features has no projection to adapt.
    source_plan, plan = network_plan(there, 6, encoder), network_plan(here, 6, encoder)
    source, model = model_of(source_plan, seed=1), model_of(plan, seed=2)
    report = load_start(model, plan, start_of(source, source_plan))
    few = torch.randn(1, min(there, here), 8, 8, generator=torch.Generator().manual_seed(0))
    many = few[:, [i % few.shape[1] for i in range(max(there, here))]]
    expected = logits_of(source, few if there < here else many)
    found = logits_of(model, many if there < here else few)
    assert torch.allclose(expected, found, atol=1e-5)
    assert report.count("adapted") == (1 if encoder == "plain" else 2)  # the residual skip reads the image too


def test_adapted_inputs_by_hand() -> None:
    weight = torch.tensor([1.0, 2.0, 4.0]).reshape(1, 3, 1, 1)
    assert adapt_inputs(weight, 1).flatten().tolist() == [7.0]  # 111
    assert adapt_inputs(weight, 2).flatten().tolist() == [5.0, 2.0]  # 121
    assert adapt_inputs(weight, 4).flatten().tolist() == [0.5, 2.0, 4.0, 0.5]  # 1231
    assert adapt_inputs(weight[:, :1], 2).flatten().tolist() == [0.5, 0.5]
    assert torch.equal(adapt_inputs(weight, 3), weight)


def test_heads_of_other_classes_stay_new_and_the_table_says_so() -> None:
    source_plan, plan = network_plan(3), network_plan(1)
    model = model_of(plan, TWO, seed=2)
    heads = [p.clone() for p in model.segmenter.heads.parameters()]
    known = {"segmenter.film.0.scale": torch.zeros(5, 4), "segmenter.encoder_film.0.table.known": torch.zeros(5, 4)}
    start = start_of(model_of(source_plan, seed=1), source_plan, **known)
    report = load_start(model, plan, start)
    assert all(torch.equal(a, b) for a, b in zip(heads, model.segmenter.heads.parameters(), strict=True))
    lines = [" ".join(line.split()) for line in report.table().splitlines()]
    assert lines[0] == "part tensors outcome why"
    assert "segmenter.encoder.0 1 adapted 3 input channels there, 1 here" in lines
    assert "segmenter.encoder.1 6 loaded" in lines
    assert "segmenter.heads 2 new other classes: lesion there, core, oedema here" in lines
    assert "segmenter.film 1 left out the new model has no such part" in lines
    assert "segmenter.encoder_film 1 left out of its single sources, begins as none of them" in lines


def test_heads_of_unknown_classes_stay_new() -> None:
    plan = network_plan()
    report = load_start(model_of(plan, seed=2), plan, start_of(model_of(plan), plan, labels=None))
    assert [group.name for group in report.groups if group.outcome == "new"] == ["segmenter.heads"]


def test_one_foreground_class_is_the_same_under_any_name() -> None:
    assert same_classes(LESION, TUMOUR)
    assert same_classes(TWO, dataclasses.replace(TWO, names=("Core", "OEDEMA")))
    assert not same_classes(TWO, dataclasses.replace(TWO, names=("oedema", "core")))
    assert not same_classes(TWO, LESION)
    assert not same_classes(None, LESION)


def test_what_is_deeper_is_left_out_and_what_is_wider_new() -> None:
    plan = network_plan()
    deeper = dataclasses.replace(plan, levels=(*plan.levels, LevelPlan(8, (2, 2), (3, 3), 2)))
    report = load_start(model_of(plan, seed=2), plan, start_of(model_of(deeper), deeper))
    assert {g.name for g in report.groups if g.outcome == "left out"} == {
        "segmenter.encoder.2",
        "segmenter.up.1",
        "segmenter.decoder.1",
        "segmenter.heads",
    }


def test_another_architecture_and_another_dimension_are_refused() -> None:
    plan, wide = network_plan(), network_plan(features=6)
    with pytest.raises(UsdError, match=r"no tensor of its encoder fits: .* features 4, 8 .* features 6, 12 .*--for-w"):
        load_start(model_of(wide), wide, start_of(model_of(plan), plan))
    volume = network_plan(dims=3)
    with pytest.raises(UsdError, match="is a 2D network and the plan's is a 3D one"):
        load_start(model_of(volume), volume, start_of(model_of(plan), plan))


def test_rows_of_sources_go_by_name_and_begin_as_zeros_where_the_start_does_not_know_them() -> None:
    plan = network_plan()
    conditioning = SourceConditioning(2, film=True, adapter=True)
    model = StagedModel(SegmentationUNet(plan, 1, conditioning=conditioning), None, LESION)
    tensors = {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
    start = dataclasses.replace(start_of(model, plan), tensors=tensors, source_names=("US", "CT"))
    moved = start.for_sources(("MR", "CT", "US"))
    tables = [name for name in tensors if name.endswith(TABLE)]
    assert len(tables) > 2  # scales and shifts of several blocks, and the adapter
    for name in tables:
        ultrasound, scan = tensors[name]
        assert torch.equal(moved.tensors[name], torch.stack([torch.zeros_like(scan), scan, ultrasound]))
    assert all(moved.tensors[name] is tensor for name, tensor in tensors.items() if name not in tables)


def test_cases_of_a_unified_data_set_are_those_of_its_sources(tmp_path: Path) -> None:
    description = tmp_path / "dataset.json"
    source = {
        "name": "BUSI",
        "dataset": "Dataset101_BUSI",
        "modality": "US",
        "label_map": {"lesion": "lesion"},
        "hash": "",
    }
    description.write_text(json.dumps({"sources": [source]}))
    assert by_dataset("Dataset500_U", ["BUSI__a", "x__b"], description) == {
        "Dataset101_BUSI": ["a"],
        "Dataset500_U": ["x__b"],
    }
    assert by_dataset("Dataset4_X", ["BUSI__a"], tmp_path / "none.json") == {"Dataset4_X": ["BUSI__a"]}


def test_a_rate_rises_evenly() -> None:
    assert [risen(0.5, progress) for progress in (0.0, 0.25, 0.5, 1.0)] == [0.0, 0.5, 1.0, 1.0]
    assert risen(0.0, 0.0) == 1.0


# -------------------------------------------------------------------------------------------------------- whole folds


@pytest.fixture(scope="module")
def source(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fold 0 of a tiny model."""
    roots = Roots(None, prepared, tmp_path_factory.mktemp("source"))
    return train(TrainRequest("902", "0", roots, iterations=4, batch_size=2, workers=0, device="cpu")).folds[0].folder


@pytest.fixture
def request_(prepared: Path, source: Path, tmp_path: Path) -> TrainRequest:
    roots = Roots(None, prepared, tmp_path / "results")
    return TrainRequest(
        "902", "0", roots, iterations=6, batch_size=2, workers=0, device="cpu", seed=3, pretrained=source
    )


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS_NAME)


def copied(source: Path, to: Path) -> Path:
    """The model folder of a fold, elsewhere; returns the fold."""
    shutil.copytree(source.parent, to / source.parent.name)
    return to / source.parent.name / source.name


def test_fold_model_and_file_are_read_alike(source: Path, tmp_path: Path) -> None:
    starts = [read_start(path) for path in (source, source.parent, source / WEIGHTS_NAME)]
    assert len({start.hash for start in starts}) == 1
    model = open_model_folder(source.parent)
    assert starts[0].network == model.configuration.network
    assert starts[0].seen.cases["Dataset902_Phantom2D"]
    assert starts[0].seen.all_known
    assert denoiser_tensors(starts[0], model.plans.labels)


def test_weights_of_phase_1_are_read_too(source: Path, tmp_path: Path) -> None:
    fold = copied(source, tmp_path)
    (fold / WEIGHTS_NAME).unlink()
    for path in (fold, fold.parent):
        start = read_start(path)
        assert all(name.startswith("segmenter.") for name in start.tensors)
        assert start.hash != read_start(source).hash


def test_a_fold_starts_from_another_and_records_it(
    request_: TrainRequest, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder = train(request_).folds[0].folder
    stored = json.loads((folder / "request.json").read_text())
    assert stored["pretrained"] == str(source)
    assert stored["pretrained_hash"] == read_start(source).hash
    assert "segmenter.encoder.0" in caplog.text
    assert not (folder / "pretrained.safetensors").exists()
    plain = train(dataclasses.replace(request_, pretrained=None, run="plain")).folds[0].folder
    assert "pretrained" not in json.loads((plain / "request.json").read_text())
    assert any(
        not torch.equal(a, b) for a, b in zip(weights_of(folder).values(), weights_of(plain).values(), strict=True)
    )


def test_a_changed_start_is_refused_and_an_unnamed_one_goes_on(
    request_: TrainRequest, source: Path, tmp_path: Path
) -> None:
    train(request_)
    train(dataclasses.replace(request_, pretrained=None))
    with pytest.raises(UsdError, match=r"was trained with --pretrained .* and is now asked for --pretrained .*other"):
        train(dataclasses.replace(request_, pretrained=tmp_path / "other"))
    with pytest.raises(UsdError, match="was trained with no --phase-2-only and is now asked for --phase-2-only"):
        train(dataclasses.replace(request_, phase_2_only=True))
    plain = dataclasses.replace(request_, pretrained=None, run="plain")
    train(plain)
    with pytest.raises(UsdError, match="was trained with no --pretrained"):
        train(dataclasses.replace(plain, pretrained=source))


@pytest.mark.parametrize(("stop_at", "phase_2_only"), [(2, None), (5, None), (2, True)])
def test_continuing_gives_the_same_bits_without_the_source(
    request_: TrainRequest,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_at: int,
    phase_2_only: Any,
) -> None:
    moved = copied(source, tmp_path / "moved")
    request = dataclasses.replace(request_, pretrained=moved, phase_2_only=phase_2_only)
    whole = train(dataclasses.replace(request, run="whole")).folds[0].folder
    iterate, done = Trainer.iterate, []

    def stopping(self: Trainer, batch: Any) -> dict[str, torch.Tensor]:
        result = iterate(self, batch)
        done.append(1)
        if len(done) == stop_at:
            self.run.stop.signal_number = 2
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "iterate", stopping)
        with pytest.raises(TrainingInterrupted):
            train(request)
    shutil.rmtree(tmp_path / "moved")
    parts = train(dataclasses.replace(request, pretrained=None, phase_2_only=None)).folds[0].folder
    first, second = weights_of(whole), weights_of(parts)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_phase_2_alone_begins_with_the_segmenter_as_it_is(
    request_: TrainRequest, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder = train(dataclasses.replace(request_, phase_2_only=True)).folds[0].folder
    phase_1, start = load_file(folder / "phase_1.safetensors"), read_start(source)
    assert all(torch.equal(value, start.tensors[f"segmenter.{name}"]) for name, value in phase_1.items())
    assert json.loads((folder / "phase_1.json").read_text())["iterations"] == 0
    assert "phase 1 is skipped. By" in caplog.text
    assert "phase 1 has ended" not in caplog.text


def test_phase_2_alone_says_what_differs(
    request_: TrainRequest, source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    start = read_start(source)
    other = dataclasses.replace(
        start, labels=TWO, network=dataclasses.replace(start.network, num_input_channels=3, encoder="residual")
    )
    reader = dataclasses.replace(pretrained_module.OWN, read=lambda *_: other)
    monkeypatch.setattr(pretrained_module, "READERS", (reader,))
    with pytest.raises(
        UsdError, match=r"classes are core, oedema there .*; it has 3 input channels .*; .* residual"
    ) as e:
        train(dataclasses.replace(request_, phase_2_only=True))
    assert "--for-weights" not in str(e.value)  # no plan makes up for other classes
    other = dataclasses.replace(start, network=dataclasses.replace(start.network, encoder="residual"))
    with pytest.raises(UsdError, match=r"or plan for the weights with usd_plan_and_preprocess .* --for-weights\."):
        train(dataclasses.replace(request_, phase_2_only=True))
    assert not (tmp_path / "results").exists()


def test_a_denoiser_of_other_classes_is_new_and_said_to_be(
    request_: TrainRequest, source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    other = dataclasses.replace(read_start(source), labels=TWO)
    monkeypatch.setattr(
        pretrained_module, "READERS", (dataclasses.replace(pretrained_module.OWN, read=lambda *_: other),)
    )
    train(request_)
    assert "the denoiser is new: the start has none for these classes" in caplog.text


def test_a_start_that_repeats_channels_is_taken_as_it_is_for_fewer() -> None:
    """Of a grey image the network of three channels was given 111, and the adapted one answers as it did."""
    wide, grey = network_plan(3), network_plan(1)
    start = dataclasses.replace(start_of(model_of(wide), wide), repeats_channels=True)

    def found(network: NetworkPlan, given: PretrainedStart) -> tuple[str, ...]:
        channels = ("zscore",) * network.num_input_channels
        preprocessing = SimpleNamespace(normalization=channels, num_inputs=len(channels))
        configuration: Any = SimpleNamespace(network=network, preprocessing=preprocessing)
        return differences(given, configuration, LESION)

    assert found(grey, start) == ()
    assert found(network_plan(4), start) == ("it has 3 input channels and the plan 4",)
    unknown = dataclasses.replace(start, repeats_channels=False)
    assert found(grey, unknown) == ("it has 3 input channels and the plan 1",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrained": None, "phase_2_only": True}, "--phase-2-only needs a segmenter"),
        ({"trainer": "SegmentationTrainer", "phase_2_only": True}, "SegmentationTrainer has no phase 2"),
        ({"phase_1_from": Path("x")}, "--pretrained .* and --phase-1-from x both say"),
        ({"pretrained": Path("/nowhere")}, "/nowhere does not exist; weights to start from are "),
    ],
)
def test_requests_that_cannot_be_are_refused_before_any_file_is_checked_or_written(
    request_: TrainRequest, tmp_path: Path, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = dataclasses.replace(request_, **changes)
    # Reading every preprocessed file takes minutes, behind which no mistyped path is to be found.
    monkeypatch.delattr(PreprocessedFolder, "require_undamaged")
    for work in (preview, train):
        with pytest.raises(UsdError, match=message):
            work(request)
    assert not (tmp_path / "results").exists()


def test_weights_that_saw_the_validation_cases_are_refused(
    request_: TrainRequest, source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(UsdError, match=r"was trained on \d+ cases of Dataset902_Phantom2D .* fold_1 validates on"):
        train(dataclasses.replace(request_, fold="1"))
    for work in (preview, train):
        with pytest.raises(UsdError, match="fold_1 validates on"):
            work(dataclasses.replace(request_, fold="cv"))
    assert not (tmp_path / "results").exists()  # fold 0, which could begin, is not trained
    # of another fold by way of its own start
    fold = copied(train(request_).folds[0].folder, tmp_path / "second")
    stored = json.loads((fold / "request.json").read_text())
    stored["train_cases"] = []
    (fold / "request.json").write_text(json.dumps(stored))
    with pytest.raises(UsdError, match="fold_1 validates on"):
        train(dataclasses.replace(request_, fold="1", pretrained=fold))
    assert "does not say which cases" not in caplog.text
    # as in an archive, which names no case
    (fold / "request.json").unlink()
    train(dataclasses.replace(request_, fold="1", pretrained=fold))
    assert caplog.text.count("does not say which cases it was trained on") == 1


def test_cases_that_a_phase_1_has_seen_by_its_start_stay_known_where_it_is_taken_over(
    request_: TrainRequest, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = copied(source, tmp_path / "first")
    stored = json.loads((first / "request.json").read_text())
    (first / "request.json").write_text(json.dumps(stored | {"pretrained_cases": {"Dataset001_Y": ["y"]}}))
    iterate = Trainer.iterate

    def stopping(self: Trainer, batch: Any) -> dict[str, torch.Tensor]:
        self.run.stop.signal_number = 2
        return iterate(self, batch)

    request = dataclasses.replace(request_, pretrained=None)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "iterate", stopping)
        with pytest.raises(TrainingInterrupted):
            train(dataclasses.replace(request, run="second", phase_1_from=first))
    shutil.rmtree(tmp_path / "first")
    second = train(dataclasses.replace(request, run="second")).folds[0].folder
    third = train(dataclasses.replace(request, run="third", phase_1_from=second)).folds[0].folder
    for fold in (second, third):
        seen = read_start(fold).seen.cases
        assert seen["Dataset001_Y"] == ("y",)
        assert set(seen["Dataset902_Phantom2D"]) == set(stored["train_cases"])


def test_that_seen_cases_are_unknown_stays_known_however_the_weights_are_taken_over(
    request_: TrainRequest, source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    archived = copied(source, tmp_path / "archived")
    (archived / "request.json").unlink()  # as in an archive, which names no case
    first = train(dataclasses.replace(request_, pretrained=archived, run="first")).folds[0].folder
    assert json.loads((first / "request.json").read_text())["pretrained_cases_known"] is False
    plain = dataclasses.replace(request_, pretrained=None)
    followers = {
        "began with weights that do not say which cases they were": dataclasses.replace(request_, pretrained=first),
        "fold_0 does not say which cases it was": dataclasses.replace(plain, phase_1_from=first),
    }
    for number, (said, request) in enumerate(followers.items()):
        caplog.clear()
        fold = train(dataclasses.replace(request, run=f"next{number}")).folds[0].folder
        assert caplog.text.count(f"{said} trained on") == 1
        assert not read_start(fold).seen.all_known
    # folders of earlier versions do not say it
    stored = json.loads((first / "request.json").read_text())
    del stored["pretrained_cases_known"]
    (first / "request.json").write_text(json.dumps(stored))
    assert read_start(first).seen.all_known


def test_a_phase_1_whose_start_saw_the_validation_cases_is_refused(
    request_: TrainRequest, source: Path, tmp_path: Path
) -> None:
    first = copied(source, tmp_path / "first")
    stored = json.loads((first / "request.json").read_text())
    case = stored["validation_cases"][0]
    for key in ("pretrained_cases", "phase_1_cases"):
        (first / "request.json").write_text(json.dumps(stored | {key: {"Dataset902_Phantom2D": [case]}}))
        with pytest.raises(UsdError, match=r"--phase-1-from .* was trained on 1 case of .* that fold_0 validates on"):
            train(dataclasses.replace(request_, pretrained=None, phase_1_from=first))


def test_damaged_folders_name_what_is_wrong(source: Path, tmp_path: Path) -> None:
    fold = copied(source, tmp_path / "cut")
    content = (fold / WEIGHTS_NAME).read_bytes()
    (fold / WEIGHTS_NAME).write_bytes(content[: len(content) // 2])
    with pytest.raises(UsdError, match=r"weights.safetensors cannot be read .* damaged"):
        read_start(fold)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsdError, match="empty holds no weights that can be read here; those to start from are "):
        read_start(tmp_path / "empty")
    bare = copied(source, tmp_path / "bare")
    for path in bare.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(UsdError, match="holds no weights"):
        read_start(bare.parent)
    with pytest.raises(UsdError, match="holds no weights"):
        read_start(bare)
    alone = tmp_path / "alone" / "fold_0"
    alone.mkdir(parents=True)
    (alone / WEIGHTS_NAME).write_bytes(content)
    with pytest.raises(UsdError, match=r"alone holds no plans.json"):
        read_start(alone)


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / WEIGHTS_NAME
    path.write_bytes(b"\x80\x04\x95")
    with pytest.raises(UsdError, match=r"holds no plans\.json"):
        read_start(path)


def test_the_encoder_learns_slower_and_later(request_: TrainRequest, source: Path) -> None:
    run = open_fold(request_, StopRequest())
    training = dataclasses.replace(
        run.configuration.training, pretrained_encoder_rate=0.5, pretrained_warmup_fraction=0.4
    )
    run = dataclasses.replace(run, configuration=dataclasses.replace(run.configuration, training=training))
    trainer = SegmentationTrainer(run, PhaseBudget(iterations=10))
    trainer.bf16 = False
    rest, encoder = trainer.optimizer.param_groups
    assert {id(p) for p in encoder["params"]} == {id(p) for p in trainer.network.encoder.parameters()}
    assert len(rest["params"]) + len(encoder["params"]) == len(list(trainer.network.parameters()))
    source_of_patches = PatchSource(run.data, run.train_cases, run.configuration, run.plans.labels, 0, augment=False)
    ratios = []
    for iteration in range(6):
        trainer.iterate(source_of_patches.batch(iteration))
        ratios.append(encoder["lr"] / rest["lr"])
    assert ratios == pytest.approx([0.0, 0.125, 0.25, 0.375, 0.5, 0.5])
    plain = dataclasses.replace(run, request=dataclasses.replace(request_, pretrained=None))
    assert len(SegmentationTrainer(plain, PhaseBudget(iterations=10)).optimizer.param_groups) == 1


def test_a_denoiser_that_does_not_fit_stays_new() -> None:
    model = SimpleNamespace(state_dict=lambda: {"denoiser.head.weight": torch.zeros(2), "segmenter.x": torch.zeros(1)})
    report = load_denoiser(model, {"denoiser.head.weight": torch.ones(3), "denoiser.old": torch.ones(1)})  # type: ignore[arg-type]
    assert [(group.outcome, group.tensors) for group in report.groups] == [("new", 1), ("left out", 1)]


def test_inputs_that_tell_which_channels_there_are_begin_without_weight() -> None:
    source_plan, plan = network_plan(2, 6), network_plan(4, 6)
    source, model = model_of(source_plan, seed=1), model_of(plan, seed=2)
    load_start(model, plan, start_of(source, source_plan), num_channels=2)
    image = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    given = torch.cat([image, torch.ones_like(image)], dim=1)
    assert torch.allclose(logits_of(source, image), logits_of(model, given), atol=1e-5)


def first_weight(model: StagedModel) -> torch.Tensor:
    return model.state_dict()["segmenter.encoder.0.0.0.weight"]


@pytest.mark.parametrize("behind", [1, 2])
def test_weights_of_inputs_behind_the_image_are_not_taken_for_those_of_its_channels(behind: int) -> None:
    """Two channels with the mask of one class (3 inputs) or with their presence (4) there."""
    source_plan = network_plan(2 + behind, 4)
    source = model_of(source_plan, seed=1)
    names = dataclasses.replace(start_of(source, source_plan), channel_names=("T1", "FLAIR"), num_masks=behind % 2)
    there = first_weight(source)
    for inputs, channels, masks in ((2, 2, 0), (1, 1, 0), (4, 4, 0), (6, 3, 0), (5, 2, 1)):
        plan = network_plan(inputs, 4)
        model = model_of(plan, seed=2)
        load_start(model, plan, names, channels, masks)
        here = first_weight(model)
        assert torch.equal(here[:, :channels], adapt_inputs(there[:, :2], channels))
        assert not here[:, channels:].any()
    model = model_of(source_plan, seed=2)
    report = load_start(model, source_plan, names, 2, behind % 2)  # the same inputs
    assert torch.equal(first_weight(model), there)
    assert report.count("adapted") == 0


def test_as_many_inputs_of_another_kind_are_not_alike() -> None:
    plan = network_plan(4, 4)  # as many features as inputs
    source, model = model_of(plan, TWO, seed=1), model_of(plan, TWO, seed=2)
    start = dataclasses.replace(start_of(source, plan, TWO), channel_names=("T1", "FLAIR"))
    report = load_start(model, plan, start, 2, num_masks=2)  # presence there, masks here
    assert torch.equal(first_weight(model)[:, :2], first_weight(source)[:, :2])
    assert not first_weight(model)[:, 2:].any()
    assert report.count("adapted") == 1
    image = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    without = torch.cat([image, torch.zeros_like(image)], dim=1)
    assert torch.allclose(logits_of(source, without), logits_of(model, without), atol=1e-5)
