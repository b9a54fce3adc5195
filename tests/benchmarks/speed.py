"""Speed and memory beside nnU-Net, in turn, on this machine: every command and every part of a training.

    python -m tests.benchmarks.speed --peer VENV --work FOLDER [--raw ROOT] [--stages STAGE ...] [--runs N] ...

VENV is a virtual environment with nnunetv2; ROOT a raw root with Dataset004_Hippocampus (default: usd_raw, or
nnUNet_raw). Each stage runs nnU-Net, this package, nnU-Net, ... `--runs` times and keeps every value in
FOLDER/runs.json, so that an interrupted benchmark goes on and a stage can be run alone. The tables of
documentation/benchmarks/speed.md are then written anew from all that is in FOLDER. Both sides use the cores that this
process may use (taskset); nothing else should run on them.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from PIL import Image

from tests.benchmarks import pages, training_steps
from tests.benchmarks.peer import CORES, Bench, measure, own_command, peer_prediction, peer_training, prepare_peer
from unisegdiff_pipeline.demo.phantoms import make_phantom_dataset

HIPPOCAMPUS, CT, PICTURES = "Dataset004_Hippocampus", "Dataset801_LargeCT", "Dataset802_Pictures"
TINY = "Dataset803_Tiny"
COMMANDS = (("usd_train", "train"), ("usd_predict", "predict"), ("usd_evaluate", "evaluate_folder"))  # here, nnU-Net
NARROW_WIDTHS = (16, 32, 64, 128)
SAMPLES = (1, 8, 32)
CT_SPACING_MM = ((2.5, 0.8, 0.8), (3.0, 0.7, 0.7))  # (z, y, x), of every other case
PICTURE_SHAPE = (256, 320)

Values = dict[str, float]  # "what, unit" => value


@dataclass(frozen=True)
class Sizes:
    """How large the parts are: iterations of a rate, batch (None: nnU-Net's), cases and shapes of the data sets."""

    iterations: int
    batch: int | None
    ct_shape: tuple[int, int, int]
    ct_cases: int
    pictures: int
    predicted: int


@dataclass(frozen=True)
class Stage:
    """Its heading, what its sizes are, in words, and the values of one run of each side."""

    heading: str
    note: Callable[[Sizes], str]
    peer: Callable[[Bench, Sizes], Values]
    own: Callable[[Bench, Sizes], Values]


# --------------------------------------------------------------------------------------------------------------- data


def make_ct(folder: Path, shape: tuple[int, int, int], cases: int) -> None:
    """Bodies of soft tissue with noise and three bright lesions each, int16, anisotropic and of two spacings."""
    z, y, x = np.ogrid[tuple(slice(-1, 1, complex(0, size)) for size in shape)]
    body = (y / 0.7) ** 2 + (x / 0.9) ** 2 + 0 * z < 1
    for case in range(cases):
        rng = np.random.default_rng(case)
        image = np.where(body, np.int16(40), np.int16(-1000))
        for plane in image:
            plane += rng.integers(-30, 31, plane.shape, np.int16)
        labels = np.zeros(shape, np.uint8)
        for centre in rng.uniform(-0.5, 0.5, (3, 3)):
            labels[sum(((axis - c) / 0.06) ** 2 for axis, c in zip((z, y, x), centre, strict=True)) < 1] = 1
        image[labels > 0] += 60
        for part, array in (("imagesTr", image), ("labelsTr", labels)):
            stored = sitk.GetImageFromArray(array)
            stored.SetSpacing(CT_SPACING_MM[case % 2][::-1])
            suffix = "_0000" if part == "imagesTr" else ""
            sitk.WriteImage(stored, str(folder / part / f"ct{case:02d}{suffix}.nii.gz"), useCompression=True)


def make_pictures(folder: Path, number: int) -> None:
    """RGB pictures with a disc that is to be found."""
    y, x = np.ogrid[: PICTURE_SHAPE[0], : PICTURE_SHAPE[1]]
    for case in range(number):
        rng = np.random.default_rng(case)
        radius, *centre = rng.uniform((10, 60, 60), (50, 200, 260))
        disc = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
        picture = rng.integers(0, 60, (*PICTURE_SHAPE, 3), np.uint8) + np.uint8(80)
        picture[disc] += np.uint8(70)
        Image.fromarray(picture).save(folder / "imagesTr" / f"picture{case:04d}_0000.png")
        Image.fromarray(disc.astype(np.uint8)).save(folder / "labelsTr" / f"picture{case:04d}.png")


def make_data(root: Path, source: Path, sizes: Sizes) -> None:
    """The raw root of the benchmark: Hippocampus by a link, and what is synthetic; each made once."""
    root.mkdir(parents=True, exist_ok=True)
    if not (root / HIPPOCAMPUS).exists():
        (root / HIPPOCAMPUS).symlink_to(source / HIPPOCAMPUS)
    if not (root / TINY).exists():
        make_phantom_dataset(root, int(TINY[7:10]), dims=3, num_train=5, num_test=1, seed=0, size=(24, 32, 32))
        next(root.glob(f"{TINY[:10]}_*")).rename(root / TINY)
    makers: dict[str, tuple[Callable[[Path], None], int, dict[str, str], str]] = {
        CT: (lambda to: make_ct(to, sizes.ct_shape, sizes.ct_cases), sizes.ct_cases, {"0": "CT"}, ".nii.gz"),
        PICTURES: (
            lambda to: make_pictures(to, sizes.pictures),
            sizes.pictures,
            {"0": "R", "1": "G", "2": "B"},
            ".png",
        ),
    }
    for name, (make, number, channels, ending) in makers.items():
        if (root / name).exists():
            continue
        folder = root / f"{name}.part"
        shutil.rmtree(folder, ignore_errors=True)
        for part in ("imagesTr", "labelsTr"):
            (folder / part).mkdir(parents=True)
        make(folder)
        labels = {"background": 0, "lesion": 1}
        names = {str(index): channel for index, channel in enumerate(channels)}
        facts = {"channel_names": names, "labels": labels, "numTraining": number, "file_ending": ending}
        (folder / "dataset.json").write_text(json.dumps(facts))
        folder.rename(root / name)


# -------------------------------------------------------------------------------------------------------------- stages


def timed(name: str, command: list[str], env: dict[str, str]) -> Values:
    seconds, megabytes = measure(command, env, memory=True)
    return {f"{name}, s": seconds, f"{name}, MB": megabytes}


def peer_tool(bench: Bench, name: str) -> str:
    return str(bench.peer / "bin" / f"nnUNetv2_{name}")


def peer_start(bench: Bench, sizes: Sizes) -> Values:
    env = bench.peer_env("start")
    helps = {f"`--help` of {own}, s": measure([peer_tool(bench, theirs), "-h"], env)[0] for own, theirs in COMMANDS}
    one = bench.work / "one"
    return {**helps, "scoring one small case, s": measure(peer_evaluation(bench, one, TINY), env)[0]}


def own_start(bench: Bench, sizes: Sizes) -> Values:
    env = bench.own_env("start")
    helps = {f"`--help` of {own}, s": measure(own_command(own[4:], "--help"), env)[0] for own, _ in COMMANDS}
    return {**helps, "scoring one small case, s": measure(own_evaluation(bench, bench.work / "one"), env)[0]}


def preparing(dataset: str, configuration: str) -> tuple[Callable[[Bench, Sizes], Values], ...]:
    """Fingerprint, plan and preprocessing of a data set by each side, into empty folders."""

    def by_peer(bench: Bench, sizes: Sizes) -> Values:
        shutil.rmtree(bench.work / "peer/prepare", ignore_errors=True)
        env, name, cores = bench.peer_env("prepare"), dataset[7:10], str(CORES)
        fingerprint = [peer_tool(bench, "extract_fingerprint"), "-d", name, "-np", cores]
        preprocess = [peer_tool(bench, "preprocess"), "-d", name, "-c", configuration, "-np", cores]
        return {
            **timed("fingerprint", fingerprint, env),
            **timed("plan", [peer_tool(bench, "plan_experiment"), "-d", name], env),
            **timed("preprocessing", preprocess, env),
        }

    def by_us(bench: Bench, sizes: Sizes) -> Values:
        shutil.rmtree(bench.work / "own/prepare", ignore_errors=True)
        env, name = bench.own_env("prepare"), dataset[7:10]
        return {
            **timed("fingerprint", own_command("fingerprint", "-d", name), env),
            **timed("plan", own_command("plan", "-d", name), env),
            **timed("preprocessing", own_command("preprocess", "-d", name, "-c", configuration), env),
        }

    return by_peer, by_us


def plans_of(bench: Bench, sizes: Sizes, dataset: str, configuration: str, narrow: bool) -> str:
    """Plan and preprocess once on both sides, ours with nnU-Net's patch, batch and network; the variant's name."""
    name = f"{configuration}_narrow" if narrow else configuration
    widths = {"features_per_stage": list(NARROW_WIDTHS)} if narrow else {}
    overrides: dict[str, Any] = {"architecture": {"arch_kwargs": widths}}
    batch = 2 if narrow else sizes.batch
    peer = prepare_peer(bench, name, dataset, configuration, overrides | ({"batch_size": batch} if batch else {}))
    path = Path(bench.own_env(name)["usd_preprocessed"]) / dataset / "plans.json"
    if not path.is_file():
        measure(
            own_command("plan_and_preprocess", "-d", dataset[7:10], "-c", configuration, "--device", "cpu"),
            bench.own_env(name),
        )
        plans = json.loads(path.read_text())
        ours = plans["configurations"][configuration]
        kwargs = peer["architecture"]["arch_kwargs"]
        fields = ("features_per_stage", "strides", "kernel_sizes", "n_conv_per_stage")
        ours["network"]["levels"] = [
            {"features": f, "stride": s, "kernel": k, "num_convs": n}
            for f, s, k, n in zip(*(kwargs[field] for field in fields), strict=True)
        ]
        ours["network"]["patch_size"] = peer["patch_size"]
        ours["training"]["batch_size"] = peer["batch_size"]
        path.write_text(json.dumps(plans))
    return name


def training(dataset: str, configuration: str, narrow: bool = False) -> tuple[Callable[[Bench, Sizes], Values], ...]:
    """Rates of the loader, of steps and of both together on each side."""

    def rates(bench: Bench, sizes: Sizes, side: str) -> Values:
        name = plans_of(bench, sizes, dataset, configuration, narrow)
        python, env = (
            (str(bench.peer / "bin/python"), bench.peer_env(name))
            if side == "peer"
            else (own_command("train")[0], bench.own_env(name) | {"PYTHONPATH": str(pages.ROOT)})
        )
        path = bench.work / f"rates_{side}.json"
        command = [python, training_steps.__file__, side, dataset, configuration, "--output", str(path)]
        measure([*command, "--iterations", str(sizes.iterations)], env)
        return json.loads(path.read_text())

    return lambda bench, sizes: rates(bench, sizes, "peer"), lambda bench, sizes: rates(bench, sizes, "own")


def images_to_predict(bench: Bench, number: int) -> Path:
    folder = bench.work / "images"
    folder.mkdir(exist_ok=True)
    for path in sorted((bench.raw / HIPPOCAMPUS / "imagesTr").glob("*.nii.gz"))[:number]:
        shutil.copy(path, folder)
    return folder


def peer_predict(bench: Bench, sizes: Sizes) -> Values:
    name = plans_of(bench, sizes, HIPPOCAMPUS, "3d_fullres", narrow=True)
    env, masks = bench.peer_env(name), bench.work / "peer/masks"
    if not list(Path(env["nnUNet_results"]).glob(f"{HIPPOCAMPUS}/*/fold_0/checkpoint_final.pth")):
        peer_training(bench, name, HIPPOCAMPUS, "3d_fullres", bench.seconds)
    shutil.rmtree(masks, ignore_errors=True)
    images = images_to_predict(bench, sizes.predicted)
    command = peer_prediction(bench, images, masks, HIPPOCAMPUS, "3d_fullres")
    seconds, megabytes = measure(command, env, memory=True)
    found = {"s a case": seconds / sizes.predicted, "MB": megabytes}
    return {f"{counted(n)}, {unit}": value for n in SAMPLES for unit, value in found.items()}


def own_predict(bench: Bench, sizes: Sizes) -> Values:
    name = plans_of(bench, sizes, HIPPOCAMPUS, "3d_fullres", narrow=True)
    env, masks = bench.own_env(name), bench.work / "own/masks"
    if not list(Path(env["usd_results"]).glob(f"{HIPPOCAMPUS}/*/fold_0/validation/summary.json")):
        train = own_command("train", "4", "0", "-c", "3d_fullres", "--max-time", str(3 * bench.seconds))
        measure([*train, "--device", "cpu"], env)
    images, found = images_to_predict(bench, sizes.predicted), {}
    for samples in SAMPLES:
        shutil.rmtree(masks, ignore_errors=True)
        command = own_command("predict", "-i", str(images), "-o", str(masks), "-d", "4", "-c", "3d_fullres", "-f", "0")
        seconds, megabytes = measure([*command, "--samples", str(samples), "--device", "cpu"], env, memory=True)
        found[f"{counted(samples)}, s a case"] = seconds / sizes.predicted
        found[f"{counted(samples)}, MB"] = megabytes
    return found


def counted(samples: int) -> str:
    return "1 sample" if samples == 1 else f"{samples} samples"


def shifted_masks(bench: Bench, dataset: str, folder: Path, number: int | None = None) -> Path:
    """References of a data set moved by a voxel, as predictions to score; the folder has references beside them."""
    masks, references = folder / "masks", folder / "references"
    if masks.is_dir():
        return masks
    for part in (masks, references):
        part.mkdir(parents=True)
    for path in sorted((bench.raw / dataset / "labelsTr").glob("*.nii.gz"))[:number]:
        shutil.copy(path, references)
        image = sitk.ReadImage(str(path))
        moved = sitk.GetImageFromArray(np.roll(sitk.GetArrayFromImage(image), 1, axis=2))
        moved.CopyInformation(image)
        sitk.WriteImage(moved, str(masks / path.name), useCompression=True)
    shutil.copy(bench.raw / dataset / "dataset.json", folder)
    return masks


def peer_evaluation(bench: Bench, folder: Path, dataset: str) -> list[str]:
    plans = folder / "plans.json"
    plans.write_text(json.dumps({"image_reader_writer": "SimpleITKIO"}))
    command = [peer_tool(bench, "evaluate_folder"), str(folder / "references"), str(folder / "masks")]
    command += ["-djfile", str(folder / "dataset.json"), "-pfile", str(plans), "-np", str(CORES)]
    return [*command, "-o", str(folder / "nnunet.json")]


def own_evaluation(bench: Bench, folder: Path) -> list[str]:
    flags = ["--dataset-json", str(folder / "dataset.json"), "--no-report", "-o", str(folder / "scores")]
    return own_command("evaluate", str(folder / "references"), str(folder / "masks"), *flags)


def peer_evaluate(bench: Bench, sizes: Sizes) -> Values:
    return timed("100 cases", peer_evaluation(bench, bench.work / "hundred", HIPPOCAMPUS), bench.peer_env("start"))


def own_evaluate(bench: Bench, sizes: Sizes) -> Values:
    return timed("100 cases", own_evaluation(bench, bench.work / "hundred"), bench.own_env("start"))


def training_note(network: str) -> Callable[[Sizes], str]:
    def note(sizes: Sizes) -> str:
        batch = f", batch {sizes.batch}" if sizes.batch and "batch" not in network else ""
        return (
            f"{network}{batch}, ours with the same patch, batch and levels. Each rate is over {sizes.iterations} "
            "iterations after one that warms up, in fp32 or, here, in bf16 where a step is faster so. A step of phase "
            "2 trains segmenter and denoiser, for which nnU-Net has nothing."
        )

    return note


STAGES = {
    "start": Stage("Start of a command", lambda sizes: "", peer_start, own_start),
    "prepare-hippocampus": Stage(
        "Preprocessing of Hippocampus",
        lambda sizes: "100 cases, `3d_fullres`, each command on its own.",
        *preparing(HIPPOCAMPUS, "3d_fullres"),
    ),
    "prepare-ct": Stage(
        "Preprocessing of a large CT",
        lambda sizes: (
            f"{sizes.ct_cases} synthetic volumes of {'x'.join(map(str, sizes.ct_shape))} voxels (z, y, x), "
            "anisotropic and of two spacings, so that both are resampled; `3d_fullres`."
        ),
        *preparing(CT, "3d_fullres"),
    ),
    "prepare-pictures": Stage(
        "Preprocessing of RGB pictures",
        lambda sizes: f"{sizes.pictures} PNG files of {PICTURE_SHAPE[0]}x{PICTURE_SHAPE[1]}, `2d`.",
        *preparing(PICTURES, "2d"),
    ),
    "train-3d": Stage(
        "Training in 3D",
        training_note("nnU-Net's plan of Hippocampus"),
        *training(HIPPOCAMPUS, "3d_fullres"),
    ),
    "train-3d-narrow": Stage(
        "Training in 3D, narrow network",
        training_note("nnU-Net's plan of Hippocampus with 16 to 128 features and batch 2"),
        *training(HIPPOCAMPUS, "3d_fullres", narrow=True),
    ),
    "train-2d": Stage("Training in 2D", training_note("nnU-Net's plan of the pictures"), *training(PICTURES, "2d")),
    "predict": Stage(
        "Prediction",
        lambda sizes: (
            f"{sizes.predicted} cases of Hippocampus, one fold, networks of equal size (16 to 128 features), the start "
            "of the command included. nnU-Net mirrors, as it does by default, and has no samples: its one prediction "
            "stands in every row."
        ),
        peer_predict,
        own_predict,
    ),
    "evaluate": Stage(
        "Evaluation",
        lambda sizes: (
            "Hippocampus, references moved by a voxel. nnU-Net counts voxels; here surface distances, lesions and "
            "intervals are in it."
        ),
        peer_evaluate,
        own_evaluate,
    ),
}


# ------------------------------------------------------------------------------------------------------- runs and page


def run_stage(bench: Bench, sizes: Sizes, name: str, path: Path) -> None:
    """The runs of a stage that are not there yet, the two sides in turn."""
    for number in range(bench.runs):
        for side in ("peer", "own"):
            runs = json.loads(path.read_text()) if path.is_file() else {}
            kept = runs.setdefault(name, {"peer": [], "own": []})
            if len(kept[side]) > number:
                continue
            values = (STAGES[name].peer if side == "peer" else STAGES[name].own)(bench, sizes)
            kept[side].append(values)
            kept |= {"note": STAGES[name].note(sizes), "date": datetime.date.today().isoformat(), "machine": machine()}
            temporary = path.with_suffix(".part")
            temporary.write_text(json.dumps(runs, indent=1))
            temporary.replace(path)
            print(f"{name} run {number} {side}: {values}", flush=True)


def section_of(stage: Stage, kept: dict[str, Any], versions: dict[str, str]) -> dict[str, Any]:
    """A table of medians, with the least and the largest value."""

    def cell(values: list[float]) -> str:
        if not values:
            return ""
        summary = (statistics.median(values), min(values), max(values))
        middle, low, high = (f"{value:.0f}" if value >= 100 else f"{value:.3g}" for value in summary)
        return middle if len(values) == 1 else f"{middle} [{low}, {high}]"

    rows = []
    for name in kept["own"][0]:
        theirs, ours = ([run[name] for run in kept[side] if name in run] for side in ("peer", "own"))
        ratio = f"{statistics.median(ours) / statistics.median(theirs):.2f}" if theirs else ""
        rows.append([name, cell(theirs), cell(ours), ratio])
    conditions = {
        "n": f"{len(kept['own'])} runs of each side in turn",
        "seeds": "none: speed alone",
        "machine": kept["machine"],
        **versions,
        "date": kept["date"],
    }
    table = {"columns": ["what", "nnU-Net", "here", "ratio"], "rows": rows, "conditions": conditions}
    return {"heading": stage.heading, "level": 2, "content": [*filter(None, [kept["note"]]), {"table": table}]}


def write_page(bench: Bench, path: Path) -> None:
    """Put the tables into documentation/benchmarks/results/speed.json; other sections of it stay."""
    script = "import importlib.metadata as m; print(m.version('nnunetv2'), m.version('torch'))"
    theirs = subprocess.run([bench.peer / "bin/python", "-c", script], capture_output=True, text=True, check=True)
    nnunet, torch = theirs.stdout.split()
    versions = {"versions": f"torch {importlib.metadata.version('torch')}, nnU-Net {nnunet} with torch {torch}"}
    runs = json.loads(path.read_text())
    done = [name for name in STAGES if runs.get(name, {}).get("own") and runs[name]["peer"]]
    target = pages.RESULTS / "speed.json"
    result = json.loads(target.read_text("utf-8"))
    written = {stage.heading for stage in STAGES.values()}
    others = [section for section in result["sections"] if section["heading"] not in written]
    result["sections"] = [section_of(STAGES[name], runs[name], versions) for name in done] + others
    target.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")
    pages.main()


def machine() -> str:
    """Processor and cores in use."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {CORES} core{'s' * (CORES > 1)}, no GPU"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--raw", type=Path, default=os.environ.get("usd_raw", os.environ.get("nnUNet_raw")))
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--runs", type=int, default=3, help="of each side")
    parser.add_argument("--seconds", type=int, default=60, help="of the trainings before prediction, ours three times")
    parser.add_argument("--iterations", type=int, default=10, help="of each rate of a training")
    parser.add_argument("--batch", type=int, help="instead of nnU-Net's, on both sides")
    parser.add_argument("--ct-shape", type=int, nargs=3, default=(400, 512, 512), metavar=("Z", "Y", "X"))
    parser.add_argument("--ct-cases", type=int, default=2)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--predicted", type=int, default=20, help="cases")
    args = parser.parse_args()
    z, y, x = args.ct_shape
    sizes = Sizes(args.iterations, args.batch, (z, y, x), args.ct_cases, args.pictures, args.predicted)
    work = args.work.absolute()
    bench = Bench(args.peer.absolute(), Path(), work, work / "raw", args.runs, args.seconds)
    make_data(bench.raw, args.raw.absolute(), sizes)
    shifted_masks(bench, HIPPOCAMPUS, work / "hundred")
    shifted_masks(bench, TINY, work / "one", 1)
    for name in args.stages:
        run_stage(bench, sizes, name, work / "runs.json")
    write_page(bench, work / "runs.json")


if __name__ == "__main__":
    main()
