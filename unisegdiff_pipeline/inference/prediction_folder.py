"""A folder of predictions with probabilities, as this program or nnU-Net writes it.

| what | where | |
|---|---|---|
| masks | FOLDER/CASE.ext | give the geometry; nnU-Net's own record of it is a pickle, which is never read |
| probabilities | FOLDER/probabilities/CASE.npz, else FOLDER/CASE.npz | on the grid of the mask, (K, Z, Y, X) |
| samples | FOLDER/samples/CASE_sampleN.ext | where they were saved |
| meaning of labels | manifest.json: `labels`, or the plans of its `model`; else dataset.json in or above FOLDER | |
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from unisegdiff_pipeline.core.csv_tables import read_csv
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.geometry import Geometry, Shape, Volume
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.names import composed
from unisegdiff_pipeline.core.serialization import from_jsonable, read_dataclass, read_object
from unisegdiff_pipeline.core.words import listed
from unisegdiff_pipeline.evaluation.inputs import find_masks, find_repeated
from unisegdiff_pipeline.evaluation.reading import Probabilities, other_axes, require_axes_of_mask
from unisegdiff_pipeline.inference.export import record_path, volumes_path
from unisegdiff_pipeline.inference.lesion_filter import NO_FILTER, LesionFilter, combined_filter
from unisegdiff_pipeline.inference.model_folder import DATASET_NAME, PLANS_NAME, finished_folds
from unisegdiff_pipeline.inference.settings import DECISIONS, Decision, decision_of_folds, read_settings
from unisegdiff_pipeline.io.dataset_json import read_dataset_json
from unisegdiff_pipeline.io.images import read_header, read_labels
from unisegdiff_pipeline.io.paths import places_above
from unisegdiff_pipeline.io.prediction_files import MANIFEST
from unisegdiff_pipeline.planning.plans import Plans


@dataclass(frozen=True)
class PredictionFolder:
    """What a folder of predictions holds; no array is read before it is asked for.

    Attributes:
        masks, probabilities, samples: files by case.
        labels: what label values and channels mean.
        spacing_known: False marks millimetres as nominal, where a case does not say it itself.
        identity: what its predictions are made of, else where it lies.
        decision: how its probabilities became masks; "half" where it does not say.
        lesion_filter: which lesions stayed in its masks, as far as it says.
        keeps_promises: it was predicted with guarantees.
    """

    folder: Path
    masks: dict[str, Path]
    probabilities: dict[str, Path]
    samples: dict[str, tuple[Path, ...]]
    labels: LabelScheme
    spacing_known: bool
    identity: str
    decision: Decision
    lesion_filter: LesionFilter = NO_FILTER
    keeps_promises: bool = False

    def require_cases(self, case_ids: Collection[str]) -> None:
        """Raise a UsdError that names the cases without a mask or without probabilities."""
        if missing := sorted(set(case_ids) - self.masks.keys()):
            without = [case for case in missing if case in self.probabilities]
            if without:
                raise UsdError(
                    f"{self.folder} holds probabilities of {listed(without)} but no mask, which says where their "
                    f"voxels lie; put the masks of the same prediction there, or predict these cases again."
                )
            raise UsdError(
                f"{self.folder} lacks {len(missing)} of {len(case_ids)} case(s) that other members hold: "
                f"{listed(missing)}. Predict them there, or take them out of the other folders."
            )
        if missing := sorted(set(case_ids) - self.probabilities.keys()):
            raise UsdError(
                f"{self.folder} holds no probabilities of {len(missing)} of {len(case_ids)} case(s): "
                f"{listed(missing)}. Predict them again with --save-probabilities (nnU-Net: --save_probabilities; of "
                f"validation cases usd_train --val --save-validation all)."
            )

    def only(self, case_id: str) -> PredictionFolder:
        """The same folder with one case, for work on other processes."""
        return replace(
            self,
            masks={case_id: self.masks[case_id]},
            probabilities={case_id: self.probabilities[case_id]},
            samples={case_id: self.samples[case_id]} if case_id in self.samples else {},
        )

    def grid(self, case_id: str) -> tuple[Shape, Geometry]:
        """Shape (Z, Y, X) and geometry of a case, by the header of its mask."""
        shape, geometry = read_header(self.masks[case_id])
        return shape[1:], geometry

    def open(self, case_id: str, shape: Shape, geometry: Geometry) -> Probabilities:
        """The probabilities of a case, on this grid.

        Raises:
            UsdError: unreadable, another number of channels, no probabilities, or not in the axes of the mask.
        """
        path = self.probabilities[case_id]
        like = Volume(np.broadcast_to(np.uint8(0), (1, *shape)), geometry)
        found = Probabilities(path, self.labels, like)
        if not record_path(self.folder, case_id).is_file():  # of others it is not known how their axes were turned
            self._require_axes_of_mask(case_id, found, geometry)
        return found

    def knows_spacing(self, case_id: str) -> bool:
        """Whether millimetres of a case are real ones, as the case's own table says it, else the folder."""
        table = volumes_path(self.folder, case_id)
        if table.is_file():
            header, *rows = (row for _, row in read_csv(table))
            if rows and "spacing_known" in header:
                return rows[0][header.index("spacing_known")] == "yes"
        return self.spacing_known

    def files(self, case_id: str) -> tuple[Path, ...]:
        """What an ensemble of this case reads here."""
        return (self.masks[case_id], self.probabilities[case_id], *self.samples.get(case_id, ()))

    @cached_property
    def _turns(self) -> bool:
        """Whether nnU-Net turned the images of this folder to RAS, where its probabilities then lie."""
        with contextlib.suppress(UsdError):
            plans = self.folder / PLANS_NAME
            return plans.is_file() and str(read_object(plans).get("image_reader_writer")).endswith("Reorient")
        return False

    def _require_axes_of_mask(self, case_id: str, found: Probabilities, geometry: Geometry) -> None:
        path, mask = self.probabilities[case_id], self.masks[case_id]
        if self._turns and geometry.orientation != "RAS":
            raise other_axes(path, mask)
        require_axes_of_mask(found, mask, read_labels(mask).array[0] != 0)


