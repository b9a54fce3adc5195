"""Prediction of arrays and of folders with a trained model, one or several folds.

Folds are averaged in probability. The samples asked for are shared out over the folds, sample i to fold i modulo
their number, so that five folds cost five segmenter passes but no more denoiser calls than one; a fold that gets no
sample stands for its p_det.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unisegdiff_pipeline.inference.combining import Combination, require_combinable
from unisegdiff_pipeline.inference.decision import NEUTRAL, best_threshold
from unisegdiff_pipeline.inference.limits import find_limits
from unisegdiff_pipeline.inference.model_folder import (
    WEIGHTS_NAME,
    ModelFolder,
    choose_folds,
    load_fold,
    open_model_folder,
    plan_hash,
)
from unisegdiff_pipeline.inference.settings import Decision, InferenceSettings
from unisegdiff_pipeline.inference.uncertainty import normalised_entropy
from unisegdiff_pipeline.inference.uncertainty_parts import (
    PARTS,
    UncertaintyParts,
    require_splittable,
    split_uncertainty,
)
from unisegdiff_pipeline.inference.volume_sampler import CasePrediction, SamplingFacts, can_sample, predict_case
from unisegdiff_pipeline.inference.writing import (
    CaseRecord,
    OutputOptions,
    mask_path,
    output_folders,
    read_record,
    restore_masks,
    restore_probabilities,
    uncertainty_scale,
    write_prediction,
    write_record,
    write_summary,
)
from unisegdiff_pipeline.io.errors import UsdError
from unisegdiff_pipeline.io.files import file_hash, is_full_disk, remove_stale_temporaries, text_hash
from unisegdiff_pipeline.io.geometry import Geometry, Volume
from unisegdiff_pipeline.io.labels import Coding, LabelScheme
from unisegdiff_pipeline.io.parallel import available_memory_gb, usable_cores
from unisegdiff_pipeline.io.progress import progress
from unisegdiff_pipeline.io.raw_dataset import RawCase, find_cases
from unisegdiff_pipeline.io.serialization import to_jsonable
from unisegdiff_pipeline.networks.precision import resolve_device
from unisegdiff_pipeline.networks.staged_model import StagedModel
from unisegdiff_pipeline.preprocessing.preprocessor import preprocess_image
from unisegdiff_pipeline.preprocessing.properties import CaseProperties
from unisegdiff_pipeline.preprocessing.restore import restore_map

OVERLAP_SHARE = 0.1  # of free memory that an image may take for three cases to be under way at once


@dataclass(frozen=True)
class Prediction:
    """Prediction of an array, on the array's own grid; the Z axis is missing where the image had none.

    Attributes:
        mask: label map (Z, Y, X).
        probabilities: (K, Z, Y, X), half precision; channels as in `LabelScheme`.
        samples: label map of each drawn mask (N, Z, Y, X).
        uncertainty: normalised entropy (Z, Y, X), 0 to 1.
        between_folds, within_samples, single_samples: where uncertainty comes from, (Z, Y, X), as in
            `UncertaintyParts`; None where it was not asked for or cannot be told.
    """

    mask: np.ndarray
    probabilities: np.ndarray
    samples: np.ndarray
    uncertainty: np.ndarray
    between_folds: np.ndarray | None = None
    within_samples: np.ndarray | None = None
    single_samples: np.ndarray | None = None


@dataclass(frozen=True)
class EnsemblePrediction:
    """Prediction by all folds on the plan's grid: mean probabilities (K, Z, Y, X) and where each sample lies."""

    probabilities: Tensor
    members: tuple[CasePrediction, ...]
    sample_places: tuple[tuple[int, int], ...]  # (member, index there) of every sample
    facts: SamplingFacts
    threshold: float = NEUTRAL  # where the probabilities are cut into the mask

    def samples(self) -> Iterator[Tensor]:
        """Probabilities of each sample (K, Z, Y, X), put together one at a time."""
        for member, index in self.sample_places:
            yield self.members[member].sample(index)

    def uncertainty_parts(self, coding: Coding) -> UncertaintyParts:
        """What folds and samples contribute to the uncertainty, on the plan's grid."""
        return split_uncertainty(self.members, coding)


