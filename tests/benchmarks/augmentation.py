"""Processor time of augmenting one example: nnU-Net's recipe by batchgeneratorsv2 against this package, on one thread.

python tests/benchmarks/augmentation.py [--examples N]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.helpers.scalar_type import RandomScalar
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform

from unisegdiff_pipeline.training.data.augmentation import augment_intensity, draw_augmentation, recipe_for_patch
from unisegdiff_pipeline.training.data.patches import _mirror, _read_patch

ENLARGED = 1.25  # nnU-Net reads a larger patch where it rotates and scales; the library then cuts out the middle


def library_recipe(patch: Sequence[int], angle: float) -> ComposeTransforms:
    """nnU-Net's default training transforms for one channel without a mask."""

    def contrast(low: float, high: float) -> RandomScalar:
        return BGContrast((low, high))

    once: dict[str, Any] = {"synchronize_channels": False, "p_per_channel": 1}
    spatial = SpatialTransform(
        patch,
        patch_center_dist_from_border=0,
        random_crop=False,
        p_elastic_deform=0,
        p_rotation=0.2,
        rotation=(-angle, angle),
        p_scaling=0.2,
        scaling=(0.7, 1.4),
        p_synchronize_scaling_across_axes=1,
        bg_style_seg_sampling=False,
    )
    noise = GaussianNoiseTransform(noise_variance=(0, 0.1), p_per_channel=1, synchronize_channels=True)
    blur = GaussianBlurTransform(
        blur_sigma=(0.5, 1.0), synchronize_channels=False, synchronize_axes=False, p_per_channel=0.5, benchmark=True
    )
    low = SimulateLowResolutionTransform(
        scale=(0.5, 1),
        synchronize_channels=False,
        synchronize_axes=True,
        ignore_axes=None,
        allowed_channels=None,
        p_per_channel=0.5,
    )
    return ComposeTransforms(
        [
            spatial,
            RandomTransform(noise, apply_probability=0.1),
            RandomTransform(blur, apply_probability=0.2),
            RandomTransform(MultiplicativeBrightnessTransform(contrast(0.75, 1.25), **once), apply_probability=0.15),
            RandomTransform(ContrastTransform(contrast(0.75, 1.25), preserve_range=True, **once), 0.15),
            RandomTransform(low, apply_probability=0.25),
            RandomTransform(GammaTransform(contrast(0.7, 1.5), p_invert_image=1, p_retain_stats=1, **once), 0.1),
            RandomTransform(GammaTransform(contrast(0.7, 1.5), p_invert_image=0, p_retain_stats=1, **once), 0.3),
            MirrorTransform(allowed_axes=tuple(range(len(patch)))),
            RemoveLabelTansform(-1, 0),
        ]
    )


def mean_ms(work: Callable[[], object], examples: int) -> float:
    """Mean processor milliseconds of a call, the median of five turns."""
    work()
    turns = []
    for _ in range(5):
        start = time.process_time()
        for _ in range(examples):
            work()
        turns.append((time.process_time() - start) / examples * 1e3)
    return statistics.median(turns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=100, help="of one turn")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for patch, labels in (((40, 56, 40), 3), ((128, 160), 2)):
        recipe = recipe_for_patch(patch, in_plane_only=False)
        large = tuple(round(ENLARGED * n) for n in patch)
        rng = np.random.default_rng(0)
        image = torch.from_numpy(rng.normal(size=(1, *large)).astype(np.float32))
        label = torch.zeros((1, *large), dtype=torch.int16)
        for value in range(1, labels):
            label[(0, *(slice(n // 4 * value, n // 4 * (value + 1)) for n in large))] = value
        library = library_recipe(patch, recipe.rotation[1])

        def by_library(library: Any = library, image: Any = image, label: Any = label) -> object:
            return library(image=image.clone(), segmentation=label.clone())

        flat = (1,) * (3 - len(patch))
        stored = (1, *flat, *large)
        case = SimpleNamespace(
            image=image.numpy().reshape(stored), labels=label.numpy().astype(np.uint8).reshape(stored)
        )
        start = (*(0 for _ in flat), *((a - b) // 2 for a, b in zip(large, patch, strict=True)))

        def by_us(
            patch: Any = patch, recipe: Any = recipe, case: Any = case, start: Any = start, rng: Any = rng
        ) -> object:
            draw = draw_augmentation(recipe, 1, rng)
            piece, target = _read_patch(case, 0, start, patch, draw.affine)
            augment_intensity(piece, draw, recipe, [])
            return _mirror(piece.numpy(), target, draw)

        a, b = mean_ms(by_library, args.examples), mean_ms(by_us, args.examples)
        size = "x".join(map(str, patch))
        print(f"{size}, {labels} labels: batchgeneratorsv2 {a:.2f} ms, here {b:.2f} ms, ratio {b / a:.2f}")


if __name__ == "__main__":
    main()