def open_prediction_folder(folder: Path, dataset_json: Path | None = None) -> PredictionFolder:
    """List what a folder of predictions holds.

    Args:
        folder: written by usd_predict, usd_train (validation cases), usd_ensemble or nnU-Net.
        dataset_json: what label values mean; None looks for it, see the module.

    Raises:
        UsdError: no folder, no masks, or the meaning of their values is not known.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsdError(f"{folder} is no folder; name a folder of predictions with probabilities.")
    masks = find_masks(folder)
    apart = folder / "probabilities"
    arrays = sorted((apart if apart.is_dir() else folder).glob("*.npz"))
    samples = folder / "samples"
    manifest = read_object(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}
    labels, spacing_known = _meaning(folder, manifest, dataset_json)
    return PredictionFolder(
        folder,
        masks,
        {composed(path.name).removesuffix(".npz"): path for path in arrays if not path.name.startswith(".")},
        find_repeated(samples, "sample", masks) if samples.is_dir() else {},
        labels,
        spacing_known,
        str(manifest.get("request") or folder.resolve()),
        _decision(manifest),
        _named_as(labels, _lesion_filter(folder, manifest), folder, manifest),
        "promises" in manifest,
    )


def _meaning(folder: Path, manifest: dict[str, Any], dataset_json: Path | None) -> tuple[LabelScheme, bool]:
    """Labels of a folder, and whether its spacings are real."""
    if dataset_json is None and "labels" in manifest:
        labels = from_jsonable(LabelScheme, manifest["labels"], f"{folder / MANIFEST}: labels")
        return labels, bool(manifest.get("spacing_known", True))
    if dataset_json is None and manifest.get("model"):
        plans = Path(str(manifest["model"])) / PLANS_NAME
        if plans.is_file():
            found = read_dataclass(Plans, plans)
            return found.labels, found.spacing_known
    places = (above / DATASET_NAME for above in places_above(folder, 2))
    path = dataset_json or next((place for place in places if place.is_file()), None)
    if path is None:
        raise UsdError(
            f"no {DATASET_NAME} in or above {folder}, so that the meaning of its label values is not known; give it "
            f"with --dataset-json FILE."
        )
    description = read_dataset_json(path)
    return description.labels, description.spacing_known


def _decision(manifest: dict[str, Any]) -> Decision:
    """How the masks of a folder were decided; of gathered validation cases as most of the folds do."""
    settings = manifest.get("settings")
    said = manifest.get("decision") or (settings.get("decision") if isinstance(settings, dict) else None)
    if said is None and "validation" in manifest:
        model = Path(str(manifest.get("model")))
        said = decision_of_folds(read_settings(model / f"fold_{fold}").decision for fold in finished_folds(model))
    return next((decision for decision in DECISIONS if decision == said), "half")


def _lesion_filter(folder: Path, manifest: dict[str, Any]) -> LesionFilter:
    """What filtered the masks of a folder; of gathered validation cases what the folds make of theirs together."""
    if "lesion_filter" in manifest:
        return from_jsonable(LesionFilter, manifest["lesion_filter"], f"{folder / MANIFEST}: lesion_filter")
    settings = manifest.get("settings")
    if isinstance(settings, dict) and "lesion_filter" in settings:
        return from_jsonable(LesionFilter, settings["lesion_filter"], f"{folder / MANIFEST}: settings.lesion_filter")
    if "validation" in manifest:
        model = Path(str(manifest.get("model")))
        filters = [read_settings(model / f"fold_{fold}").lesion_filter for fold in finished_folds(model)]
        return combined_filter(filters) if filters else NO_FILTER
    return NO_FILTER


def _named_as(labels: LabelScheme, found: LesionFilter, folder: Path, manifest: dict[str, Any]) -> LesionFilter:
    """The filter with the classes called as in `labels`, which the manifest may call otherwise."""
    if found.keeps_all or "labels" not in manifest:
        return found
    own = from_jsonable(LabelScheme, manifest["labels"], f"{folder / MANIFEST}: labels")
    names = dict(zip(own.names, labels.names, strict=False))  # other numbers of classes are refused later on
    return replace(found, rules={names.get(name, name): rule for name, rule in found.rules.items()})
