"""nnU-Net's recipe by its library: its transforms, where its patches lie, and labels of every kind in it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

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
from unisegdiff_pipeline.training.data.augmentation import recipe_for_patch
from unisegdiff_pipeline.training.data.nnunet_augmentation import (
    NnunetAugmentation,
    seeded,
    size_to_read,
    training_transforms,
)
from unisegdiff_pipeline.training.data.patches import Batch, PatchSource

BINARY = LabelScheme(("lesion",), ((1,),), "binary", (1,))
# Of one example in all: rotation, scaling, and all that stands in RandomTransform.
NOTHING_BUT_MIRRORING = 0.8 * 0.8 * 0.9 * 0.8 * 0.85 * 0.85 * 0.75 * 0.9 * 0.7


@dataclass(frozen=True)
class Case:
    image: np.ndarray
    labels: np.ndarray
    scheme: LabelScheme
    num_bytes: int = 0
    mask: None = None

    @property
    def components(self):
        return sample_components(self.labels, self.scheme, "a")

    def load(self):
        return self


@dataclass(frozen=True)
class Folder:
    case: Case

    def open(self, case_id: str) -> Case:
        return self.case


def batches(image, labels, patch, scheme=BINARY, masked=False, augment=True, count=40, **training) -> list[Batch]:
    dims = len(patch)
    preprocessing = PreprocessingPlan((0, 1, 2), (1.0, 1.0, 1.0), ("zscore",), (masked,), ())
    network = NetworkPlan(dims, tuple(patch), 1, (LevelPlan(8, (1,) * dims, (3,) * dims, 2),))
    numbers = TrainingPlan(2, augmentation="nnunet", **training)
    configuration = ConfigurationPlan("any", preprocessing, (1, 1, 1), network, DenoiserPlan(), numbers)
    source = PatchSource(Folder(Case(image, labels, scheme)), ["a"], configuration, scheme, 0, augment)
    return [source.batch(i) for i in range(count)]


def noise(shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(5, 1, (1, *shape)).astype(np.float32)


@pytest.mark.parametrize(
    ("patch", "in_plane_only", "size"),
    [
        ((128, 160), False, (188, 188)),  # a quarter turn, and 160 / 0.85
        ((64, 64), False, (75, 75)),
        # 15 degrees: 64 cos + 160 sin = 103.2 and 64 sin - 160 cos = -138.0, where 160 is larger; over 0.85
        ((64, 160), False, (121, 188)),
        ((8, 64, 64), True, (8, 75, 75)),
        ((32, 32, 32), False, (51, 51, 51)),  # 32 (cos 30 + sin 30) / 0.85 = 51.4
    ],
)
def test_size_that_is_read(patch, in_plane_only, size) -> None:
    assert size_to_read(patch, recipe_for_patch(patch, in_plane_only)) == size


def test_transforms_stand_in_nnunets_order_with_its_probabilities() -> None:
    made = training_transforms((8, 16, 16), recipe_for_patch((8, 16, 16), True), masked=(0,)).transforms
    assert [(type(getattr(t, "transform", t)).__name__, getattr(t, "apply_probability", 1)) for t in made] == [
        ("Convert3DTo2DTransform", 1),
        ("SpatialTransform", 1),
        ("Convert2DTo3DTransform", 1),
        ("GaussianNoiseTransform", 0.1),
        ("GaussianBlurTransform", 0.2),
        ("MultiplicativeBrightnessTransform", 0.15),
        ("ContrastTransform", 0.15),
        ("SimulateLowResolutionTransform", 0.25),
        ("GammaTransform", 0.1),
        ("GammaTransform", 0.3),
        ("MirrorTransform", 1),
        ("MaskImageTransform", 1),
        ("RemoveLabelTransform", 1),
    ]
    spatial = made[1]
    assert (spatial.p_rotation, spatial.p_scaling, spatial.scaling) == (0.2, 0.2, (0.7, 1.4))
    assert (spatial.patch_size, spatial.rotation) == ((16, 16), (-math.pi, math.pi))
    assert made[7].transform.ignore_axes == (0,)
    assert not made[4].transform.benchmark  # which would choose by the clock


@pytest.mark.parametrize("patch", [(6, 8, 10), (8, 10)])
def test_patches_lie_where_those_of_the_default_augmentation_lie(patch) -> None:
    image, labels = noise((9, 20, 20)), np.zeros((1, 9, 20, 20), np.uint8)
    labels[0, 4:6, 1:3, 17:19] = 1  # near a corner, so that patches hang over the border
    plain = batches(image, labels, patch, augment=False)
    augmented = batches(image, labels, patch, mirror_axes=())
    pairs = [(a.image[i], b.image[i]) for a, b in zip(plain, augmented, strict=True) for i in range(2)]
    same = [torch.equal(a, b) for a, b in pairs]
    assert np.mean(same) == pytest.approx(NOTHING_BUT_MIRRORING, abs=0.12)
    assert torch.equal(torch.cat([b.valid for b in augmented]), torch.ones((80, 1, *patch)))


def test_slices_do_not_mix_in_dummy_2d() -> None:
    shape = (6, 24, 24)
    number = np.broadcast_to(np.arange(1, 7)[:, None, None], shape)
    scheme = LabelScheme(tuple("abcdef"), tuple((i,) for i in range(1, 7)), "softmax", tuple(range(1, 7)))
    labels = number[None].astype(np.uint8)
    found = batches(noise(shape), labels, (6, 16, 16), scheme, dummy_2d_augmentation=True, mirror_axes=(1, 2))
    for batch in found:
        for target in batch.target.numpy():
            classes = [set(np.unique(part[1:].argmax(axis=0)[part[0] == 0])) for part in target.swapaxes(0, 1)]
            assert all(len(found) <= 1 for found in classes)
            assert len(set.union(*classes)) >= 5  # of six slices, one may hang over the border


def test_the_outside_of_a_nonzero_mask_stays_zero() -> None:
    image, labels = noise((1, 40, 40)), np.zeros((1, 1, 40, 40), np.uint8)
    image[..., :20] = 0
    labels[0, 0, 18:22, 24:28] = 1
    with_mask = batches(image, labels, (16, 16), masked=True)
    without = batches(image, labels, (16, 16), masked=False)
    zeros = [[float((b.image == 0).float().mean()) for b in found] for found in (with_mask, without)]
    assert sum(a > b for a, b in zip(*zeros, strict=True)) > 3  # noise, blur and gamma reach the outside otherwise
    assert all(a >= b for a, b in zip(*zeros, strict=True))


def test_regions_ignored_voxels_and_raters() -> None:
    scheme = LabelScheme(("whole", "core"), ((1, 2), (2,)), "regions", (1, 2), ignore_value=9)
    labels = np.zeros((3, 1, 40, 40), np.uint8)  # a reference and two raters
    labels[1, 0, 10:30, 10:30], labels[1, 0, 15:25, 15:25] = 1, 2
    labels[2, 0, 10:30, 10:30] = 9
    found = batches(noise((1, 40, 40)), labels, (16, 16), scheme)
    raters = {"first": 0, "second": 0}
    for batch in found:
        for target, valid in zip(batch.target, batch.valid, strict=True):
            assert torch.all(target[1] <= target[0])  # the core lies within the whole
            assert set(target.unique().tolist()) | set(valid.unique().tolist()) <= {0.0, 1.0}
            ignored = valid.min() == 0
            assert not (ignored and target.any())  # the rater with ignored voxels marked nothing else
            raters["second" if ignored else "first"] += bool(ignored or target.any())
    assert min(raters.values()) > 10


def test_what_lies_outside_of_the_case_is_background() -> None:
    scheme = replace(BINARY, ignore_value=9)
    found = batches(noise((4, 6, 6)), np.ones((1, 4, 6, 6), np.uint8), (8, 8, 8), scheme)
    for batch in found:
        assert torch.all(batch.valid == 1)
        assert 0 < batch.target.sum() < batch.target.numel()


def test_generators_are_seeded_within_and_given_back() -> None:
    numpy_state, torch_state = repr(np.random.get_state()), torch.get_rng_state()  # noqa: NPY002
    drawn = []
    for seed in (7, 7, 8):
        with seeded(seed):
            drawn.append((np.random.uniform(), torch.rand(1).item()))  # noqa: NPY002
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(KeyError), seeded(2**32 - 1):
        raise KeyError
    assert repr(np.random.get_state()) == numpy_state  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_a_case_in_memory_is_not_changed() -> None:
    image, labels = noise((8, 40, 40)), np.ones((1, 8, 40, 40), np.uint8)
    before = image.copy()
    augmentation = NnunetAugmentation((8, 8), recipe_for_patch((8, 8), False), masked=[0])
    for seed in range(20):
        augmentation.read_patch(Case(image, labels, BINARY), 0, (4, 16, 16), np.random.default_rng(seed))
    assert np.array_equal(image, before)
    assert labels.all()
