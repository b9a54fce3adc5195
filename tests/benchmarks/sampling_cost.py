"""What samples cost beside one forward pass of the segmenter: multiply-adds, and seconds on this machine.

    python tests/benchmarks/sampling_cost.py [--repeats 5] [--threads 1]

Networks are untrained: cost does not depend on weights. "default" has nnU-Net's widths (32, 64, ... up to 320 in 3D and
512 in 2D, two convolutions a level), "cpu" the widths that are planned for a CPU (16 to 128). One patch, all of it
active, 8 samples; seconds are medians over repeats of the network calls alone, the two in turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from unisegdiff_pipeline.io.labels import LabelScheme
from unisegdiff_pipeline.networks.denoiser import Denoiser
from unisegdiff_pipeline.networks.staged_model import StagedModel
from unisegdiff_pipeline.networks.unet import SegmentationUNet
from unisegdiff_pipeline.planning.plans import DenoiserPlan, LevelPlan, NetworkPlan

LESION = LabelScheme(("lesion",), ((1,),), "binary", (1,))
SAMPLES, CALLS = 8, (1, 2, 4, 8)
PATCHES = {
    ("2D", "default"): (256, 256),
    ("2D", "cpu"): (112, 128),
    ("3D", "default"): (64, 64, 64),
    ("3D", "cpu"): (32, 40, 32),
}
WIDTHS = {
    ("2D", "default"): (32, 64, 128, 256, 512, 512),
    ("2D", "cpu"): (16, 32, 64, 128, 128),
    ("3D", "default"): (32, 64, 128, 256, 320),
    ("3D", "cpu"): (16, 32, 64, 128),
}


def model_of(kind: tuple[str, str]) -> tuple[StagedModel, tuple[int, ...]]:
    patch, dims = PATCHES[kind], len(PATCHES[kind])
    levels = tuple(
        LevelPlan(width, (1 if i == 0 else 2,) * dims, (3,) * dims, 2) for i, width in enumerate(WIDTHS[kind])
    )
    plan = NetworkPlan(dims, patch, 1, levels)
    denoiser = Denoiser(plan, DenoiserPlan(), 1, "binary")
    return StagedModel(SegmentationUNet(plan, 1), denoiser, LESION).eval(), patch


def multiply_adds(function: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    columns = ["network", "patch", "call / forward, multiply-adds", "8 samples x 4 calls + forward"]
    columns += ["call of 8 samples / forward, seconds", *(f"{n} calls" for n in CALLS)]
    print("|", " | ".join(columns), "|")
    for kind in PATCHES:
        model, patch = model_of(kind)
        image, x_t = torch.randn(1, 1, *patch), torch.randn(SAMPLES, 1, *patch)
        lam = torch.zeros(SAMPLES)
        with torch.inference_mode():
            condition = model.condition(image)

            def forward(model: StagedModel = model, image: torch.Tensor = image) -> object:
                return model.segmenter(image)

            def call(model=model, x_t=x_t, lam=lam, condition=condition) -> object:  # type: ignore[no-untyped-def]
                return model.denoise(x_t, lam, condition.det_logits, condition.features)

            ratio = multiply_adds(call) / SAMPLES / multiply_adds(forward)
            seconds: dict[str, list[float]] = {"forward": [], "call": []}
            for _ in range(args.repeats + 1):
                for name, function in (("forward", forward), ("call", call)):
                    start = time.perf_counter()
                    function()
                    seconds[name].append(time.perf_counter() - start)
        medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
        in_time = medians["call"] / medians["forward"]
        totals = "".join(f" {1 + n * in_time:.1f}x |" for n in CALLS)
        print(f"| {' '.join(kind)} | {' x '.join(map(str, patch))} | {ratio:.3f} | {1 + 4 * SAMPLES * ratio:.2f}x "
              f"| {in_time:.2f} |{totals}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
