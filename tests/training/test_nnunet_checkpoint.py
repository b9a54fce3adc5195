"""Starts from nnU-Net's checkpoints, written here in the form of its trainer's save_checkpoint."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.networks.make_nnunet_reference import CASES, REFERENCE, SHAPES, random_values, weights_of
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.networks.staged_model import StagedModel
from unisegdiff_pipeline.networks.unet import SegmentationUNet
from unisegdiff_pipeline.planning.plans import LevelPlan
from unisegdiff_pipeline.training.pretrained import load_start, read_start

ARCHITECTURES = "dynamic_network_architectures.architectures.unet"
LABELS = {"background": 0, "edge": 1, "core": 2}


def state_of(case: str) -> dict[str, Tensor]:
    shapes = json.loads(str(np.load(REFERENCE)[f"{case}/shapes"]))
    values = weights_of({name: tuple(shape) for name, shape in shapes.items()})
    return {name: torch.from_numpy(value) for name, value in values.items()}


def configuration_of(case: str) -> dict[str, Any]:
    dims = len(CASES[case]["strides"][0])
    kwargs = CASES[case] | {
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    name = "PlainConvUNet" if case.startswith("plain") else "ResidualEncoderUNet"
    return {
        "patch_size": list(SHAPES[dims][2:]),
        "spacing": [2.0, 1.5, 1.25][3 - dims :],
        "normalization_schemes": ["CTNormalization", "ZScoreNormalization"],
        "architecture": {"network_class_name": f"{ARCHITECTURES}.{name}", "arch_kwargs": kwargs},
    }


def content_of(case: str, **changes: Any) -> dict[str, Any]:
    """What nnU-Net saves; numpy's scalars stand in the log."""
    plans = {"dataset_name": "Dataset007_Pancreas", "configurations": {"used": configuration_of(case)}}
    labels = {"channel_names": {"0": "CT", "1": "PET"}, "labels": LABELS, "file_ending": ".nii.gz"}
    return {
        "network_weights": state_of(case),
        "optimizer_state": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5)], "train_losses": [np.float32(0.1)], "lrs": [0.01]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 2,
        "init_args": {
            "plans": plans,
            "configuration": "used",
            "fold": 0,
            "dataset_json": labels,
            "device": torch.device("cuda"),
        },
        "trainer_name": "nnUNetTrainer",
    } | changes


def saved(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_gives_the_outputs_that_it_gives_in_nnunet(case: str, tmp_path: Path) -> None:
    start = read_start(saved(tmp_path / "checkpoint_final.pth", content_of(case)))
    dims = start.network.dims
    assert start.labels is not None
    assert (start.labels.names, start.channel_names, start.normalization) == (
        ("edge", "core"),
        ("CT", "PET"),
        ("ct", "zscore"),
    )
    assert start.target_spacing_mm == ((2.0, 1.5, 1.25) if dims == 3 else (None, 1.5, 1.25))
    assert "Dataset007_Pancreas" in start.description
    model = SegmentationUNet(start.network, 3)
    model.load_state_dict({name.removeprefix("segmenter."): v for name, v in start.tensors.items()})
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(random_values("image", SHAPES[dims]))).logits[0].numpy()
    assert np.abs(logits - np.load(REFERENCE)[f"{case}/logits/0"]).max() < 1e-4


def test_one_class_beside_background_becomes_one_channel(tmp_path: Path) -> None:
    """softmax of (z_0, z_1) is sigmoid of their difference."""
    content = content_of("plain_2d")
    content["init_args"]["dataset_json"]["labels"] = {"background": 0, "lesion": 1}
    for name, value in content["network_weights"].items():
        if ".seg_layers." in name:
            content["network_weights"][name] = torch.stack([value[0], value[1]])
    head = content["network_weights"]["decoder.seg_layers.1.weight"]  # the last one is of full resolution
    start = read_start(saved(tmp_path / "checkpoint_final.pth", content))
    assert start.labels is not None
    assert start.labels.coding == "binary"
    assert torch.equal(start.tensors["segmenter.heads.0.weight"], head[1:] - head[:1])
    assert tuple(start.tensors["segmenter.heads.1.bias"].shape) == (1,)


