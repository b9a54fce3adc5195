"""Which patches are drawn, from where, and that they depend on (seed, iteration, position) alone."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pytest
import torch

from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.planning.plans import (
    ConfigurationPlan,
    DenoiserPlan,
    LevelPlan,
    NetworkPlan,
    PreprocessingPlan,
    TrainingPlan,
)
from unisegdiff_pipeline.preprocessing.components import sample_components
from unisegdiff_pipeline.preprocessing.presence import with_presence
from unisegdiff_pipeline.preprocessing.storage import StoredCase, open_array, write_array
from unisegdiff_pipeline.training.data.loader import open_loader
from unisegdiff_pipeline.training.data.patches import PatchSource, random_start, start_around

BINARY = LabelScheme(("lesion",), ((1,),), "binary", (1,))
SOFTMAX = LabelScheme(("organ", "lesion"), ((1,), (2,)), "softmax", (1, 2))


def plan(
    patch, batch_size: int = 2, channels: int = 1, masked: bool = False, augmentation="default"
) -> ConfigurationPlan:
    dims = len(patch)
    preprocessing = PreprocessingPlan((0, 1, 2), (1.0, 1.0, 1.0), ("zscore",) * channels, (masked,) * channels, ())
    network = NetworkPlan(dims, tuple(patch), channels, (LevelPlan(8, (1,) * dims, (3,) * dims, 2),))
    training = TrainingPlan(batch_size, augmentation=augmentation)
    return ConfigurationPlan("any", preprocessing, (1, 1, 1), network, DenoiserPlan(), training)


@dataclass(frozen=True)
class MemoryCase:
    image: np.ndarray
    labels: np.ndarray
    scheme: LabelScheme
    case_id: str
    mask: np.ndarray | None = None

    @property
    def num_bytes(self) -> int:
        return self.image.nbytes + self.labels.nbytes

    @cached_property
    def components(self):
        return sample_components(self.labels, self.scheme, self.case_id)

    def load(self):
        return self


class MemoryFolder:
    def __init__(self, cases: dict[str, tuple[np.ndarray, np.ndarray]], scheme: LabelScheme) -> None:
        self._cases = {k: MemoryCase(image, labels, scheme, k) for k, (image, labels) in cases.items()}
        self.num_opened = 0

    def open(self, case_id: str) -> MemoryCase:
        self.num_opened += 1
        return self._cases[case_id]


def coded_case(shape, blobs, rows: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """An image whose values tell the position (1 + flat index), and labels with boxes (row, slices, value)."""
    image = 1 + np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape)
    labels = np.zeros((rows, *shape), np.uint8)
    for row, box, value in blobs:
        labels[(row, *box)] = value
    return image, labels


def source_of(cases, scheme, configuration, seed=0, augment=False, budget_gb=1.0) -> PatchSource:
    return PatchSource(MemoryFolder(cases, scheme), sorted(cases), configuration, scheme, seed, augment, budget_gb)


BOX = (slice(2, 4), slice(5, 8), slice(5, 9))


def test_shares_of_channels_are_those_of_the_patches() -> None:
    image, labels = coded_case((8, 16, 16), [(0, (slice(None),) * 3, 2)])
    source = source_of({"full": (image, labels)}, SOFTMAX, plan((8, 8, 8), batch_size=3))
    fractions = source.channel_fractions(12)
    assert torch.allclose(fractions.sum(), torch.tensor(1.0))
    assert fractions[1] == 0
    # two of three patches lie inside; the third hangs over borders by a quarter of its size at most
    assert (2 + 0.75**3) / 3 <= fractions[2] < 1
    empty = coded_case((8, 16, 16), [])
    assert source_of({"empty": empty}, SOFTMAX, plan((8, 8, 8))).channel_fractions(4).tolist() == [1, 0, 0]


def test_image_and_label_stay_together_and_padding_is_background() -> None:
    cases = {"a": coded_case((6, 12, 14), [(0, BOX, 1)])}
    _, labels = cases["a"]
    source = source_of(cases, BINARY, plan((8, 8, 8)))
    padded = 0
    for iteration in range(30):
        batch = source.batch(iteration)
        assert batch.image.shape == (2, 1, 8, 8, 8)
        assert batch.target.shape == (2, 1, 8, 8, 8)
        assert batch.image.dtype == batch.target.dtype == batch.valid.dtype == torch.float32
        for patch, target in zip(batch.image[:, 0].numpy(), batch.target[:, 0].numpy(), strict=True):
            inside = patch > 0
            padded += int((~inside).sum())
            flat = patch[inside].astype(int) - 1
            np.testing.assert_array_equal(target[inside], labels[0].ravel()[flat])
            assert np.all(target[~inside] == 0)
    assert padded > 0
    assert torch.all(batch.valid == 1)


@pytest.mark.parametrize(("augment", "recipe"), [(False, "default"), (True, "default"), (True, "nnunet")])
def test_a_batch_depends_on_seed_and_iteration_alone(augment, recipe) -> None:
    cases = {name: coded_case((6, 12, 14), [(0, BOX, 1)]) for name in "abc"}
    configuration = plan((6, 8, 8), augmentation=recipe)
    first, second = (source_of(cases, BINARY, configuration, 3, augment) for _ in range(2))
    in_order = [first.batch(i) for i in range(4)]
    for i in (3, 1, 0, 2):
        again = second.batch(i)
        assert torch.equal(again.image, in_order[i].image)
        assert torch.equal(again.target, in_order[i].target)
        assert again.case_ids == in_order[i].case_ids
    other = source_of(cases, BINARY, configuration, 4, augment).batch(0)
    assert not torch.equal(other.image, in_order[0].image)
    assert not torch.equal(in_order[1].image, in_order[0].image)


@pytest.mark.parametrize("recipe", ["default", "nnunet"])
def test_global_generators_are_left_alone(recipe) -> None:
    configuration = plan((6, 8, 8), augmentation=recipe)
    source = source_of({"a": coded_case((6, 12, 14), [(0, BOX, 1)])}, BINARY, configuration, augment=True)
    numpy_state, torch_state = repr(np.random.get_state()), torch.get_rng_state()  # noqa: NPY002
    threads = torch.get_num_threads()
    for iteration in range(8):
        source.batch(iteration)
    assert repr(np.random.get_state()) == numpy_state  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("batch_size", "forced"), [(2, [1]), (8, [5, 6, 7]), (3, [2]), (1, [])])
def test_foreground_positions_are_nnunets(batch_size, forced) -> None:
    source = source_of({"a": coded_case((4, 8, 8), [])}, BINARY, plan((4, 4, 4), batch_size))
    assert [i for i in range(batch_size) if source.is_foreground_item(i)] == forced


def test_foreground_items_hold_foreground_even_where_most_cases_are_empty() -> None:
    cases = {f"empty{i}": coded_case((4, 20, 20), []) for i in range(3)}
    cases["full"] = coded_case((4, 20, 20), [(0, (slice(1, 2), slice(3, 4), slice(3, 4)), 1)])
    source = source_of(cases, BINARY, plan((4, 8, 8)))
    batches = [source.batch(i) for i in range(120)]
    assert np.mean([b.target[1].any().item() for b in batches]) > 0.9  # 10 draws fail with probability 0.75^10
    names = [b.case_ids[0] for b in batches]
    assert min(names.count(case) for case in cases) > 10  # the free position draws all cases equally


def test_a_small_lesion_beside_a_large_one_is_drawn_in_more_than_a_quarter() -> None:
    blobs = [(0, (slice(0, 30), slice(0, 30), slice(0, 30)), 1), (0, (slice(50, 52), slice(50, 52), slice(50, 52)), 1)]
    cases = {"a": coded_case((60, 60, 60), blobs)}
    source = source_of(cases, BINARY, plan((8, 8, 8)))
    small = 1 + 51 * 3600 + 51 * 60 + 51
    hits = np.mean([(source.batch(i).image[1] == small).any().item() for i in range(200)])
    assert 0.15 < hits < 0.36  # half of the draws take one of the two components: a quarter


def test_one_rater_per_example_empty_ones_included() -> None:
    cases = {"a": coded_case((1, 20, 20), [(0, (0, slice(0, 9), slice(0, 9)), 1), (1, (0, 5, 5), 1)], rows=3)}
    source = source_of(cases, BINARY, plan((8, 8), batch_size=4))
    sums = torch.stack([source.batch(i).target.sum((1, 2, 3)) for i in range(100)])
    assert set(sums.unique().tolist()) == {0.0, 1.0}  # row 0 (81 voxels) is never trained on; raters are
    assert sums[:, 3].mean().item() == pytest.approx(0.5, abs=0.17)  # both raters at the place of the only lesion
    image = torch.stack([source.batch(i).image[3] for i in range(100)])
    assert torch.all((image == 1 + 5 * 20 + 5).flatten(1).any(1))


def test_2d_patches_of_3d_cases_take_the_slice_of_the_drawn_voxel() -> None:
    cases = {"a": coded_case((5, 16, 16), [(0, (slice(3, 4), slice(4, 6), slice(4, 6)), 2)])}
    source = source_of(cases, SOFTMAX, plan((8, 8), batch_size=4))
    slices = set()
    for i in range(40):
        batch = source.batch(i)
        assert batch.image.shape == (4, 1, 8, 8)
        assert batch.target.shape == (4, 3, 8, 8)
        assert torch.all(batch.target.sum(1) == 1)
        assert torch.all(batch.target[3, 2].sum() == 4)
        numbers = [(int(patch.max()) - 1) // 256 for patch in batch.image]
        assert numbers[3] == 3
        slices.update(numbers[:2])
    assert slices == {0, 1, 2, 3, 4}


def test_ignored_voxels_carry_no_loss_and_free_positions_go_to_annotated_ones() -> None:
    scheme = replace(BINARY, ignore_value=2)
    image, labels = coded_case((1, 64, 64), [])
    labels[:] = 2
    labels[0, 0, 40, 40] = 0
    labels[0, 0, 10, 10] = 1
    source = source_of({"a": (image, labels)}, scheme, plan((8, 8), batch_size=2))
    for i in range(20):
        batch = source.batch(i)
        assert batch.valid[0].sum() == 1
        assert batch.valid[1].sum() == 1
        assert batch.target[1].sum() == 1
    assert batch.valid.shape == (2, 1, 8, 8)


def test_where_no_case_with_foreground_is_met_patches_hold_annotated_voxels_too() -> None:
    scheme = replace(BINARY, ignore_value=2)
    image, labels = coded_case((1, 64, 64), [])
    labels[:] = 2
    labels[0, 0, 40, 40] = 0
    source = source_of({"a": (image, labels)}, scheme, plan((8, 8), batch_size=2))
    for i in range(20):
        assert source.batch(i).valid.flatten(1).sum(dim=1).tolist() == [1, 1]


@pytest.mark.parametrize("recipe", ["default", "nnunet"])
@pytest.mark.parametrize("patch", [(6, 8, 10), (8, 10)])
def test_augmented_patches_keep_image_and_label_together(patch, recipe) -> None:
    rng = np.random.default_rng(0)
    labels = np.zeros((1, 12, 24, 24), np.uint8)
    labels[0, 3:9, 6:18, 6:18] = 1
    image = labels * 100.0 + rng.normal(size=labels.shape) * 0.01
    configuration = plan(patch, 4, augmentation=recipe)
    source = source_of({"a": (image.astype(np.float32), labels)}, SOFTMAX, configuration, augment=True)
    agreement = []
    for i in range(40):
        batch = source.batch(i)
        assert torch.all(batch.target.sum(1) == 1)
        assert torch.isfinite(batch.image).all()
        for j in range(4):
            low, high = batch.image[j].min(), batch.image[j].max()
            if high - low > 30:
                bright = (batch.image[j, 0] - low) / (high - low) > 0.5
                agreement.append((bright == batch.target[j, 1].bool()).float().mean().item())
    assert len(agreement) > 30
    assert np.median(agreement) > 0.98
    assert min(agreement) > 0.8  # blur, low resolution and gamma move the edge a little


def test_random_start_stays_inside_and_centres_what_is_smaller() -> None:
    rng = np.random.default_rng(0)
    starts = np.array([random_start((10, 4, 8), (4, 7, 8), rng) for _ in range(300)])
    assert set(starts[:, 0]) == set(range(7))
    assert set(starts[:, 1]) == {-1}
    assert set(starts[:, 2]) == {0}


@pytest.mark.parametrize(
    ("position", "start"),
    [(50, 46), (0, -2), (99, 94), (3, -1)],  # middle; the near and the far border with an overhang of two; free
)
def test_start_around_a_voxel(position, start) -> None:
    assert start_around((position,) * 3, (100,) * 3, (8,) * 3) == (start,) * 3


def test_start_around_always_holds_the_voxel() -> None:
    for size in (1, 3, 7, 8, 9, 20):
        for wanted in (1, 2, 5, 8):
            for position in range(size):
                first = start_around((position,) * 3, (size,) * 3, (wanted,) * 3)[0]
                assert first <= position < first + wanted


def test_cases_beyond_the_memory_budget_are_opened_again_only_when_they_were_closed(monkeypatch) -> None:
    cases = {name: coded_case((4, 8, 8), []) for name in "abcdef"}
    folder = MemoryFolder(cases, BINARY)
    one_case_gb = folder.open("a").num_bytes / 1e9
    monkeypatch.setattr("unisegdiff_pipeline.training.data.patches.MAX_OPEN_CASES", 1)
    folder.num_opened = 0
    source = PatchSource(folder, sorted(cases), plan((4, 4, 4)), BINARY, 0, False, memory_budget_gb=2.5 * one_case_gb)
    source.preload()
    assert folder.num_opened == 6
    source.preload()
    assert folder.num_opened == 6 + 4  # two stay in memory


@pytest.mark.parametrize("recipe", ["default", "nnunet"])
def test_a_pickled_source_gives_the_same_batches(recipe) -> None:
    configuration = plan((6, 8, 8), augmentation=recipe)
    source = source_of({"a": coded_case((6, 12, 14), [(0, BOX, 1)])}, BINARY, configuration, augment=True)
    expected = source.batch(5)
    again = pickle.loads(pickle.dumps(source)).batch(5)
    assert torch.equal(again.image, expected.image)
    assert torch.equal(again.target, expected.target)


def test_no_cases_is_an_error() -> None:
    with pytest.raises(ValueError, match="case_ids is empty"):
        source_of({}, BINARY, plan((4, 4, 4)))


@pytest.mark.parametrize("recipe", ["default", "nnunet"])
def test_stored_cases_give_the_same_patches_as_cases_in_memory(tmp_path, recipe) -> None:
    image, labels = coded_case((6, 12, 14), [(0, BOX, 1)])
    write_array(tmp_path / "a.b2nd", image, (6, 8, 8))
    write_array(tmp_path / "a_labels.b2nd", labels, (6, 8, 8))
    sample_components(labels, BINARY, "a").save(tmp_path / "components" / "a.npz")

    class Folder:
        def open(self, case_id: str) -> StoredCase:
            arrays = (open_array(tmp_path / f"{case_id}{ending}") for ending in (".b2nd", "_labels.b2nd"))
            return StoredCase(tmp_path, case_id, *arrays, properties=None)

    configuration = plan((6, 8, 8), augmentation=recipe)
    expected = source_of({"a": (image, labels)}, BINARY, configuration, augment=True)
    for budget_gb in (0.0, 1.0):
        stored = PatchSource(Folder(), ["a"], configuration, BINARY, 0, True, budget_gb)
        for i in range(6):
            assert torch.equal(stored.batch(i).image, expected.batch(i).image)
            assert torch.equal(stored.batch(i).target, expected.batch(i).target)


@pytest.mark.parametrize("recipe", ["default", "nnunet"])
def test_workers_make_the_same_batches_bit_by_bit(recipe) -> None:
    cases = {name: coded_case((20, 40, 44), [(0, BOX, 1)]) for name in "abc"}
    found = []
    for workers in (0, 1, 2):
        source = source_of(cases, BINARY, plan((16, 48, 48), augmentation=recipe), augment=True)
        with open_loader(source, 3, 13, workers) as batches:
            found.append(list(batches))
    for other in found[1:]:
        assert len(other) == 10
        for batch, expected in zip(other, found[0], strict=True):
            assert batch.case_ids == expected.case_ids
            assert torch.equal(batch.image, expected.image)
            assert torch.equal(batch.target, expected.target)
            assert torch.equal(batch.valid, expected.valid)


@pytest.mark.parametrize("recipe", ["default", "nnunet"])
def test_missing_and_dropped_channels_are_zero_in_augmented_patches(recipe: str) -> None:
    """Three channels, their presence behind them: the first lacks, the others are dropped now and then."""
    shape, whole = (10, 12, 14), plan((8, 8, 8), channels=3, augmentation=recipe)
    configuration = replace(
        whole,
        preprocessing=replace(whole.preprocessing, missing_channels=True),
        network=replace(whole.network, num_input_channels=6),
        training=replace(whole.training, channel_dropout=0.5),
    )
    image = np.random.default_rng(0).normal(5, 1, (2, *shape)).astype(np.float32)
    _, labels = coded_case(shape, [(0, BOX, 1)])
    case = with_presence(image, (1, 2), 3), labels
    seen = set()
    for number in range(20):
        for patch in source_of({"a": case}, BINARY, configuration, augment=True).batch(number).image.numpy():
            there = [bool(plane.any()) for plane in patch[3:]]
            assert [bool(channel.any()) for channel in patch[:3]] == there
            assert np.isin(patch[3:], (0, 1)).mean() > 0.7  # but for the borders of a turned image
            seen.add(tuple(there))
    assert seen == {(False, True, True), (False, True, False), (False, False, True)}
    measured = source_of({"a": case}, BINARY, configuration).batch(0).image
    assert not measured[:, [0, 3]].any()
    assert measured[:, [4, 5]].any()
