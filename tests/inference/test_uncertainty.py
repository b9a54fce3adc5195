"""Normalised entropy by hand."""

from __future__ import annotations

import math

import pytest
import torch

from unisegdiff_pipeline.inference.uncertainty import normalised_entropy


def voxel(*p: float) -> torch.Tensor:
    return torch.tensor(p).reshape(-1, 1, 1, 1)


def test_binary() -> None:
    assert float(normalised_entropy(voxel(0.5), "binary")) == pytest.approx(1)
    assert float(normalised_entropy(voxel(0.0), "binary")) == 0
    expected = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))  # 0.811 bits
    assert float(normalised_entropy(voxel(0.25), "binary")) == pytest.approx(expected)


def test_softmax_is_a_share_of_ln_k() -> None:
    assert float(normalised_entropy(voxel(1 / 3, 1 / 3, 1 / 3), "softmax")) == pytest.approx(1)
    assert float(normalised_entropy(voxel(0.5, 0.5, 0.0), "softmax")) == pytest.approx(math.log(2) / math.log(3))


def test_regions_take_the_least_sure() -> None:
    assert float(normalised_entropy(voxel(1.0, 0.5), "regions")) == pytest.approx(1)
    assert normalised_entropy(torch.rand(2, 3, 4, 5), "regions").shape == (3, 4, 5)
