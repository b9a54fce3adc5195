"""nnU-Net's augmentation by its own library, batchgeneratorsv2: for equal comparison, and for transforms of one's own.

Transforms, their order, probabilities and ranges are those of `get_training_transforms`, the size of what is read that
of `configure_rotation_dummyDA_mirroring_and_inital_patch_size`, both in nnunetv2 2.8.1
(github.com/MIC-DKFZ/nnUNet, nnunetv2/training/nnUNetTrainer/nnUNetTrainer.py, commit 0e49508). What differs, and why:

- Where patches lie is drawn as for the default augmentation (`patches.py`), so that only the augmentation is compared.
- Blur never times its two algorithms against each other (nnU-Net's `benchmark=True`): batches would depend on the load
  of the machine, and a continued training would not be the same.
- Axes that the plan does not mirror are not mirrored, nor by full turns of the plane (`recipe_for_patch`): in nnU-Net
  that takes a trainer of one's own.
- The outside of a non-zero mask is where all channels normalised inside it are exactly zero; it becomes label -1, which
  nnU-Net stores beforehand.

The library draws from the global generators of numpy and torch. They are seeded for each example, from the generator
of that example, and given back as they were: a batch depends on (seed, iteration, item) alone here, too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from unisegdiff_pipeline.training.data.augmentation import AugmentationRecipe
from unisegdiff_pipeline.training.data.reading import Arrays, Shape3

OUTSIDE = -1
READ_SCALES = (0.85, 1.25)  # nnU-Net reads for these, although it draws scales between 0.7 and 1.4


class NnunetAugmentation:
    """Reads patches and augments them by nnU-Net's recipe."""

    def __init__(
        self, patch: Sequence[int], recipe: AugmentationRecipe, masked: Sequence[int], num_channels: int | None = None
    ) -> None:
        """Set up; imports the library, which takes seconds, here rather than in every worker.

        Args:
            patch: of the network, (Y, X) or (Z, Y, X).
            recipe: its rotation, dummy 2D and mirrored axes are taken; the library's transforms have the rest.
            masked: channels that were normalised inside a non-zero mask; their outside stays zero.
            num_channels: of the image; those after them (see `preprocessing.presence`) are not augmented.
        """
        self._patch, self._masked, self._num_channels = tuple(patch), list(masked), num_channels
        self._size = size_to_read(patch, recipe)
        self._transforms = training_transforms(patch, recipe, masked)

    def read_patch(
        self, case: Arrays, row: int, start: Shape3, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Image (C, *patch), labels and a cascade's mask (*patch) of the patch that would begin at `start`."""
        from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd

        flat = 3 - len(self._patch)  # axes that a patch of slices lacks
        margins = [0] * flat + [large // 2 - small // 2 for large, small in zip(self._size, self._patch, strict=True)]
        sizes = (1,) * flat + self._size
        box = [[a - margin, a - margin + size] for a, margin, size in zip(start, margins, sizes, strict=True)]
        # Of a case in memory the library gives views where nothing is padded, and the transforms work in place.
        image = np.array(crop_and_pad_nd(case.image, box), order="C").reshape(-1, *self._size)
        maps = [(case.labels, row), *(() if case.mask is None else ((case.mask, 0),))]
        labels = np.stack(
            [
                np.array(crop_and_pad_nd(array, [[i, i + 1], *box], OUTSIDE, cast_cropped_to=np.int16))
                for array, i in maps
            ]
        ).reshape(-1, *self._size)
        if self._masked:
            labels[0][(labels[0] == 0) & (image[self._masked] == 0).all(axis=0)] = OUTSIDE
        count = len(image) if self._num_channels is None else self._num_channels
        presence = [np.full((1, *self._patch), plane.any(), np.float32) for plane in image[count:]]
        image, labels = self.augment(image[:count], labels, int(rng.integers(2**32)))
        image = np.concatenate([image, *presence]) if presence else image
        return image, labels[0], None if case.mask is None else labels[1]

    def augment(self, image: np.ndarray, labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (C, *patch) float32 and labels (R, *patch) int16 out of larger ones, whose values may be overwritten.

        Args:
            image: (C, *size_to_read) float32.
            labels: (R, *size_to_read) int16, -1 outside of the case.
            seed: below 2^32.
        """
        with torch.no_grad(), seeded(seed):
            made = self._transforms(image=torch.from_numpy(image), segmentation=torch.from_numpy(labels))
        return made["image"].numpy(), made["segmentation"].numpy()


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of numpy and of torch on the CPU, and give them back as they were."""
    numpy_state, torch_state = np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed devices, too
    try:
        yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(torch_state)


def size_to_read(patch: Sequence[int], recipe: AugmentationRecipe) -> tuple[int, ...]:
    """What nnU-Net reads for a patch, so that most of a turned or shrunk one holds voxels of the case."""
    from batchgenerators.augmentations.utils import rotate_coords_2d, rotate_coords_3d

    angle, edges = min(np.pi / 2, max(np.abs(recipe.rotation))), np.array(patch)
    if len(patch) == 2:
        turned = [rotate_coords_2d(edges, angle)]
    else:
        turned = [rotate_coords_3d(edges, *angles) for angles in np.eye(3) * angle]
    size = (np.max([edges, *np.abs(turned)], axis=0) / min(READ_SCALES)).astype(int)
    if recipe.in_plane_only:
        size[0] = patch[0]
    return tuple(int(n) for n in size)


def training_transforms(
    patch: Sequence[int], recipe: AugmentationRecipe, masked: Sequence[int] = ()
) -> Callable[..., dict[str, Any]]:
    """nnU-Net's training transforms without those of a cascade's mask and of its targets (arguments as above)."""
    from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
    from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
    from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
    from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
    from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
    from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
    from batchgeneratorsv2.transforms.utils.random import RandomTransform
    from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform

    dummy_2d = recipe.in_plane_only
    each: dict[str, Any] = {"synchronize_channels": False, "p_per_channel": 1}
    spatial = SpatialTransform(
        tuple(patch[1:] if dummy_2d else patch),
        patch_center_dist_from_border=0,
        random_crop=False,
        p_elastic_deform=0,
        p_rotation=0.2,
        rotation=recipe.rotation,
        p_scaling=0.2,
        scaling=(0.7, 1.4),
        p_synchronize_scaling_across_axes=1,
        bg_style_seg_sampling=False,
        border_mode_seg="constant",
        padding_value_seg=OUTSIDE,
    )
    noise = GaussianNoiseTransform(noise_variance=(0, 0.1), p_per_channel=1, synchronize_channels=True)
    blur = GaussianBlurTransform(
        blur_sigma=(0.5, 1.0), synchronize_channels=False, synchronize_axes=False, p_per_channel=0.5, benchmark=False
    )
    low_resolution = SimulateLowResolutionTransform(
        scale=(0.5, 1),
        synchronize_channels=False,
        synchronize_axes=True,
        ignore_axes=(0,) if dummy_2d else None,
        allowed_channels=None,
        p_per_channel=0.5,
    )

    def gamma(p_invert_image: int) -> Any:
        return GammaTransform(gamma=BGContrast((0.7, 1.5)), p_invert_image=p_invert_image, p_retain_stats=1, **each)

    transforms = [
        *([Convert3DTo2DTransform(), spatial, Convert2DTo3DTransform()] if dummy_2d else [spatial]),
        RandomTransform(noise, apply_probability=0.1),
        RandomTransform(blur, apply_probability=0.2),
        RandomTransform(
            MultiplicativeBrightnessTransform(multiplier_range=BGContrast((0.75, 1.25)), **each), apply_probability=0.15
        ),
        RandomTransform(
            ContrastTransform(contrast_range=BGContrast((0.75, 1.25)), preserve_range=True, **each),
            apply_probability=0.15,
        ),
        RandomTransform(low_resolution, apply_probability=0.25),
        RandomTransform(gamma(p_invert_image=1), apply_probability=0.1),
        RandomTransform(gamma(p_invert_image=0), apply_probability=0.3),
    ]
    if recipe.mirror_axes:
        transforms.append(MirrorTransform(allowed_axes=recipe.mirror_axes))
    if masked:
        transforms.append(MaskImageTransform(list(masked), channel_idx_in_seg=0, set_outside_to=0))
    transforms.append(RemoveLabelTansform(OUTSIDE, 0))
    made: Callable[..., dict[str, Any]] = ComposeTransforms(transforms)
    return made