class Predictor:
    """A trained model, loaded once.

    Args:
        model_folder: RESULTS/DATASET/TRAINER__CONFIGURATION.
        folds: None takes all finished ones.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        mirror: average the segmenter over flips along the plan's `mirror_axes`, as nnU-Net does along all axes; costs
            up to 4 (2D) or 8 (3D) times its time.
        decision: how probabilities become the mask, "half" or "dice"; None takes what most folds chose.
    """

    def __init__(
        self,
        model_folder: Path | str,
        folds: Sequence[str | int] | str | int | None = None,
        device: str = "auto",
        mirror: bool = False,
        decision: Decision | None = None,
    ) -> None:
        self.model: ModelFolder = open_model_folder(Path(model_folder))
        self.folds = choose_folds(self.model, folds)
        self.device = resolve_device(device)
        self.mirror_axes = self.model.configuration.patch_mirror_axes if mirror else ()
        self.networks: list[tuple[StagedModel, InferenceSettings]] = [
            load_fold(self.model, fold, self.device) for fold in self.folds
        ]
        by_dice = sum(settings.decision == "dice" for _, settings in self.networks)
        self.decision: Decision = decision or ("dice" if 2 * by_dice > len(self.networks) else "half")

    @property
    def labels(self) -> LabelScheme:
        """What channels and label values mean."""
        return self.model.plans.labels

    def num_samples(self, wanted: int | None) -> int:
        """Samples that will be drawn a case: those asked for, else the settings'; 0 where no fold has a denoiser."""
        if not any(can_sample(network, settings) for network, settings in self.networks):
            return 0
        return self.networks[0][1].num_samples if wanted is None else wanted

    def predict(
        self,
        image: np.ndarray,
        spacing_mm: Sequence[float],
        *,
        num_samples: int | None = None,
        seed: int = 0,
        case_id: str = "array",
        combine: Combination = "mean",
        uncertainty_parts: bool = False,
    ) -> Prediction:
        """Predict an array.

        Args:
            image: (C, Z, Y, X), or (C, Y, X) for a 2D image, as it was acquired: not normalised, not resampled.
            spacing_mm: distance of voxels (Z, Y, X), or (Y, X) for a 2D image.
            num_samples: masks to draw; None takes the model's number.
            seed, case_id: name the noise; equal names give equal samples.
            combine: what the mask is made of: the mean probability, or the drawn masks; see `combining`.
            uncertainty_parts: also say where uncertainty comes from; see `uncertainty_parts`.

        Raises:
            UsdError: wrong number of channels, NaN or infinite values; masks to combine or uncertainty to split where
                nothing is drawn.
        """
        self.require_possible(combine, uncertainty_parts, self.num_samples(num_samples))
        volume = _volume_of(image, spacing_mm)
        _require_finite(volume.array, case_id)
        prepared, properties = preprocess_image(volume, self.model.configuration.preprocessing, case_id)
        found = self.predict_preprocessed(prepared, properties, num_samples=num_samples, seed=seed)
        mask, drawn = restore_masks(
            found.probabilities, found.samples(), properties, self.labels, combine, found.threshold
        )
        samples = list(drawn)
        arrays = {
            "mask": mask,
            "samples": np.stack(samples) if samples else np.empty((0, *mask.shape), mask.dtype),
            "uncertainty": restore_map(normalised_entropy(found.probabilities, self.labels.coding), properties),
            "probabilities": restore_probabilities(found.probabilities, properties, self.labels),
        }
        if uncertainty_parts:
            parts = found.uncertainty_parts(self.labels.coding)
            known = {name: getattr(parts, name) for name in PARTS}
            arrays |= {name: restore_map(part, properties) for name, part in known.items() if part is not None}
        if image.ndim == 3:
            arrays = {name: array[..., 0, :, :] for name, array in arrays.items()}
        return Prediction(**arrays)

    def require_possible(self, combine: Combination, uncertainty_parts: bool, num_samples: int) -> None:
        """Refuse what cannot be had from this many samples and these folds.

        Raises:
            ValueError, UsdError: see `require_combinable` and `require_splittable`.
        """
        require_combinable(combine, num_samples)
        if uncertainty_parts:
            require_splittable(len(self.folds), num_samples)

    def predict_preprocessed(
        self, image: np.ndarray, properties: CaseProperties, *, num_samples: int | None = None, seed: int = 0
    ) -> EnsemblePrediction:
        """Predict an image (C, Z, Y, X) on the plan's grid by all folds."""
        count = self.num_samples(num_samples)
        limits = find_limits(self.device)
        total: Tensor | None = None
        members: list[CasePrediction] = []
        places: list[tuple[int, int, int]] = []  # (sample, member, index in the member)
        for index, (network, settings) in enumerate(self.networks):
            ids = range(index, count, len(self.networks))
            member = predict_case(
                image, network, settings, patch_size=self.model.configuration.network.patch_size,
                case_id=properties.case_id, seed=seed, sample_ids=ids, spacing_mm=properties.spacing_mm,
                limits=limits, mirror_axes=self.mirror_axes,
            )  # fmt: skip
            probabilities = member.probabilities()
            total = probabilities if total is None else total.add_(probabilities)
            places += [(sample, index, i) for i, sample in enumerate(list(ids)[: member.num_samples])]
            if len(self.networks) > 1:  # from here on it only backs the samples, and there is one for every fold
                member = dataclasses.replace(member, p_det=member.p_det.half())
            members.append(member)
        assert total is not None
        ordered = tuple((member, i) for _, member, i in sorted(places))
        found = EnsemblePrediction(total.div_(len(members)), tuple(members), ordered, _sum_facts(members))
        if self.decision == "half":
            return found
        drawn = (self.labels.decode(sample.numpy()) for sample in found.samples())
        return dataclasses.replace(found, threshold=best_threshold(found.probabilities, drawn, self.labels))


