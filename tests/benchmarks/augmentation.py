"""Processor time of augmenting one example: nnU-Net's recipe by batchgeneratorsv2 against this package, on one thread.

python tests/benchmarks/augmentation.py [--examples N]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from unisegdiff_pipeline.training.data.augmentation import augment_intensity, draw_augmentation, recipe_for_patch
from unisegdiff_pipeline.training.data.nnunet_augmentation import NnunetAugmentation
from unisegdiff_pipeline.training.data.patches import mirror_slices
from unisegdiff_pipeline.training.data.reading import read_patch


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
        library = NnunetAugmentation(patch, recipe, masked=[])
        flat = (1,) * (3 - len(patch))
        large = tuple(2 * n for n in patch)
        rng = np.random.default_rng(0)
        label = np.zeros(large, np.uint8)
        for value in range(1, labels):
            label[tuple(slice(n // 4 * value, n // 4 * (value + 1)) for n in large)] = value
        image = rng.normal(size=large).astype(np.float32)
        case = SimpleNamespace(image=image.reshape(1, *flat, *large), labels=label.reshape(1, *flat, *large))
        z, y, x = (*(0 for _ in flat), *(n // 2 for n in patch))
        start = (z, y, x)

        def by_library(library: Any = library, case: Any = case, start: Any = start, rng: Any = rng) -> object:
            return library.read_patch(case, 0, start, rng)[:2]

        def by_us(
            patch: Any = patch, recipe: Any = recipe, case: Any = case, start: Any = start, rng: Any = rng
        ) -> object:
            draw = draw_augmentation(recipe, 1, rng)
            piece, target, _ = read_patch(case, 0, start, patch, draw.affine)
            augment_intensity(piece, draw, recipe, [])
            flips = mirror_slices(draw)
            return piece.numpy()[:, *flips], target[flips]

        a, b = mean_ms(by_library, args.examples), mean_ms(by_us, args.examples)
        size = "x".join(map(str, patch))
        print(f"{size}, {labels} labels: batchgeneratorsv2 {a:.2f} ms, here {b:.2f} ms, ratio {b / a:.2f}")


if __name__ == "__main__":
    main()
