"""A law of annotation that is known exactly must come back from the samples of a trained model.

The bounds are what a minute and a half of training on one core holds, with a margin: the aim is a share of lesions
within 0.10 and a GED within 15 % of the law's own draws (documentation/explanation/staged_diffusion.md).

Each image shows one disc. A reader marks it with probability 0.7, and then with a radius that is off by N(0, 1.5 px),
whatever the image. Nothing else is random, so that a case has the same law as every other but for radius and place.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from unisegdiff_pipeline.commands import plan_and_preprocess, train
from unisegdiff_pipeline.diffusion.coding import mask_to_x
from unisegdiff_pipeline.diffusion.schedule import PURE_NOISE, noise_mask
from unisegdiff_pipeline.evaluation.diversity import generalised_energy_distance, pairwise_overlaps
from unisegdiff_pipeline.inference.predictor import Predictor
from unisegdiff_pipeline.inference.settings import InferenceSettings
from unisegdiff_pipeline.io.geometry import Geometry, Volume
from unisegdiff_pipeline.io.images import read_image, write_labels
from unisegdiff_pipeline.networks.staged_model import Condition, StagedModel
from unisegdiff_pipeline.preprocessing.preprocessor import preprocess_image

SIZE, NUM_CASES, NUM_HELD_OUT, NUM_RATERS = 40, 100, 48, 4
EXISTENCE, OFFSET_SD = 0.7, 1.5
NUM_SAMPLES = 16
PHASE_1_ITERATIONS, PHASE_2_ITERATIONS = 200, 400


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


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """Both phases on readings of the law, by the commands."""
    root = tmp_path_factory.mktemp("law")
    raw = root / "raw" / "Dataset950_Law"
    for index in range(NUM_CASES):
        rng = np.random.default_rng([1, index])
        disc, case = draw_disc(rng), f"disc_{index:03d}"
        raters = [disc.read(rng) for _ in range(NUM_RATERS)]
        masks = {raw / f"imagesTr/{case}_0000.png": disc.image(rng)}
        masks[raw / f"labelsTr/{case}.png"] = (np.sum(raters, axis=0) >= 2).astype(np.uint8)
        masks |= {raw / f"ratersTr/{case}_rater{i}.png": m.astype(np.uint8) for i, m in enumerate(raters, start=1)}
        for path, array in masks.items():
            write_labels(path, array[None], Geometry(is_2d=True))
    description = {"channel_names": {"0": "grey"}, "labels": {"background": 0, "disc": 1}, "numTraining": NUM_CASES}
    (raw / "dataset.json").write_text(json.dumps({**description, "file_ending": ".png"}))
    roots = ["--raw", str(raw.parent), "--preprocessed", str(root / "preprocessed")]
    assert plan_and_preprocess.main(["-d", "950", *roots, "--device", "cpu", "--memory-gb", "4", "--workers", "0"]) == 0
    results = root / "results"
    common = ["950", "0", *roots, "--results", str(results), "--batch-size", "8", "--device", "cpu"]
    assert train.main([*common, "--trainer", "SegmentationTrainer", "--iterations", str(PHASE_1_ITERATIONS)]) == 0
    phase_1 = results / "Dataset950_Law/SegmentationTrainer__2d/fold_0"
    assert train.main([*common, "--phase-1-from", str(phase_1), "--iterations", str(PHASE_2_ITERATIONS)]) == 0
    return Predictor(results / "Dataset950_Law/StagedDiffusionTrainer__2d", device="cpu")


@dataclass(frozen=True)
class Drawn:
    """Masks of one held-out image, by the model, and twice by the law."""

    samples: np.ndarray
    law: np.ndarray
    law_again: np.ndarray


@pytest.fixture(scope="module")
def drawn(trained: Predictor, tmp_path_factory: pytest.TempPathFactory) -> list[Drawn]:
    folder = tmp_path_factory.mktemp("held_out")
    found = []
    for index in range(NUM_HELD_OUT):
        rng = np.random.default_rng([2, index])
        disc = draw_disc(rng)
        path = folder / f"case_{index}_0000.png"
        write_labels(path, disc.image(rng)[None], Geometry(is_2d=True))
        volume = read_image([path])
        spacing = volume.geometry.spacing_mm
        predicted = trained.predict(volume.array, spacing, num_samples=NUM_SAMPLES, case_id=path.name)
        law, again = (np.stack([disc.read(rng) for _ in range(NUM_SAMPLES)]) for _ in range(2))
        found.append(Drawn(predicted.samples.reshape(NUM_SAMPLES, SIZE, SIZE) > 0, law, again))
    return found


def test_a_lesion_is_drawn_as_often_as_readers_mark_it(drawn: list[Drawn]) -> None:
    assert len(drawn) >= 40
    share = np.mean([mask.any() for case in drawn for mask in case.samples])
    print(f"share of samples with a lesion {share:.3f}")
    assert share == pytest.approx(EXISTENCE, abs=0.10)


def test_samples_lie_as_near_to_the_law_as_its_own_draws(drawn: list[Drawn]) -> None:
    model = np.mean([generalised_energy_distance(pairwise_overlaps(c.samples, c.law)).ged_v for c in drawn])
    oracle = np.mean([generalised_energy_distance(pairwise_overlaps(c.law_again, c.law)).ged_v for c in drawn])
    print(f"GED of the model {model:.4f}, of the law {oracle:.4f}")
    assert model <= 1.6 * oracle


def test_samples_differ_as_much_as_readers_do(drawn: list[Drawn]) -> None:
    pairs = np.triu_indices(NUM_SAMPLES, k=1)
    model = np.mean([1 - pairwise_overlaps(c.samples, []).samples[pairs] for c in drawn])
    law = np.mean([1 - pairwise_overlaps(c.law, []).samples[pairs] for c in drawn])
    print(f"mean distance of two samples {model:.3f}, of two readers {law:.3f}")
    assert model == pytest.approx(law, rel=0.25)


@dataclass(frozen=True)
class Prepared:
    """One image of a disc under the network, as in prediction, and its mask (1, 1, SIZE, SIZE)."""

    network: StagedModel
    settings: InferenceSettings
    condition: Condition
    mask: torch.Tensor

    def denoise(self, masks: torch.Tensor, lam: float) -> torch.Tensor:
        """Probabilities (B, 1, SIZE, SIZE) from masks (B, 1, SIZE, SIZE) with the same noise on each."""
        lams = torch.full((len(masks),), lam)
        noise = torch.randn(1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).expand_as(masks)
        x_t = noise_mask(mask_to_x(masks), lams, noise)
        det_logits, features = self.condition
        with torch.inference_mode():
            found = self.network.denoise(x_t, lams, det_logits, features, self.settings.denoiser_temperature)
        return found.probabilities


def prepare(trained: Predictor, disc: Disc) -> Prepared:
    network, settings = trained.networks[0]
    image = disc.image(np.random.default_rng(7))[None, None].astype(np.float32)
    volume = Volume(image, Geometry(is_2d=True))
    prepared, _ = preprocess_image(volume, trained.model.configuration.preprocessing, "disc")
    with torch.inference_mode():
        condition = network.condition(torch.as_tensor(prepared[:, 0])[None])
    return Prepared(network, settings, condition, mask_of(disc))


def mask_of(disc: Disc) -> torch.Tensor:
    return torch.from_numpy((disc.distance() < 0)[None, None]).float()


def test_a_foreign_mask_is_read_but_the_image_rules(trained: Predictor) -> None:
    """In the middle of stage B a noised mask of another case changes the answer, and does not replace the image."""
    shown, foreign = prepare(trained, Disc((20.0, 12.0), 6.0)), mask_of(Disc((20.0, 28.0), 6.0))
    lam = (shown.settings.lam_a + shown.settings.lam_c) / 2
    with_own, with_foreign = shown.denoise(torch.cat([shown.mask, foreign]), lam)
    assert (with_own - with_foreign).abs().max() > 0.1
    assert with_own[shown.mask[0] > 0].mean() > with_foreign[shown.mask[0] > 0].mean()
    assert with_foreign[foreign[0] > 0].mean() < 0.5  # the image shows nothing there


def test_pure_noise_tells_nothing_of_the_mask(trained: Predictor) -> None:
    shown = prepare(trained, Disc((18.0, 22.0), 7.0))
    with_mask, without = shown.denoise(torch.cat([shown.mask, torch.zeros_like(shown.mask)]), PURE_NOISE)
    assert torch.allclose(with_mask, without, atol=1e-5)
