"""What each sampler gives back of a law of annotation that is known: documentation/benchmarks/known_law.md.

    python tests/benchmarks/known_law.py [--images 100] [--seed 0] [--lengths] [--work FOLDER]

Each image shows one disc. A reader marks it with probability 0.7, and then with a radius that is off by N(0, 1.5 px),
whatever the image. Nothing else is random, so that a case has the same law as every other but for radius and place.
Trained are 200 iterations of phase 1 and 400 of phase 2, the latter anew for each seed; 48 new images are drawn from,
16 masks each, as chosen and by all samplers with the planned field, or with --lengths by the default sampler with
fields of all lengths. tests/end_to_end/test_law.py holds what is chosen to bounds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np

from unisegdiff_pipeline.commands import plan_and_preprocess, train
from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.diffusion.samplers import SamplerSettings
from unisegdiff_pipeline.evaluation.diversity import generalised_energy_distance, pairwise_overlaps
from unisegdiff_pipeline.inference.predictor import Predictor
from unisegdiff_pipeline.inference.settings import read_settings, write_settings
from unisegdiff_pipeline.io.images import write_labels
from unisegdiff_pipeline.selection.field_length import LENGTHS_VOXELS
from unisegdiff_pipeline.selection.sampler import DEFAULT_SAMPLER, OTHERS

SIZE, NUM_IMAGES, NUM_HELD_OUT, NUM_RATERS = 40, 100, 48, 4
EXISTENCE, OFFSET_SD = 0.7, 1.5
NUM_SAMPLES = 16
PHASE_1_ITERATIONS, PHASE_2_ITERATIONS = 200, 400
LENGTH_MM = 32.0  # of the field, as planned
DRAWS = SamplerSettings(method="ddim", start="det", num_calls=0, lam_end=0.0, draw=True)


@dataclass(frozen=True)
class Disc:
    """What an image shows."""

    centre: tuple[float, float]
    radius: float

    def distance(self) -> np.ndarray:
        grid = np.mgrid[:SIZE, :SIZE].astype(np.float64)
        return np.hypot(grid[0] - self.centre[0], grid[1] - self.centre[1]) - self.radius

    def image(self, rng: np.random.Generator) -> np.ndarray:
        clean = np.where(self.distance() < 0, 150, 90)
        return np.clip(clean + rng.normal(0, 8, clean.shape), 0, 255).astype(np.uint8)

    def read(self, rng: np.random.Generator) -> np.ndarray:
        """The mask of one reader."""
        if rng.random() >= EXISTENCE:
            return np.zeros((SIZE, SIZE), bool)
        return self.distance() < rng.normal(0, OFFSET_SD)


def draw_disc(rng: np.random.Generator) -> Disc:
    y, x = rng.uniform(12, SIZE - 12, 2)
    return Disc((float(y), float(x)), float(rng.uniform(5, 9)))


def run(command: ModuleType, arguments: Sequence[str]) -> None:
    if code := command.main(list(arguments)):
        raise SystemExit(f"{command.__name__} {' '.join(arguments)} failed with {code}")


def train_on_readings(root: Path, num_images: int = NUM_IMAGES, seed: int = 0) -> Path:
    """Both phases on readings of the law, by the commands; the folder of the model.

    What is there already is not trained again.

    Args:
        root: where everything goes.
        num_images: a fifth and the hold-out among them, which are not trained on.
        seed: of phase 2.
    """
    root = root / f"{num_images}_images"
    raw = root / "raw" / "Dataset950_Law"
    for index in range(num_images):
        rng = np.random.default_rng([1, index])
        disc, case = draw_disc(rng), f"disc_{index:03d}"
        raters = [disc.read(rng) for _ in range(NUM_RATERS)]
        masks = {raw / f"imagesTr/{case}_0000.png": disc.image(rng)}
        masks[raw / f"labelsTr/{case}.png"] = (np.sum(raters, axis=0) >= 2).astype(np.uint8)
        masks |= {raw / f"ratersTr/{case}_rater{i}.png": m.astype(np.uint8) for i, m in enumerate(raters, start=1)}
        for path, array in masks.items():
            write_labels(path, array[None], Geometry(is_2d=True))
    description = {"channel_names": {"0": "grey"}, "labels": {"background": 0, "disc": 1}, "numTraining": num_images}
    (raw / "dataset.json").write_text(json.dumps({**description, "file_ending": ".png"}))
    roots = ["--raw", str(raw.parent), "--preprocessed", str(root / "preprocessed")]
    run(plan_and_preprocess, ["-d", "950", *roots, "--device", "cpu", "--memory-gb", "4", "--workers", "0"])
    phase_1, phase_2 = root / "results", root / f"results_{seed}"
    common = ["950", "0", *roots, "--batch-size", "8", "--device", "cpu"]
    alone = ["--results", str(phase_1), "--trainer", "SegmentationTrainer", "--iterations", str(PHASE_1_ITERATIONS)]
    run(train, [*common, *alone])
    segmenter = phase_1 / "Dataset950_Law/SegmentationTrainer__2d/fold_0"
    staged = ["--results", str(phase_2), "--iterations", str(PHASE_2_ITERATIONS), "--seed", str(seed)]
    run(train, [*common, *staged, "--phase-1-from", str(segmenter)])
    return phase_2 / "Dataset950_Law/StagedDiffusionTrainer__2d"


@dataclass(frozen=True)
class Drawn:
    """Masks (NUM_SAMPLES, SIZE, SIZE) of one held-out image, by the model, and twice by the law."""

    samples: np.ndarray
    law: np.ndarray
    law_again: np.ndarray


def draw(predictor: Predictor) -> list[Drawn]:
    """Masks of new discs."""
    result = []
    for index in range(NUM_HELD_OUT):
        rng = np.random.default_rng([2, index])
        disc = draw_disc(rng)
        geometry = Geometry(is_2d=True)
        image = disc.image(rng)[None, None].astype(np.float32)
        name = f"case_{index}_0000.png"
        predicted = predictor.predict(image, geometry.spacing_mm, num_samples=NUM_SAMPLES, case_id=name)
        law, again = (np.stack([disc.read(rng) for _ in range(NUM_SAMPLES)]) for _ in range(2))
        result.append(Drawn(predicted.samples.reshape(NUM_SAMPLES, SIZE, SIZE) > 0, law, again))
    return result


def existence(drawn: Sequence[Drawn]) -> float:
    """Share of the model's masks that hold a disc."""
    return float(np.mean([mask.any() for case in drawn for mask in case.samples]))


