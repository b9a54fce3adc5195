"""Weights of a small network inside of a larger one."""

from __future__ import annotations

import pytest
import torch

from unisegdiff_pipeline.networks.unet import SegmentationUNet
from unisegdiff_pipeline.planning.plans import LevelPlan, NetworkPlan
from unisegdiff_pipeline.training.embedding import embedded


def unet(features: tuple[int, ...], dims: int = 2, seed: int = 0) -> SegmentationUNet:
    """In 3D the second level keeps its slices, the third halves them."""
    strides = [(1, 1, 1), (1, 2, 2), (2, 2, 2)]
    levels = tuple(LevelPlan(f, s[3 - dims :], (3,) * dims, 2) for f, s in zip(features, strides, strict=False))
    torch.manual_seed(seed)
    return SegmentationUNet(NetworkPlan(dims, (4, 16, 16)[3 - dims :], 1, levels), 1).eval()


def put_inside(source: SegmentationUNet, network: SegmentationUNet) -> None:
    there = source.state_dict()
    for name, value in network.state_dict().items():
        weight = embedded(f"segmenter.{name}", there[name], value)
        assert weight is not None
        value.copy_(weight)


@torch.no_grad()
def logits_of(network: SegmentationUNet, image: torch.Tensor) -> torch.Tensor:
    return network(image).logits[0]


def test_a_wider_network_answers_as_the_one_inside() -> None:
    source, wide = unet((2, 3, 4), seed=1), unet((3, 7, 8), seed=2)
    put_inside(source, wide)
    image = torch.randn(2, 1, 16, 16)
    assert torch.allclose(logits_of(source, image), logits_of(wide, image), atol=1e-5)


def test_equal_slices_of_a_volume_are_answered_to_as_by_the_2d_network() -> None:
    source, volume = unet((2, 3)), unet((4, 5), dims=3, seed=2)
    put_inside(source, volume)
    image = torch.randn(1, 1, 16, 16)
    found = logits_of(volume, image[:, :, None].expand(-1, -1, 4, -1, -1).contiguous())
    for z in range(4):
        assert torch.allclose(logits_of(source, image), found[:, :, z], atol=1e-5)


def test_a_convolution_by_hand() -> None:
    source = torch.tensor([[2.0, 3.0]]).reshape(1, 2, 1, 1)
    value = torch.full((2, 4, 1, 1), 9.0)
    name = "segmenter.encoder.1.0.0.weight"
    assert embedded(name, source, value).flatten().tolist() == [2, 3, 0, 0, 9, 9, 9, 9]  # type: ignore[union-attr]
    # Behind a concatenation the first half is what came up, the second the skip.
    name = "segmenter.decoder.0.0.0.weight"
    assert embedded(name, source, value).flatten().tolist() == [2, 0, 3, 0, 9, 9, 9, 9]  # type: ignore[union-attr]
    # An upsampling has its inputs first.
    found = embedded("segmenter.up.0.weight", source.movedim(1, 0), value.movedim(1, 0))
    assert found is not None
    assert found.movedim(0, 1).flatten().tolist() == [2, 3, 0, 0, 9, 9, 9, 9]


@pytest.mark.parametrize("shape", [(1, 2, 3, 3), (2, 1, 3, 3), (2, 2, 5, 5), (2, 2, 1, 3), (2, 2, 3, 1, 3)])
def test_what_is_narrower_or_of_another_kernel_has_no_place(shape: tuple[int, ...]) -> None:
    assert embedded("segmenter.encoder.1.0.0.weight", torch.ones(2, 2, 3, 3), torch.zeros(shape)) is None


def test_a_norm_keeps_the_values_of_new_channels() -> None:
    name = "segmenter.encoder.1.0.1.bias"
    assert embedded(name, torch.tensor([5.0]), torch.tensor([0.0, 1.0])).tolist() == [5, 1]  # type: ignore[union-attr]
    assert embedded(name, torch.ones(3), torch.zeros(2)) is None
