"""Peak memory and time of `usd_predict` on a large volume, with and without samples.

    python tests/benchmarks/prediction_memory.py --work FOLDER [--shape Z Y X] [--samples N] [--max-memory GB]
        [--repeats N] [--whole] [--planned] [--only-memory] [--core N]

The volume (int16, .nii.gz) is constant air around an ellipsoid of noisy tissue, 0.76 x 0.48 of the slice (380 x 240 mm
of a field of 500 mm) and the whole length, with a few bright balls in it; --whole fills it with tissue. The network is
tiny and random, but its logits follow the brightness: p_det is about 0.05 in tissue, high in the balls and next to
nothing in air, so all of the tissue is active. Probabilities and samples are written. With --planned, patch and widths
of both networks are those that `usd_plan` gives such volumes on a CPU of two cores; else the denoiser is as wide as the
segmenter, and both are narrow. With --only-memory the networks compute one tile, whose answer all others get, so that
volumes of many tiles take an hour less; times mean nothing then.

Runs with N and without samples take turns. Memory is the resident set of the command and its children, added up,
looked at ten times a second: pages that they share count twice, and so do those of temporary files in use.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from unisegdiff_pipeline.commands import predict as predict_command
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.serialization import write_json
from unisegdiff_pipeline.diffusion.samplers import SamplerSettings
from unisegdiff_pipeline.inference.model_folder import plan_hash, save_weights
from unisegdiff_pipeline.inference.settings import InferenceSettings, write_settings
from unisegdiff_pipeline.networks.staged_model import StagedModel, build_model
from unisegdiff_pipeline.networks.unet import SegmentationUNet, SegmenterOutput
from unisegdiff_pipeline.planning.planner import denoiser_widths
from unisegdiff_pipeline.planning.plans import (
    Budget,
    ConfigurationPlan,
    DenoiserPlan,
    LevelPlan,
    NetworkPlan,
    Plans,
    PreprocessingPlan,
    TrainingPlan,
)
from unisegdiff_pipeline.planning.sizing import Sizer

BUDGET = Budget("cpu", 8, 2)
PATCH = (64, 96, 96)
WIDTHS, DENOISER_WIDTHS = (4, 8, 8), (4, 4)
LESION = LabelScheme(("lesion",), ((1,),), "binary", (1,))
EDGES = (-500.0, 190.0)  # Hounsfield units between air, tissue and balls; the image is not normalised
LOGITS, ROUGHNESS = (-9.0, -3.0, 4.0), 0.5  # of air, tissue and balls
PATIENT = (1.0, 0.48, 0.76)  # axes of the ellipsoid as parts of the volume
NUM_BALLS, RADIUS = 12, 10
NOISE = 15.0  # standard deviation of tissue; Hounsfield units, as all values
RUN, RUN_ONLY_MEMORY = "--run", "--run-only-memory"  # first argument of the process that predicts
MODEL = "StagedDiffusionTrainer__tiny"


@dataclass(frozen=True)
class Run:
    """One command: what it took."""

    seconds: float
    cpu_seconds: float
    peak_gb: float
    own_gb: float


def make_volume(shape: tuple[int, int, int], whole: bool) -> np.ndarray:
    """Image (Z, Y, X), int16."""
    rng = np.random.default_rng(0)
    kind = np.zeros(shape, np.uint8)  # 0 air, 1 tissue, 2 a ball
    axes = [((np.arange(n) + 0.5) / n * 2 - 1) / part for n, part in zip(shape, PATIENT, strict=True)]
    in_slice = axes[1][:, None] ** 2 + axes[2] ** 2
    for z, height in enumerate(axes[0]):
        kind[z] = whole | (in_slice + height**2 <= 1)
    for _ in range(NUM_BALLS):
        centre = [int(n * rng.uniform(0.35, 0.65)) for n in shape]
        z, y, x = np.ogrid[tuple(slice(c - RADIUS, c + RADIUS + 1) for c in centre)]
        ball = (z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 <= RADIUS**2
        kind[z, y, x] = np.where(ball, 2, kind[z, y, x])
    image = np.full(shape, -1000, np.int16)
    for z in range(shape[0]):
        tissue = rng.normal(40, NOISE, shape[1:]) + 300 * (kind[z] == 2)
        image[z][kind[z] > 0] = tissue[kind[z] > 0]
    return image


def network_of(patch: Sequence[int], widths: Sequence[int], num_convs: int) -> NetworkPlan:
    """A 3D segmenter of one channel whose resolution is halved from level to level."""
    levels = tuple(LevelPlan(width, (1 if i == 0 else 2,) * 3, (3,) * 3, num_convs) for i, width in enumerate(widths))
    return NetworkPlan(3, tuple(patch), 1, levels)


def tiny_networks() -> tuple[NetworkPlan, DenoiserPlan]:
    """A denoiser as wide as its segmenter."""
    return network_of(PATCH, WIDTHS, 1), DenoiserPlan(DENOISER_WIDTHS)


def planned_networks(shape: tuple[int, int, int]) -> tuple[NetworkPlan, DenoiserPlan]:
    """What `usd_plan` gives a data set of many such volumes."""
    network = Sizer(BUDGET, 1, 1, 100).fit_network((1.0, 1.0, 1.0), shape)
    return network, DenoiserPlan(denoiser_widths(network, 1)[0])


def plans_of(dataset: str, name: str, labels: LabelScheme, networks: tuple[NetworkPlan, DenoiserPlan]) -> Plans:
    """Plans of one configuration, whose images are taken as they are."""
    preprocessing = PreprocessingPlan((0, 1, 2), (1.0, 1.0, 1.0), ("nonorm",), (False,), ())
    configuration = ConfigurationPlan(name, preprocessing, (1, 1, 1), *networks, TrainingPlan(2))
    return Plans(1, dataset, labels, ("CT",), ".nii.gz", True, BUDGET, name, {name: configuration})


def write_model(folder: Path, plans: Plans, model: StagedModel, num_calls: int) -> None:
    """A model folder with the samplers that training leaves by default, but for the calls of a mask after the first.

    Pure noise for the mean, `num_calls` more for the masks, two fields.
    """
    (configuration,) = plans.configurations.values()
    write_json(folder / "plans.json", plans)
    save_weights(folder / "fold_0/weights.safetensors", model, {"plan_hash": plan_hash(configuration)})
    mean = SamplerSettings(method="ddim", start="stage_a", num_calls=0, lam_end=0.0)
    masks = SamplerSettings(
        method="hard",
        start="stage_a",
        num_calls=num_calls,
        lam_end=0.0,
        correlation_length_mm=12.0,
        draw=True,
        surface_length_mm=3.0,
    )
    settings = InferenceSettings(lam_a=-3.0, lam_c=0.5, segmenter_weight=0.25, sampler=mean, mask_sampler=masks)
    write_settings(folder / "fold_0", settings)


def make_model(folder: Path, networks: tuple[NetworkPlan, DenoiserPlan]) -> None:
    """A model folder whose network finds the tissue active."""
    plans = plans_of("Dataset001_Large", "tiny", LESION, networks)
    torch.manual_seed(0)
    model = build_model(plans.configurations["tiny"], LESION, True).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # the heads start at zero, which would make every sample p_det
            parameter.copy_(0.3 * torch.randn_like(parameter))
        assert model.denoiser is not None
        for parameter in model.denoiser.head.parameters():  # a trained one corrects p_det, and not by five units
            parameter *= 0.2
    write_model(folder, plans, model, num_calls=1)


def segment_by(logits_of: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Let segmenters of this process answer with logits made of the image and their own; all is computed as before."""
    forward = SegmentationUNet.forward

    def answer(self: SegmentationUNet, image: Tensor, *source: Tensor | None) -> SegmenterOutput:
        output = forward(self, image, *source)
        return output._replace(logits=(logits_of(image, output.logits[0]), *output.logits[1:]))

    SegmentationUNet.forward = answer  # type: ignore[method-assign]


