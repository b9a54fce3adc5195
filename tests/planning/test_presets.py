"""nnU-Net's residual encoder presets."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.planning.test_planner import CUDA, describe, make_fingerprint
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.serialization import read_dataclass, write_json
from unisegdiff_pipeline.planning.budget import detect_budget
from unisegdiff_pipeline.planning.planner import plan_dataset
from unisegdiff_pipeline.planning.plans import Budget, LevelPlan, NetworkPlan, Plans, PresetName
from unisegdiff_pipeline.planning.sizing import Sizer
from unisegdiff_pipeline.planning.topology import (
    build_network,
    feature_map_values,
    level_shapes,
    pooling_topology,
)


def planned(preset: PresetName, memory_gb: float | None = None) -> Plans:
    facts = make_fingerprint((400, 500, 500), (1.0, 1.0, 1.0))
    return plan_dataset(facts, describe(), detect_budget("auto", memory_gb, preset))


@pytest.mark.parametrize(
    ("shape", "cap", "blocks", "coarse", "expected"),
    [
        ((128, 128, 128), 320, (1, 3, 4, 6, 6, 6), (64**3 + 32**3 + 16**3 + 8**3), 558319104),
        ((512, 512), 512, (1, 3, 4, 6, 6, 6, 6), (256**2 + 128**2 + 64**2 + 32**2 + 16**2), 129793792),
    ],
)
def test_feature_maps_are_those_that_nnunets_planner_states(
    shape: tuple[int, ...], cap: int, blocks: tuple[int, ...], coarse: int, expected: int
) -> None:
    """The comments of its residual_encoder_unet_planners.py, whose network has three outputs on all levels."""
    levels = tuple(
        LevelPlan(min(cap, 32 * 2**i), ((2 if i else 1),) * len(shape), (3,) * len(shape), count)
        for i, count in enumerate(blocks)
    )
    network = NetworkPlan(len(shape), shape, 1, levels, "resenc")
    assert feature_map_values(network, 3) + 3 * coarse == expected


def test_blocks_go_on_as_the_last() -> None:
    network = build_network(pooling_topology((1, 1), (256, 256)), 1, 32, 512, (1, 3, 4, 6))
    assert [level.num_convs for level in network.levels] == [1, 3, 4, 6, 6, 6, 6]
    assert network.encoder == "resenc"


@pytest.mark.parametrize(("preset", "memory_gb"), [("M", 8.0), ("L", 24.0), ("XL", 40.0)])
def test_a_preset_plans_residual_encoders_for_its_memory(preset: PresetName, memory_gb: float) -> None:
    plans = planned(preset)
    assert (plans.budget.device, plans.budget.memory_gb, plans.budget.preset) == ("cuda", memory_gb, preset)
    limits = {"M": 680_000_000, "L": 2_100_000_000, "XL": 3_600_000_000}
    for name, dims in (("2d", 2), ("3d_fullres", 3)):
        network = plans.configurations[name].network
        assert (network.dims, network.encoder) == (dims, "resenc")
        assert [level.num_convs for level in network.levels[:4]] == [1, 3, 4, 6]
        assert network.levels[0].features == 32
        assert plans.decisions[f"configurations.{name}.network.encoder"].startswith("resenc")
    assert feature_map_values(plans.configurations["3d_fullres"].network, 1) <= limits[preset]
    assert f"preset {preset}" in plans.decisions["budget"]


def test_larger_presets_see_more_of_a_volume() -> None:
    volumes = []
    for preset in ("M", "L", "XL"):
        shape = planned(preset).configurations["3d_fullres"].network.patch_size
        volumes.append(shape[0] * shape[1] * shape[2])
    assert volumes[0] < volumes[1] < volumes[2]
    assert (
        planned("L", 8.0).configurations["3d_fullres"].network.patch_size
        < planned("L").configurations["3d_fullres"].network.patch_size
    )


def test_without_a_preset_nothing_changes() -> None:
    facts = make_fingerprint((400, 500, 500), (1.0, 1.0, 1.0))
    plans = plan_dataset(facts, describe(), CUDA)
    assert {c.network.encoder for c in plans.configurations.values()} == {"plain"}
    assert {level.num_convs for c in plans.configurations.values() for level in c.network.levels} == {2}


def test_a_batch_of_a_preset_is_a_small_part_of_the_data_set() -> None:
    """40 GB hold thousands of small slices, but a batch of more than 5 % of the data would see all of them too soon."""
    network = build_network(pooling_topology((1, 1), (64, 64)), 1, 32, 512, (1, 3, 4, 6))
    assert level_shapes(network)[-1] == (4, 4)
    batch, reason = Sizer(Budget("cuda", 40.0, 2, "XL"), 1, 1, 200).batch_size(network, (1, 64, 64))
    assert batch == 10
    assert "5 % of the data set" in reason


def test_presets_are_kept_in_plans(tmp_path: Path) -> None:
    plans = planned("L")
    write_json(tmp_path / "plans.json", plans)
    assert read_dataclass(Plans, tmp_path / "plans.json") == plans


def test_presets_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsdError, match="--preset M plans for a GPU of 8 GB, and --device cpu"):
        detect_budget("cpu", preset="M")
    with pytest.raises(UsdError, match="the preset is 'S', allowed are M, L, XL"):
        detect_budget("auto", preset="S")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="preset is 'M' for a CPU"):
        Budget("cpu", 8.0, 2, "M")
