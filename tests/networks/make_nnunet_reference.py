"""Writes nnunet_reference.npz: outputs of nnU-Net's library for small networks, to compare ours with.

Run it where dynamic-network-architectures is installed (0.4.4 was): python tests/networks/make_nnunet_reference.py
Weights are not stored: both sides compute them from the names by `weights_of`.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

REFERENCE = Path(__file__).with_name("nnunet_reference.npz")
CASES: dict[str, dict[str, Any]] = {
    "plain_2d": {
        "features_per_stage": [4, 6, 8],
        "kernel_sizes": [[3, 3], [3, 3], [3, 3]],
        "strides": [[1, 1], [2, 2], [2, 1]],
        "n_conv_per_stage": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
    },
    "plain_3d": {
        "features_per_stage": [4, 5, 6],
        "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        "n_conv_per_stage": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
    },
    "resenc_2d": {
        "features_per_stage": [4, 6, 6, 8],
        "kernel_sizes": [[3, 3], [3, 3], [3, 3], [3, 3]],
        "strides": [[1, 1], [2, 2], [2, 2], [1, 2]],
        "n_blocks_per_stage": [1, 3, 2, 1],
        "n_conv_per_stage_decoder": [1, 1, 1],
    },
    "resenc_3d": {
        "features_per_stage": [4, 5, 5],
        "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        "n_blocks_per_stage": [2, 1, 2],
        "n_conv_per_stage_decoder": [1, 1],
    },
}
SHAPES = {2: (2, 2, 16, 24), 3: (1, 2, 6, 8, 12)}  # (B, C, *patch)
NUM_CLASSES = 3


def random_values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values of a parameter (or of the image), which follow from its name alone."""
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)


def weights_of(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A state by the library's names; what is registered twice has one value."""
    return {name: random_values(first_name(name), shape) * 0.5 for name, shape in shapes.items()}


def first_name(name: str) -> str:
    """The name that a parameter has beside `all_modules` and `decoder.encoder`."""
    name = name.removeprefix("decoder.") if name.startswith("decoder.encoder.") else name
    return name.replace("all_modules.0.", "conv.").replace("all_modules.1.", "norm.")


def main() -> None:
    """Write the file."""
    import torch
    from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
    from torch import nn

    stored: dict[str, np.ndarray] = {}
    for case, kwargs in CASES.items():
        dims = len(kwargs["strides"][0])
        network = (PlainConvUNet if case.startswith("plain") else ResidualEncoderUNet)(
            input_channels=2,
            n_stages=len(kwargs["strides"]),
            conv_op={2: nn.Conv2d, 3: nn.Conv3d}[dims],
            num_classes=NUM_CLASSES,
            conv_bias=True,
            norm_op={2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dims],
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
            deep_supervision=True,
            **kwargs,
        )
        shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        network.load_state_dict({name: torch.from_numpy(v) for name, v in weights_of(shapes).items()})
        image = torch.from_numpy(random_values("image", SHAPES[dims]))
        with torch.no_grad():
            for i, logits in enumerate(network.eval()(image)):
                stored[f"{case}/logits/{i}"] = logits.numpy()
        stored[f"{case}/shapes"] = np.array(json.dumps(shapes))
        stored[f"{case}/feature_map_values"] = np.array(network.compute_conv_feature_map_size(SHAPES[dims][2:]))
    np.savez_compressed(REFERENCE, **stored)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
