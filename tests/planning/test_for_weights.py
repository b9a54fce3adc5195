"""Plans that follow trained weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from unisegdiff_pipeline.commands import plan as plan_command
from unisegdiff_pipeline.commands import plan_and_preprocess, train
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.serialization import read_dataclass, write_json
from unisegdiff_pipeline.planning.for_weights import WeightsToFollow, plan_for_weights
from unisegdiff_pipeline.planning.plans import LevelPlan, NetworkPlan, Plans

STORED = Path(__file__).resolve().parents[2] / "plans"
ONES, TWOS, THREES = (1, 1, 1), (2, 2, 2), (3, 3, 3)
VOLUMES = NetworkPlan(
    3,
    (32, 32, 32),
    2,
    (LevelPlan(8, ONES, THREES, 2), LevelPlan(16, (1, 2, 2), THREES, 3), LevelPlan(24, TWOS, THREES, 1)),
    "residual",
)
SLICES = NetworkPlan(
    2, (64, 64), 3, tuple(LevelPlan(8 << i, (1, 1) if i == 0 else (2, 2), (3, 3), 2) for i in range(4))
)


def hippocampus() -> Plans:
    return read_dataclass(Plans, STORED / "Dataset004_Hippocampus" / "plans_cpu_2_cores.json")


def test_the_architecture_is_that_of_the_weights_and_the_inputs_are_the_own() -> None:
    plans = hippocampus()
    found = plan_for_weights(plans, WeightsToFollow(VOLUMES, None, "WEIGHTS"), 200)
    network, planned = found.configurations["3d_fullres"].network, plans.configurations["3d_fullres"].network
    assert (network.levels, network.encoder) == (VOLUMES.levels, "residual")
    assert network.num_input_channels == planned.num_input_channels == 1
    assert all(edge % step == 0 for edge, step in zip(network.patch_size, (2, 4, 4), strict=True))
    assert found.configurations["2d"] == plans.configurations["2d"]
    assert found.configurations["3d_fullres"].preprocessing == plans.configurations["3d_fullres"].preprocessing
    for field in ("network.levels", "network.encoder", "network.patch_size"):
        assert found.decisions[f"configurations.3d_fullres.{field}"] != plans.decisions.get(
            f"configurations.3d_fullres.{field}"
        )
    assert "as in WEIGHTS" in found.decisions["configurations.3d_fullres.network.levels"]


def test_weights_of_slices_make_the_2d_configuration_the_recommended_one() -> None:
    found = plan_for_weights(hippocampus(), WeightsToFollow(SLICES, None, "WEIGHTS"), 200)
    assert found.recommended_configuration == "2d"
    assert "without it 3d_fullres" in found.decisions["recommended_configuration"]


def test_the_spacing_follows_where_it_is_near_and_stays_where_it_is_not() -> None:
    plans = hippocampus()
    planned = plans.configurations["3d_fullres"]
    assert planned.preprocessing.target_spacing_mm == (1.0, 1.0, 1.0)
    near = plan_for_weights(plans, WeightsToFollow(VOLUMES, (2.0, 0.5, 1.0), "W"), 200).configurations["3d_fullres"]
    assert near.preprocessing.target_spacing_mm == (2.0, 0.5, 1.0)
    z, y, x = planned.median_shape
    assert near.median_shape == (round(z / 2), 2 * y, x)
    far = plan_for_weights(plans, WeightsToFollow(VOLUMES, (2.1, 1.0, 1.0), "W"), 200)
    assert far.configurations["3d_fullres"].preprocessing.target_spacing_mm == (1.0, 1.0, 1.0)
    assert "over 2 times off" in far.decisions["configurations.3d_fullres.preprocessing.target_spacing_mm"]
    pixels = replace(plans, spacing_known=False)
    kept = plan_for_weights(pixels, WeightsToFollow(VOLUMES, (1.5, 1.5, 1.5), "W"), 200).configurations["3d_fullres"]
    assert kept.preprocessing.target_spacing_mm == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(("of_weights", "follows"), [((1.2, 1.0, 1.0), "3d_fullres"), ((1.5, 1.6, 1.5), "3d_lowres")])
def test_of_two_resolutions_the_nearer_one_follows(of_weights: tuple[float, float, float], follows: str) -> None:
    plans = hippocampus()
    fullres = plans.configurations["3d_fullres"]
    preprocessing = replace(fullres.preprocessing, target_spacing_mm=(1.6, 1.6, 1.6))
    coarse = replace(fullres, name="3d_lowres", preprocessing=preprocessing)
    both = replace(plans, configurations={**plans.configurations, "3d_lowres": coarse})
    found = plan_for_weights(both, WeightsToFollow(VOLUMES, of_weights, "W"), 200)
    spacings = {
        name: found.configurations[name].preprocessing.target_spacing_mm for name in ("3d_fullres", "3d_lowres")
    }
    planned = {"3d_fullres": (1.0, 1.0, 1.0), "3d_lowres": (1.6, 1.6, 1.6)}
    assert spacings == planned | {follows: of_weights}
    (stays,) = planned.keys() - {follows}
    assert "nearer to another" in found.decisions[f"configurations.{stays}.preprocessing.target_spacing_mm"]


def test_a_network_beyond_the_budget_gets_a_smaller_patch_and_in_the_end_says_so() -> None:
    wide = replace(VOLUMES, levels=tuple(replace(level, features=32 * level.features) for level in VOLUMES.levels))
    found = plan_for_weights(hippocampus(), WeightsToFollow(wide, None, "W"), 200)
    assert found.configurations["3d_fullres"].network.patch_size == (8, 16, 16)  # 4 voxels in the end
    assert "exceeds the budget" in found.decisions["configurations.3d_fullres.network.patch_size"]


def test_the_deepest_level_holds_more_than_one_voxel_also_of_small_images() -> None:
    plans = hippocampus()
    planned = plans.configurations["3d_fullres"]
    small = replace(planned, median_shape=(28, 28, 28), network=replace(planned.network, patch_size=(32, 32, 32)))
    levels = tuple(LevelPlan(8, ONES if i == 0 else TWOS, THREES, 2) for i in range(6))
    deep = WeightsToFollow(NetworkPlan(3, (160, 160, 160), 1, levels), None, "W")
    found = plan_for_weights(replace(plans, configurations={"3d_fullres": small}), deep, 200)
    assert found.configurations["3d_fullres"].network.patch_size == (64, 64, 64)


def test_augmentation_by_slices_goes_by_the_patch_that_follows() -> None:
    plans = hippocampus()
    planned = plans.configurations["3d_fullres"]
    flat = replace(planned, network=replace(planned.network, patch_size=(8, 40, 40)), median_shape=(40, 40, 40))
    flat = replace(flat, training=replace(flat.training, dummy_2d_augmentation=True))
    levels = tuple(LevelPlan(8, ONES if i == 0 else TWOS, THREES, 2) for i in range(4))
    weights = WeightsToFollow(NetworkPlan(3, (64, 64, 64), 1, levels), None, "W")
    found = plan_for_weights(replace(plans, configurations={"3d_fullres": flat}), weights, 200)
    assert found.configurations["3d_fullres"].network.patch_size == (32, 40, 40)
    assert not found.configurations["3d_fullres"].training.dummy_2d_augmentation
    assert found.decisions["configurations.3d_fullres.training.dummy_2d_augmentation"].startswith("off")


def test_weights_of_volumes_cannot_be_followed_by_pictures() -> None:
    plans = hippocampus()
    pictures = replace(plans, configurations={"2d": plans.configurations["2d"]}, recommended_configuration="2d")
    with pytest.raises(UsdError, match="W is a 3D network, and planned are 2d alone"):
        plan_for_weights(pictures, WeightsToFollow(VOLUMES, None, "W"), 200)


def test_a_plan_for_weights_is_trained_from_them(
    phantom_2d: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole way, over an architecture that no rule of planning would choose."""
    roots = ["--raw", str(phantom_2d.parent), "--preprocessed", str(tmp_path / "p")]
    budget = ["--device", "cpu", "--memory-gb", "4"]
    assert plan_and_preprocess.main(["-d", "902", *roots, *budget, "--workers", "0"]) == 0
    path = tmp_path / "p" / phantom_2d.name / "plans.json"
    plans = read_dataclass(Plans, path)
    planned = plans.configurations["2d"]
    narrow = replace(planned.network, levels=tuple(replace(level, features=6) for level in planned.network.levels[:3]))
    configuration = replace(planned, network=narrow)
    write_json(path, replace(plans, configurations={"2d": configuration}))
    training = ["902", "all", "--preprocessed", roots[3], "--iterations", "2", "--workers", "0", "--device", "cpu"]
    segmenter = ["--trainer", "SegmentationTrainer"]
    assert train.main([*training, *segmenter, "--results", str(tmp_path / "source")]) == 0
    (source,) = (tmp_path / "source").glob("*/*/fold_all")
    assert plan_command.main(["-d", "902", *roots, *budget, "--plans", "near", "--for-weights", str(source)]) == 0
    (near,) = (tmp_path / "p").glob("*/plans_near.json")
    assert read_dataclass(Plans, near).configurations["2d"].network.levels == narrow.levels
    again = ["--plans", "near", "--for-weights", str(source), "--workers", "0"]
    capsys.readouterr()
    assert plan_and_preprocess.main(["-d", "902", *roots, *budget, *again]) == 0
    assert (
        f" --plans near --pretrained {source} --raw {roots[1]} --preprocessed {roots[3]}\n" in capsys.readouterr().out
    )
    started = ["--plans", "near", "--pretrained", str(source), "--results", str(tmp_path / "results")]
    assert train.main([*training, *segmenter, *started]) == 0
    assert train.main([*training, *segmenter, *started[2:]]) == 0


@pytest.mark.parametrize("command", [plan_command, plan_and_preprocess])
def test_weights_that_are_not_there_are_named(
    command: object, phantom_2d: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    roots = ["--raw", str(phantom_2d.parent), "--preprocessed", str(prepared)]
    for source, problem in (("/nowhere", "/nowhere does not exist"), ("synthetic", "starts a plain network of any")):
        assert command.main(["-d", "902", *roots, "--for-weights", source]) == 1  # type: ignore[attr-defined]
        assert problem in " ".join(capsys.readouterr().err.split())
