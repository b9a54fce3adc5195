"""python -m unisegdiff_pipeline.synthetic FOLDER: make the start of `--pretrained synthetic` again."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from unisegdiff_pipeline.synthetic.pretraining import ITERATIONS, pretrain, save

SHOWN_EVERY = 100


def main() -> None:
    """Parse, train, write."""
    parser = argparse.ArgumentParser("python -m unisegdiff_pipeline.synthetic", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the weights go")
    parser.add_argument("--iterations", type=int, default=ITERATIONS, help=f"default: {ITERATIONS}")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    args = parser.parse_args()
    losses: list[float] = []

    def progress(iteration: int, loss: float) -> None:
        losses.append(loss)
        if (iteration + 1) % SHOWN_EVERY == 0:
            print(f"{iteration + 1} of {args.iterations}: loss {sum(losses) / len(losses):.3f}", file=sys.stderr)
            losses.clear()

    network = pretrain(args.iterations, args.seed, progress)
    print(save(network, args.folder, args.iterations, args.seed))


if __name__ == "__main__":
    main()
