"""Plans that are moved from one data set to another: what goes along, what stays, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from unisegdiff_pipeline.commands import plan, plan_and_preprocess
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.serialization import read_dataclass, write_json
from unisegdiff_pipeline.planning.moved import move_plans
from unisegdiff_pipeline.planning.plans import Plans

STORED = Path(__file__).resolve().parents[2] / "plans"


def stored(name: str) -> Plans:
    return read_dataclass(Plans, STORED / name / "plans_cpu_2_cores.json")


def test_grid_patch_and_network_are_the_others_and_the_rest_is_the_own() -> None:
    own, other = stored("Dataset004_Hippocampus"), stored("Dataset104_Glioma")
    moved = move_plans(own, other, "plans.json")
    assert moved.configurations.keys() == other.configurations.keys()
    for name, found in moved.configurations.items():
        theirs, base = other.configurations[name], own.configurations.get(name, own.configurations["3d_fullres"])
        masks = 0 if theirs.cascade is None else len(own.labels.names)
        assert found.network == replace(theirs.network, num_input_channels=len(own.channel_names) + masks)
        assert found.preprocessing.target_spacing_mm == theirs.preprocessing.target_spacing_mm
        for field in ("normalization", "intensities", "axis_order", "direction", "training_spacing_mm"):
            assert getattr(found.preprocessing, field) == getattr(base.preprocessing, field)
        assert found.training == replace(theirs.training, mirror_axes=base.training.mirror_axes)
        assert found.stages is None
        reason = moved.decisions[f"configurations.{name}.network.patch_size"]
        assert reason == f"moved from plans.json ({other.dataset_name})"
    assert (moved.dataset_name, moved.labels, moved.channel_names) == (own.dataset_name, own.labels, own.channel_names)
    assert moved.recommended_configuration == other.recommended_configuration


def test_the_median_image_has_its_size_on_the_new_grid() -> None:
    own = stored("Dataset004_Hippocampus")
    config = own.configurations["3d_fullres"]
    z, y, x = config.preprocessing.target_spacing_mm
    assert z is not None
    coarse = replace(config.preprocessing, target_spacing_mm=(2 * z, 2 * y, 2 * x))
    other = replace(own, configurations={"3d_fullres": replace(config, preprocessing=coarse)})
    found = move_plans(own, other, "plans.json").configurations["3d_fullres"]
    assert found.median_shape == tuple(max(1, round(n / 2)) for n in config.median_shape)


def test_a_plan_that_is_moved_to_its_own_data_stays() -> None:
    own = stored("Dataset004_Hippocampus")
    moved = move_plans(own, own, "plans.json")
    assert moved.configurations == {name: replace(c, stages=None) for name, c in own.configurations.items()}


def test_what_cannot_be_moved_is_named_with_its_key() -> None:
    volumes, pictures = stored("Dataset004_Hippocampus"), stored("Dataset102_Polyp")
    with pytest.raises(UsdError, match=r"other\.json: spacing_known is True and cannot be moved"):
        move_plans(pictures, volumes, "other.json")
    known = replace(pictures, spacing_known=True)
    with pytest.raises(UsdError, match=r"configurations\.3d_fullres\.network\.dims is 3 and cannot be moved"):
        move_plans(known, volumes, "other.json")


def test_usd_plan_from_another_plan(phantom_2d: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    roots = ["--raw", str(phantom_2d.parent), "--preprocessed", str(tmp_path)]
    here = ["-d", "902", *roots, "--device", "cpu", "--memory-gb", "4"]
    assert plan_and_preprocess.main(here) == 0
    path = tmp_path / "Dataset902_Phantom2D/plans.json"
    content = json.loads(path.read_text())
    content["configurations"]["2d"]["network"]["patch_size"] = [32, 32]
    other = tmp_path / "other.json"
    write_json(other, {**content, "dataset_name": "Dataset001_X"})
    assert plan.main([*here, "--from", str(other)]) == 0
    found = read_dataclass(Plans, path)
    assert found.configurations["2d"].network.patch_size == (32, 32)
    assert found.dataset_name == "Dataset902_Phantom2D"
    assert found.decisions["configurations.2d.network.patch_size"].endswith("other.json (Dataset001_X)")
    assert plan.main([*here, "--from", str(other), "--preset", "M"]) == 1
    assert "keep one of them" in capsys.readouterr().err
    write_json(other, {**content, "surprise": 1})
    assert plan.main([*here, "--from", str(other)]) == 1
    assert "surprise" in capsys.readouterr().err
