"""The recipe against batchgeneratorsv2 (equal parameters, equal result) and its frequencies against nnU-Net's."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from unisegdiff_pipeline.training.data.augmentation import (
    AugmentationDraw,
    apply_along_axes,
    augment_intensity,
    blur_matrix,
    change_gamma,
    draw_augmentation,
    low_resolution_matrix,
    recipe_for_patch,
    rotation_matrix,
)

NOTHING = AugmentationDraw(None, None, None, None, None, None, None, None, (False, False, False))
SHAPES = [(1, 11, 13, 12), (2, 17, 14)]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def image_of(shape, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0.3, 1.2, shape).astype(np.float32))


def augmented(image: torch.Tensor, masked=(), **numbers) -> torch.Tensor:
    recipe = recipe_for_patch(image.shape[1:], False)
    result = image.clone()
    augment_intensity(result, replace(NOTHING, **numbers), recipe, masked)
    return result


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sigma", [0.5, 0.66, 0.83, 1.0])
def test_blur_equals_the_library(shape, sigma) -> None:
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform

    image = image_of(shape)
    dims, channels = len(shape) - 1, shape[0]
    sigmas = [sigma, 0.9, 0.55][:dims]
    transform = GaussianBlurTransform((0.5, 1.0), benchmark=False)
    expected = transform._apply_to_image(
        image.clone(), apply_to_channel=torch.ones(channels, dtype=bool), sigmas=[sigmas] * channels
    )
    result = augmented(image, blur=(tuple(sigmas),) * channels)
    torch.testing.assert_close(result, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fraction", [0.5, 0.63, 0.9, 0.99])
def test_low_resolution_equals_the_library(shape, fraction) -> None:
    from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform

    image = image_of(shape)
    transform = SimulateLowResolutionTransform((0.5, 1), False, True, None)
    expected = transform._apply_to_image(
        image.clone(), apply_to_channel=[0], scales=torch.full((1, len(shape) - 1), fraction)
    )
    result = augmented(image, low_resolution=(fraction, None)[: shape[0]])
    torch.testing.assert_close(result, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.7, 1.0, 1.4])
@pytest.mark.parametrize("inverted", [False, True])
def test_gamma_equals_the_library(gamma, inverted) -> None:
    from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform

    image = image_of((1, 11, 13, 12))
    transform = GammaTransform((0.7, 1.5), float(inverted), False, 1, 1)
    expected = transform._apply_to_image(
        image.clone(),
        apply_to_channel=torch.tensor([0]),
        retain_stats=torch.tensor([True]),
        invert_image=torch.tensor([inverted]),
        gamma=torch.tensor([gamma]),
    )
    name = "gamma_inverted" if inverted else "gamma"
    torch.testing.assert_close(augmented(image, **{name: (gamma,)}), expected, atol=2e-5, rtol=1e-5)


def test_contrast_and_brightness_equal_the_library() -> None:
    from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform

    image = image_of((2, 17, 14))
    transform = ContrastTransform((0.75, 1.25), True, False)
    expected = transform._apply_to_image(
        image.clone(), apply_to_channel=torch.arange(2), multipliers=torch.tensor([0.8, 1.2])
    )
    torch.testing.assert_close(augmented(image, contrast=(0.8, 1.2)), expected)
    result = augmented(image, brightness=(0.8, 1.2))
    torch.testing.assert_close(result, image * torch.tensor([0.8, 1.2])[:, None, None])


def test_rotation_equals_the_library() -> None:
    from batchgeneratorsv2.transforms.spatial.spatial import create_affine_matrix_2d, create_affine_matrix_3d

    angles = [0.3, -0.2, 0.5]
    np.testing.assert_allclose(rotation_matrix(angles) * 1.2, create_affine_matrix_3d(angles, [1.2] * 3), atol=1e-12)
    np.testing.assert_allclose(rotation_matrix([0.4]) * 0.8, create_affine_matrix_2d(0.4, [0.8] * 2), atol=1e-12)


def test_blur_matrix_by_hand() -> None:
    matrix = blur_matrix(4, 0.5)  # three taps: 6 * 0.5 + 0.5 = 3.5
    side = math.exp(-2.0)
    middle, side = 1 / (1 + 2 * side), side / (1 + 2 * side)
    expected = [[middle, 2 * side, 0, 0], [side, middle, side, 0], [0, side, middle, side], [0, 0, 2 * side, middle]]
    np.testing.assert_allclose(matrix, expected, atol=1e-7)
    assert blur_matrix(1, 0.8) is None
    np.testing.assert_allclose(blur_matrix(2, 1.0).sum(1), 1, atol=1e-6)  # a kernel far wider than the axis


def test_low_resolution_matrix_by_hand() -> None:
    # 4 samples to 2 (positions 1 and 3, the nearest to 0.5 + 1/2 and 2.5 + 1/2), back at -0.25, 0.25, 0.75, 1.25
    expected = [[0, 1, 0, 0], [0, 0.75, 0, 0.25], [0, 0.25, 0, 0.75], [0, 0, 0, 1]]
    np.testing.assert_allclose(low_resolution_matrix(4, 0.5), expected)
    assert low_resolution_matrix(3, 0.9) is None  # rounds to all samples


def test_apply_along_axes_leaves_axes_without_a_matrix() -> None:
    channel = torch.arange(6.0).reshape(2, 3)
    apply_along_axes(channel, [torch.tensor([[0.0, 1.0], [1.0, 0.0]]), None])
    assert channel.tolist() == [[3, 4, 5], [0, 1, 2]]


def test_gamma_keeps_mean_and_standard_deviation_and_constant_patches() -> None:
    channel = image_of((20, 20))
    before = channel.clone()
    change_gamma(channel, 1.5, inverted=False)
    assert channel.mean().item() == pytest.approx(before.mean().item(), abs=1e-5)
    assert channel.std().item() == pytest.approx(before.std().item(), rel=1e-4)
    assert not torch.allclose(channel, before, atol=1e-2)
    constant = torch.full((4, 4), 2.5)
    change_gamma(constant, 0.7, inverted=True)
    assert torch.all(constant == 2.5)


def test_noise_has_the_drawn_standard_deviation_and_depends_on_its_seed() -> None:
    image = torch.zeros(2, 60, 60)
    first, second = augmented(image, noise=(0.05, 7)), augmented(image, noise=(0.05, 8))
    assert first.std().item() == pytest.approx(0.05, rel=0.05)
    assert torch.equal(first, augmented(image, noise=(0.05, 7)))
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


def test_outside_of_a_masked_channel_stays_zero() -> None:
    image = image_of((2, 8, 8)).abs() + 1
    image[:, :3] = 0
    result = augmented(image, masked=(0,), noise=(0.1, 3), gamma=(1.3, 1.3))
    assert torch.all(result[0, :3] == 0)
    assert torch.all(result[0, 3:] != 0)
    assert torch.all(result[1, :3] != 0)


def test_in_plane_recipe_leaves_the_first_axis() -> None:
    recipe = recipe_for_patch((8, 32, 32), True)
    rng = np.random.default_rng(0)
    matrices = [m for m in (draw_augmentation(recipe, 1, rng).affine for _ in range(200)) if m is not None]
    assert matrices
    assert all(m[0].tolist() == [1, 0, 0] and m[:, 0].tolist() == [1, 0, 0] for m in matrices)
    image = image_of((1, 8, 12, 12))
    result = image.clone()
    augment_intensity(result, replace(NOTHING, low_resolution=(0.5,)), recipe, ())
    alone = image[:, 2:3].clone()
    augment_intensity(alone, replace(NOTHING, low_resolution=(0.5,)), recipe, ())
    torch.testing.assert_close(result[:, 2:3], alone)


@pytest.mark.parametrize(
    ("patch", "in_plane", "degrees"),
    [((40, 56, 40), False, 30), ((16, 160, 160), True, 180), ((128, 160), False, 180), ((128, 256), False, 15)],
)
def test_rotation_range_follows_the_patch(patch, in_plane, degrees) -> None:
    assert recipe_for_patch(patch, in_plane).rotation[1] == pytest.approx(math.radians(degrees))


def test_frequencies_and_ranges_are_those_of_the_recipe() -> None:
    rng = np.random.default_rng(0)
    recipe = recipe_for_patch((40, 56, 40), False)
    draws = [draw_augmentation(recipe, 2, rng) for _ in range(6000)]

    def fraction(of) -> float:
        return sum(bool(of(d)) for d in draws) / len(draws)

    expected = {
        "affine": 1 - 0.8 * 0.8,
        "noise": 0.1,
        "blur": 0.2,
        "brightness": 0.15,
        "contrast": 0.15,
        "low_resolution": 0.25,
        "gamma_inverted": 0.1,
        "gamma": 0.3,
    }
    for name, probability in expected.items():
        assert fraction(lambda d, name=name: getattr(d, name) is not None) == pytest.approx(probability, abs=0.02)
    for axis in range(3):
        assert fraction(lambda d, axis=axis: d.mirror[axis]) == pytest.approx(0.5, abs=0.02)
    assert fraction(lambda d: d.blur and d.blur[1]) == pytest.approx(0.1, abs=0.02)
    assert fraction(lambda d: d.low_resolution and d.low_resolution[0]) == pytest.approx(0.125, abs=0.02)
    factors = np.array([d.gamma[0] for d in draws if d.gamma])
    assert 0.7 <= factors.min() < 0.72
    assert 1.48 < factors.max() <= 1.5
    assert (factors < 1).mean() == pytest.approx(0.5, abs=0.04)
    sizes = np.array([abs(np.linalg.det(d.affine)) ** (1 / 3) for d in draws if d.affine is not None])
    assert 0.7 - 1e-9 <= sizes.min() < 0.71
    assert 1.38 < sizes.max() <= 1.4 + 1e-9
    assert (np.abs(sizes - 1) < 1e-9).mean() == pytest.approx(0.16 / 0.36, abs=0.04)  # rotated only
    assert all(d.noise[0] <= 0.1 for d in draws if d.noise)


def test_a_draw_depends_on_its_generator_alone() -> None:
    recipe = recipe_for_patch((16, 16), False)
    state = repr(np.random.get_state()), torch.get_rng_state()  # noqa: NPY002
    first = [draw_augmentation(recipe, 1, np.random.default_rng(5)) for _ in range(2)]
    assert repr(first[0]) == repr(first[1])
    assert repr(np.random.get_state()) == state[0]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), state[1])


def test_only_the_axes_that_are_given_are_mirrored_and_half_a_turn_is_no_way_around() -> None:
    recipe = recipe_for_patch((40, 56, 40), False, (0, 2))
    draws = [draw_augmentation(recipe, 1, np.random.default_rng(i)) for i in range(200)]
    assert [any(d.mirror[axis] for d in draws) for axis in range(3)] == [True, False, True]
    assert recipe_for_patch((128, 160), False, (1,)).rotation[1] == pytest.approx(math.radians(15))
    assert recipe_for_patch((16, 160, 160), True, (1, 2)).rotation[1] == pytest.approx(math.radians(180))
    assert recipe_for_patch((16, 160, 160), True, (0, 1)).rotation[1] == pytest.approx(math.radians(15))