def predict(
    image: np.ndarray,
    spacing_mm: Sequence[float],
    model_folder: Path | str,
    *,
    folds: Sequence[str | int] | str | int | None = None,
    device: str = "auto",
    num_samples: int | None = None,
    seed: int = 0,
    combine: Combination = "mean",
    uncertainty_parts: bool = False,
) -> Prediction:
    """Predict one array; see `Predictor.predict`. Make a `Predictor` for several, it loads the model once."""
    return Predictor(model_folder, folds, device).predict(
        image, spacing_mm, num_samples=num_samples, seed=seed, combine=combine, uncertainty_parts=uncertainty_parts
    )


def predict_folder(
    source: Path | Sequence[Path],
    output: Path,
    model_folder: Path,
    folds: Sequence[str | int] | str | int | None = None,
    *,
    num_samples: int | None = None,
    seed: int = 0,
    device: str = "auto",
    num_parts: int = 1,
    part_id: int = 0,
    save_probabilities: bool = False,
    save_samples: bool = False,
    overwrite: bool = False,
    mirror: bool = False,
    combine: Combination = "mean",
    decision: Decision | None = None,
    save_uncertainty_parts: bool = False,
) -> int:
    """Predict the cases of a folder, a file or a list; returns how many were predicted now.

    What runs that were killed left half written in `output` is removed first.

    Cases that `output` holds already, made from the same image by the same model with the same settings, are left as
    they are. See `writing` for what is written.

    Args:
        source: folder, file or list of files, named as in the raw layout.
        output: folder for masks; made if missing.
        num_parts, part_id: of the sorted cases this run takes every `num_parts`-th, beginning with `part_id`.
        overwrite: predict finished cases again.
        combine: what masks are made of; see `combining`.
        decision: how the mean probability is cut into the mask; None takes what most folds chose.

    Raises:
        UsdError: no such model or input; nothing to combine or to split; a full disk; or cases that failed, named
            after all others have been finished.
    """
    if not 0 <= part_id < num_parts:
        raise UsdError(f"part_id is {part_id} of {num_parts} parts; allowed is 0 to {num_parts - 1}.")
    started = time.perf_counter()
    output = Path(output)
    model = open_model_folder(Path(model_folder))
    choose_folds(model, folds)
    cases = find_cases(source, model.plans.file_ending, len(model.plans.channel_names))
    _require_elsewhere(output, cases)
    for folder in output_folders(output):
        remove_stale_temporaries(folder)
    torch.set_num_threads(max(1, min(torch.get_num_threads(), usable_cores())))
    predictor = Predictor(model_folder, folds, device, mirror, decision)
    count = predictor.num_samples(num_samples)
    predictor.require_possible(combine, save_uncertainty_parts, count)
    options = OutputOptions(
        model.plans.file_ending, model.plans.spacing_known, save_samples, save_probabilities, save_uncertainty_parts,
        combine,
    )  # fmt: skip
    run = _FolderRun(predictor, output, options, count, seed)
    chosen = cases[part_id::num_parts]
    left = [case for case in chosen if overwrite or not run.is_finished(case)]
    if len(left) < len(chosen):
        _say(f"{len(chosen) - len(left)} of {len(chosen)} cases are finished already; {len(left)} are left")
    try:
        run.predict(left)
    finally:
        run.write_tables(time.perf_counter() - started)
    run.raise_failures()
    return len(left)


@dataclass
class _Prepared:
    """A case that has been read and preprocessed."""

    case: RawCase
    image: np.ndarray
    properties: CaseProperties
    input_hashes: tuple[str, ...]
    seconds: dict[str, float]