def predict_by_brightness(arguments: Sequence[str], only_memory: bool) -> int:
    """`usd_predict` with a segmenter whose logits follow the brightness, since a random one knows no tissue.

    Its network computes all that it would, or one tile, and roughens the logits.
    """
    if only_memory:
        SegmentationUNet.forward = _first_answer(SegmentationUNet.forward)  # type: ignore[method-assign]
        StagedModel.denoise_guided = _first_answer(StagedModel.denoise_guided)  # type: ignore[method-assign]

    def by_brightness(image: Tensor, logits: Tensor) -> Tensor:
        kinds = torch.bucketize(image, torch.tensor(EDGES))
        return torch.tensor(LOGITS)[kinds] + ROUGHNESS * logits.float().tanh()

    segment_by(by_brightness)
    return predict_command.main(arguments)


def _first_answer(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that gives its first answer to all arguments of that shape."""
    answers: dict[torch.Size, Any] = {}

    def answer(self: Any, values: Tensor, *others: Any) -> Any:
        if values.shape not in answers:
            answers[values.shape] = method(self, values, *others)
        return answers[values.shape]

    return answer


def predict(work: Path, name: str, samples: int, max_memory_gb: float, core: int | None, mode: str = RUN) -> Run:
    """Run the command once, into work/name."""
    arguments = [
        "-i",
        work / "in",
        "-o",
        work / name,
        "-m",
        work / MODEL,
        "--device",
        "cpu",
        "--samples",
        samples,
        "--max-memory",
        max_memory_gb,
        "--save-probabilities",
        "--save-samples",
    ]
    pinned = [] if core is None else ["taskset", "-c", str(core)]
    shutil.rmtree(work / name, ignore_errors=True)
    return watched_run([*pinned, sys.executable, __file__, mode, *map(str, arguments)])


def watched_run(command: Sequence[str]) -> Run:
    """Run a command and look at its memory."""
    start, computed = time.perf_counter(), _cpu_seconds()
    with subprocess.Popen(command) as process:
        watched, peak, own = psutil.Process(process.pid), 0, 0
        while process.poll() is None:
            try:
                here = watched.memory_info().rss
                peak = max(peak, here + sum(c.memory_info().rss for c in watched.children(recursive=True)))
                own = max(own, here)
            except psutil.Error:  # one of them ended just now
                pass
            time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:5])} ended with {process.returncode}")
    return Run(time.perf_counter() - start, _cpu_seconds() - computed, peak / 1e9, own / 1e9)


def _cpu_seconds() -> float:
    """Of all processes that were started and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def hash_of(folder: Path) -> str:
    """Of all that was predicted, the manifest with its times left out."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "manifest.json" and not path.relative_to(folder).parts[0].startswith("."):
            total.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return total.hexdigest()[:12]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--shape", type=int, nargs=3, default=(600, 512, 512), metavar=("Z", "Y", "X"))
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--max-memory", type=float, default=4.0, metavar="GB")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--whole", action="store_true", help="tissue everywhere")
    parser.add_argument("--planned", action="store_true", help="patch and widths as usd_plan gives them")
    parser.add_argument("--only-memory", action="store_true", help="samples alone, by networks that compute one tile")
    parser.add_argument("--core", type=int, help="run on this core alone")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    image = make_volume(tuple(args.shape), args.whole)
    networks = planned_networks(tuple(args.shape)) if args.planned else tiny_networks()
    print(f"patch {networks[0].patch_size}, denoiser {networks[1].features}", flush=True)
    make_model(args.work / MODEL, networks)
    write_image(args.work / "in" / "case_0000.nii.gz", image)
    del image
    if args.only_memory:
        print(predict(args.work, "out", args.samples, args.max_memory, args.core, RUN_ONLY_MEMORY))
        return
    found: dict[int, list[Run]] = {args.samples: [], 0: []}
    for _ in range(args.repeats):
        for samples, runs in found.items():
            runs.append(predict(args.work, f"out{samples}", samples, args.max_memory, args.core))
            print(f"{samples} samples: {runs[-1]}", flush=True)
    case = json.loads((args.work / f"out{args.samples}/manifest.json").read_text())["cases"]["case"]
    print({name: case[name] for name in ("num_tiles", "num_active_tiles", "num_recomputed", "seconds")})
    peak = max(run.peak_gb for run in found[args.samples])
    seconds, cpu_seconds = (
        {samples: statistics.median(getattr(run, name) for run in runs) for samples, runs in found.items()}
        for name in ("seconds", "cpu_seconds")
    )
    ratio, cpu_ratio = (times[args.samples] / times[0] for times in (seconds, cpu_seconds))
    print(
        f"{' x '.join(map(str, args.shape))}, {args.samples} samples, --max-memory {args.max_memory:g}: peak "
        f"{peak:.2f} GB, {seconds[args.samples]:.0f} s, {ratio:.2f} times without samples ({cpu_ratio:.2f} in seconds "
        f"of the CPU); content {hash_of(args.work / f'out{args.samples}')}"
    )


def write_image(path: Path, image: np.ndarray) -> None:
    """Write the volume as int16."""
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(image.T, np.eye(4)).to_filename(path)


if __name__ == "__main__":
    if sys.argv[1:2] in ([RUN], [RUN_ONLY_MEMORY]):
        raise SystemExit(predict_by_brightness(sys.argv[2:], sys.argv[1] == RUN_ONLY_MEMORY))
    main()
