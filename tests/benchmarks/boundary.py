"""Time and memory of the boundary and lesion scores on a CT of 512 x 512 x 300 voxels, and time of sample scores.

python tests/benchmarks/boundary.py [--compare] [--noise]

Masks: a bumpy body of about 1.5 l at 0.8 x 0.8 x 1.0 mm as reference; as prediction the same body grown, moved and
roughened, a far smaller one, a scatter of single voxels besides the good prediction, and one far away. --compare also
times the Euclidean distance transform of the joint box (what MONAI and medpy do) on the same surfaces, and checks that
both give the same distances. --noise scores two masks of random voxels, which are nearly all surface. Memory is how far
the resident memory rises above its value before the call, sampled every 2 ms during a run that is not timed. Samples:
16 masks against 4 raters, and the correlation of a map, over a million voxels.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import psutil

from unisegdiff_pipeline.core.boxes import box_slices, nonzero_box
from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.evaluation import boundary
from unisegdiff_pipeline.evaluation.diversity import score_samples
from unisegdiff_pipeline.evaluation.lesion_matching import MatchingRule
from unisegdiff_pipeline.evaluation.lesions import score_lesions

SHAPE = (300, 512, 512)
SPACING_MM = (1.0, 0.8, 0.8)
COMPARED_VOXELS = 20_000_000  # larger joint boxes would take the distance transform gigabytes
T = TypeVar("T")


def body(centre: tuple[float, float, float], radius_mm: float, bumps_mm: float, seed: int) -> np.ndarray:
    """A ball (Z, Y, X; centre in mm) whose radius varies smoothly with the direction, and by half a voxel at random."""
    rng = np.random.default_rng(seed)
    axes = [np.arange(n) * mm - at for n, mm, at in zip(SHAPE, SPACING_MM, centre, strict=True)]
    z, y, x = np.meshgrid(*(axis.astype(np.float32) for axis in axes), indexing="ij", sparse=True)
    distance = np.sqrt(z**2 + y**2 + x**2)
    waves = np.sin(z / 9 + seed) * np.sin(y / 11) * np.sin(x / 13 + 2 * seed)
    return distance < radius_mm + bumps_mm * waves + 0.4 * rng.standard_normal(SHAPE, dtype=np.float32)


def scatter(mask: np.ndarray, voxels: int) -> np.ndarray:
    """A mask with single voxels added anywhere in the image."""
    noisy = mask.copy()
    noisy.flat[np.random.default_rng(0).integers(0, noisy.size, voxels)] = True
    return noisy


def peak_mb(work: Callable[[], T]) -> tuple[T, float]:
    """Result, and how far resident memory rises in MB."""
    process, finished, highest = psutil.Process(), threading.Event(), [0]

    def watch() -> None:
        while not finished.wait(0.002):
            highest[0] = max(highest[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    before = process.memory_info().rss
    watcher.start()
    result = work()
    finished.set()
    watcher.join()
    return result, max(0, highest[0] - before) / 1e6


def measured(work: Callable[[], T], repeats: int = 3) -> tuple[T, float, float]:
    """Result, seconds (the fastest run) and how far resident memory rises in MB."""
    result, megabytes = peak_mb(work)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return result, min(seconds), megabytes


def distances_by_transform(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both directed sets of distances from distance transforms of the whole joint box."""
    from scipy.ndimage import distance_transform_edt

    return (
        distance_transform_edt(~other, sampling=SPACING_MM)[one],
        distance_transform_edt(~one, sampling=SPACING_MM)[other],
    )


def compare(reference: np.ndarray, predicted: np.ndarray) -> None:
    """Search tree against distance transform, on the same surfaces."""
    box = nonzero_box(reference, predicted)
    assert box is not None
    one, other = (boundary.surface(mask[box_slices(box)]) for mask in (reference, predicted))
    if one.size > COMPARED_VOXELS:
        print(f"    box of {one.shape} is too large for a distance transform")
        return

    def by_tree() -> tuple[np.ndarray, np.ndarray]:
        return boundary.surface_distances_mm(one, other, SPACING_MM), boundary.surface_distances_mm(
            other, one, SPACING_MM
        )

    (trees, tree_seconds, tree_mb) = measured(by_tree)
    (transforms, transform_seconds, transform_mb) = measured(lambda: distances_by_transform(one, other))
    for ours, theirs in zip(trees, transforms, strict=True):
        np.testing.assert_allclose(np.sort(ours), np.sort(theirs), atol=1e-9)
    print(
        f"    surfaces of {one.sum()} and {other.sum()} voxels in a box of {one.shape}: search tree {tree_seconds:.2f} "
        f"s, {tree_mb:.0f} MB; distance transform {transform_seconds:.2f} s, {transform_mb:.0f} MB; equal distances"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", action="store_true", help="also time a distance transform of the joint box")
    parser.add_argument("--noise", action="store_true", help="also score masks of random voxels (minutes)")
    args = parser.parse_args()
    reference = body((140, 200, 200), 71, 6, seed=1)
    good = body((141, 201, 199), 72, 6, seed=1)
    predictions = {
        "good": good,
        "small, inside": body((140, 200, 200), 20, 2, seed=2),
        "with scattered voxels": scatter(good, 20_000),
        "far away": body((250, 330, 330), 40, 3, seed=3),
    }
    print(f"reference: {reference.sum() * np.prod(SPACING_MM) / 1000:.0f} ml")
    for name, predicted in predictions.items():
        report(name, reference, predicted)
        if args.compare:
            compare(reference, predicted)
    rule = MatchingRule("dilated", dilation_mm=3)
    _, seconds, megabytes = measured(lambda: score_lesions(reference, good, Geometry(SPACING_MM), rule, [good] * 4))
    print(f"lesions, matched within 3 mm, 4 samples: {seconds:.2f} s, {megabytes:.0f} MB more", flush=True)
    report_samples()
    if args.noise:
        rng = np.random.default_rng(0)
        report("noise", *(rng.random(SHAPE, dtype=np.float32) < 0.5 for _ in range(2)), repeats=1)


def report_samples() -> None:
    """Time all scores of samples and raters of one case."""
    rng = np.random.default_rng(27)
    field = rng.random((16, 256, 256))
    samples, raters = (
        [field < fraction for fraction in rng.random(16)],
        [field > fraction for fraction in rng.random(4)],
    )
    _, seconds, megabytes = measured(lambda: score_samples(samples, raters, field))
    print(f"16 samples, 4 raters, 1 M voxels: {seconds:.2f} s, {megabytes:.0f} MB more", flush=True)


def report(name: str, reference: np.ndarray, predicted: np.ndarray, repeats: int = 3) -> None:
    """Score one pair of masks and print the figures."""
    result, seconds, megabytes = measured(lambda: boundary.boundary_score(reference, predicted, SPACING_MM), repeats)
    print(
        f"{name}: {seconds:.2f} s, {megabytes:.0f} MB more; HD {result.hd_mm:.2f}, HD95 {result.hd95_mm:.2f}, "
        f"ASSD {result.assd_mm:.3f} mm, surface Dice {', '.join(f'{value:.3f}' for value in result.surface_dice)}",
        flush=True,
    )


if __name__ == "__main__":
    main()
