"""Model folders: what is found, what is loaded, what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.serialization import to_jsonable, write_json
from unisegdiff_pipeline.diffusion.coding import LogitCalibration
from unisegdiff_pipeline.diffusion.samplers import SamplerSettings
from unisegdiff_pipeline.inference.model_folder import (
    choose_folds,
    load_fold,
    open_model_folder,
    plan_hash,
    read_weights,
    save_weights,
)
from unisegdiff_pipeline.inference.settings import InferenceSettings, read_settings, write_settings
from unisegdiff_pipeline.networks.staged_model import build_model
from unisegdiff_pipeline.planning.plans import (
    Budget,
    ConfigurationPlan,
    DenoiserPlan,
    LevelPlan,
    NetworkPlan,
    Plans,
    PreprocessingPlan,
    TrainingPlan,
)

SETTINGS = InferenceSettings(
    lam_a=-3.0,
    lam_c=0.5,
    calibration=LogitCalibration(1.5, 1.0),
    segmenter_weight=0.25,
    sampler=SamplerSettings(num_calls=2),
    chosen_on="2 cases",
)


@pytest.fixture
def plans() -> Plans:
    levels = (LevelPlan(4, (1, 1), (3, 3), 1), LevelPlan(6, (2, 2), (3, 3), 1))
    configuration = ConfigurationPlan(
        "2d",
        PreprocessingPlan((0, 1, 2), (None, 1.0, 1.0), ("zscore",), (False,), ()),
        (1, 16, 16),
        NetworkPlan(2, (16, 16), 1, levels),
        DenoiserPlan((4,)),
        TrainingPlan(2),
    )
    labels = LabelScheme(("lesion",), ((1,),), "binary", (1,))
    return Plans(1, "Dataset001_X", labels, ("MRI",), ".png", False, Budget("cpu", 8, 2), "2d", {"2d": configuration})


@pytest.fixture
def folder(tmp_path: Path, plans: Plans) -> Path:
    folder = tmp_path / "StagedDiffusionTrainer__2d"
    write_json(folder / "plans.json", plans)
    for fold in ("0", "2", "all"):
        add_fold(folder, plans, fold)
    (folder / "fold_3").mkdir()  # begun, not finished
    return folder


def add_fold(folder: Path, plans: Plans, fold: str, denoiser: bool = True) -> None:
    torch.manual_seed(int(fold) if fold.isdigit() else 9)
    configuration = plans.configurations["2d"]
    model = build_model(configuration, plans.labels, denoiser)
    save_weights(folder / f"fold_{fold}/weights.safetensors", model, {"plan_hash": plan_hash(configuration)})
    write_settings(folder / f"fold_{fold}", SETTINGS)


def test_settings_survive_a_round_trip(tmp_path: Path) -> None:
    write_settings(tmp_path, SETTINGS)
    assert read_settings(tmp_path) == SETTINGS


def test_wrong_settings_name_the_file(tmp_path: Path) -> None:
    write_json(tmp_path / "inference.json", {"lam_a": -3.0, "lam_c": 0.5, "segmenter_weight": 2.0})
    with pytest.raises(UsdError, match=r"inference\.json: segmenter_weight is 2\.0"):
        read_settings(tmp_path)


def test_settings_of_earlier_versions_are_read_under_their_names(tmp_path: Path) -> None:
    former = to_jsonable(SETTINGS)
    calibration = former.pop("calibration")
    calibration["ceiling"] = calibration.pop("soft_cap")
    former |= {"temperature": calibration | {"ceiling": 2.5}, "w": former.pop("segmenter_weight")}
    former["denoiser_temperature"] = former.pop("denoiser_calibration")
    write_json(tmp_path / "inference.json", former)
    expected = dataclasses.replace(SETTINGS, calibration=dataclasses.replace(SETTINGS.calibration, soft_cap=2.5))
    assert read_settings(tmp_path) == expected


def test_finished_folds_are_found_and_chosen(folder: Path) -> None:
    model = open_model_folder(folder)
    assert model.folds == ("0", "2", "all")
    assert choose_folds(model, None) == ("0", "2")
    assert choose_folds(model, "all") == ("all",)
    assert choose_folds(model, [2, "0", 2]) == ("2", "0")
    with pytest.raises(UsdError, match=r"fold 3 .* finished are 0, 2, all"):
        choose_folds(model, [0, 3])
    for fold in ("0", "2"):
        shutil.rmtree(folder / f"fold_{fold}")
    assert choose_folds(open_model_folder(folder), None) == ("all",)


def test_loading_gives_the_saved_weights(folder: Path, plans: Plans) -> None:
    network, settings = load_fold(open_model_folder(folder), "2", torch.device("cpu"))
    torch.manual_seed(2)
    expected = build_model(plans.configurations["2d"], plans.labels, True).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())
    assert settings == SETTINGS
    assert not network.training


def test_equal_weights_are_equal_files_that_others_may_read(tmp_path: Path) -> None:
    network, metadata = torch.nn.Linear(3, 2), {"plan_hash": "h", **{name: name.upper() for name in "qwertyuiop"}}
    former = os.umask(0o027)
    try:
        for name in ("a", "b", "c"):
            save_weights(tmp_path / name, network, metadata)
    finally:
        os.umask(former)
    (content,) = {(tmp_path / name).read_bytes() for name in ("a", "b", "c")}
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    tensors, stored = read_weights(tmp_path / "a")
    assert stored.items() > metadata.items()  # and the hash of the tensors
    assert all(torch.equal(value, tensors[name]) for name, value in network.state_dict().items())
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert list(header["__metadata__"]) == sorted(stored)


def test_a_plain_segmenter_is_recognised(folder: Path, plans: Plans) -> None:
    add_fold(folder, plans, "1", denoiser=False)
    assert load_fold(open_model_folder(folder), "1", torch.device("cpu"))[0].denoiser is None


def test_weights_of_another_plan_are_refused(folder: Path, plans: Plans) -> None:
    configuration = plans.configurations["2d"]
    network = dataclasses.replace(configuration.network, patch_size=(32, 32))
    changed = dataclasses.replace(configuration, network=network)
    write_json(folder / "plans.json", dataclasses.replace(plans, configurations={"2d": changed}))
    with pytest.raises(UsdError, match="another plan"):
        load_fold(open_model_folder(folder), "0", torch.device("cpu"))


def test_training_fields_do_not_change_the_hash(plans: Plans) -> None:
    configuration = plans.configurations["2d"]
    assert plan_hash(configuration) == plan_hash(dataclasses.replace(configuration, training=TrainingPlan(7)))


def test_damaged_weights_are_named(folder: Path) -> None:
    path = folder / "fold_0/weights.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UsdError, match=r"fold_0/weights\.safetensors cannot be read"):
        load_fold(open_model_folder(folder), "0", torch.device("cpu"))


def test_a_flipped_byte_in_the_weights_is_named(folder: Path) -> None:
    path = folder / "fold_0" / "weights.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UsdError, match=r"weights\.safetensors is damaged"):
        read_weights(path)
    path.write_bytes(content.replace(b"tensors_hash", b"tensors_iash"))  # the hash cannot be found
    with pytest.raises(UsdError, match=r"weights\.safetensors is damaged"):
        read_weights(path)


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    network = torch.nn.Linear(2, 1)
    torch.nn.init.constant_(network.bias, float("nan"))
    save_weights(tmp_path / "w.safetensors", network, {"plan_hash": "a"})
    with pytest.raises(UsdError, match=r"w\.safetensors holds values in bias that are no finite numbers"):
        read_weights(tmp_path / "w.safetensors")


def test_weights_without_a_hash_are_those_of_earlier_versions_and_load(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "w.safetensors", metadata={"plan_hash": "a"})
    assert read_weights(tmp_path / "w.safetensors")[0]["w"].tolist() == [1, 1]


def test_folders_that_are_no_model(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UsdError, match="is no folder"):
        open_model_folder(tmp_path / "nowhere")
    renamed = folder.rename(tmp_path / "my_model")
    with pytest.raises(UsdError, match="my_model is not named after one of the configurations"):
        open_model_folder(renamed)
    empty = tmp_path / "T__2d"
    shutil.copytree(renamed, empty)
    for path in empty.glob("fold_*"):
        shutil.rmtree(path)
    with pytest.raises(UsdError, match="no finished fold"):
        open_model_folder(empty)
