"""A law of annotation that is known exactly must come back from the samples of a trained model.

The bounds are what a minute and a half of training on one core holds, with a margin: the aim is a fraction of lesions
within 0.10 and a GED within 15 % of the law's own draws (documentation/benchmarks/known_law.md). The law and
the training are those of tests/benchmarks/known_law.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from tests.benchmarks.known_law import (
    EXISTENCE,
    SIZE,
    Disc,
    Drawn,
    distances_of_pairs,
    draw,
    energy_distances,
    existence,
    train_on_readings,
)
from unisegdiff_pipeline.core.geometry import Geometry, Volume
from unisegdiff_pipeline.diffusion.coding import mask_to_x
from unisegdiff_pipeline.diffusion.schedule import PURE_NOISE, NoiseLevel, noise_mask
from unisegdiff_pipeline.inference.predictor import Predictor
from unisegdiff_pipeline.inference.settings import InferenceSettings
from unisegdiff_pipeline.networks.denoiser import Condition
from unisegdiff_pipeline.networks.staged_model import StagedModel
from unisegdiff_pipeline.preprocessing.preprocessor import preprocess_image


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor(train_on_readings(tmp_path_factory.mktemp("law")), device="cpu")


@pytest.fixture(scope="module")
def drawn(trained: Predictor) -> list[Drawn]:
    return draw(trained)


def test_a_lesion_is_drawn_as_often_as_readers_mark_it(drawn: list[Drawn]) -> None:
    assert len(drawn) >= 40
    fraction = existence(drawn)
    print(f"fraction of samples with a lesion {fraction:.3f}")
    assert fraction == pytest.approx(EXISTENCE, abs=0.10)


def test_samples_lie_as_near_to_the_law_as_its_own_draws(drawn: list[Drawn]) -> None:
    model, oracle = energy_distances(drawn)
    print(f"GED of the model {model:.4f}, of the law {oracle:.4f}")
    assert model <= 1.6 * oracle


def test_samples_differ_as_much_as_readers_do(drawn: list[Drawn]) -> None:
    model, law = distances_of_pairs(drawn)
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
        level = NoiseLevel.of(lams, self.settings.edges)
        with torch.inference_mode():
            found = self.network.denoise(x_t, level, self.condition, self.settings.denoiser_calibration)
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
