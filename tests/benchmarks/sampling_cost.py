"""What samples cost beside one forward pass of the segmenter: multiply-adds, and seconds on this machine.

    python tests/benchmarks/sampling_cost.py [--repeats N] [--threads N] [--device D] [--large] [--tiles N] [--graphs]

Networks are untrained: cost does not depend on weights. "default" has nnU-Net's widths (32, 64, ... up to 320 in 3D and
512 in 2D, two convolutions a level), "cpu" the widths that are planned for a CPU (16 to 128); the denoiser is as wide
as planned for each. One patch or several in a batch, as tiles of a volume are, all of them active, 8 samples each;
seconds are medians over repeats of the network calls alone, the two in turn, in the number format that prediction takes
on that device. With --graphs both are replayed as CUDA graphs, which takes away the time of launching kernels one by
one.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.diffusion.schedule import NoiseLevel
from unisegdiff_pipeline.networks.allocator import keep_freed_memory
from unisegdiff_pipeline.networks.denoiser import Denoiser, repeat_examples
from unisegdiff_pipeline.networks.layout import to_device
from unisegdiff_pipeline.networks.precision import autocast, resolve_device
from unisegdiff_pipeline.networks.staged_model import StagedModel
from unisegdiff_pipeline.networks.unet import SegmentationUNet
from unisegdiff_pipeline.planning.planner import denoiser_widths
from unisegdiff_pipeline.planning.plans import DenoiserPlan, LevelPlan, NetworkPlan

LESION = LabelScheme(("lesion",), ((1,),), "binary", (1,))
SAMPLES, CALLS = 8, (1, 2, 4, 8)
PATCHES = {
    ("2D", "default"): (256, 256),
    ("2D", "cpu"): (112, 128),
    ("3D", "default"): (64, 64, 64),
    ("3D", "cpu"): (32, 40, 32),
}
LARGE_PATCHES = {("2D", "default"): (512, 512), ("3D", "default"): (128, 128, 128)}  # --large: nnU-Net's common ones
WIDTHS = {
    ("2D", "default"): (32, 64, 128, 256, 512, 512),
    ("2D", "cpu"): (16, 32, 64, 128, 128),
    ("3D", "default"): (32, 64, 128, 256, 320),
    ("3D", "cpu"): (16, 32, 64, 128),
}


def model_of(kind: tuple[str, str], patch: tuple[int, ...]) -> StagedModel:
    dims = len(patch)
    levels = tuple(
        LevelPlan(width, (1 if i == 0 else 2,) * dims, (3,) * dims, 2) for i, width in enumerate(WIDTHS[kind])
    )
    plan = NetworkPlan(dims, patch, 1, levels)
    denoiser = Denoiser(plan, DenoiserPlan(features=denoiser_widths(plan, 1)[0]), 1)
    return StagedModel(SegmentationUNet(plan, 1), denoiser, LESION).eval()


Work = tuple[Callable[[], object], Callable[[], object]]


def work_of(model: StagedModel, patch: tuple[int, ...], samples: int, device: torch.device, tiles: int = 1) -> Work:
    """One forward pass of the segmenter on some patches, and one call of the denoiser for so many samples of each."""
    image = torch.randn(tiles, 1, *patch, device=device)
    x_t = torch.randn(tiles * samples, 1, *patch, device=device)
    lam = torch.zeros(1, device=device)
    condition = model.condition(image)
    if tiles > 1:  # of one patch it broadcasts over its samples
        condition = condition.each(lambda values: repeat_examples(values, samples))
    return (
        lambda: model.segmenter(image),
        lambda: model.denoise(x_t, NoiseLevel(lam, lam), condition),
    )


def as_graph(function: Callable[[], object]) -> Callable[[], object]:
    """The same kernels, launched at once."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # a first run chooses kernels, which a capture must not
        function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def multiply_adds(model: StagedModel, patch: tuple[int, ...], device: torch.device) -> float:
    """Those of a call for one sample as a fraction of those of the segmenter's forward pass.

    With gradients, because the kernels that a CPU takes without them are unknown to the counter.
    """
    counts = []
    with torch.enable_grad():
        for function in work_of(model, patch, 1, device):
            with FlopCounterMode(display=False) as counter:
                function()
            counts.append(counter.get_total_flops())
    return counts[1] / counts[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--large", action="store_true", help="patches of 512 x 512 and 128 x 128 x 128")
    parser.add_argument("--tiles", type=int, default=1, help="patches in a batch")
    parser.add_argument("--graphs", action="store_true", help="replay CUDA graphs")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as the commands do
    device = resolve_device(args.device)
    if args.graphs and device.type != "cuda":
        parser.error("--graphs needs --device cuda")
    columns = ["network", "patch", "call / forward, multiply-adds", "8 samples x 4 calls + forward"]
    columns += ["forward, ms", "call of 8 samples / forward, seconds", *(f"{n} calls" for n in CALLS)]
    print("|", " | ".join(columns), "|")
    for kind, patch in (LARGE_PATCHES if args.large else PATCHES).items():
        model = to_device(model_of(kind, patch), device)
        ratio = multiply_adds(model, patch, device)
        seconds: dict[str, list[float]] = {"forward": [], "call": []}
        with torch.inference_mode(), autocast(device):
            work = work_of(model, patch, SAMPLES, device, args.tiles)
            functions = dict(zip(seconds, map(as_graph, work) if args.graphs else work, strict=True))
            for _ in range(args.repeats + 1):
                for name, function in functions.items():
                    start = time.perf_counter()
                    function()
                    if device.type == "cuda":
                        torch.cuda.synchronize()
                    seconds[name].append(time.perf_counter() - start)
        medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
        in_time = medians["call"] / medians["forward"]
        totals = "".join(f" {1 + n * in_time:.1f}x |" for n in CALLS)
        print(
            f"| {' '.join(kind)} | {' x '.join(map(str, patch))} | {ratio:.3f} | {1 + 4 * SAMPLES * ratio:.2f}x "
            f"| {1e3 * medians['forward']:.1f} | {in_time:.2f} |{totals}",
            flush=True,
        )


if __name__ == "__main__":
    main()
