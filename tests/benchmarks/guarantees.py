"""What guarantees keep, as rows for results/guarantees.json.

    python -m tests.benchmarks.guarantees splits RAW/Dataset004_Hippocampus RESULTS/.../MODEL/fold_0/validation
    python -m tests.benchmarks.guarantees predicted LABELS OUT

splits: calibrated on one half of the patients of a fold's validation cases, checked on the other. Means over random
splits, the standard deviation over them in brackets; a guarantee that is refused counts in none of them. The cases
need probabilities and samples (`usd_train --save-validation all`).
predicted: what `usd_predict --guarantee` wrote for images of one class that nobody trained or calibrated on. Means over
images, with their standard errors.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.evaluation.conformal import lesion_scores, lesion_threshold, mask_thresholds, volume_margin
from unisegdiff_pipeline.inference.averaging import average_case
from unisegdiff_pipeline.inference.prediction_folder import open_prediction_folder
from unisegdiff_pipeline.io.images import read_labels
from unisegdiff_pipeline.io.raw_dataset import open_raw_dataset
from unisegdiff_pipeline.selection.guarantees import CaseEvidence, ClassEvidence, case_evidence

Patients = Mapping[str, Sequence[ClassEvidence]]


def read_evidence(raw: Path, validation: Path) -> list[CaseEvidence]:
    """What every validated case says, as usd_find_best takes it; a case of no known patient is one by itself."""
    dataset, folder = open_raw_dataset(raw), open_prediction_folder(validation)
    found = []
    for case in dataset.cases:
        if case.case_id in folder.probabilities:
            assert case.label_path is not None
            prediction, properties = average_case([folder], case.case_id, [1.0], "half", pooling=True)
            reference = read_labels(case.label_path).array[0]
            patient = case.group or case.case_id
            known = folder.spacing_known
            found.append(case_evidence(prediction, properties, folder.labels, reference, patient, spacing_known=known))
    return found


def of_class(evidence: Sequence[CaseEvidence], name: str) -> dict[str, list[ClassEvidence]]:
    """The images of every patient."""
    patients: dict[str, list[ClassEvidence]] = {}
    for case in evidence:
        patients.setdefault(case.patient, []).append(case.classes[name])
    return patients


def lesions(held_out: Patients, new: Patients, alpha: float) -> list[float]:
    """Mean fraction of missed lesions of new patients."""
    scores = {patient: np.concatenate([image.lesions for image in images]) for patient, images in held_out.items()}
    threshold = lesion_threshold(scores, alpha).threshold
    of_new = [np.concatenate([image.lesions for image in images]) for images in new.values()]
    return [float(np.mean([(own < threshold).mean() for own in of_new if len(own)]))]


def masks(held_out: Patients, new: Patients, alpha: float) -> list[float]:
    """Mean part of the reference outside the outer mask, and of the inner mask outside the reference."""
    found = mask_thresholds({patient: [image.masks for image in images] for patient, images in held_out.items()}, alpha)
    levels = next(iter(new.values()))[0].masks.thresholds
    inner, outer = (levels.index(one.threshold) for one in (found.inner, found.outer))
    false, outside = [], []
    for images in new.values():
        common, marked = (np.sum([getattr(i.masks, part) for i in images], axis=0) for part in ("common", "mask"))
        reference = sum(i.masks.reference for i in images)
        false.append(1 - common[inner] / marked[inner] if marked[inner] else 0.0)
        if reference:
            outside.append(1 - common[outer] / reference)
    return [float(np.mean(outside)), float(np.mean(false))]


def volumes(held_out: Patients, new: Patients, alpha: float) -> list[float]:
    """Fraction of new patients of whom an image's volume lies outside its interval."""
    margin = volume_margin({p: [(i.sampled, i.reference or 0.0) for i in of] for p, of in held_out.items()}, 1 - alpha)

    def misses(image: ClassEvidence) -> bool:
        low, high = margin.interval(image.sampled)
        return not low <= (image.reference or 0.0) <= high

    return [float(np.mean([any(map(misses, images)) for images in new.values()]))]


MEASURES = (lesions, masks, volumes)


def row(patients: Patients, alpha: float, splits: int) -> list[str]:
    """Losses over random splits, as cells: lesions, outer, inner, volumes."""
    rng, names = np.random.default_rng(0), list(patients)
    kept: list[list[list[float]]] = [[] for _ in MEASURES]
    for _ in range(splits):
        order = [names[i] for i in rng.permutation(len(names))]
        half = len(order) // 2
        held_out, new = ({n: patients[n] for n in part} for part in (order[:half], order[half:]))
        for measure, own in zip(MEASURES, kept, strict=True):
            try:
                own.append(measure(held_out, new, alpha))
            except UsdError:
                continue
    cells = []
    for own, width in zip(kept, (1, 2, 1), strict=True):
        for index in range(width):
            values = [one[index] for one in own]
            refused = "" if len(values) == splits else f"; {splits - len(values)} refused"
            shown = f"{np.mean(values):.3f} ({np.std(values, ddof=1):.3f}){refused}" if len(values) > 1 else "refused"
            cells.append(shown)
    return cells


def kept_by(labels: Path, output: Path) -> list[str]:
    """Losses of a folder of one class over its images, each a patient, as cells in the order of `row`."""
    losses: list[list[float]] = [[], [], [], []]
    with (output / "volumes.csv").open() as stream:
        volumes_of = {row["case"]: row for row in csv.DictReader(stream)}
    for path in sorted(labels.iterdir()):
        truth = read_labels(path).array[0] > 0
        touched, inner, outer = (
            read_labels(output / folder / path.name).array[0] > 0
            for folder in ("masks_lesions", "masks_inner", "masks_outer")
        )
        if truth.any():
            losses[0].append(float((lesion_scores(touched.astype(float), truth) == 0).mean()))
            losses[1].append(float((truth & ~outer).sum() / truth.sum()))
        losses[2].append(float((inner & ~truth).sum() / max(1, inner.sum())))
        volume = volumes_of[path.name.split(".")[0]]
        low, high = float(volume["guaranteed_low"]), float(volume["guaranteed_high"])
        losses[3].append(float(not low <= truth.sum() <= high))  # of pixels whose size is not known
    return [f"{np.mean(own):.3f} ({np.std(own, ddof=1) / len(own) ** 0.5:.3f})" for own in losses]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    splits = commands.add_parser("splits")
    splits.add_argument("raw", type=Path)
    splits.add_argument("validation", type=Path)
    splits.add_argument("--alpha", type=float, nargs="+", default=[0.2, 0.1])
    splits.add_argument("--splits", type=int, default=100)
    predicted = commands.add_parser("predicted")
    predicted.add_argument("labels", type=Path)
    predicted.add_argument("output", type=Path)
    args = parser.parse_args()
    if args.command == "predicted":
        print(" | ".join(kept_by(args.labels, args.output)))
        return
    evidence = read_evidence(args.raw, args.validation)
    for name in evidence[0].classes:
        patients = of_class(evidence, name)
        for alpha in args.alpha:
            cells = [
                name,
                f"{len(patients) // 2} of {len(patients)}",
                f"{1 - alpha:g}",
                *row(patients, alpha, args.splits),
            ]
            print(" | ".join(cells), flush=True)


if __name__ == "__main__":
    main()
