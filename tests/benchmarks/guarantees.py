"""What promises of usd.guarantees keep on validation cases: thresholds from one half of them, checked on the other.

    python -m tests.benchmarks.guarantees RAW/Dataset101_BUSI RESULTS/Dataset101_BUSI/MODEL/fold_0/validation

VALIDATION holds probabilities and samples (`usd_train --save-validation all`) of one class. Means over random splits of
the patients, the standard error over them in brackets; a promise that is refused counts in none of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.evaluation.conformal import (
    THRESHOLDS,
    MaskVolumes,
    lesion_scores,
    lesion_threshold,
    mask_thresholds,
    mask_volumes,
    volume_margin,
)
from unisegdiff_pipeline.io.images import read_labels
from unisegdiff_pipeline.io.raw_dataset import RawCase, open_raw_dataset

LEVELS = np.array(THRESHOLDS)


@dataclass(frozen=True)
class Image:
    """One validation case: score of each lesion, volumes above every threshold, of the samples and the reference."""

    lesions: np.ndarray
    masks: MaskVolumes
    sampled: tuple[float, ...]
    reference: float


Patients = Mapping[str, Sequence[Image]]


def read_image(case: RawCase, validation: Path) -> Image:
    assert case.label_path is not None
    reference = read_labels(case.label_path).array[0] > 0
    with np.load(validation / "probabilities" / f"{case.case_id}.npz") as stored:
        probability = stored["probabilities"][-1].astype(np.float32).reshape(reference.shape)
    samples = sorted((validation / "samples").rglob(f"{case.case_id}_sample*"))
    sampled = tuple(float((read_labels(path).array > 0).sum()) for path in samples)
    masks = mask_volumes(probability, reference)
    return Image(lesion_scores(probability, reference), masks, sampled, float(reference.sum()))


def read_patients(raw: Path, validation: Path) -> dict[str, list[Image]]:
    """The validated images of every patient; an image of no known patient is one by itself."""
    found: dict[str, list[Image]] = {}
    for case in open_raw_dataset(raw).cases:
        if (validation / "probabilities" / f"{case.case_id}.npz").is_file():
            found.setdefault(case.group or case.case_id, []).append(read_image(case, validation))
    return found


def lesions(held_out: Patients, new: Patients, alpha: float) -> dict[str, float]:
    scores = {name: np.concatenate([image.lesions for image in images]) for name, images in held_out.items()}
    threshold = lesion_threshold(scores, alpha).threshold
    of_new = [np.concatenate([image.lesions for image in images]) for images in new.values()]
    return {
        "lesions missed": float(np.mean([(own < threshold).mean() for own in of_new if len(own)])),
        "threshold of lesions": threshold,
    }


def masks(held_out: Patients, new: Patients, alpha: float) -> dict[str, float]:
    found = mask_thresholds({name: [image.masks for image in images] for name, images in held_out.items()}, alpha)
    inner, outer = (int(np.searchsorted(LEVELS, each.threshold)) for each in (found.inner, found.outer))
    false, outside = [], []
    for images in new.values():
        common, marked = (sum(getattr(i.masks, part) for i in images) for part in ("common", "mask"))
        reference = sum(i.masks.reference for i in images)
        false.append(1 - common[inner] / marked[inner] if marked[inner] else 0.0)
        if reference:
            outside.append(1 - common[outer] / reference)
    return {"reference outside outer": float(np.mean(outside)), "inner outside reference": float(np.mean(false))}


def volumes(held_out: Patients, new: Patients, alpha: float) -> dict[str, float]:
    margin = volume_margin({name: [(i.sampled, i.reference) for i in of] for name, of in held_out.items()}, 1 - alpha)
    covered = []
    for images in new.values():
        intervals = [margin.interval(image.sampled) for image in images]
        pairs = zip(intervals, images, strict=True)
        covered.append(all(low <= image.reference <= high for (low, high), image in pairs))
    return {"volumes covered": float(np.mean(covered))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path)
    parser.add_argument("validation", type=Path)
    parser.add_argument("--alpha", type=float, nargs="+", default=[0.2, 0.1])
    parser.add_argument("--splits", type=int, default=100)
    args = parser.parse_args()
    patients = read_patients(args.raw, args.validation)
    names = list(patients)
    print(f"{len(names)} patients, {sum(map(len, patients.values()))} images, half of the patients held out")
    rng = np.random.default_rng(0)
    for alpha in args.alpha:
        kept: dict[str, list[float]] = {}
        refused = {measure.__name__: 0 for measure in (lesions, masks, volumes)}
        for _ in range(args.splits):
            order = [names[i] for i in rng.permutation(len(names))]
            held_out, new = (
                {n: patients[n] for n in part} for part in (order[: len(order) // 2], order[len(order) // 2 :])
            )
            for measure in (lesions, masks, volumes):
                try:
                    for what, value in measure(held_out, new, alpha).items():
                        kept.setdefault(what, []).append(value)
                except UsdError:
                    refused[measure.__name__] += 1
        print(f"alpha {alpha:g}; refused of {args.splits}: {refused}")
        for what, values in kept.items():
            error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
            print(f"  {what}: {np.mean(values):.3f} ({error:.3f}), median {np.median(values):.3g}")


if __name__ == "__main__":
    main()
