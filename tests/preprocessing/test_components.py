"""Components and the two ways to draw from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.preprocessing.components import ANNOTATED, MAX_VOXELS_PER_COMPONENT, sample_components

BINARY = LabelScheme(("lesion",), ((1,),), "binary", (1,))
TWO = LabelScheme(("a", "b"), ((1,), (2,)), "softmax", (1, 2))
NESTED = LabelScheme(("whole", "core"), ((1, 2), (2,)), "regions", (1, 2))
PARTIAL = LabelScheme(("lesion",), ((1,),), "binary", (1,), ignore_value=2)


def picture(*rows: str) -> np.ndarray:
    """Label rows (1, 1, Y, X) of digits."""
    return np.array([[int(c) for c in row] for row in rows], np.uint8)[None, None]


def big_and_small() -> np.ndarray:
    labels = np.zeros((1, 30, 40, 50), np.uint8)
    labels[0, :20, :30, :40] = 1  # 24 000 voxels
    labels[0, 25, 35, 45:47] = 1  # 2 voxels
    return labels


def test_components_by_hand() -> None:
    table = sample_components(picture("1100", "0020", "0002", "1000"), TWO, "case")
    found = sorted(zip(table.class_index.tolist(), table.num_voxels.tolist(), strict=True))
    assert found == [(0, 1), (0, 2), (1, 2)]  # the two 2s touch at a corner: one component
    assert table.present_classes().tolist() == [0, 1]


def test_regions_contain_each_other() -> None:
    table = sample_components(picture("1210", "0000"), NESTED, "case")
    assert table.class_index.tolist() == [0, 1]
    assert table.num_voxels.tolist() == [3, 1]


def test_large_components_are_sampled_without_repetition() -> None:
    table = sample_components(big_and_small(), BINARY, "case")
    assert table.num_voxels.tolist() == [24000, 2]
    assert np.diff(table.offsets).tolist() == [MAX_VOXELS_PER_COMPONENT, 2]
    assert len(np.unique(table.voxels, axis=0)) == MAX_VOXELS_PER_COMPONENT + 2
    assert table.voxels[-2:].tolist() == [[25, 35, 45], [25, 35, 46]]
    assert (table.voxels[:-2] < [20, 30, 40]).all()
    again = sample_components(big_and_small(), BINARY, "case")
    np.testing.assert_array_equal(table.voxels, again.voxels)


def test_component_balance_sees_the_small_lesion() -> None:
    table, rng = sample_components(big_and_small(), BINARY, "case"), np.random.default_rng(0)
    small = sum(table.draw(rng, "component")[0] == 25 for _ in range(400))  # type: ignore[index]
    assert 160 < small < 240  # one half
    assert sum(table.draw(rng, "voxel")[0] == 25 for _ in range(400)) <= 2  # type: ignore[index]  # 1 in 12 000


def test_rows_are_kept_apart() -> None:
    labels = np.concatenate([picture("100", "000"), picture("000", "000"), picture("000", "001")])
    table, rng = sample_components(labels, BINARY, "case"), np.random.default_rng(0)
    assert table.draw(rng, "voxel", row=0) == (0, 0, 0)
    assert table.draw(rng, "voxel", row=1) is None
    assert table.draw(rng, "component", row=2) == (0, 1, 2)
    assert {table.draw(rng, "voxel") for _ in range(50)} == {(0, 0, 0), (0, 1, 2)}


def test_empty_case() -> None:
    table = sample_components(picture("00", "00"), BINARY, "case")
    assert len(table) == 0
    assert table.draw(np.random.default_rng(0), "component") is None


def test_class_can_be_fixed() -> None:
    table, rng = sample_components(picture("1111", "0002"), TWO, "case"), np.random.default_rng(0)
    assert all(table.draw(rng, "voxel", class_index=1) == (0, 1, 3) for _ in range(10))
    assert table.draw(rng, "voxel", class_index=5) is None


def test_annotated_voxels_of_partly_labelled_cases() -> None:
    table, rng = sample_components(picture("2221", "2220"), PARTIAL, "case"), np.random.default_rng(0)
    assert table.class_index.tolist() == [0, ANNOTATED]
    assert {table.draw_annotated(rng) for _ in range(50)} == {(0, 0, 3), (0, 1, 3)}
    assert table.draw(rng, "voxel") == (0, 0, 3)
    assert sample_components(picture("10"), BINARY, "case").draw_annotated(rng) is None


def test_table_survives_a_round_trip(tmp_path: Path) -> None:
    table = sample_components(big_and_small(), BINARY, "case")
    table.save(tmp_path / "a_components.npz")
    loaded = type(table).load(tmp_path / "a_components.npz")
    for name, value in vars(table).items():
        np.testing.assert_array_equal(getattr(loaded, name), value)