class _FolderRun:
    """Goes through cases: one is read while another is in the network and a third is written."""

    def __init__(self, predictor: Predictor, output: Path, options: OutputOptions, num_samples: int, seed: int) -> None:
        self.predictor, self.output, self.options = predictor, output, options
        self.num_samples, self.seed = num_samples, seed
        self.failures: dict[str, UsdError] = {}
        self.description = self._describe()
        self.request = text_hash(str(sorted(self.description.items(), key=lambda item: item[0])))

    def is_finished(self, case: RawCase) -> bool:
        """Whether the output holds this case, made from the same files in the same way."""
        record = read_record(self.output, case.case_id)
        if record is None or record.request != self.request:
            return False
        if not mask_path(self.output, case.case_id, self.options.file_ending).is_file():
            return False
        return record.input_hashes == tuple(file_hash(path) for path in case.image_paths)

    def predict(self, cases: Sequence[RawCase]) -> None:
        """Predict cases one after the other; failures of single cases are collected, and named by raise_failures."""
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            reading: Future[_Prepared] | None = reader.submit(self._prepare, cases[0]) if cases else None
            writing: tuple[str, Future[None]] | None = None
            for index in progress(range(len(cases)), len(cases), "predicting"):
                case, following = cases[index], cases[index + 1 : index + 2]
                assert reading is not None
                overlap = False
                with self._collected(case.case_id):
                    prepared = reading.result()
                    overlap = self._overlap_fits(prepared)
                    reading = reader.submit(self._prepare, following[0]) if following and overlap else None
                    found = self._compute(prepared)
                    self._wait_for(writing)
                    writing = case.case_id, writer.submit(self._write, prepared, found)
                    del prepared, found
                    if not overlap:
                        self._wait_for(writing)
                        writing = None
                if not overlap:
                    reading = reader.submit(self._prepare, following[0]) if following else None
            self._wait_for(writing)

    def _wait_for(self, writing: tuple[str, Future[None]] | None) -> None:
        if writing is not None:
            case_id, future = writing
            with self._collected(case_id):
                future.result()

    @contextmanager
    def _collected(self, case_id: str) -> Iterator[None]:
        """Keep the error of a case for the end; a full disk would fail all others too, and ends the run."""
        try:
            yield
        except UsdError as error:
            if is_full_disk(error):
                raise
            self.failures[case_id] = error

    def write_tables(self, seconds: float) -> None:
        """Write lesions.csv, volumes.csv and manifest.json over all finished cases, those of earlier runs included."""
        manifest = {"request": self.request, **self.description, "seconds_of_last_run": round(seconds, 3)}
        manifest["device"] = str(self.predictor.device)
        manifest["uncertainty"] = {
            "meaning": "entropy of the mean probability as a share of the largest possible",
            "scale": uncertainty_scale(self.options.file_ending),
        }
        manifest["failed"] = {case_id: str(error) for case_id, error in self.failures.items()}
        write_summary(self.output, manifest)

    def raise_failures(self) -> None:
        """Name all cases that failed, if any did."""
        if self.failures:
            lines = "; ".join(f"{case_id}: {error}" for case_id, error in self.failures.items())
            raise UsdError(f"{len(self.failures)} cases could not be predicted, the others are done. {lines}")

    def _prepare(self, case: RawCase) -> _Prepared:
        from unisegdiff_pipeline.io.images import read_image

        start = time.perf_counter()
        hashes = tuple(file_hash(path) for path in case.image_paths)
        volume = read_image(case.image_paths)
        _require_finite(volume.array, str(case.image_paths[0]))
        read = time.perf_counter()
        image, properties = preprocess_image(
            volume, self.predictor.model.configuration.preprocessing, case.case_id, case.group
        )
        seconds = {"read": read - start, "preprocess": time.perf_counter() - read}
        return _Prepared(case, image, properties, hashes, seconds)

    def _compute(self, prepared: _Prepared) -> EnsemblePrediction:
        start = time.perf_counter()
        try:
            found = self.predictor.predict_preprocessed(
                prepared.image, prepared.properties, num_samples=self.num_samples, seed=self.seed
            )
        except torch.OutOfMemoryError as error:
            raise UsdError(
                f"memory of {self.predictor.device} ran out at case {prepared.case.case_id} "
                f"(shape {prepared.properties.shape} on the plan's grid); use --device cpu, or a GPU with more memory."
            ) from error
        prepared.seconds["network"] = time.perf_counter() - start
        prepared.seconds["segmenter"] = found.facts.seconds_segmenter
        prepared.seconds["samples"] = found.facts.seconds_samples
        return found

    def _write(self, prepared: _Prepared, found: EnsemblePrediction) -> None:
        start = time.perf_counter()
        labels = self.predictor.labels
        parts = found.uncertainty_parts(labels.coding) if self.options.save_uncertainty_parts else None
        num_lesions = write_prediction(
            self.output, found.probabilities, found.samples(), prepared.properties, labels, self.options, parts,
            found.threshold,
        )  # fmt: skip
        prepared.seconds["write"] = time.perf_counter() - start
        facts = found.facts
        counts = {
            "num_tiles": facts.num_tiles,
            "num_active_tiles": facts.num_active_tiles,
            "num_recomputed": facts.num_recomputed,
            "num_samples": len(found.sample_places),
            "num_lesions": num_lesions,
            "threshold": found.threshold,
        }
        if facts.num_recomputed > facts.num_tiles:
            _say(
                f"{prepared.case.case_id}: the features of its {facts.num_active_tiles} active tiles did not fit into "
                f"memory; the segmenter ran {facts.num_recomputed} times more than once a tile"
            )
        inputs = tuple(str(path) for path in prepared.case.image_paths)
        record = CaseRecord(
            prepared.case.case_id, self.request, inputs, prepared.input_hashes, prepared.seconds, counts
        )
        write_record(self.output, record)

    def _overlap_fits(self, prepared: _Prepared) -> bool:
        """Whether three cases of this size may be in memory at once."""
        channels = self.predictor.labels.num_channels * max(1, len(self.predictor.folds))
        voxels = np.prod(prepared.properties.shape, dtype=np.int64)
        size_gb = (prepared.image.nbytes + 4 * channels * int(voxels)) / 2**30
        return size_gb < OVERLAP_SHARE * available_memory_gb()

    def _describe(self) -> dict[str, object]:
        """Everything that a result depends on besides the image and the device."""
        predictor = self.predictor
        return {
            "model": str(predictor.model.folder.resolve()),
            "plan_hash": plan_hash(predictor.model.configuration),
            "folds": list(predictor.folds),
            "weights": {f: file_hash(predictor.model.fold_folder(f) / WEIGHTS_NAME) for f in predictor.folds},
            "settings": {f: to_jsonable(s) for f, (_, s) in zip(predictor.folds, predictor.networks, strict=True)},
            "num_samples": self.num_samples,
            "seed": self.seed,
            "mirror_axes": list(predictor.mirror_axes),
            "save_samples": self.options.save_samples,
            "save_probabilities": self.options.save_probabilities,
            "save_uncertainty_parts": self.options.save_uncertainty_parts,
            "combine": self.options.combine,
            "decision": predictor.decision,
        }