def test_folders_and_plans_beside_the_checkpoint(tmp_path: Path) -> None:
    """Plans of nnU-Net before 2.4, a configuration that inherits, and a fold of the same name."""
    model = tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    content = content_of("plain_3d", init_args={"fold": 0})
    old = configuration_of("plain_3d") | {"UNet_class_name": "PlainConvUNet"}
    del old["architecture"]
    plans = {"configurations": {"base": old, "3d_fullres": {"inherits_from": "base", "spacing": [3.0, 1.0, 1.0]}}}
    first = saved(model / "fold_0" / "checkpoint_final.pth", content)
    with pytest.raises(UsdError, match=r"no plans\.json lies in its folder or the one above"):
        read_start(first)
    (model / "plans.json").write_text(json.dumps(plans), "utf-8")
    start = read_start(first)
    assert (start.labels, start.channel_names) == (None, ())
    assert start.target_spacing_mm == (3.0, 1.0, 1.0)
    saved(model / "fold_1" / "checkpoint_best.pth", content)
    assert "fold_1" in read_start(model, "1").description
    assert "fold_0" in read_start(model, "4").description
    assert "fold_1" in read_start(model / "fold_1").description
    plans["configurations"]["3d_fullres"]["inherits_from"] = "3d_cascade"
    (model / "plans.json").write_text(json.dumps(plans), "utf-8")
    with pytest.raises(UsdError, match="no configuration '3d_cascade', only base, 3d_fullres"):
        read_start(model)