def energy_distances(drawn: Sequence[Drawn]) -> tuple[float, float]:
    """GED against draws of the law, of the model and of the law's own."""
    of_model = [generalised_energy_distance(pairwise_overlaps(case.samples, case.law)).ged_v for case in drawn]
    of_law = [generalised_energy_distance(pairwise_overlaps(case.law_again, case.law)).ged_v for case in drawn]
    return float(np.mean(of_model)), float(np.mean(of_law))


def distances_of_pairs(drawn: Sequence[Drawn]) -> tuple[float, float]:
    """Mean 1 - IoU of two masks of the model, and of two of the law."""
    pairs = np.triu_indices(NUM_SAMPLES, k=1)
    of_model = [1 - pairwise_overlaps(case.samples, []).samples[pairs] for case in drawn]
    of_law = [1 - pairwise_overlaps(case.law, []).samples[pairs] for case in drawn]
    return float(np.mean(of_model)), float(np.mean(of_law))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=NUM_IMAGES)
    parser.add_argument("--seed", type=int, default=0, help="of phase 2")
    parser.add_argument("--lengths", action="store_true", help="the default sampler with fields of all lengths")
    parser.add_argument("--work", type=Path, help="keeps the training and takes it up again; by default it is not kept")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        model = train_on_readings(args.work or Path(temporary), args.images, args.seed)
        chosen = read_settings(model / "fold_0")
        lines = []
        of_all_kinds = [
            replace(s, draw=True, correlation_length_mm=LENGTH_MM) for s in (DRAWS, DEFAULT_SAMPLER, *OTHERS)
        ]
        of_all_lengths = [
            replace(DEFAULT_SAMPLER, draw=True, correlation_length_mm=length_mm) for length_mm in LENGTHS_VOXELS
        ]
        for sampler in of_all_lengths if args.lengths else (None, *of_all_kinds):
            settings, name = chosen, "as chosen"
            if sampler is not None:
                settings, name = replace(chosen, sampler=sampler, mask_sampler=None), sampler.describe()
            copied = Path(temporary) / f"model_{len(lines)}" / model.name
            shutil.copytree(model, copied)
            write_settings(copied / "fold_0", settings)
            drawn = draw(Predictor(copied, device="cpu"))
            (of_model, of_law), (apart, apart_law) = energy_distances(drawn), distances_of_pairs(drawn)
            lines.append(
                f"| {name} | {existence(drawn):.2f} | {apart:.2f} | {of_model:.3f} | {of_model / of_law:.2f}x |"
            )
        print("| masks | fraction with a disc | mean distance of two | GED V | as a multiple of the law's |")
        print("|---|---|---|---|---|")
        print("\n".join(lines))
        print(f"| the law | {EXISTENCE:.2f} | {apart_law:.2f} | {of_law:.3f} | 1 |")


if __name__ == "__main__":
    main()
