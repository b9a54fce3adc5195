"""Train a segmenter on generated lesions, for `--pretrained synthetic`.

No picture is seen twice. A batch is of one size, and goes through as many of the finest levels as that size can use:
the features of a level are then of use as the coarsest ones too, and the same weights start networks of any depth.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from unisegdiff_pipeline.core.version import __version__
from unisegdiff_pipeline.diffusion.losses import mask_loss, over_batch
from unisegdiff_pipeline.inference.model_folder import save_tensors
from unisegdiff_pipeline.networks.unet import SegmentationUNet
from unisegdiff_pipeline.synthetic.pictures import draw_picture
from unisegdiff_pipeline.training.ema import Ema
from unisegdiff_pipeline.training.request import SYNTHETIC_WEIGHTS
from unisegdiff_pipeline.training.schedule import learning_rate
from unisegdiff_pipeline.training.synthetic_start import CHANNELS, FEATURES, LABELS, network_plan
from unisegdiff_pipeline.training.trainers.trainer import GRADIENT_CLIP, pool_targets

ITERATIONS = 1500
BATCH_SIZE = 8
SIZES = ((6, 96), (6, 96), (5, 64), (4, 64))  # (levels, edge in pixels) of a batch, each as often as it stands here
LEARNING_RATE, WEIGHT_DECAY, EMA_DECAY = 2e-3, 1e-2, 0.999
LESION_FRACTION = 0.07  # of the pixels, which the untrained network answers with
Progress = Callable[[int, float], None]  # iteration, loss


def pretrain(iterations: int, seed: int, progress: Progress = lambda iteration, loss: None) -> SegmentationUNet:
    """Train on pictures drawn from `seed`; returns the moving average of the weights.

    Runs in single precision on one machine are equal to the bit; bfloat16 halves the time on a CPU that computes it.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        network = SegmentationUNet(network_plan(), LABELS.num_channels).train()
        parts = {depth: finest_levels(network, depth) for depth, _ in SIZES}
    network.start_from(torch.tensor([LESION_FRACTION]), LABELS.coding)
    ema = Ema(network, EMA_DECAY)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY, fused=True)
    for i in range(iterations):
        rng = np.random.default_rng([seed, i])
        depth, edge = SIZES[rng.integers(len(SIZES))]
        image, target = draw_batch(rng, edge)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(LEARNING_RATE, i, i / iterations)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            logits = parts[depth](image).logits
        loss = _loss(logits, target)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_CLIP)
        optimizer.step()
        ema.update(network, i)
        progress(i, loss.item())
    averaged: SegmentationUNet = ema.network  # type: ignore[assignment]
    return averaged


def draw_batch(rng: np.random.Generator, edge: int) -> tuple[Tensor, Tensor]:
    """Square pictures (B, C, edge, edge) and their masks (B, 1, edge, edge), both float32."""
    pictures = [draw_picture(rng, (edge, edge), CHANNELS) for _ in range(BATCH_SIZE)]
    image = torch.from_numpy(np.stack([picture.image for picture in pictures]))
    return image, torch.from_numpy(np.stack([picture.mask for picture in pictures]))[:, None].float()


def finest_levels(network: SegmentationUNet, depth: int) -> SegmentationUNet:
    """A network of the finest `depth` levels, which shares its weights with the whole one."""
    if depth == len(FEATURES):
        return network
    part = SegmentationUNet(network_plan(depth), LABELS.num_channels)
    part.encoder, part.up = network.encoder[:depth], network.up[: depth - 1]
    part.decoder, part.heads = network.decoder[: depth - 1], network.heads[: depth - 1]
    return part.train(network.training)


def _loss(logits: tuple[Tensor, ...], target: Tensor) -> Tensor:
    """Dice + cross-entropy with deep supervision, the coarsest level left out as in training."""
    targets, masks = pool_targets(target, torch.ones_like(target), [(2, 2)] * (len(logits) - 1))
    weights = [0.5**i for i in range(max(1, len(logits) - 1))]
    parts = zip(weights, logits, targets, masks, strict=False)
    losses = [w * mask_loss(x, y, valid, LABELS.coding, 1.0, over_batch).mean() for w, x, y, valid in parts]
    return torch.stack(losses).sum() / sum(weights)


def save(network: SegmentationUNet, folder: Path, iterations: int, seed: int) -> Path:
    """Write the weights in half precision, with how they came about; returns the file, which `--pretrained` takes."""
    tensors = {f"segmenter.{name}": value.half() for name, value in network.state_dict().items()}
    origin = {"iterations": str(iterations), "seed": str(seed), "version": __version__}
    path = folder / SYNTHETIC_WEIGHTS.name
    save_tensors(path, tensors, origin)
    return path