def pretrained_content(architecture: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """What nnssl saves; its "ResEncL" comes without arguments."""
    scheme = {"spacing": [1, 1, 1], "normalization_schemes": ["ZScoreNormalization"] * 2}
    content = content_of("resenc_3d", trainer_name="BaseMAETrainer", init_args={}, **changes)
    content["nnssl_adaptation_plan"] = {
        "architecture_plans": architecture,
        "pretrain_plan": {"configurations": {"onemmiso": scheme}},
        "recommended_downstream_patchsize": [160, 160, 160],
        "key_to_encoder": "encoder.stages",
        "key_to_stem": "encoder.stem",
    }
    return content


DYNAMIC = {
    "arch_class_name": "ResidualEncoderUNet",
    "arch_kwargs": configuration_of("resenc_3d")["architecture"]["arch_kwargs"],
}


def test_self_supervised_weights_have_no_classes(tmp_path: Path) -> None:
    start = read_start(saved(tmp_path / "checkpoint_final.pth", pretrained_content(DYNAMIC)))
    assert (start.labels, start.channel_names) == (None, ())
    assert (start.network.encoder, start.network.patch_size) == ("resenc", (160, 160, 160))
    assert (start.target_spacing_mm, start.normalization) == ((1.0, 1.0, 1.0), ("zscore", "zscore"))
    assert start.network.levels[0] == LevelPlan(4, (1, 1, 1), (1, 3, 3), 2)


def test_plans_of_pre_training_may_lie_beside_its_checkpoint_and_know_no_spacing(tmp_path: Path) -> None:
    content = pretrained_content(DYNAMIC)
    plan = content.pop("nnssl_adaptation_plan")
    plan["pretrain_plan"]["configurations"] = {"noresample": {"spacing": None, "normalization_schemes": []}}
    path = saved(tmp_path / "fold_all" / "checkpoint_final.pth", content)
    (tmp_path / "adaptation_plan.json").write_text(json.dumps(plan), "utf-8")
    start = read_start(path)
    assert (start.network.patch_size, start.target_spacing_mm) == ((160, 160, 160), None)


def test_contrastive_weights_are_an_encoder_beside_other_parts(tmp_path: Path) -> None:
    """As VoCo, SimCLR and SwinUNETR of nnssl leave them: nothing but the plans tells the strides."""
    whole = read_start(saved(tmp_path / "whole.pth", pretrained_content(DYNAMIC)))
    weights = {name: value for name, value in state_of("resenc_3d").items() if not name.startswith("decoder.")}
    weights["projector.layer1.0.weight"] = torch.zeros(4, 4)
    path = saved(tmp_path / "checkpoint_final.pth", pretrained_content(DYNAMIC, network_weights=weights))
    start = read_start(path)
    assert start.network == whole.network
    assert {name.split(".")[1] for name in start.tensors} == {"encoder"}
    assert all(torch.equal(value, whole.tensors[name]) for name, value in start.tensors.items())
    lesion = LabelScheme(("lesion",), ((1,),), "binary", (1,))
    model = StagedModel(SegmentationUNet(start.network, 1), None, lesion)
    report = load_start(model, start.network, start)
    assert report.count("loaded") == len(start.tensors)
    assert report.count("new") == len(model.segmenter.state_dict()) - len(start.tensors)
    saved(path, pretrained_content({"arch_class_name": "ResEncL", "arch_kwargs": None}, network_weights=weights))
    with pytest.raises(UsdError, match="it has 3 levels, and its plans strides for 6"):
        read_start(path)


class Running:
    """Pickled as a call of os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_that_runs_a_command_is_refused(legacy: bool, tmp_path: Path) -> None:
    content = content_of("plain_2d", trainer_name=Running(f"touch {tmp_path / 'was_run'}"))
    path = tmp_path / "checkpoint_final.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UsdError, match=r"checkpoint_final\.pth asks for (posix|nt)\.system to be run") as refusal:
        read_start(path)
    assert "weights_only" not in str(refusal.value)
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(legacy: bool, fraction: float, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_final.pth"
    torch.save(content_of("plain_2d"), path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * fraction)])
    with pytest.raises(UsdError, match=r"checkpoint_final\.pth cannot be read .*copy it again") as refusal:
        read_start(path)
    assert "weights_only" not in str(refusal.value)
    assert "likelihood" not in str(refusal.value)  # of torch's second sentence, cut off in its middle


@pytest.mark.parametrize("content", [b"hello", b"", bytes(100), pickle.dumps([1, 2], protocol=4)])
def test_a_file_that_is_no_checkpoint_is_refused_in_words(
    content: bytes, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    (tmp_path / "checkpoint_final.pth").write_bytes(content)
    with pytest.raises(UsdError, match=r"checkpoint_final\.pth (cannot be read \([A-Za-z ]+\); it is|holds no dict)"):
        read_start(tmp_path / "checkpoint_final.pth")
    assert not recwarn.list


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = saved(tmp_path / "checkpoint_final.pth", content_of("plain_2d"))
    content = bytearray(path.read_bytes())
    value = next(iter(state_of("plain_2d").values())).numpy().tobytes()
    content[content.index(value)] ^= 1
    path.write_bytes(content)
    with pytest.raises(UsdError, match="cannot be read"):
        read_start(path)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("norm_op", "torch.nn.modules.batchnorm.BatchNorm2d", "norm_op 'torch.nn.modules.batchnorm.BatchNorm2d'"),
        ("norm_op_kwargs", {"eps": 1e-3, "affine": True}, "eps 1e-5"),
        ("nonlin", "torch.nn.ReLU", "nonlin 'torch.nn.ReLU'"),
        ("nonlin_kwargs", {"negative_slope": 0.2}, "slope 0.01"),
        ("dropout_op", "torch.nn.Dropout2d", "no dropout"),
        ("nonlin_first", True, "nonlin_first True"),
        ("strides", [[2, 2], [2, 2], [2, 1]], r"strides \[\(2, 2\), \(2, 2\)"),
    ],
)
def test_a_network_that_computes_something_else_is_refused(key: str, value: Any, words: str, tmp_path: Path) -> None:
    content = content_of("plain_2d")
    content["init_args"]["plans"]["configurations"]["used"]["architecture"]["arch_kwargs"][key] = value
    with pytest.raises(UsdError, match=words):
        read_start(saved(tmp_path / "checkpoint_final.pth", content))


def test_what_is_no_checkpoint_of_nnunet_is_said(tmp_path: Path) -> None:
    content = content_of("plain_2d")
    path = tmp_path / "model.pt"
    with pytest.raises(UsdError, match="holds no dictionary"):
        read_start(saved(path, [1, 2]))
    with pytest.raises(UsdError, match="network_weights is missing"):
        read_start(saved(path, {key: value for key, value in content.items() if key != "network_weights"}))
    architecture = content["init_args"]["plans"]["configurations"]["used"]["architecture"]
    architecture["network_class_name"] = "monai.networks.nets.SwinUNETR"
    with pytest.raises(UsdError, match="its network is SwinUNETR"):
        read_start(saved(path, content))
    content = content_of("plain_2d")
    content["network_weights"]["decoder.seg_layers.0.bias"][1] = torch.nan
    with pytest.raises(UsdError, match=r"seg_layers\.0\.bias holds values that are no finite numbers"):
        read_start(saved(path, content))
    content = content_of("plain_2d")
    content["init_args"]["plans"]["configurations"]["used"]["patch_size"] = [16, 26]
    assert read_start(saved(path, content)).network.patch_size == (16, 26)  # the width of its last level is not halved
    content["init_args"]["plans"]["configurations"]["used"]["patch_size"] = [18, 24]
    with pytest.raises(UsdError, match=r"patch_size\[0\] is 18; it must be a multiple of 4"):
        read_start(saved(path, content))
