"""Ways to start from trained weights, at equal iterations: what is loaded, and how fast it learns on.

    python -m tests.benchmarks.loading --folder FOLDER --plans NAME --start FOLD [--ways whole heads-new ...]

FOLDER is a preprocessed data set with the 2D plan NAME and folds as `fine_tuning.py` makes them, of which fold 0 is
trained: phase 1 alone, in bfloat16. After every quarter of the iterations the moving average is scored on the cases of
validation, on the grid of the plan: Dice of each class where the reference has it.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from torch import Tensor, nn

from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.serialization import read_dataclass, read_json
from unisegdiff_pipeline.networks.layout import to_device
from unisegdiff_pipeline.networks.staged_model import StagedModel, build_segmenter
from unisegdiff_pipeline.networks.unet import SegmentationUNet
from unisegdiff_pipeline.planning.plans import PLANS_PREFIX, Plans
from unisegdiff_pipeline.preprocessing.storage import PreprocessedFolder
from unisegdiff_pipeline.training.data.patches import PatchSource
from unisegdiff_pipeline.training.ema import Ema
from unisegdiff_pipeline.training.pretrained import load_start, read_start
from unisegdiff_pipeline.training.schedule import learning_rate
from unisegdiff_pipeline.training.trainers.segmentation import COUNTED_PATCHES, segmentation_loss
from unisegdiff_pipeline.training.trainers.trainer import GRADIENT_CLIP

SLOW = 0.3
WAYS = {
    "alone": "random weights",
    "whole": "all that fits, as usd_train --pretrained",
    "slow": f"all that fits, at {SLOW:g} of the learning rate",
    "heads-new": "all but the heads",
    "encoder": "the encoder alone",
    "rescaled": "all that fits, convolutions with the norm that they have at random",
    "rescaled-heads-new": "all but the heads, convolutions with the norm that they have at random",
}
Scored = list[tuple[Tensor, np.ndarray]]  # slices (Z, C, Y, X) padded for the network, reference (K, Z, Y, X)


@torch.no_grad()
def load(network: SegmentationUNet, plans: Plans, way: str, start: Path) -> None:
    """Load a start into a network in one of the ways."""
    at_random = {name: value.clone() for name, value in network.state_dict().items()}
    load_start(StagedModel(network, None, plans.labels), plans.configurations["2d"].network, read_start(start))
    for name, value in network.state_dict().items():
        is_head = name.startswith("heads.")
        if (is_head and way.endswith("heads-new")) or (way == "encoder" and not name.startswith("encoder.")):
            value.copy_(at_random[name])
        elif way.startswith("rescaled") and value.ndim > 2 and name.startswith(("encoder.", "decoder.")):
            value.mul_(at_random[name].norm() / value.norm())


def read_scored(store: PreprocessedFolder, cases: list[str], labels: LabelScheme, divisor: tuple[int, ...]) -> Scored:
    """The validation cases that have a lesion."""
    scored = []
    for case_id in cases:
        case = store.open(case_id).load()
        reference = labels.encode(np.asarray(case.labels[0])).astype(bool)
        if reference[labels.foreground_offset :].any():
            image = torch.from_numpy(np.asarray(case.image, np.float32)).movedim(0, 1)
            (y, x), (step_y, step_x) = image.shape[-2:], divisor
            scored.append((nn.functional.pad(image, (0, -x % step_x, 0, -y % step_y)), reference))
    return scored


@torch.no_grad()
def mean_dice(network: nn.Module, scored: Scored, labels: LabelScheme) -> float:
    """Mean over cases, then over classes."""
    of_classes: list[list[float]] = [[] for _ in labels.names]
    for image, reference in scored:
        logits = network(image).logits[0].float()
        if labels.coding == "softmax":
            found = nn.functional.one_hot(logits.argmax(dim=1), logits.shape[1]).movedim(-1, 1).bool()
        else:
            found = logits > 0
        masks = found.movedim(0, 1)[..., : reference.shape[-2], : reference.shape[-1]].numpy()
        first = labels.foreground_offset
        for dice, mask, truth in zip(of_classes, masks[first:], reference[first:], strict=True):
            if truth.any():
                dice.append(2 * float((mask & truth).sum()) / float(mask.sum() + truth.sum()))
    return fmean(fmean(dice) for dice in of_classes if dice)


def train(args: argparse.Namespace, way: str, seed: int) -> list[tuple[int, float, float]]:
    """(iteration, mean training loss since the last entry, Dice) after each quarter."""
    plans = read_dataclass(Plans, args.folder / f"{PLANS_PREFIX}{args.plans}.json")
    configuration = plans.configurations["2d"]
    plan = replace(configuration.training, batch_size=args.batch)
    configuration = replace(configuration, training=plan)
    store = PreprocessedFolder(args.folder / f"2d__{PLANS_PREFIX}{args.plans}")
    split = read_json(args.folder / "splits_final.json")[0]
    source = PatchSource(store, split["train"], configuration, plans.labels, seed)
    torch.manual_seed(seed)
    network = build_segmenter(configuration, plans.labels)
    unaugmented = PatchSource(store, split["train"], configuration, plans.labels, seed, augment=False)
    network.start_from(unaugmented.channel_fractions(COUNTED_PATCHES), plans.labels.coding)
    if way != "alone":
        load(network, plans, way, args.start)
    network = to_device(network, torch.device("cpu")).train()
    scored = read_scored(store, split["val"], plans.labels, network.divisor)
    ema = Ema(network, plan.ema_decay)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=plan.weight_decay, fused=True)
    rate = plan.learning_rate * (SLOW if way == "slow" else 1.0)
    curve, losses = [], []
    for i in range(args.iterations):
        batch = source.batch(i)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(rate, i, i / args.iterations)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            loss = segmentation_loss(network(batch.image).logits, batch, configuration, plans.labels.coding).loss
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_CLIP)
        optimizer.step()
        ema.update(network, i)
        losses.append(loss.item())
        if (i + 1) % (args.iterations // 4) == 0:
            curve.append((i + 1, fmean(losses), mean_dice(ema.network, scored, plans.labels)))
            losses.clear()
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--plans", required=True)
    parser.add_argument("--start", type=Path, required=True, help="a fold folder")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--iterations", type=int, default=160)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    args = parser.parse_args()
    for seed in args.seeds:
        for way in args.ways:
            cells = [f"{loss:.2f} | {dice:.3f}" for _, loss, dice in train(args, way, seed)]
            print(f"| {WAYS[way]} | {seed} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
