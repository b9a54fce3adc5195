"""Our networks against the library's own outputs (nnunet_reference.npz, written by make_nnunet_reference.py)."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.networks.make_nnunet_reference import CASES, NUM_CLASSES, REFERENCE, SHAPES, random_values, weights_of
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.networks.nnunet_names import network_of, translated, without_duplicates
from unisegdiff_pipeline.networks.unet import SegmentationUNet
from unisegdiff_pipeline.planning.plans import LevelPlan, NetworkPlan
from unisegdiff_pipeline.planning.topology import feature_map_values, level_shapes


def library_state(case: str) -> dict[str, Tensor]:
    shapes = json.loads(str(np.load(REFERENCE)[f"{case}/shapes"]))
    values = weights_of({name: tuple(shape) for name, shape in shapes.items()})
    return {name: torch.from_numpy(value) for name, value in values.items()}


def patch_of(case: str) -> tuple[int, ...]:
    return SHAPES[len(CASES[case]["strides"][0])][2:]


def plan_of(case: str) -> NetworkPlan:
    kwargs = CASES[case]
    counts = kwargs.get("n_conv_per_stage") or kwargs["n_blocks_per_stage"]
    lists = zip(kwargs["features_per_stage"], kwargs["strides"], kwargs["kernel_sizes"], counts, strict=True)
    levels = tuple(LevelPlan(width, tuple(stride), tuple(kernel), count) for width, stride, kernel, count in lists)
    return NetworkPlan(len(levels[0].stride), patch_of(case), 2, levels, "plain" if "plain" in case else "resenc")


def loaded(case: str) -> SegmentationUNet:
    weights = without_duplicates(library_state(case))
    network = network_of(weights, patch_of(case))
    assert network == plan_of(case)
    model = SegmentationUNet(network, NUM_CLASSES)
    model.load_state_dict(translated(weights, network))  # strict: all parameters, and no others
    return model


@pytest.mark.parametrize("case", CASES)
def test_same_weights_give_the_outputs_of_the_library(case: str) -> None:
    model, image = loaded(case), torch.from_numpy(random_values("image", SHAPES[len(CASES[case]["strides"][0])]))
    with np.load(REFERENCE) as stored:
        expected = [stored[f"{case}/logits/{i}"] for i in range(len(CASES[case]["strides"]) - 1)]
    with torch.no_grad():
        training, alone = model.train()(image).logits, model.eval()(image).logits
    for result, logits in zip(training, expected, strict=True):
        assert np.abs(logits).max() > 0.5
        assert np.abs(result.numpy() - logits).max() < 1e-4
    assert len(alone) == 1
    assert np.abs(alone[0].numpy() - expected[0]).max() < 1e-4


@pytest.mark.parametrize("case", CASES)
def test_memory_is_estimated_as_the_library_does(case: str) -> None:
    plan = plan_of(case)
    coarser_heads = NUM_CLASSES * sum(int(np.prod(shape)) for shape in level_shapes(plan)[1:-1])
    with np.load(REFERENCE) as stored:
        assert feature_map_values(plan, NUM_CLASSES) + coarser_heads == int(stored[f"{case}/feature_map_values"])


def test_prefixes_and_duplicates_are_dropped() -> None:
    state = library_state("resenc_2d")
    assert any("all_modules" in name for name in state)
    assert any(name.startswith("decoder.encoder.") for name in state)
    plain = without_duplicates(state)
    assert set(without_duplicates({f"_orig_mod.{name}": v for name, v in state.items()})) == set(plain)
    assert set(without_duplicates({f"module._orig_mod.{name}": v for name, v in state.items()})) == set(plain)
    assert len(plain) < len(state) / 2


def test_convolutions_without_bias_are_the_same_network() -> None:
    weights = without_duplicates(library_state("resenc_2d"))
    bare = {
        name: v for name, v in weights.items() if not name.endswith("conv.bias") and "transpconvs.0.bias" not in name
    }
    network = network_of(bare, patch_of("resenc_2d"))
    with_zeros = translated(bare, network)
    assert with_zeros["up.2.bias"].tolist() == [0.0] * 6
    expected = translated(weights, network)
    assert all(torch.equal(v, expected[name]) for name, v in with_zeros.items() if name != "up.2.bias")


def test_weights_of_another_network_are_refused() -> None:
    weights = without_duplicates(library_state("resenc_3d"))
    network = network_of(weights, patch_of("resenc_3d"))
    foreign = "encoder.stages.1.blocks.0.squeeze_excitation.fc1.weight"
    with pytest.raises(UsdError, match=r"squeeze_excitation.fc1.weight, which .* do not have"):
        translated(weights | {foreign: torch.zeros(1)}, network)
    with pytest.raises(UsdError, match="not those of nnU-Net's PlainConvUNet or ResidualEncoderUNet"):
        network_of({"features.0.weight": torch.zeros(3, 3, 3, 3)}, (8, 8))
    incomplete = {name: v for name, v in weights.items() if name != "encoder.stages.2.blocks.1.conv2.norm.bias"}
    with pytest.raises(UsdError, match=r"encoder.2.1.norm.bias missing for \[5\]"):
        translated(incomplete, network)
    narrow = weights | {"decoder.stages.1.convs.0.conv.weight": torch.zeros(4, 4, 1, 3, 3)}  # without skip connections
    with pytest.raises(UsdError, match=r"decoder.0.0.0.weight \[4, 4, 1, 3, 3\] for \[4, 8, 1, 3, 3\]"):
        translated(narrow, network)
    without_decoder = {name: v for name, v in weights.items() if not name.startswith("decoder.")}
    with pytest.raises(UsdError, match="without a decoder nothing tells the strides"):
        network_of(without_decoder, (6, 8, 12))