def _volume_of(image: np.ndarray, spacing_mm: Sequence[float]) -> Volume:
    if image.ndim not in (3, 4):
        raise ValueError(f"image has shape {image.shape}; expected (C, Z, Y, X), or (C, Y, X) for a 2D image")
    if len(spacing_mm) != image.ndim - 1 and not (image.ndim == 3 and len(spacing_mm) == 3):
        raise ValueError(f"spacing_mm {tuple(spacing_mm)} has {len(spacing_mm)} values for an image {image.shape}")
    z, y, x = (1.0, *spacing_mm) if len(spacing_mm) == 2 else spacing_mm
    array = image[:, None] if image.ndim == 3 else image
    return Volume(array.astype(np.float32), Geometry((float(z), float(y), float(x)), is_2d=image.ndim == 3))


def _require_finite(array: np.ndarray, name: str) -> None:
    # The sum of finite floats is finite here far before it overflows, and costs no copy of the volume.
    if not np.isfinite(array.sum(dtype=np.float64)):
        count = int(array.size - np.isfinite(array).sum())
        raise UsdError(
            f"{name} holds {count} voxels that are NaN or infinite; replace them, or export the image again."
        )


def _require_elsewhere(output: Path, cases: Sequence[RawCase]) -> None:
    """Masks beside images would be taken for images the next time, or replace them."""
    for case in cases:
        if case.image_paths[0].parent.resolve() == output.resolve():
            raise UsdError(f"{output} is the folder of the images; choose another folder for the masks.")


def _sum_facts(members: Sequence[CasePrediction]) -> SamplingFacts:
    facts = [member.facts for member in members]
    return SamplingFacts(
        facts[0].num_tiles,
        max(f.num_active_tiles for f in facts),
        sum(f.num_recomputed for f in facts),
        sum(f.seconds_segmenter for f in facts),
        sum(f.seconds_samples for f in facts),
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
