"""Generated pictures of lesions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from unisegdiff_pipeline.synthetic.pictures import body_distance, draw_picture, smooth_noise


@pytest.mark.parametrize(("size", "channels"), [((32, 48), 3), ((33, 20), 1), ((8, 24, 32), 2)])
def test_a_picture_is_identified_by_its_seed(size: tuple[int, ...], channels: int) -> None:
    one, again, other = (draw_picture(np.random.default_rng(seed), size, channels) for seed in (5, 5, 6))
    assert one.image.shape == (channels, *size)
    assert (one.image.dtype, one.mask.dtype, one.mask.shape) == (np.float32, bool, size)
    assert np.array_equal(one.image, again.image)
    assert np.array_equal(one.mask, again.mask)
    assert not np.array_equal(one.image, other.image)
    spatial = tuple(range(1, 1 + len(size)))
    assert np.allclose(one.image.mean(axis=spatial), 0, atol=1e-3)
    assert np.allclose(one.image.std(axis=spatial), 1, atol=0.05)


def test_most_pictures_have_a_lesion_and_some_have_none() -> None:
    rng = np.random.default_rng(0)
    fractions = [draw_picture(rng, (32, 32), 1).mask.mean() for _ in range(60)]
    assert 1 <= sum(fraction == 0 for fraction in fractions) <= 20
    assert 0.02 < np.mean(fractions) < 0.2
    assert np.isfinite([draw_picture(rng, (32, 32), 1).image for _ in range(20)]).all()


@pytest.mark.parametrize(("size", "volume"), [((64, 64), math.pi * 12**2), ((40, 40, 40), 4 / 3 * math.pi * 12**3)])
def test_an_ellipsoid_has_the_volume_of_its_sphere(size: tuple[int, ...], volume: float) -> None:
    grid = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in size), indexing="ij"))
    centre = np.array(size) / 2
    for seed in range(3):
        distance = body_distance(np.random.default_rng(seed), grid, centre, 12.0, roughness=0.0)
        assert (distance < 0).sum() == pytest.approx(volume, rel=0.03)
        assert distance[tuple(n // 2 for n in size)] == pytest.approx(-12.0)


def test_noise_is_as_smooth_as_its_lengths_say() -> None:
    noise = smooth_noise(np.random.default_rng(0), (128, 128), (1.0, 8.0))
    assert noise.shape == (128, 128)
    assert noise.std() == pytest.approx(1, abs=1e-3)
    along = [np.corrcoef(noise[:-4].ravel(), noise[4:].ravel())[0, 1]]
    along += [np.corrcoef(noise[:, :-4].ravel(), noise[:, 4:].ravel())[0, 1]]
    assert along[0] < 0.2 < 0.7 < along[1]
